"""The core's box editors on the host's MODEL and VAE.

A render is what a graph of VAE Encode, a sampler and VAE Decode would do, so loading, LoRA, ControlNet and lack of
memory are the host's business; models stay loaded between renders as they do between nodes. The core's editors stay as
they are: they are handed the VAE as two functions and the sampling as a third.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.content_hash import fingerprint
from ...core.denoiser import Callback, Evaluations, ModelIdentity, Progress
from ...core.errors import EditingError
from ...core.inversion import Inversion
from ...core.prints.weights import weight_print
from ...core.regions.edit_inpaint import InpaintEditor, InpaintSettings, LocatingInpaintEditor, Paint, ShowKnown
from ...core.regions.edit_invert import InversionEditor, InversionEditSettings
from ...core.regions.edit_tokens import TokenEditor, TokenEditSettings, load_token_model
from ...core.regions.editors import Conds, Editor, OpenEditor, Sampling
from ...core.regions.paste import Framing
from ..common.recording import own_negative
from ..host.attention import site_table
from ..host.conditioning import require_conditioning
from ..host.identity import identity, patches_print
from ..host.inpainting import reads_mask
from ..host.latents import latent_from_model, latent_to_model
from ..host.managed_models import load_to_device, managed_patcher, preferred_dtype
from ..host.progress import stop_if_cancelled
from ..host.sampling import painted_by, sampling_on
from ..host.vae import decode_images, encode_images

#: What to do when memory runs out.
ADVICE = "lower working_size"
#: Of a box's longer side: from here on a crop is the whole image.
WHOLE = 100.0
#: What a CONDITIONING says about places of the whole image, which a crop does not have.
PLACED = {"control": "a ControlNet hint", "area": "an area", "mask": "a mask", "gligen": "GLIGEN boxes"}


def inpaint_opener(
    model: Any,
    vae: Any,
    positive: Any,
    negative: Any,
    settings: InpaintSettings,
    source: Any = None,
    sampler: Any = None,
    sigmas: Tensor | None = None,
) -> OpenEditor:
    """Opens an :class:`InpaintEditor`; the ``multiple`` of the settings' framing becomes the VAE's.

    Args:
        source: what the picture shows; with it the editor also tells where its text pulls.
        sampler, sigmas: SAMPLER and SIGMAS of the host that paint in place of the pack's own steps, both or none.

    Raises:
        EditingError: see :class:`InpaintEditor`, :class:`_ModelAndVae` and :func:`reads_mask`; a sampler without
            sigmas; places of the whole image in a CONDITIONING where boxes are cut out.
    """
    parts = _ModelAndVae(model, vae)
    show_known = _mask_and_picture(parts) if reads_mask(model) else None
    conds = {"positive": positive, "negative": negative, "source": source or []}
    require_conditioning(model, conds)
    if settings.framing.context < WHOLE:
        _refuse_places(conds)
    paint, label = None, parts.label
    if (sampler is None) != (sigmas is None):
        raise EditingError("Only one of sampler and sigmas is wired; wire both (KSampler Select, a scheduler) or none.")
    if sigmas is not None:
        if len(sigmas) < 2:
            raise EditingError("sigmas holds no step; wire a scheduler with at least one step.")
        settings = replace(settings, steps=len(sigmas) - 1, strength=1.0)
        paint = _own_sampler(parts, sampler, sigmas, settings.cfg)
        name = getattr(getattr(sampler, "sampler_function", sampler), "__qualname__", type(sampler).__name__)
        label = fingerprint(label, name, str(getattr(sampler, "extra_options", {})), sigmas)
    settings = replace(settings, framing=replace(settings.framing, multiple=parts.multiple))

    def make(callback: Callback | None = None) -> Editor:
        editor = InpaintEditor(
            parts.between_runs,
            parts.encode,
            parts.decode,
            positive,
            negative,
            settings,
            label,
            callback,
            parts.sampling(),
            show_known,
            paint,
        )
        return editor if source is None else LocatingInpaintEditor.of(editor, source)

    return _opener(make)


def _refuse_places(conds: dict[str, Any]) -> None:
    for name, cond in conds.items():
        for _, options in cond:
            for key, told in PLACED.items():
                if options.get(key) is not None:
                    raise EditingError(
                        f"{name} holds {told} for the whole image, and boxes are cut out of it; set context to 100 "
                        "(the whole image in view) or take it out of the prompt."
                    )


def _own_sampler(parts: _ModelAndVae, sampler: Any, sigmas: Tensor, cfg: float) -> Paint:
    def paint(
        source: Tensor, cells: Tensor, noise: Tensor, conds: Conds, seed: int, callback: Callback | None
    ) -> Tensor:
        return _as_in_a_node(
            lambda: painted_by(parts.model, sampler, sigmas, cfg, source, cells, noise, conds, seed, callback)
        )

    return paint


def inversion_opener(
    model: Any,
    vae: Any,
    source: Any,
    target: Any,
    negative: Any,
    inversion: Inversion | None,
    settings: InversionEditSettings,
) -> OpenEditor:
    """Opens an :class:`InversionEditor`.

    Raises:
        EditingError: see :class:`InversionEditor` and :class:`_ModelAndVae`; an inpainting model, or one without
            cross-attention where ``guidance`` is not 0.
    """
    parts = _ModelAndVae(model, vae)
    if reads_mask(model):
        raise EditingError(
            "This is an inpainting model, which rebuilds no picture; wire a plain one, or use Region Inpaint Editor."
        )
    require_conditioning(model, {"source": source, "target": target, "negative": negative or []})
    if settings.guidance > 0:
        site_table(model.model.diffusion_model)
    given = inversion
    if inversion is not None:
        negative = own_negative(inversion, model) if negative is None else negative
        with torch.inference_mode(False):
            given = replace(inversion, latents=inversion.latents.clone(), sigmas=inversion.sigmas.clone())

    def make(callback: Callback | None = None) -> Editor:
        return InversionEditor(
            parts.between_runs,
            parts.encode,
            parts.decode,
            source,
            target,
            negative,
            settings,
            given,
            parts.multiple,
            parts.label,
            callback,
            parts.sampling(gradients=settings.guidance > 0 or settings.solver == "gradient"),
        )

    return _opener(make)


def token_opener(
    folder: Path, text: str, negative: str, settings: TokenEditSettings, context: float, feather: int
) -> OpenEditor:
    """Opens a :class:`TokenEditor`; the model is read now and the host may evict it.

    Args:
        context, feather: see :class:`Framing`; the rest of the framing is the model's.

    Raises:
        EditingError: see :class:`TokenEditor` and :func:`load_token_model`.
    """
    with torch.inference_mode(False):
        model = load_token_model(folder, dtype=preferred_dtype())
        patcher = managed_patcher(nn.ModuleList([model.vqvae, model.transformer, model.text_encoder]))
    settings = replace(settings, framing=Framing(context, model.multiple, model.native_size, feather))

    def load() -> None:
        with torch.inference_mode():
            load_to_device(patcher)

    def make(callback: Callback | None = None) -> Editor:
        return TokenEditor(model, text, negative, settings, callback=callback, load=load)

    return _opener(make)


@dataclass(frozen=True)
class _BetweenRuns:
    """What an editor asks of its network while the MODEL may not be loaded."""

    identity: ModelIdentity
    evaluations: Evaluations = field(default_factory=Evaluations)


class _ModelAndVae:
    """A MODEL and its own VAE as the functions that the core's editors take. All tensors they return are normal ones.

    Raises:
        EditingError: a model of video or of a kind that the pack cannot sample, or a VAE that is not its own.
    """

    def __init__(self, model: Any, vae: Any):
        self.model, self.vae = model, vae
        self.between_runs: Any = _BetweenRuns(identity(model))
        latent, channels = model.model.latent_format, vae.latent_channels
        if latent.latent_dimensions != 2 or vae.latent_dim != 2:
            raise EditingError("This model or VAE is one of video or sound; wire an image model with its own VAE.")
        if latent.latent_channels != channels:
            raise EditingError(
                f"The VAE makes latents of {channels} channels and the model works on {latent.latent_channels}; "
                "wire the model's own VAE."
            )

    def sampling(self, gradients: bool = False) -> Sampling:
        """The host's sampling of the MODEL."""
        return sampling_on(self.model, self.between_runs.evaluations, gradients=gradients, advice=ADVICE)

    def encode(self, image: Tensor) -> Tensor:
        """``image [1, 3, h, w]`` in 0..1 to a scaled latent ``[1, C, h / multiple, w / multiple]``."""
        return _as_in_a_node(lambda: latent_to_model(self.model, encode_images(self.vae, image.movedim(1, -1))))

    def encode_unscaled(self, image: Tensor) -> Tensor:
        """The same as the VAE makes it."""
        samples: Tensor = _as_in_a_node(lambda: encode_images(self.vae, image.movedim(1, -1))["samples"])
        return samples

    def decode(self, latent: Tensor) -> Tensor:
        """The picture of a scaled latent."""
        stop_if_cancelled()
        return _as_in_a_node(
            lambda: decode_images(self.vae, latent_from_model(self.model, latent))[..., :3].movedim(-1, 1)
        )

    @property
    def multiple(self) -> int:
        """Pixels per latent pixel."""
        return int(self.vae.spacial_compression_encode())

    @property
    def label(self) -> str:
        """Names patches of the MODEL and the VAE by content."""
        return fingerprint(patches_print(self.model), weight_print(self.vae.first_stage_model.parameters()))


def _mask_and_picture(parts: _ModelAndVae) -> ShowKnown:
    """Puts mask and masked picture into CONDITIONING, where the host's inpainting models look for them."""

    def show_known(conds: Conds, cells: Tensor, known: Tensor) -> Conds:
        side = parts.multiple  # hosts expect the mask in pixels
        shown = {
            "concat_latent_image": parts.encode_unscaled(known),
            "concat_mask": cells.repeat_interleave(side, 2).repeat_interleave(side, 3),
        }
        return {name: [[embeds, {**options, **shown}] for embeds, options in cond] for name, cond in conds.items()}

    return show_known


def _as_in_a_node(make: Callable[[], Tensor]) -> Tensor:
    """What ``make`` returns inside inference mode, where hosts run nodes, as a normal tensor."""
    with torch.inference_mode():
        made = make()
    with torch.inference_mode(False):
        return made.clone()


def _opener(make: Callable[[Callback | None], Editor]) -> OpenEditor:
    make(None)  # refuses bad settings now, at the editor's own node

    @contextmanager
    def opened(image: Tensor, progress: Callback) -> Iterator[Editor]:
        def watched(done: Progress) -> None:
            stop_if_cancelled()
            progress(done)

        yield make(watched)

    return opened
