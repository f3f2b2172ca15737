"""A ComfyUI MODEL as ``core.denoiser.Denoiser``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import comfy.model_management as model_management
import comfy.samplers
import torch
from torch import Tensor

from ...core.attention.site import AttentionControl
from ...core.denoiser import Evaluations, ModelIdentity, ddim_grid
from ...core.errors import EditingError
from .attention import with_control
from .gradients import gradient_factor, scale_gradient
from .own_latents import can_share, with_latent, with_own_latents

#: Options by which nodes change how predictions are combined.
GUIDANCE_PATCHES = ("sampler_cfg_function", "sampler_post_cfg_function", "sampler_pre_cfg_function")


class ComfyDenoiser:
    """``core.denoiser.Denoiser`` on a loaded MODEL. ``cond`` is an entry of :attr:`~.session.Session.conds`.

    Args:
        base: the loaded ``BaseModel``.
        model_options: the options of this sampling run; patches, wrappers and hooks of the MODEL are in there.
        model_identity: :func:`~.identity.identity` of the MODEL.
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

        Without ``control`` it is what the host predicts at cfg 1, so that an inversion is one of what the host samples
        from: guidance patches that act there (PAG and the like) are in it.

        Raises:
            EditingError: ``control`` given and the model has no cross-attention.
        """
        if control is None and self.patched:
            return self.guide(x, sigma, cond, None, 1.0)
        return self.batch(x, sigma, [cond], control=control)[0]

    def batch(
        self,
        x: Tensor | Sequence[Tensor],
        sigma: float | Tensor,
        conds: Sequence[Any],
        *,
        control: AttentionControl | None = None,
    ) -> list[Tensor]:
        """All conditionings in one host call and in the host's order: CFG of [cond, uncond] is bit-equal to stock.

        With one ``x`` each it is one host call too, except under what reads the latent outside of the network
        (ControlNets, wrappers of other packs): then it is one for each latent.
        """
        if not isinstance(x, Tensor):
            return self._several(list(x), sigma, list(conds), control)
        return self._evaluate(x, sigma, conds, control)

    def _several(
        self, x: list[Tensor], sigma: float | Tensor, conds: list[Any], control: AttentionControl | None
    ) -> list[Tensor]:
        if all(each is x[0] for each in x):
            return self._evaluate(x[0], sigma, conds, control)
        if can_share(self.model_options, conds):
            own = [with_latent(cond, self._host_latent(each)) for cond, each in zip(conds, x, strict=True)]
            return self._evaluate(x[0], sigma, own, control, options=with_own_latents(self.model_options))
        made: dict[int, Tensor] = {}
        for latent in {id(each): each for each in x}.values():
            numbers = [number for number, each in enumerate(x) if each is latent]
            made |= zip(
                numbers, self._evaluate(latent, sigma, [conds[n] for n in numbers], control, numbers), strict=True
            )
        return [made[number] for number in range(len(conds))]

    def _evaluate(
        self,
        x: Tensor,
        sigma: float | Tensor,
        conds: Sequence[Any],
        control: AttentionControl | None,
        numbers: Sequence[int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> list[Tensor]:
        """One host call; ``numbers`` are the branches of ``conds`` where they are not their positions."""
        model_management.throw_exception_if_processing_interrupted()
        options = self.model_options if options is None else options
        factor = gradient_factor(self.base)
        if control is not None:
            options = with_control(options, self.base.diffusion_model, control, factor, numbers)
        x = self._host_latent(x)
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
        return [
            self.evaluations.track(_image_latent(scale_gradient(denoised, factor)), *watched) for denoised in outputs
        ]

    @property
    def patched(self) -> bool:
        """See ``core.denoiser.Combining``."""
        return any(self.model_options.get(kind) for kind in GUIDANCE_PATCHES)

    def guide(self, x: Tensor, sigma: float | Tensor, cond: Any, uncond: Any | None, cfg: float) -> Tensor:
        """The host's own sampling function, so at any ``cfg`` bit-equal to stock; evaluations that a patch makes by
        itself are not counted.
        """
        if uncond is None:
            cfg = 1.0
        alone = uncond is None or (math.isclose(cfg, 1.0) and not self.model_options.get("disable_cfg1_optimization"))
        if not self.patched:
            if alone:
                return self.batch(x, sigma, [cond])[0]
            return self.combine(x, sigma, self.batch(x, sigma, [cond, uncond]), [cond, uncond], cfg)
        model_management.throw_exception_if_processing_interrupted()
        factor = gradient_factor(self.base)
        x, level = scale_gradient(self._host_latent(x), 1 / factor), _level(x, sigma)
        if factor != 1.0:
            cond, uncond = _scaled(cond, 1 / factor), None if uncond is None else _scaled(uncond, 1 / factor)
        made = comfy.samplers.sampling_function(self.base, x, level, uncond, cond, cfg, self.model_options)
        if not alone:
            self.evaluations.forward += len(x)
        return self.evaluations.track(_image_latent(scale_gradient(made, factor)))

    def combine(
        self, x: Tensor, sigma: float | Tensor, predictions: list[Tensor], conds: Sequence[Any], cfg: float
    ) -> Tensor:
        """Classifier-free guidance as the host does it, with the guidance patches of the MODEL (RescaleCFG, PAG and the
        like); without any it is the plain formula, bit for bit. Evaluations that a patch makes by itself are not
        counted."""
        options, level = self.model_options, _level(x, sigma)
        x, outputs = self._host_latent(x), [self._host_latent(prediction) for prediction in predictions]
        for patch in options.get("sampler_pre_cfg_function", []):
            given = {"conds": list(conds), "conds_out": outputs, "cond_scale": cfg, "timestep": level}
            outputs = patch({**given, "input": x, "sigma": level, "model": self.base, "model_options": options})
        cond, uncond = conds
        combined: Tensor = comfy.samplers.cfg_function(
            self.base, outputs[0], outputs[1], cfg, x, level, model_options=options, cond=cond, uncond=uncond
        )
        return _image_latent(combined)

    def _host_latent(self, x: Tensor) -> Tensor:
        """``x`` as the network takes it: image models made from video networks have a time axis of length 1."""
        return x.unsqueeze(2) if self.base.latent_format.latent_dimensions == 3 and x.ndim == 4 else x

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


def _image_latent(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` of a latent with a time axis of length 1."""
    return x.squeeze(2) if x.ndim == 5 else x


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
