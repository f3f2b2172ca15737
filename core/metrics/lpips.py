"""LPIPS: how differently a network trained on photographs sees two pictures (Zhang et al. 2018, arXiv 1801.03924).

torchmetrics' network and learned layer weights; the network's own weights come from a file of torchvision's, which
nobody downloads here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EditingError
from ..files import load_weights
from ..reading.libraries import library
from .checks import check_pair, masked_mean, torchmetrics_part

#: Networks by torchmetrics' names -> torchvision's, whose weights they take.
NETWORKS = {"alex": "alexnet", "squeeze": "squeezenet1_1", "vgg": "vgg16"}
#: Pixels: below that the last layers have nothing left to see.
SMALLEST_SIDE = 32


class Lpips(nn.Module):
    """Distance of pictures by LPIPS; make one with :func:`load_lpips`.

    Attributes:
        network: "alex", "squeeze" or "vgg"; figures of different ones do not compare.
    """

    def __init__(self, layers: Any, network: str):
        super().__init__()
        self.layers, self.network = layers.eval().requires_grad_(False), network

    @torch.no_grad()
    def forward(self, images: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
        """Distance ``[B]`` of ``images`` from ``reference``, both ``[B, 3, H, W]`` in 0..1; 0 for equal images.

        Without a mask it is LPIPS as published: at every layer the mean over its positions, summed over the layers.

        Args:
            mask: ``[B or 1, 1, H, W]`` in 0..1, how much each pixel counts. The layers' differences are brought to the
                size of the images (LPIPS' own spatial map), summed and averaged over the mask. The network still sees
                the whole pictures, so a change outside is felt some way across the edge; PIE-Bench's code blackens
                both pictures outside instead and averages over all pixels, which makes small masks look good.

        Raises:
            EditingError: shapes differ, sides are too short, a value is not a number, or the mask is empty.
        """
        check_pair(images, reference)
        if images.shape[1] != 3 or min(images.shape[-2:]) < SMALLEST_SIDE:
            raise EditingError(
                f"The images have shape {list(images.shape)}; LPIPS needs [batch, 3, height, width] with sides of at "
                f"least {SMALLEST_SIDE} pixels."
            )
        device = next(self.layers.parameters()).device
        self.layers.spatial = mask is not None
        found = self.layers(images.to(device).float(), reference.to(device).float(), normalize=True)
        return masked_mean(found.cpu().double(), mask)


def load_lpips(file: str | Path, network: str = "alex") -> Lpips:
    """LPIPS over one of torchvision's networks.

    Args:
        file: torchvision's weights of alexnet, squeezenet1_1 or vgg16 trained on ImageNet, ``.pth`` as it publishes
            them or ``.safetensors``; the classifier part is not needed.
        network: "alex" (LPIPS' own choice for judging), "squeeze" (PIE-Bench's) or "vgg".

    Raises:
        EditingError: the file is missing, damaged or another network's, the name is unknown, or torchmetrics or
            torchvision are not installed.
    """
    if network not in NETWORKS:
        raise EditingError(f"LPIPS has no network {network!r}; use one of {', '.join(NETWORKS)}.")
    package = torchmetrics_part("functional.image.lpips", "LPIPS")
    library("torchvision", "LPIPS", "models")  # torchmetrics takes the layers from it
    source = Path(file)
    weights = load_weights(source, "perceptual network")
    # The learned layer weights come with torchmetrics; pnet_rand leaves the network itself without weights.
    layers = package._LPIPS(pretrained=True, net=network, pnet_rand=True)
    # torchmetrics keeps torchvision's layers under their numbers, in slices: slices.1.3.squeeze.weight is
    # features.3.squeeze.weight.
    wanted = layers.net.state_dict()
    own = {name: f"features.{name.removeprefix('slices.').split('.', 1)[1]}" for name in wanted}
    if any(own[name] not in weights or weights[own[name]].shape != wanted[name].shape for name in wanted):
        raise EditingError(
            f"{source.name} does not hold the weights of torchvision's {NETWORKS[network]}; choose its ImageNet file "
            "or the network that the file is of."
        )
    layers.net.load_state_dict({name: weights[own[name]].float() for name in wanted})
    return Lpips(layers, network)
