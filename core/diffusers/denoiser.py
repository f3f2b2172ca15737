"""A diffusers U-Net as a :class:`~..denoiser.Denoiser`. Needs the objects only, so diffusers is never imported here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..attention.features import features_shown
from ..attention.site import AttentionControl
from ..denoiser import Evaluations, ModelIdentity, PerLevel, ddim_grid, weight_signature
from ..errors import EditingError
from ..prints.weights import weight_print
from .attention import controlled
from .features import feature_sites

PREDICTIONS: dict[str, Literal["eps", "v"]] = {"epsilon": "eps", "v_prediction": "v"}
LATENT_SCALE = 8  # pixels per latent pixel of every Stable Diffusion VAE, for SDXL's size conditioning


@dataclass(frozen=True, eq=False)
class TextCond:
    """Conditioning of SDXL; of SD1 and SD2 the plain tensor ``embeds`` does as well.

    Attributes:
        embeds: ``[B or 1, L, D]`` text encoder states.
        pooled: ``[B or 1, P]`` pooled text embedding (SDXL).
        time_ids: ``[B or 1, 6]`` original height, width, crop top, left, target height, width in pixels (SDXL);
            None means the size of the latent, uncropped.
    """

    embeds: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None


class DiffusersDenoiser:
    """``UNet2DConditionModel`` and its scheduler as a denoiser in sigma space.

    The network is put in eval mode and otherwise left as it is; its weights never receive gradients through a denoiser.

    Args:
        unet: eps or v-prediction U-Net of the Stable Diffusion family, in any dtype and on any device.
        scheduler: gives the noise table (``alphas_cumprod``) and ``prediction_type``; its own stepping is not used.

    Raises:
        EditingError: a prediction type or a U-Net that is not of this kind.
    """

    def __init__(self, unet: Any, scheduler: Any):
        config: Any = unet.config
        prediction = scheduler.config.get("prediction_type", "epsilon")
        if not hasattr(scheduler, "alphas_cumprod"):
            raise EditingError(
                f"{type(scheduler).__name__} has no diffusion noise table; use the model's DDIM scheduler."
            )
        if prediction not in PREDICTIONS:
            raise EditingError(
                f"The scheduler says prediction_type {prediction}; use an epsilon or v_prediction model."
            )
        if config.in_channels != config.out_channels:
            raise EditingError(
                f"This U-Net takes {config.in_channels} channels and returns {config.out_channels}; "
                "use a plain text-to-image model, no inpainting one."
            )
        if config.get("encoder_hid_dim_type") is not None or config.get("addition_embed_type") not in (
            None,
            "text_time",
        ):
            raise EditingError("This U-Net reads more than text; use a Stable Diffusion 1.x, 2.x or SDXL model.")
        alphas = scheduler.alphas_cumprod.double().cpu()
        self.unet = unet.eval()
        self.evaluations = Evaluations()
        #: The model's noise table, ascending ``[N]``: ``sqrt((1 - alpha_cumprod) / alpha_cumprod)``.
        self.sigmas = ((1 - alphas) / alphas).sqrt().float()
        self._log_sigmas = self.sigmas.log()
        signature = weight_signature(self.unet.conv_in.weight, self.unet.conv_out.weight)
        self.identity = ModelIdentity(
            _family(config),
            config.in_channels,
            PREDICTIONS[prediction],
            signature,
            weight_print(self.unet.parameters()),
        )

    @property
    def precision(self) -> torch.dtype:
        """What the network computes in: the weights' type, or that of the autocast at work."""
        device = self.unet.conv_in.weight.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return self.unet.conv_in.weight.dtype

    def __call__(
        self,
        x: Tensor,
        sigma: float | Tensor,
        cond: Tensor | TextCond | PerLevel,
        *,
        control: AttentionControl | None = None,
    ) -> Tensor:
        """Prediction of the clean latent, ``[B, C, H, W]`` in fp32 (fp64 for fp64 input); see
        :class:`~..denoiser.Denoiser`.

        Raises:
            EditingError: ``x`` or ``cond`` does not fit the network, or ``control`` cannot be served.
        """
        return self._evaluate(x, sigma, [self._checked(cond, x, sigma)], (0,), control)[0]

    def batch(
        self,
        x: Tensor | Sequence[Tensor],
        sigma: float | Tensor,
        conds: Sequence[Tensor | TextCond | PerLevel],
        *,
        control: AttentionControl | None = None,
    ) -> list[Tensor]:
        """Predictions ``[B, C, H, W]`` of ``x [B, C, H, W]``, or of one each, under each of ``conds``, in their order.

        One network call with ``len(conds) * B`` rows; one each where the texts differ in length.

        Raises:
            EditingError: ``x`` or a conditioning does not fit the network, or ``control`` cannot be served.
        """
        if isinstance(x, Tensor):
            x = [x] * len(conds)
        if len(x) != len(conds) or len({part.shape for part in x}) > 1:
            raise EditingError(
                f"There are {len(x)} latents of {len({part.shape for part in x})} shapes for {len(conds)} "
                "conditionings; give each its own, all of one shape."
            )
        checked = [self._checked(cond, part, sigma) for cond, part in zip(conds, x, strict=True)]
        if len({cond.embeds.shape[1] for cond in checked}) <= 1:
            same = all(part is x[0] for part in x)
            return self._evaluate(x[0] if same else x, sigma, checked, tuple(range(len(checked))), control)
        return [
            self._evaluate(part, sigma, [cond], (branch,), control)[0]
            for branch, (part, cond) in enumerate(zip(x, checked, strict=True))
        ]

    def select(self, cond: Any, rows: Tensor) -> Any:
        """The conditioning of batch rows ``rows`` (long, [b]); one shared by all rows comes back as it is."""

        def pick(tensor: Tensor) -> Tensor:
            return tensor if len(tensor) == 1 else tensor[rows.to(tensor.device)]

        if isinstance(cond, PerLevel):
            return PerLevel(cond.sigmas, [self.select(part, rows) for part in cond.conds])
        if isinstance(cond, Tensor):
            return pick(cond)
        parts = (None if part is None else pick(part) for part in (cond.pooled, cond.time_ids))
        return TextCond(pick(cond.embeds), *parts)

    def sigma_grid(self, steps: int) -> Tensor:
        """The consistent DDIM grid of the noise table, ascending ``[steps + 1]``; see :func:`~..denoiser.ddim_grid`."""
        return ddim_grid(self.sigmas, steps)

    def timestep(self, sigma: Tensor) -> Tensor:
        """Table entry nearest to ``sigma [B]`` in log sigma, long ``[B]``: the rule ComfyUI uses."""
        return (sigma.float().cpu().log()[:, None] - self._log_sigmas).abs().argmin(1)

    def _evaluate(
        self,
        x: Tensor | Sequence[Tensor],
        sigma: float | Tensor,
        conds: list[TextCond],
        branches: tuple[int, ...],
        control: AttentionControl | None,
    ) -> list[Tensor]:
        """One network call; a single ``x`` is shared by all conditionings."""
        own = None if isinstance(x, Tensor) else torch.cat(list(x))
        x = x if isinstance(x, Tensor) else x[0]
        rows, count = len(x), len(conds)
        device, dtype = self.unet.device, self.unet.dtype
        state = x.to(torch.promote_types(x.dtype, torch.float32))
        level = torch.as_tensor(sigma, dtype=state.dtype).expand(rows).cpu()
        if not bool((level >= 0).all()):
            raise EditingError("A noise level is negative or not a number; use sigmas of 0 and above.")
        timestep = self.timestep(level).to(device).repeat(count)
        noise = level.view(-1, 1, 1, 1).to(x.device)
        unit = (1 + noise**2).rsqrt()
        sample = state * unit
        if own is not None:
            own = own.to(state.dtype)
            sample = own * unit.repeat(count, 1, 1, 1)
        embeds = torch.cat([cond.embeds.expand(rows, -1, -1) for cond in conds])
        added = self._added(conds, x)
        size = (x.shape[-2], x.shape[-1])
        with (
            frozen(self.unet),
            controlled(self.unet, control, size, branches),
            features_shown(feature_sites(self.unet, branches), control),
        ):
            network_input = sample.to(device, dtype).repeat(count if own is None else 1, 1, 1, 1)
            output = self.unet(
                network_input, timestep, embeds.to(device, dtype), added_cond_kwargs=added, return_dict=False
            )[0]
        output = output.to(x.device, state.dtype)
        noise, unit, state = (part.repeat(count, 1, 1, 1) for part in (noise, unit, state))
        state = state if own is None else own
        if self.identity.prediction == "eps":
            denoised = state - noise * output
        else:
            denoised = state * unit**2 - output * noise * unit
        return list(self.evaluations.track(denoised, sample, embeds).chunk(count))

    def _added(self, conds: list[TextCond], x: Tensor) -> dict[str, Tensor] | None:
        """SDXL's pooled text and size conditioning for all rows of the call."""
        if self.unet.config.get("addition_embed_type") is None:
            return None
        height, width = x.shape[-2] * LATENT_SCALE, x.shape[-1] * LATENT_SCALE
        size = torch.tensor([[height, width, 0, 0, height, width]])
        pooled = [cond.pooled for cond in conds if cond.pooled is not None]
        sizes = [size if cond.time_ids is None else cond.time_ids for cond in conds]
        device, dtype = self.unet.device, self.unet.dtype
        return {
            "text_embeds": torch.cat([part.expand(len(x), -1) for part in pooled]).to(device, dtype),
            "time_ids": torch.cat([part.expand(len(x), -1).to(device, dtype) for part in sizes]),
        }

    def _checked(self, cond: Tensor | TextCond | PerLevel, x: Tensor, sigma: float | Tensor) -> TextCond:
        here = cond.at(sigma) if isinstance(cond, PerLevel) else cond
        cond = TextCond(here) if isinstance(here, Tensor) else here
        config = self.unet.config
        channels, width, pooled = (
            config.in_channels,
            config.cross_attention_dim,
            config.get("addition_embed_type") is not None,
        )
        if x.ndim != 4 or x.shape[1] != channels:
            raise EditingError(
                f"The latent has shape {list(x.shape)}; this model needs [batch, {channels}, height, width]."
            )
        if cond.embeds.ndim != 3 or cond.embeds.shape[-1] != width:
            raise EditingError(
                f"The conditioning has shape {list(cond.embeds.shape)}; this model needs [batch, tokens, {width}], "
                "so use its own text encoder."
            )
        if pooled and cond.pooled is None:
            raise EditingError("This SDXL model needs the pooled text embedding too; pass TextCond(embeds, pooled).")
        for part in (cond.embeds, cond.pooled, cond.time_ids):
            if part is not None and len(part) not in (1, len(x)):
                raise EditingError(
                    f"The conditioning has {len(part)} rows and the latent {len(x)}; use one row or as many as the "
                    "latent."
                )
        return cond


def _family(config: Any) -> str:
    """Family by what the cross-attention reads, the same rule as for a ComfyUI model."""
    if config.get("addition_embed_type") is not None:
        return "sdxl"
    width = config.cross_attention_dim
    return {768: "sd1", 1024: "sd2"}.get(width, f"sd{width}")


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Build graphs inside the ``with`` block that neither keep activations for weight gradients nor compute any."""
    trainable = (
        [parameter for parameter in module.parameters() if parameter.requires_grad] if torch.is_grad_enabled() else []
    )
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
