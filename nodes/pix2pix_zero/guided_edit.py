"""Cross-Attn Guided Sampler and Cross-Attn Guider: an edit that keeps the image's own cross-attention maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor

from ...core.inversion import Inversion
from ...core.pix2pix_zero.guided_edit import (
    PRESETS,
    REFERENCES,
    RESOLUTIONS,
    CrossAttentionGuidance,
    CrossAttentionSettings,
    Preset,
    Reference,
    Resolution,
)
from ...core.pix2pix_zero.kept_source import KeptSource
from ...core.rebuilding import left_over
from ..common.inputs import cfg_input, mask_input
from ..common.recording import as_lines, changed_remarks
from ..common.reports import READY, cost_report, report_output, report_text, shown
from ..common.sockets import InversionType
from ..common.trajectory_edit import (
    EulerOnly,
    edit_conditionings,
    edit_mask,
    on_device,
    refuse_noise_mask,
    source_latent,
)
from ..host.identity import identity
from ..host.latents import latent_from_model, sigmas_out
from ..host.sampling import DenoiserGuider, run
from ..host.schema import io, schema, widget
from ..host.session import Session
from .kept_source import kept_source, spared

#: Carries a ``core.pix2pix_zero.guided_edit.CrossAttentionSettings``.
CrossAttentionSettingsType = io.Custom("SEMEDIT_CROSS_ATTENTION_SETTINGS")
CATEGORY = "semantic editing/sampling"
ADVICE = "choose resolution half or quarter, a smaller image or batch 1"
#: What the choices of ``resolution`` were called in workflows of older versions, by SD 1.5's latent of 64 pixels.
OLD_RESOLUTIONS: dict[str, Resolution] = {"<=32": "half", "<=16": "quarter"}
AS_PRESET = "as preset"
#: A preset of the nodes alone: the shares of the steps that are guided, and that use cfg. A 50-step edit then takes 92
#: evaluations, 150 with its inversion.
FAST, FAST_GUIDED, FAST_CFG = "fast", 0.2, 0.45


def guidance_widgets() -> list[Any]:
    """Inputs that sampler and guider share; widgets are saved by position in workflows, so new ones go to the end."""
    return [
        widget(
            io.Model,
            "model",
            tooltip="The model the inversion was made with; SD 1.x, SD 2.x or SDXL (it needs cross-attention).",
        ),
        widget(
            InversionType,
            "inversion",
            tooltip="From SPDInv Inversion, Autocorr DDIM Inversion, Reference From Noise or Load Inversion.",
        ),
        widget(io.Conditioning, "target", tooltip="The prompt of the edited image, usually from Apply Edit Direction."),
        cfg_input(
            "How strongly the target prompt pulls. 1 is no extra pull; 1.5 to 5 is usual (the paper's is 5); higher "
            "edits more and keeps less.",
            CrossAttentionSettings.cfg,
        ),
        widget(
            io.Float,
            "guidance",
            default=CrossAttentionSettings.guidance,
            min=0.0,
            max=10.0,
            step=0.01,
            tooltip="How strongly the layout of the source is kept. 0 is plain sampling; 0.02 to 0.2 is usual (the "
            "paper's is 0.1); higher keeps more and edits less. It means the same for SD 1.5 and SDXL.",
        ),
        widget(
            io.Float,
            "guided_fraction",
            default=CrossAttentionSettings.guided_fraction,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Share of the steps, from the noisy end, on which the layout is kept. 1 (the paper) is all, 0 "
            "none; less is faster.",
        ),
        widget(
            io.Combo,
            "resolution",
            options=list(RESOLUTIONS),
            default="all",
            advanced=True,
            tooltip="Which attention maps count, by their side beside the latent's. all is the paper's; half and "
            "quarter take less time and memory.",
        ),
        widget(
            io.Combo,
            "preset",
            options=[*PRESETS, FAST],
            default=CrossAttentionSettings.preset,
            advanced=True,
            tooltip="carried: goes on from the moved latent, steadier at strong guidance. lockstep: the paper's "
            "algorithm. released: does as the published code did (both branches are moved), for comparison. fast: "
            "carried, guided on a fifth of the steps and cfg on under half, for less than half the work.",
        ),
        widget(
            io.Conditioning,
            "source",
            optional=True,
            tooltip="The prompt the image was inverted with. Unwired: the one in the inversion.",
        ),
        widget(
            io.Conditioning,
            "negative",
            optional=True,
            tooltip="What to move away from when cfg is not 1. Unwired: the negative the inversion was made with, if "
            "any, else the source prompt, as in the paper for real images.",
        ),
        mask_input(),
        widget(
            io.Combo,
            "reference",
            optional=True,
            options=[AS_PRESET, *REFERENCES],
            default=AS_PRESET,
            advanced=True,
            tooltip="Where the source's attention maps come from. inversion: its stored path. reconstruction: a second "
            "sampling run from its noise, as in the published code. as preset: reconstruction for released.",
        ),
        widget(
            io.Float,
            "local_fraction",
            optional=True,
            default=CrossAttentionSettings.local_fraction,
            min=0.0,
            max=1.0,
            step=0.05,
            advanced=True,
            tooltip="Share of the steps, at the clean end, in which places that the edit leaves nearly alone are taken "
            "from the source. 0 (the paper) is none; more keeps more, and small or faint edits may get lost.",
        ),
        widget(
            io.Float,
            "cfg_fraction",
            optional=True,
            default=CrossAttentionSettings.cfg_fraction,
            min=0.0,
            max=1.0,
            step=0.05,
            advanced=True,
            tooltip="Share of the steps, from the noisy end, that use cfg; the others use 1 and take one evaluation "
            "less. 1 (the paper) is all.",
        ),
    ]


def settings_of(
    cfg: float,
    guidance: float,
    guided_fraction: float,
    resolution: str,
    preset: str,
    reference: str,
    local_fraction: float,
    cfg_fraction: float,
) -> CrossAttentionSettings:
    """The widgets' values.

    Raises:
        EditingError: a value out of range or a choice that is not offered; old hosts do not check combos.
    """
    if preset == FAST:
        preset = "carried"
        guided_fraction, cfg_fraction = min(guided_fraction, FAST_GUIDED), min(cfg_fraction, FAST_CFG)
    return CrossAttentionSettings(
        cfg,
        guidance,
        guided_fraction,
        OLD_RESOLUTIONS.get(resolution, cast(Resolution, resolution)),
        cast(Preset, preset),
        None if reference == AS_PRESET else cast(Reference, reference),
        local_fraction,
        cfg_fraction,
    )


def known_resolution(resolution: str | None) -> bool | str:
    """What ``validate_inputs`` says of the widget, which the host then does not check: old workflows still load.

    None is a wired one, which is not known yet.
    """
    known = resolution is None or resolution in RESOLUTIONS or resolution in OLD_RESOLUTIONS
    return known or f"There is no resolution {resolution!r}; use one of {', '.join(RESOLUTIONS)}."


def edit_of(
    session: Session,
    inversion: Inversion,
    settings: CrossAttentionSettings,
    mask: Tensor | None,
    kept: KeptSource | None,
) -> CrossAttentionGuidance:
    """The edit with the denoiser and the conditionings of ``session``."""
    conds = session.conds
    return CrossAttentionGuidance(
        session.denoiser,
        on_device(inversion, session),
        conds["source"],
        conds["positive"],
        conds.get("negative"),
        settings,
        mask,
        kept,
    )


class CrossAttnGuidedSampler(io.ComfyNode):
    """pix2pix-zero's editing (https://arxiv.org/abs/2302.03027, algorithm 1) in one node."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts."""
        return schema(
            node_id="SemEdit_CrossAttnGuidedSampler",
            display_name="Cross-Attn Guided Sampler",
            category=CATEGORY,
            description="Makes the edited image from an inversion: samples with the target prompt while gradients hold "
            "the cross-attention maps of the source, so that the layout stays. A batch in the inversion gives a batch "
            "of edits.",
            search_aliases=[
                "edit photo",
                "edit image",
                "edit picture",
                "replace object",
                "replace",
                "change photo",
                "swap object",
                "keep layout",
                "pix2pix-zero",
                "cross attention guidance",
                "image editing",
                "structure preserving edit",
                "prompt to prompt",
            ],
            inputs=guidance_widgets(),
            outputs=[
                io.Latent.Output("latent", display_name="latent", tooltip="The edited image; wire it into VAE Decode."),
                report_output(),
            ],
        )

    @classmethod
    def validate_inputs(cls, resolution: str | None = None) -> bool | str:
        """See :func:`known_resolution`."""
        return known_resolution(resolution)

    @classmethod
    def execute(
        cls,
        model: Any,
        inversion: Inversion,
        target: Any,
        cfg: float,
        guidance: float,
        guided_fraction: float,
        resolution: str,
        preset: str,
        source: Any = None,
        negative: Any = None,
        mask: Tensor | None = None,
        reference: str = AS_PRESET,
        local_fraction: float = CrossAttentionSettings.local_fraction,
        cfg_fraction: float = CrossAttentionSettings.cfg_fraction,
    ) -> Any:
        """Edit; EditingError for unusable input passes through as it is."""
        settings = settings_of(
            cfg, guidance, guided_fraction, resolution, preset, reference, local_fraction, cfg_fraction
        )
        where = edit_mask(mask)
        inversion.require_model(own := identity(model))

        def work(session: Session) -> tuple[Tensor, str]:
            step = edit_of(session, inversion, settings, where, kept)
            edited = step.run(inversion.steps, session.callback())
            remarks = [*spared(kept), *left_over(step)]
            first = f"Edited {len(edited)} picture(s) in {inversion.steps} steps, and kept the rest by its attention."
            return edited, report_text(first, cost_report(session.denoiser.evaluations, inversion), *remarks)

        place = source_latent(model, inversion)
        conds = edit_conditionings(model, inversion, target, source, negative)
        kept = kept_source(inversion, model, source, settings)
        gradients, sigmas = settings.guidance > 0, sigmas_out(inversion.sigmas)
        edited, report = run(model, place, conds, work, gradients=gradients, sigmas=sigmas, advice=ADVICE)
        report += as_lines(changed_remarks(inversion, own, source, negative, None if settings.rebuilds else cfg))
        return io.NodeOutput(latent_from_model(model, edited), report, ui=shown(report))


