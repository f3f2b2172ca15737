"""A ComfyUI MODEL as ``core.denoiser.Denoiser``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management as model_management
import comfy.model_sampling
import comfy.samplers
import torch
from torch import Tensor

from ...core.attention.site import AttentionControl
from ...core.denoiser import Evaluations, ModelIdentity, Prediction, ddim_grid, weight_signature
from ...core.errors import EditingError
from .attention import with_control
from .gradients import gradient_factor, scale_gradient


def prediction_of(model_sampling: Any) -> Prediction:
    """What the network predicts.

    Raises:
        EditingError: a parameterisation in which the sigma-space equation does not hold.
    """
    host = comfy.model_sampling
    unusable = tuple(getattr(host, name) for name in ("X0", "IMG_TO_IMG", "IMG_TO_IMG_FLOW") if hasattr(host, name))
    kinds: tuple[tuple[type, Prediction], ...] = ((host.CONST, "flow"), (host.V_PREDICTION, "v"), (host.EPS, "eps"))
    if not isinstance(model_sampling, unusable):
        for kind, prediction in kinds:
            if isinstance(model_sampling, kind):
                return prediction
    raise EditingError("This kind of model cannot be inverted; use an eps, v-prediction or rectified-flow image model.")


def identity(model: Any) -> ModelIdentity:
    """The identity of a MODEL, equal to that of the same weights in diffusers; LoRA and other patches do not change it.

    Raises:
        EditingError: a kind of model that no algorithm of the pack can use.
    """
    base = model.model
    network = base.diffusion_model
    prediction = prediction_of(model.get_model_object("model_sampling"))
    named = {name: p for name, p in network.named_parameters() if p.ndim >= 2}
    if "input_blocks.0.0.weight" in named:
        first, last = "input_blocks.0.0.weight", "out.2.weight"
        family = unet_family(base.model_config.unet_config)
    else:
        first, last = next(iter(named)), next(reversed(named))
        family = type(base).__name__.lower()
    weights = [_unpatched(model, f"diffusion_model.{name}", named[name]) for name in (first, last)]
    return ModelIdentity(family, base.latent_format.latent_channels, prediction, weight_signature(*weights))


def unet_family(config: dict[str, Any]) -> str:
    """Family of a Stable Diffusion U-Net by what its cross-attention reads."""
    if config.get("adm_in_channels"):
        return "sdxl"
    return {768: "sd1", 1024: "sd2"}.get(config.get("context_dim") or 0, f"sd{config.get('context_dim')}")


def _unpatched(model: Any, key: str, weight: Tensor) -> Tensor:
    """The weight as the checkpoint had it: while a LoRA is applied the host keeps that in its backup."""
    backup = model.backup.get(key)
    return weight if backup is None else getattr(backup, "weight", backup)


class ComfyDenoiser:
    """``core.denoiser.Denoiser`` on a loaded MODEL. ``cond`` is an entry of :attr:`~.session.Session.conds`.

    Args:
        base: the loaded ``BaseModel``.
        model_options: the options of this sampling run; patches, wrappers and hooks of the MODEL are in there.
        model_identity: :func:`identity` of the MODEL.
    """

    def __init__(self, base: Any, model_options: dict[str, Any], model_identity: ModelIdentity):
        self.base = base
        self.model_options = model_options
        self.identity = model_identity
        self.evaluations = Evaluations()

    @property
    def precision(self) -> torch.dtype:
        """What the network computes in: its manual cast, where the host keeps the weights in another type."""
        kind = getattr(self.base, "manual_cast_dtype", None) or self.base.get_dtype()
        return kind if isinstance(kind, torch.dtype) and kind.itemsize > 1 else torch.bfloat16

    def __call__(
        self, x: Tensor, sigma: float | Tensor, cond: Any, *, control: AttentionControl | None = None
    ) -> Tensor:
        """See ``core.denoiser.Denoiser``; every call raises when the person pressed Cancel.

        Raises:
            EditingError: ``control`` given and the model has no cross-attention.
        """
        return self.batch(x, sigma, [cond], control=control)[0]

    def batch(
        self, x: Tensor, sigma: float | Tensor, conds: Sequence[Any], *, control: AttentionControl | None = None
    ) -> list[Tensor]:
        """All conditionings in one host call and in the host's order: CFG of [cond, uncond] is bit-equal to stock."""
        model_management.throw_exception_if_processing_interrupted()
        options = self.model_options
        factor = gradient_factor(self.base)
        if control is not None:
            options = with_control(options, self.base.diffusion_model, control, factor)
        if factor != 1.0:
            x, conds = scale_gradient(x, 1 / factor), [_scaled(cond, 1 / factor) for cond in conds]
        # An alias of this call alone: a loss on attention maps flows back through it, though never through the output.
        watched = [x := x.view_as(x)] if len(conds) == 1 and x.requires_grad else []
        level = _level(x, sigma)
        if "sampler_calc_cond_batch_function" in options and len(conds) == 2:
            inputs = {"conds": list(conds), "input": x, "sigma": level, "model": self.base, "model_options": options}
            outputs = options["sampler_calc_cond_batch_function"](inputs)
        else:
            outputs = comfy.samplers.calc_cond_batch(self.base, list(conds), x, level, options)
        return [self.evaluations.track(scale_gradient(denoised, factor), *watched) for denoised in outputs]

    def combine(
        self, x: Tensor, sigma: float | Tensor, predictions: list[Tensor], conds: Sequence[Any], cfg: float
    ) -> Tensor:
        """Classifier-free guidance as the host does it, with the guidance patches of the MODEL (RescaleCFG, PAG and the
        like); without any it is the plain formula, bit for bit. Evaluations that a patch makes by itself are not
        counted."""
        options, level, outputs = self.model_options, _level(x, sigma), list(predictions)
        for patch in options.get("sampler_pre_cfg_function", []):
            given = {"conds": list(conds), "conds_out": outputs, "cond_scale": cfg, "timestep": level}
            outputs = patch({**given, "input": x, "sigma": level, "model": self.base, "model_options": options})
        cond, uncond = conds
        combined: Tensor = comfy.samplers.cfg_function(
            self.base, outputs[0], outputs[1], cfg, x, level, model_options=options, cond=cond, uncond=uncond
        )
        return combined

    def select(self, cond: Any, rows: Tensor) -> Any:
        """The processed conditioning restricted to batch rows ``rows`` (long, [b]).

        Raises:
            EditingError: a ControlNet that was given one hint per image.
        """
        index = rows.cpu()
        return [_select_entry(entry, index) for entry in cond]

    def sigma_grid(self, steps: int) -> Tensor:
        """Ascending ``[steps + 1]``: the DDIM grid of eps and v models; of flow models their own shifted grid, from 0.

        Raises:
            EditingError: ``steps`` out of range.
        """
        sampling = self.base.model_sampling
        if self.identity.prediction != "flow":
            return ddim_grid(sampling.sigmas.detach().float().cpu(), steps)
        if steps < 1:
            raise EditingError(f"steps is {steps}; use 1 or more.")
        return comfy.samplers.calculate_sigmas(sampling, "simple", steps).flip(0).float().cpu()


