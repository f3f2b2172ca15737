"""One host evaluation of several conditionings, each at a latent of its own.

The host shows one latent to all conditionings of a call. A latent rides along among the parts of its conditioning, cut
to the conditioning's area as the host cuts its own, and a wrapper around the model puts it in the place of the host's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.conds
import comfy.model_patcher
import comfy.patcher_extension
from torch import Tensor

KEY = "semantic_editing_latent"
#: What reads or changes the latent before it is the network's: beside one of these, latents are not put in its place.
READERS = ("model_function_wrapper", "context_handler", "multigpu_clones", "sampler_calc_cond_batch_function")
#: Parts of a conditioning of which the same holds: ControlNets read the latent, hooks may bring wrappers.
READING_PARTS = ("control", "hooks", "default")


class OwnLatent(comfy.conds.CONDRegular):
    """A latent ``[B, C, H, W]`` as a part of a conditioning."""

    def process_cond(self, batch_size: int, area: Sequence[int] | None = None, **rest: Any) -> Any:
        """The latent in the conditioning's area (sizes, then offsets, as the host has them)."""
        latent = self.cond
        axes = latent.ndim - 2
        for axis in range(axes if area is not None else 0):
            assert area is not None
            latent = latent.narrow(axis + 2, area[axes + axis], area[axis])
        return self._copy_with(latent)


def can_share(model_options: dict[str, Any], conds: Sequence[Any]) -> bool:
    """Whether nothing but the network reads the latent of an evaluation of ``conds``."""
    if any(model_options.get(reader) is not None for reader in READERS):
        return False
    for kind in (comfy.patcher_extension.WrappersMP.APPLY_MODEL, comfy.patcher_extension.WrappersMP.CALC_COND_BATCH):
        if comfy.patcher_extension.get_all_wrappers(kind, model_options, is_model_options=True):
            return False
    parts = (entry.get(part) for cond in conds for entry in cond for part in READING_PARTS)
    return all(part is None for part in parts)


def with_latent(cond: list[dict[str, Any]], latent: Tensor) -> list[dict[str, Any]]:
    """``cond`` with ``latent [B, C, H, W]`` among its parts."""
    return [{**entry, "model_conds": {**entry["model_conds"], KEY: OwnLatent(latent)}} for entry in cond]


def with_own_latents(model_options: dict[str, Any]) -> dict[str, Any]:
    """A copy of ``model_options`` under which the network reads the latents among the conditionings' parts."""

    def wrapper(executor: Any, x: Tensor, *arguments: Any, **parts: Any) -> Any:
        own = parts.pop(KEY)
        return executor(own.to(x), *arguments, **parts)

    changed = comfy.model_patcher.create_model_options_clone(model_options)
    kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
    comfy.patcher_extension.add_wrapper_with_key(kind, KEY, wrapper, changed, is_model_options=True)
    return changed