class CrossAttnGuider(io.ComfyNode):
    """The same edit as a GUIDER, for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts."""
        return schema(
            node_id="SemEdit_CrossAttnGuider",
            display_name="Cross-Attn Guider",
            category=CATEGORY,
            description="Cross-Attn Guided Sampler as a guider for SamplerCustomAdvanced. Wire the inversion's own "
            "noise, noise latent and sigmas, and the euler sampler.",
            search_aliases=["pix2pix-zero", "cross attention guidance", "custom guider", "structure preserving edit"],
            inputs=guidance_widgets(),
            outputs=[
                io.Guider.Output(
                    "guider", display_name="guider", tooltip="Wire it into SamplerCustomAdvanced, with sampler euler."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, resolution: str | None = None) -> bool | str:
        """See :func:`known_resolution`."""
        return known_resolution(resolution)

    @classmethod
    def execute(
        cls,
        model: Any,
        inversion: Inversion,
        target: Any,
        cfg: float,
        guidance: float,
        guided_fraction: float,
        resolution: str,
        preset: str,
        source: Any = None,
        negative: Any = None,
        mask: Tensor | None = None,
        reference: str = AS_PRESET,
        local_fraction: float = CrossAttentionSettings.local_fraction,
        cfg_fraction: float = CrossAttentionSettings.cfg_fraction,
    ) -> Any:
        """A guider that keeps no state between sampling runs."""
        settings = settings_of(
            cfg, guidance, guided_fraction, resolution, preset, reference, local_fraction, cfg_fraction
        )
        where = edit_mask(mask)
        inversion.require_model(own := identity(model))
        refuse_noise_mask(inversion, "Cross-Attn Guided Sampler")

        def prepare(session: Session) -> Callable[[Tensor, float], Tensor]:
            kept = kept_source(inversion, model, source, settings)
            return EulerOnly(edit_of(session, inversion, settings, where, kept))

        conds = edit_conditionings(model, inversion, target, source, negative)
        guider = DenoiserGuider(model, conds, prepare, gradients=settings.guidance > 0, advice=ADVICE)
        remarks = changed_remarks(inversion, own, source, negative, None if settings.rebuilds else cfg)
        return io.NodeOutput(guider, ui=shown(report_text(READY, *remarks)) if remarks else None)


NODES = [CrossAttnGuidedSampler, CrossAttnGuider]
