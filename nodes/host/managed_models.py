"""The pack's own networks (classifiers, CLIP, vision transformers), managed by the host: loaded for use, evictable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management as model_management
import comfy.model_patcher
import comfy.utils
import torch
from torch import Tensor, nn

from ...core.classifiers.base import ImageClassifier
from ...core.models.clip import ClipScorer, ImageEmbedding, TowerScorer
from ...core.models.vision_features import VisionFeatures
from .gradients import gradient_scope, materialise
from .memory import memory_advice

#: Memory that a training takes over the weights' own: gradients, two moments, the best epoch and activations.
TRAINING_ROOM = 6


class _Model(nn.Module):
    """The host sets attributes of its own (``device`` among them) on the network of a patcher."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network


def managed_patcher(network: nn.Module) -> Any:
    """The host's handle of a network that is not one of its own."""
    return comfy.model_patcher.ModelPatcher(
        _Model(network),
        load_device=model_management.get_torch_device(),
        offload_device=model_management.unet_offload_device(),
    )


def preferred_dtype() -> torch.dtype:
    """fp16 where the host would compute in it on its device, else fp32."""
    half = model_management.should_use_fp16(model_management.get_torch_device())
    return torch.float16 if half else torch.float32


def load_to_device(patcher: Any) -> None:
    """Load the network of a :func:`managed_patcher` whole, evicting others if need be; its weights become normal."""
    with torch.inference_mode(False):
        model_management.load_models_gpu([patcher], force_full_load=True)
        materialise(patcher.model, patcher.load_device)


@dataclass(frozen=True, eq=False)
class ManagedClassifier:
    """What an ATTRIBUTE_CLASSIFIER socket carries.

    Attributes:
        classifier: for its names, size and fingerprint; compute with it only where ``patcher`` is loaded.
        patcher: the host's handle.
    """

    classifier: ImageClassifier
    patcher: Any


def manage_classifier(make: Callable[[], ImageClassifier]) -> ManagedClassifier:
    """A classifier that the host manages; ``make`` is called outside inference mode, so that autograd works."""
    with gradient_scope(True):
        classifier = make()
    return ManagedClassifier(classifier, managed_patcher(classifier))


@contextmanager
def training_scope(weights: int, advice: str = "lower batch_size or switch train_trunk off") -> Iterator[torch.device]:
    """The device to train on, with room made for a network of ``weights`` bytes; autograd works inside.

    Args:
        advice: against running out of memory.

    Raises:
        OOM_EXCEPTION: out of memory, with advice in the message.
    """
    device = model_management.get_torch_device()
    with memory_advice(advice), gradient_scope(True):
        if not model_management.is_device_cpu(device):
            model_management.free_memory(TRAINING_ROOM * weights + model_management.minimum_inference_memory(), device)
        yield device


def manage_vision(make: Callable[[], VisionFeatures]) -> VisionFeatures:
    """Vision features that the host manages: every call loads the network first.

    ``make`` is called outside inference mode.
    """
    with torch.inference_mode(False):
        vision = make()
    patcher = managed_patcher(vision)
    vision.register_forward_pre_hook(lambda *_: load_to_device(patcher))
    return vision


def manage_scorer(make: Callable[[], TowerScorer]) -> ClipScorer:
    """A CLIP that the host manages: every use loads the network, of which its towers are parts, first.

    ``make`` is called outside inference mode, and outside it gradients with respect to images are possible.
    """
    with torch.inference_mode(False):
        return _ManagedScorer(make())


class _ManagedScorer:
    """A ``core.models.clip.ClipScorer`` on the host's device."""

    def __init__(self, scorer: TowerScorer):
        assert scorer.network is not None, "its weights must be known to be moved"
        self.scorer, self.patcher = scorer, managed_patcher(scorer.network)

    @property
    def identity(self) -> str:
        return self.scorer.identity

    def embed_images(self, images: Tensor) -> ImageEmbedding:
        return self._loaded().embed_images(images)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        return self._loaded().text_features(texts)

    def _loaded(self) -> Any:
        load_to_device(self.patcher)
        return self.scorer
