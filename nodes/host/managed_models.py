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
from ...core.classifiers.frozen_features import JoinedClassifier
from ...core.models.clip import OWN, ClipScorer, ImageEmbedding, TowerScorer
from ...core.models.vision_features import VisionFeatures
from .gradients import gradient_scope, materialise
from .memory import memory_advice

#: Memory that a training takes over the weights' own: gradients, two moments, the best epoch and activations.
TRAINING_ROOM = 6
#: Under this key a handle names those that are loaded with it.
OTHERS = "semantic_editing_networks"


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


def load_to_device(*patchers: Any) -> None:
    """Load the networks of some :func:`managed_patcher` whole and together, evicting others if need be; their weights
    become normal."""
    with torch.inference_mode(False):
        model_management.load_models_gpu(list(patchers), force_full_load=True)
        for patcher in patchers:
            materialise(patcher.model, patcher.load_device)


@dataclass(frozen=True, eq=False)
class ManagedClassifier:
    """What an ATTRIBUTE_CLASSIFIER socket carries.

    Attributes:
        classifier: for its names, size and fingerprint; compute with it only where ``patchers`` are loaded.
        patcher: the host's handle. A run that is given it loads the others of ``patchers`` too.
    """

    classifier: ImageClassifier
    patcher: Any

    @property
    def patchers(self) -> tuple[Any, ...]:
        """The handles of all networks that the classifier computes with."""
        return (self.patcher, *self.patcher.get_nested_additional_models())


def manage_classifier(make: Callable[[], ImageClassifier], *others: Any) -> ManagedClassifier:
    """A classifier that the host manages; ``make`` is called outside inference mode, so that autograd works.

    Args:
        others: handles of networks that it computes with and that are no parts of it.
    """
    with gradient_scope(True):
        classifier = make()
    patcher = managed_patcher(_own_part(classifier))
    if others:
        patcher.set_additional_models(OTHERS, list(others))
    return ManagedClassifier(classifier, patcher)


def _own_part(classifier: ImageClassifier) -> nn.Module:
    """What a classifier adds to those that it is made of, which have handles of their own."""
    return classifier.second if isinstance(classifier, JoinedClassifier) else classifier


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
        return ManagedScorer(make())


class ManagedScorer:
    """A ``core.models.clip.ClipScorer`` on the host's device."""

    def __init__(self, scorer: TowerScorer):
        assert scorer.network is not None, "its weights must be known to be moved"
        self.scorer, self.patcher = scorer, managed_patcher(scorer.network)

    @property
    def identity(self) -> str:
        """See :class:`~...core.models.clip.ClipScorer`."""
        return self.scorer.identity

    @property
    def side(self) -> int:
        """See :class:`~...core.models.clip.ClipScorer`."""
        return self.scorer.side

    @property
    def logit_scale(self) -> float:
        """See :class:`~...core.models.clip.ClipScorer`."""
        return self.scorer.logit_scale

    def embed_images(self, images: Tensor) -> ImageEmbedding:
        """See :class:`~...core.models.clip.ClipScorer`."""
        return self._loaded().embed_images(images)

    def image_features(self, images: Tensor, preprocessing: str = OWN) -> Tensor:
        """See :class:`~...core.models.clip.ClipScorer`."""
        return self._loaded().image_features(images, preprocessing)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """See :class:`~...core.models.clip.ClipScorer`."""
        return self._loaded().text_features(texts)

    def _loaded(self) -> Any:
        load_to_device(self.patcher)
        return self.scorer
