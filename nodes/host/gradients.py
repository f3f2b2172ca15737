"""Gradients inside a host that runs every prompt under ``torch.inference_mode()``.

Weights that a stock loader made inside a prompt are inference tensors: autograd refuses to save them, and neither
``enable_grad`` nor replacing ``p.data`` helps. What helps is to leave inference mode around loading *and* work, and to
replace the Parameter and buffer objects once, value for value (:func:`materialise`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.clip_model
import comfy.ldm.modules.attention as host_attention
import comfy.model_management as model_management
import torch

from ...core.errors import EditingError

#: Gradients inside an fp16 network are this much larger than true ones, or those of a nearly solved residual underflow
#: (a residual of 1e-3 rms: cosine 0.50 to the fp32 gradient unscaled, 0.9998 with 2^10); it leaves room up to 64 above.
HALF_SCALE = 2.0**10
#: The host's attention functions that autograd can differentiate; others (sage, flash, int8) are replaced while it
#: records.
DIFFERENTIABLE_ATTENTION = {"attention_basic", "attention_sub_quad", "attention_split", "attention_pytorch"}


@contextmanager
def gradient_scope(enabled: bool) -> Iterator[None]:
    """Everything inside (loading included) may build autograd graphs; with ``enabled`` False nothing does."""
    if not enabled:
        with torch.no_grad():
            yield
        return
    # Newer hosts run in-place inference kernels unless this flag says that autograd is recording.
    host = vars(model_management)
    flagged, before = "in_training" in host, host.get("in_training")
    with torch.inference_mode(False), torch.enable_grad():
        try:
            if flagged:
                host["in_training"] = True
            yield
        finally:
            if flagged:
                host["in_training"] = before


def materialise(module: torch.nn.Module, device: torch.device) -> None:
    """Make ``module`` usable for autograd: its inference tensors on ``device`` become normal ones of the same values.

    Call it outside inference mode and after loading (which makes parameters anew). It changes the shared module, but no
    value in it. Weights that the host keeps on another device are left alone: it casts them for every use, which makes
    normal tensors, and it may have registered their memory as pinned.
    """

    def unusable(tensor: torch.Tensor | None) -> bool:
        return tensor is not None and tensor.device == device and tensor.is_inference()

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and unusable(parameter):
                part._parameters[name] = torch.nn.Parameter(parameter.clone(), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None and unusable(buffer):
                part._buffers[name] = buffer.clone()


@contextmanager
def frozen(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """No parameter of ``modules`` requires a gradient inside; the previous state comes back afterwards.

    0.3.64 leaves ``requires_grad`` on, and a backward pass would then compute and keep a gradient for every weight.
    """
    thawed = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in thawed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)


@contextmanager
def out_of_place(network: torch.nn.Module) -> Iterator[None]:
    """Within the ``with`` block autograd can go through the CLIP layers of ``network``; no value changes.

    A layer adds to its input in place after a LayerNorm has saved it for the backward pass; the LayerNorms get copies.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, comfy.clip_model.CLIPLayer)]
    norms = (
        [norm for layer in layers for norm in (layer.layer_norm1, layer.layer_norm2)] if torch.is_grad_enabled() else []
    )
    hooks = [norm.register_forward_pre_hook(lambda module, inputs: (inputs[0].clone(), *inputs[1:])) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def normal_tensors(value: Any) -> Any:
    """A copy of nested lists, tuples and dicts with every tensor detached, cloned and normal."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if type(value) is dict:
        return {key: normal_tensors(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(normal_tensors(part) for part in value)
    return value


def static_patcher(model: Any) -> Any:
    """``model`` itself, or where the host streams weights through a shared buffer (dynamic VRAM) a copy that stays put.

    Raises:
        EditingError: a loader without a copy of its weights made the model.
    """
    if not getattr(model, "is_dynamic", lambda: False)():
        return model
    try:
        return model.get_non_dynamic_delegate()
    except RuntimeError as error:
        raise EditingError(
            "This model's loader cannot hand out the static copy that gradients need; "
            "use a stock loader or start ComfyUI with --disable-dynamic-vram."
        ) from error


def make_differentiable(transformer_options: dict[str, Any]) -> None:
    """Change one run's ``transformer_options`` so that the network's forward can be differentiated; no value changes.

    Attention kernels without a backward give way to PyTorch's. Every skip connection of a U-Net gets a tensor of its
    own: a ControlNet is added to it in place, after autograd has saved it for the block that follows. And patches may
    write into what they are given, as FreeU does.
    """
    previous = transformer_options.get("optimized_attention_override")
    transformer_options["optimized_attention_override"] = differentiable_attention(previous)
    patches = {
        name: [_may_write(patch) for patch in given] for name, given in transformer_options.get("patches", {}).items()
    }
    patches["input_block_patch_after_skip"] = [*patches.get("input_block_patch_after_skip", []), _own_copy]
    transformer_options["patches"] = patches


def _may_write(patch: Callable[..., Any]) -> Callable[..., Any]:
    """``patch`` on copies of the tensors that autograd follows; what it saves for the way back is copied too, so that
    it may be written over."""

    def written(*given: Any, **named: Any) -> Any:
        if not any(isinstance(part, torch.Tensor) and part.requires_grad for part in given):
            return patch(*given, **named)
        own = [part.clone() if isinstance(part, torch.Tensor) and part.requires_grad else part for part in given]
        with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.clone, _as_it_is):
            return patch(*own, **named)

    return written


def _as_it_is(saved: torch.Tensor) -> torch.Tensor:
    return saved


def _own_copy(h: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    return h.clone() if h.requires_grad else h


def differentiable_attention(previous: Any | None = None) -> Any:
    """An ``optimized_attention_override`` under which attention has a backward while autograd records."""

    def override(function: Any, q: Any, k: Any, v: Any, heads: int, *rest: Any, **options: Any) -> Any:
        if torch.is_grad_enabled() and getattr(function, "__name__", "") not in DIFFERENTIABLE_ATTENTION:
            function = host_attention.attention_pytorch
        if previous is not None:
            return previous(function, q, k, v, heads, *rest, **options)
        return function(q, k, v, heads, *rest, **options)

    return override


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] * ctx.factor, None


def scale_gradient(tensor: torch.Tensor, factor: float) -> torch.Tensor:
    """``tensor`` itself, whose gradient is multiplied by ``factor`` on its way back."""
    if factor == 1.0 or not (tensor.requires_grad and torch.is_grad_enabled()):
        return tensor
    result: torch.Tensor = _ScaleGradient.apply(tensor, factor)
    return result


def gradient_factor(base: Any) -> float:
    """How much larger than true ones the gradients inside ``base``'s network are: 1 unless it computes in fp16."""
    if not torch.is_grad_enabled():
        return 1.0
    known = getattr(base, "get_dtype_inference", None)
    compute = known() if known is not None else base.manual_cast_dtype or base.get_dtype()
    return HALF_SCALE if compute == torch.float16 else 1.0
