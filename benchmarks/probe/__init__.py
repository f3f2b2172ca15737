"""A custom node folder for a ComfyUI of the demo bench's own: counts u, whatever node samples.

``GET /semantic_editing_bench`` answers with the diffusion network's evaluations since the start, in rows of a batch:
``{"forward": ..., "backward": ...}``.
"""

from typing import Any

import comfy.model_base
import server
import torch
from aiohttp import web

NODE_CLASS_MAPPINGS: dict[str, Any] = {}
counts = {"forward": 0, "backward": 0}
apply_model = comfy.model_base.BaseModel.apply_model


def counted(self: Any, x: Any, *rest: Any, **named: Any) -> Any:
    """ComfyUI's ``apply_model``. A backward pass counts once, when a gradient arrives at the latent or at a
    conditioning: a loss on attention maps never passes through the output."""
    rows = x.shape[0]
    counts["forward"] += rows
    arrived = []

    def went_back(_: Any) -> None:
        counts["backward"] += 0 if arrived else rows
        arrived.append(True)

    def watched(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.requires_grad:
            return value
        alias = value.view_as(value)  # of this call alone
        alias.register_hook(went_back)
        return alias

    return apply_model(self, watched(x), *map(watched, rest), **{key: watched(value) for key, value in named.items()})


comfy.model_base.BaseModel.apply_model = counted


@server.PromptServer.instance.routes.get("/semantic_editing_bench")
async def tell(_: Any) -> Any:
    """The counts so far."""
    return web.json_response(counts)