def _level(x: Tensor, sigma: float | Tensor) -> Tensor:
    """``sigma`` as the host passes it, fp32 ``[B]`` beside ``x``."""
    level = sigma if isinstance(sigma, Tensor) else torch.tensor(sigma, dtype=torch.float32)
    return level.to(x.device, torch.float32).expand(x.shape[0])


def _scaled(cond: list[dict[str, Any]], factor: float) -> list[dict[str, Any]]:
    """``cond`` with the gradients of its tensors multiplied by ``factor``."""
    changed = []
    for entry in cond:
        parts = {}
        for key, value in entry["model_conds"].items():
            tensor = getattr(value, "cond", None)
            parts[key] = (
                value._copy_with(scale_gradient(tensor, factor))
                if isinstance(tensor, Tensor) and tensor.requires_grad
                else value
            )
        changed.append({**entry, "model_conds": parts})
    return changed


def _select_entry(entry: dict[str, Any], index: Tensor) -> dict[str, Any]:
    control = entry.get("control")
    while control is not None:
        hint = getattr(control, "cond_hint_original", None)
        if hint is not None and hint.shape[0] > 1:
            raise EditingError(
                "A ControlNet with one hint per image cannot be used on a batch here; process the images one at a time."
            )
        control = control.previous_controlnet
    entry = dict(entry)
    conds = {}
    for key, value in entry["model_conds"].items():
        tensor: Any = getattr(value, "cond", None)
        rowwise = isinstance(tensor, Tensor) and tensor.ndim > 0 and tensor.shape[0] > 1
        conds[key] = value._copy_with(tensor[(index % len(tensor)).to(tensor.device)]) if rowwise else value
    entry["model_conds"] = conds
    mask = entry.get("mask")
    if mask is not None and len(mask) > 1:
        entry["mask"] = mask[(index % len(mask)).to(mask.device)]
    return entry
