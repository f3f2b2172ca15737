"""The host's CLIP_VISION, and CLIPs that score, as trunks of classifiers: a run loads them once, beside the MODEL."""

from __future__ import annotations

from typing import Any

import comfy.model_management as model_management
import torch
import torch.nn.functional as functional
from torch import Tensor

from ...core.classifiers.frozen_features import FeatureTrunk, scorer_trunk
from ...core.content_hash import content_hash
from ...core.errors import EditingError
from ...core.models.clip import TowerScorer
from .gradients import out_of_place, static_patcher
from .managed_models import ManagedScorer, load_to_device


def vision_trunk(clip_vision: Any) -> tuple[FeatureTrunk, Any]:
    """``(its unit features as the trunk of a classifier, the handle that must be loaded for it)`` of a CLIP_VISION: a
    CLIP's class token after the projection, DINO's class token, the mean of SigLIP's patches.

    Raises:
        EditingError: an image side that does not take square pictures.
    """
    if getattr(clip_vision, "model_type", "") == "siglip2_vision_model":
        raise EditingError(
            "This CLIP Vision (SigLIP 2 NaFlex) does not take square pictures; use a CLIP, DINO or SigLIP."
        )
    patcher, side = static_patcher(clip_vision.patcher), int(clip_vision.image_size)
    with torch.inference_mode(False):
        mean, std = (torch.tensor(part).reshape(3, 1, 1) for part in (clip_vision.image_mean, clip_vision.image_std))

    def see(images: Tensor) -> Tensor:
        pixels = images.to(patcher.load_device, torch.float32)
        if tuple(pixels.shape[-2:]) != (side, side):
            pixels = functional.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        with out_of_place(patcher.model):
            _, _, features, *_ = patcher.model(pixel_values=(pixels - mean.to(pixels)) / std.to(pixels))
        features = features.mean(1) if features.ndim == 3 else features
        return functional.normalize(features.float(), dim=1)

    model_management.load_models_gpu([patcher])
    with torch.no_grad():
        width = see(torch.zeros(1, 3, side, side)).shape[1]
    matrices = [parameter for parameter in patcher.model.parameters() if parameter.ndim > 1]
    patched = [str(patcher.patches_uuid)] if patcher.patches else []
    identity = content_hash("clip vision", matrices[0], matrices[len(matrices) // 2], matrices[-1], *patched)
    return FeatureTrunk(see, identity, side, width), patcher


def clip_trunk(source: Any) -> tuple[FeatureTrunk, Any]:
    """:func:`vision_trunk` of a CLIP_VISION or of a CLIP_SCORER, which for once does not load itself.

    Raises:
        EditingError: see there.
    """
    if isinstance(source, ManagedScorer):
        load_to_device(source.patcher)
        return scorer_trunk(source.scorer), source.patcher
    if isinstance(source, TowerScorer):  # of the host's CLIP and CLIP_VISION
        trunk, patcher = vision_trunk(source.vision)  # type: ignore[attr-defined]
        return FeatureTrunk(trunk.see, source.identity, trunk.side, trunk.width), patcher
    return vision_trunk(source)
