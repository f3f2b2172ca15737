"""CASO Edit Sampler and CASO Guider: an attribute turned up or down on a real image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...core.caso.editing import (
    PRESETS,
    EditSettings,
    SemanticStep,
    interpolate,
    invert_to_window,
)
from ...core.errors import EditingError
from ...core.images.sizes import at_photo_size
from ...core.inversion import Inversion
from ...core.rebuilding import left_over, settled
from ..common.image_inputs import channels_first
from ..common.inputs import mask_input
from ..common.recording import as_lines, reads_noise_mask
from ..common.reports import READY, report_output, report_text, shown
from ..common.sockets import InversionType
from ..common.trajectory_edit import EulerOnly, edit_mask, on_device, refuse_noise_mask, source_latent
from ..host.conditioning import conditioning_print, conditioning_tensors
from ..host.identity import identity
from ..host.latents import latent_from_model, noise_mask_of, sigmas_out
from ..host.sampling import DenoiserGuider, run
from ..host.schema import blocked, io, schema, widget
from ..host.session import Session
from ..host.vae import decode_images, encode_images
from .embeddings import CATEGORY, Chosen
from .guidance import (
    ADVICE,
    EMPTY,
    LEARNED,
    against_input,
    edit_settings,
    focus_input,
    guidance_inputs,
    host_terms,
    learned_remarks,
    source_inputs,
)

MOST_STRIP = 15
NO_PICTURE = "CASO Edit Sampler paints the edit itself only of a photo; wire one, or paint latent with VAE Decode."
NO_STRIP = "CASO Edit Sampler made no strip; set interpolate to 2 or more pictures, or take the strip's wire away."


def edit_inputs() -> list[Any]:
    """The widgets that sampler and guider share."""
    strength = "How strongly (lambda). 0 rebuilds the image, 3 to 10 is usual, below 0 turns the attribute round."
    return guidance_inputs(strength, LEARNED, [LEARNED, *PRESETS])


class CASOEditSampler(io.ComfyNode):
    """CASO's editing (Chang et al., sections 3.3 and 4.2) in one node."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_CASOEditSampler",
            display_name="CASO Edit Sampler",
            category=CATEGORY,
            description="Turns an attribute up, down or into its opposite on real images, without words: guides the "
            "image's own trajectory by semantic embeddings. A batch gives a batch of edits.",
            search_aliases=[
                "semantic edit",
                "attribute slider",
                "concept slider",
                "caso",
                "add glasses",
                "remove glasses",
                "remove beard",
                "smile",
                "age",
                "change hair colour",
            ],
            inputs=[
                *source_inputs(),
                *edit_inputs(),
                widget(
                    io.Int,
                    "steps",
                    default=50,
                    min=1,
                    max=999,
                    tooltip="Steps of the whole trajectory, when a latent is wired; an inversion has its own.",
                ),
                widget(
                    io.Int,
                    "interpolate",
                    default=0,
                    min=0,
                    max=MOST_STRIP,
                    tooltip="Pictures of the strip output, from -strength to +strength; 5 is good, an odd number has "
                    "the unedited one in its middle. 0: no strip. Each costs an edit, and a VAE must be wired.",
                ),
                focus_input(),
                widget(
                    io.Latent,
                    "latent",
                    optional=True,
                    tooltip="The image, from VAE Encode: it is inverted here, as far as needed.",
                ),
                widget(
                    InversionType,
                    "inversion",
                    optional=True,
                    tooltip="In place of a latent: an inversion made with an empty prompt, e.g. by SPDInv Inversion.",
                ),
                mask_input(),
                widget(io.Vae, "vae", optional=True, tooltip="Reads and paints a photo, and paints the strip."),
                against_input(),
                widget(
                    io.Image,
                    "photo",
                    optional=True,
                    tooltip="In place of a latent: the image itself, which the VAE wired here reads.",
                ),
            ],
            outputs=[
                io.Latent.Output("edited", display_name="latent", tooltip="The edited image; wire it into VAE Decode."),
                io.Image.Output(
                    "strip",
                    display_name="strip",
                    tooltip="With interpolate: the image from -strength to +strength as a batch (a batch of images "
                    "one after another).",
                ),
                report_output(),
                io.Image.Output(
                    "picture",
                    display_name="picture",
                    tooltip="Of a photo: the edit at the photo's own size.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        semantic_embedding: Chosen,
        strength: float,
        window: str,
        start: float,
        end: float,
        joined: bool,
        steps: int,
        interpolate: int,
        focus: float = EditSettings.focus,
        latent: Any = None,
        inversion: Inversion | None = None,
        mask: Any = None,
        vae: Any = None,
        against: Chosen = (),
        photo: Tensor | None = None,
    ) -> Any:
        """Edit; EditingError for unusable input passes through as it is."""
        if sum(source is not None for source in (latent, inversion, photo)) != 1:
            raise EditingError(
                "Wire one of latent, inversion and photo into CASO Edit Sampler, not several and not none."
            )
        if not 0 <= interpolate <= MOST_STRIP or interpolate == 1:
            raise EditingError(f"interpolate is {interpolate}; use 0 for no strip, or 2 to {MOST_STRIP} pictures.")
        if interpolate and vae is None:
            raise EditingError(
                "The strip is painted by a VAE; wire one into CASO Edit Sampler, or set interpolate to 0."
            )
        if photo is not None and vae is None:
            raise EditingError("A photo is read and painted by a VAE; wire one into CASO Edit Sampler.")
        settings = edit_settings(strength, window, start, end, joined, focus, semantic_embedding)
        terms = host_terms(clip, semantic_embedding, settings, against)
        mask = edit_mask(mask)
        remarks, exact = inversion_remarks(model, inversion, terms.empty)
        remarks += learned_remarks(window, semantic_embedding, settings)
        if photo is not None:
            latent = encode_images(vae, photo)
        if latent is not None and mask is None and not reads_noise_mask(model):
            mask = noise_mask_of(latent)  # a stock sampler leaves the latent alone outside its mask

        def work(session: Session) -> tuple[Tensor, Tensor, str]:
            uncond, own = session.conds[EMPTY], terms.of(session)
            if inversion is None:
                source, guided = invert_to_window(
                    session.denoiser, session.latent, uncond, steps, settings.window, session.callback()
                )
            else:
                source, guided = on_device(inversion, session), settings.window
            accurate = exact or (inversion is None and not settled(source))
            step = SemanticStep(session.denoiser, source, uncond, own, guided, mask, accurate)
            edited = step.run(step.first_level, session.callback())
            rows = strip_of(session, step, mask, interpolate) if interpolate else edited
            return edited, rows, terms.report(session, len(edited), "Edited") + as_lines(left_over(step))

        place = latent if inversion is None else source_latent(model, inversion)
        sigmas = None if inversion is None else sigmas_out(inversion.sigmas)
        edited, rows, report = run(model, place, terms.conds, work, sigmas=sigmas, advice=ADVICE)
        report += as_lines(remarks)
        strip = decode_images(vae, latent_from_model(model, rows)) if interpolate else blocked(NO_STRIP)
        made = latent_from_model(model, edited)
        picture = blocked(NO_PICTURE)
        if photo is not None:
            painted = decode_images(vae, made)
            picture = at_photo_size(channels_first(photo), channels_first(painted)).movedim(1, -1)
        return io.NodeOutput(made, strip, report, picture, ui=shown(report))


class CASOGuider(io.ComfyNode):
    """The same edit as a GUIDER, for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_CASOGuider",
            display_name="CASO Guider",
            category=CATEGORY,
            description="CASO Edit Sampler as a guider for SamplerCustomAdvanced. Wire the inversion's own noise, "
            "noise latent and sigmas, and the euler sampler.",
            search_aliases=["semantic edit", "attribute slider", "custom guider", "caso"],
            inputs=[
                *source_inputs(),
                widget(
                    InversionType,
                    "inversion",
                    tooltip="Of the image, made with an empty prompt, e.g. by SPDInv Inversion.",
                ),
                *edit_inputs(),
                focus_input(),
                mask_input(),
                against_input(),
            ],
            outputs=[
                io.Guider.Output(
                    "guider", display_name="guider", tooltip="Wire it into SamplerCustomAdvanced, with sampler euler."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        semantic_embedding: Chosen,
        inversion: Inversion,
        strength: float,
        window: str,
        start: float,
        end: float,
        joined: bool,
        focus: float = EditSettings.focus,
        mask: Any = None,
        against: Chosen = (),
    ) -> Any:
        """A guider that keeps no state between sampling runs."""
        settings = edit_settings(strength, window, start, end, joined, focus, semantic_embedding)
        terms = host_terms(clip, semantic_embedding, settings, against)
        mask = edit_mask(mask)
        remarks, exact = inversion_remarks(model, inversion, terms.empty)
        refuse_noise_mask(inversion, "CASO Edit Sampler")

        def prepare(session: Session) -> Callable[[Tensor, float], Tensor]:
            source = on_device(inversion, session)
            uncond = session.conds[EMPTY]
            return EulerOnly(
                SemanticStep(session.denoiser, source, uncond, terms.of(session), settings.window, mask, exact)
            )

        guider = DenoiserGuider(model, terms.conds, prepare, advice=ADVICE)
        return io.NodeOutput(guider, ui=shown(report_text(READY, *remarks)) if remarks else None)


def strip_of(session: Session, step: SemanticStep, mask: Any, count: int) -> Tensor:
    """``step`` at -1 to +1 times its strengths, ``[B * count, C, H, W]``, those of one image together."""
    made = interpolate(
        session.denoiser,
        step.inversion,
        step.uncond,
        step.terms,
        torch.linspace(-1, 1, count).tolist(),
        step.window,
        mask=mask,
        exact=step.exact,
        callback=session.callback(),
    )
    return made.transpose(0, 1).flatten(0, 1)


def inversion_remarks(model: Any, inversion: Inversion | None, empty: Any) -> tuple[list[str], bool]:
    """What is not as an edit under the ``empty`` prompt wants the INVERSION, one line each; and whether that, or what
    the inversion left over, is to be taken off at one more evaluation a step.

    Raises:
        EditingError: it is another model's.
    """
    if inversion is None:
        return [], False
    inversion.require_model(own := identity(model))
    lines = inversion.remarks(
        own,
        conditioning_tensors(empty),
        conditioning_print(empty),
        other_prompt="the inversion was made with a prompt; one made with an empty prompt saves an evaluation "
        "a step here",
    )
    if inversion.cfg != 1.0:
        lines.append(
            f"the inversion was made at cfg {inversion.cfg:g}; one made at cfg 1 saves an evaluation a step here"
        )
    return lines, bool(lines) or not settled(inversion)


NODES = [CASOEditSampler, CASOGuider]
