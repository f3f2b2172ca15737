"""The host's CLIP and CLIP_VISION together as a CLIP that scores, where they really are two sides of one.

Diffusion models never read the text side's projection, so most files leave it out (the ``clip_l.safetensors`` of SD3
and Flux, every SD 1.x checkpoint); the host then computes with whatever memory it found. And two sides of equal width
may come from different CLIPs. Neither can be seen for certain from the weights; that both sides name plain colours
alike can.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import comfy.model_management as model_management
import torch
from torch import Tensor, nn

from ...core.content_hash import content_hash
from ...core.errors import EditingError
from ...core.models.clip import LOGIT_SCALE, ClipScorer, TowerScorer
from .conditioning import PREFIX
from .gradients import out_of_place, static_patcher
from .managed_models import load_to_device

REMEDY = (
    "put model.safetensors of openai/clip-vit-large-patch14 into models/text_encoders and models/clip_vision, and load "
    "it with Load CLIP and Load CLIP Vision"
)
#: Colours that CLIPs know (Arias et al., arXiv 2502.04470: chromatic ones reliably, black, white and grey not).
COLOURS = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.7, 0.1),
    "blue": (0.1, 0.2, 0.9),
    "yellow": (1.0, 0.9, 0.1),
    "orange": (1.0, 0.5, 0.0),
    "purple": (0.5, 0.1, 0.6),
}
#: So rarely sides that have nothing to do with each other would name the colours as well as these do. A CLIP that
#: takes two of them for each other still passes.
CHANCE = 0.02
#: Share of zeros from which on a projection is memory that nobody wrote to.
EMPTY = 0.5


def stock_scorer(clip: Any, clip_vision: Any) -> StockScorer:
    """A scorer of the host's CLIP and CLIP_VISION; every use loads what it needs first.

    Features of images have gradients where autograd records.

    Raises:
        EditingError: one of them is no side of a CLIP, lacks its projection, or they belong to different CLIPs.
    """
    vision = clip_vision.model
    seen = _projection(vision, "visual_projection")
    if seen is None or getattr(getattr(vision, "vision_model", None), "output_layernorm", True):
        raise EditingError(f"This CLIP Vision is no image side of a CLIP (a SigLIP or DINO perhaps); {REMEDY}.")
    encoders = {
        name: module
        for name, module in clip.cond_stage_model.named_children()
        if name.startswith(PREFIX) and _projection(getattr(module, "transformer", None), "text_projection") is not None
    }
    if not encoders:
        raise EditingError(f"This CLIP has no text encoder of a CLIP (a T5 or language model perhaps); {REMEDY}.")
    widths = {name: module.transformer.text_projection.out_features for name, module in encoders.items()}
    name = next((name for name, width in widths.items() if width == vision.visual_projection.out_features), None)
    if name is None:
        sides = " and ".join(f"{name} {width}" for name, width in widths.items())
        raise EditingError(
            f"The text side ({sides}) and the CLIP Vision ({vision.visual_projection.out_features}) are of different "
            f"widths, so of different CLIPs; {REMEDY}."
        )
    read = encoders[name].transformer.text_projection.weight
    for side, weight in (("text side", read), ("CLIP Vision", seen)):
        if _unwritten(weight):
            raise EditingError(f"The file of this {side} lacks the projection into CLIP's common space; {REMEDY}.")
    scorer = StockScorer(clip, name, clip_vision, (read, seen))
    if _likely_by_chance(scorer):
        raise EditingError(
            f"This text side ({name}) and this CLIP Vision do not agree on plain colours: they belong to different "
            f"CLIPs, or a file lacks its projection; {REMEDY}."
        )
    return scorer


def _logit_scale(encoder: Any) -> float:
    """A text encoder's own scale; the host has CLIP's where a file has none."""
    found = getattr(encoder, "logit_scale", None)
    return LOGIT_SCALE if found is None else float(found.detach().float().exp())


def _projection(module: Any, name: str) -> Tensor | None:
    """Weight of the linear layer ``name``."""
    layer = getattr(module, name, None)
    return layer.weight if isinstance(layer, nn.Linear) else None


def _unwritten(weight: Tensor) -> bool:
    """Whether a projection holds what a host leaves where a file has none: zeros, the identity, no numbers."""
    values = weight.detach().float().cpu()
    if not values.isfinite().all():
        return True
    identity = torch.eye(*values.shape)
    return float((values == 0).float().mean()) > EMPTY or torch.allclose(values, identity, atol=1e-3)


@torch.no_grad()
def _likely_by_chance(scorer: ClipScorer) -> bool:
    """Whether sides that have nothing to do with each other might name the plain colours as well.

    Compared with all ways to give the names to the colours.
    """
    pictures = torch.tensor(list(COLOURS.values())).reshape(-1, 3, 1, 1).expand(-1, -1, 32, 32)
    texts = [f"a plain {name} background" for name in COLOURS]
    cosines = scorer.image_features(pictures).cpu().double() @ scorer.text_features(texts).cpu().double().T
    rows = torch.arange(len(COLOURS))
    orders = torch.tensor(list(permutations(range(len(COLOURS)))))
    sums = cosines[rows, orders].sum(1)  # the first order is the true one
    return float((sums >= sums[0]).double().mean()) > CHANCE or not bool(cosines.isfinite().all())


class StockScorer(TowerScorer):
    """What :func:`stock_scorer` makes; its towers load themselves.

    Attributes:
        name: of the text encoder, e.g. "clip_l".
    """

    def __init__(self, clip: Any, name: str, clip_vision: Any, projections: tuple[Tensor, Tensor]):
        self.clip, self.name, self.vision = clip, name, clip_vision
        patched = [str(patcher.patches_uuid) for patcher in (clip.patcher, clip_vision.patcher) if patcher.patches]
        super().__init__(
            content_hash("stock", name, *projections, *patched),
            self._see,
            self._read,
            clip_vision.image_size,
            clip_vision.image_mean,
            clip_vision.image_std,
            logit_scale=_logit_scale(getattr(clip.cond_stage_model, name)),
        )

    @property
    def device(self) -> torch.device:
        """Where the host computes with the vision model."""
        device: torch.device = self.vision.patcher.load_device
        return device

    def _see(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        patcher = self.vision.patcher
        if torch.is_grad_enabled():
            patcher = static_patcher(patcher)
            load_to_device(patcher)
        else:
            model_management.load_models_gpu([patcher])
        with out_of_place(patcher.model):
            states, _, features, *_ = patcher.model(pixel_values=pixels)
        return features, states[:, 1:]

    @torch.no_grad()
    def _read(self, texts: list[str]) -> Tensor:
        key = self.name.removeprefix(PREFIX)
        # The first 77 tokens; emphasis, as in (hair:1.2), says nothing to a CLIP that scores.
        tokens = [[token for token, *_ in self.clip.tokenize(text)[key][0]] for text in texts]
        network = self.clip.load_model().model
        network.reset_clip_options()
        network.set_clip_options({"execution_device": self.clip.patcher.load_device, "projected_pooled": True})
        features: Tensor = getattr(network, self.name)(tokens)[1]
        return features
