"""Classifiers among the host's models: it may evict them, and they can be differentiated inside a prompt."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management as model_management
import comfy.model_patcher
import comfy.utils
import torch
from comfy_execution.utils import get_executing_context
from torch import nn

from ...core.classifiers.base import ImageClassifier
from .gradients import frozen, gradient_scope, materialise
from .memory import memory_advice

#: Memory that a training takes over the weights' own: gradients, two moments, the best epoch and activations.
TRAINING_ROOM = 6
#: Longer side in pixels of a picture shown while a node runs.
PICTURE_SIDE = 768


class _Model(nn.Module):
    """The host sets attributes of its own (``device`` among them) on the network of a patcher."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network


def held_patcher(network: nn.Module) -> Any:
    """The host's handle of a network that is not one of its own."""
    return comfy.model_patcher.ModelPatcher(
        _Model(network), load_device=model_management.get_torch_device(), offload_device=model_management.unet_offload_device()
    )


def bring(patcher: Any) -> None:
    """Load the whole network of a :func:`held_patcher`, evicting others if need be; its weights are normal tensors afterwards."""
    with torch.inference_mode(False):
        model_management.load_models_gpu([patcher], force_full_load=True)
        materialise(patcher.model, patcher.load_device)


@dataclass(frozen=True, eq=False)
class HeldClassifier:
    """What an ATTRIBUTE_CLASSIFIER socket carries.

    Attributes:
        classifier: for its names, size and fingerprint; compute with it only inside :func:`classifier_scope`.
        patcher: the host's handle.
    """

    classifier: ImageClassifier
    patcher: Any


def hold_classifier(make: Callable[[], ImageClassifier]) -> HeldClassifier:
    """Call ``make`` outside inference mode, so that the weights can take part in autograd, and hand the result to the host."""
    with gradient_scope(True):
        classifier = make()
    return HeldClassifier(classifier, held_patcher(classifier))


@contextmanager
def classifier_scope(held: HeldClassifier) -> Iterator[ImageClassifier]:
    """The classifier on the host's device, frozen, with gradients with respect to images possible inside."""
    with gradient_scope(True):
        bring(held.patcher)
        with frozen([held.patcher.model]):
            yield held.classifier


@contextmanager
def training_scope(weights: int) -> Iterator[torch.device]:
    """The device to train on, with room made for a network of ``weights`` bytes; autograd works inside.

    Raises:
        OOM_EXCEPTION: out of memory, with advice in the message.
    """
    device = model_management.get_torch_device()
    with memory_advice("lower batch_size or switch train_trunk off"), gradient_scope(True):
        if not model_management.is_device_cpu(device):
            model_management.free_memory(TRAINING_ROOM * weights + model_management.minimum_inference_memory(), device)
        yield device


def progress_text(text: str) -> None:
    """Write a line under the node that runs; nothing outside a server's prompt."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    running, context = getattr(server, "instance", None), get_executing_context()
    if running is not None and context is not None:
        running.send_progress_text(text, context.node_id)


class StoppableBar:
    """A progress bar that remembers a press of Cancel instead of raising at once, so that work done can be kept first."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.cancelled: BaseException | None = None

    def __call__(self, done: int, total: int, picture: Any = None) -> bool:
        """Move the bar, and show a PIL ``picture`` when given; True when the person wants to stop."""
        with self.catching():
            self.show(done, total, picture)
        return self.cancelled is not None

    def show(self, done: int, total: int, picture: Any = None, text: str = "") -> None:
        """Move the bar, and write ``text`` under the node; a press of Cancel raises at once."""
        if self.bar is None:
            self.bar = comfy.utils.ProgressBar(total)
        model_management.throw_exception_if_processing_interrupted()
        if text:
            progress_text(text)
        self.bar.update_absolute(done, total, None if picture is None else ("JPEG", picture, PICTURE_SIDE))

    @contextmanager
    def catching(self) -> Iterator[None]:
        """A press of Cancel, wherever it raises in the ``with`` block, ends the block and is remembered."""
        try:
            yield
        except model_management.InterruptProcessingException as pressed:
            self.cancelled = pressed

    def finish(self) -> None:
        """Raise what was remembered."""
        if self.cancelled is not None:
            raise self.cancelled
