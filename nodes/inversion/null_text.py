"""Null-Text Inversion: a negative for each step, under which guided sampling comes back to the image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ...core.errors import EditingError
from ...core.inversion import Inversion
from ...core.spdinv.null_text import NullTextSettings, null_text
from ..common.inputs import cfg_input, words_inputs
from ..common.recording import changed_remarks, own_negative, words_of
from ..common.reports import inversion_report, report_output, report_text, shown
from ..common.sockets import InversionType
from ..common.trajectory_edit import on_device, source_latent, source_prompt
from ..host.conditioning import conditioning_print, conditioning_tensors, with_embeds
from ..host.gradients import normal_tensors
from ..host.identity import identity
from ..host.sampling import run
from ..host.schema import io, schema, widget
from ..host.session import Session


class NullTextInversion(io.ComfyNode):
    """Null-text inversion (https://arxiv.org/abs/2211.09794) over any inversion."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        defaults = NullTextSettings()
        return schema(
            node_id="SemEdit_NullTextInversion",
            display_name="Null-Text Inversion",
            category="semantic editing/inversion",
            description="Optimises the negative prompt of every step so that sampling at the edit's cfg comes back to "
            "the inverted image. Engines and samplers of this pack use those negatives by themselves; stock samplers "
            "take them from the output negative.",
            search_aliases=["null text", "null-text optimization", "NTI", "prompt tuning", "pivotal inversion"],
            inputs=[
                widget(io.Model, "model", tooltip="The model the inversion was made with."),
                widget(
                    InversionType,
                    "inversion",
                    tooltip="The trajectory to come back along, made at cfg 1: from SPDInv Inversion (solver ddim is "
                    "the paper's; auto leaves less to make up for) or Load Inversion.",
                ),
                widget(
                    io.Conditioning,
                    "negative",
                    tooltip="The negative prompt to start from, a plain text: an empty one is the paper's, the source "
                    "prompt is nearer.",
                ),
                cfg_input(
                    "Guidance at which the image is to be rebuilt: give the edit the same. The paper's is 7.5.",
                    defaults.cfg,
                ),
                widget(
                    io.Int,
                    "max_iterations",
                    default=defaults.max_iterations,
                    min=1,
                    max=500,
                    advanced=True,
                    tooltip="Most evaluations of the negative in one step; 10 is the paper's. The best one is kept.",
                ),
                widget(
                    io.Float,
                    "learning_rate",
                    default=defaults.learning_rate,
                    min=1e-6,
                    max=10.0,
                    step=1e-3,
                    round=1e-6,
                    advanced=True,
                    tooltip="How far a negative moves at a time; 0.01 is the paper's. It halves towards the clean end.",
                ),
                widget(
                    io.Float,
                    "tolerance",
                    default=defaults.tolerance,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                    round=1e-9,
                    advanced=True,
                    tooltip="Mean-square distance from the inversion's path at which a step counts as done; smaller is "
                    "slower and more exact.",
                ),
                widget(
                    io.Conditioning,
                    "source",
                    optional=True,
                    tooltip="The prompt the image was inverted with; only needed when the inversion carries none.",
                ),
                *words_inputs("the source"),
            ],
            outputs=[
                InversionType.Output(
                    "with_negatives",
                    display_name="inversion",
                    tooltip="The same trajectory with a negative for each step; noise and sigmas are those of the "
                    "inversion that went in.",
                ),
                io.Conditioning.Output(
                    "step_negatives",
                    display_name="negative",
                    tooltip="The negatives, each for its own range of noise levels: for stock samplers with euler on "
                    "these sigmas at this cfg.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        inversion: Inversion,
        negative: Any,
        cfg: float,
        max_iterations: int,
        learning_rate: float,
        tolerance: float,
        source: Any = None,
        clip: Any = None,
        prompt: str = "",
    ) -> Any:
        """Optimise; EditingError for unusable input passes through as it is."""
        settings = NullTextSettings(cfg, max_iterations, learning_rate, tolerance)
        inversion.require_model(own := identity(model))
        start = conditioning_tensors(negative)
        if start is None:
            raise EditingError(
                "The negative is more than one plain text (areas, masks, a ControlNet, several parts); wire the "
                "CONDITIONING of one text."
            )

        def work(session: Session) -> Inversion:
            conds = session.conds
            pivot = on_device(inversion, session)
            pivot = replace(pivot, **normal_tensors({"latents": pivot.latents, "sigmas": pivot.sigmas}))

            def as_cond(embeds: Tensor) -> Any:
                return with_embeds(conds["negative"], embeds)

            return null_text(
                session.denoiser,
                pivot,
                conds["positive"],
                normal_tensors(start),
                settings,
                as_cond=as_cond,
                callback=session.callback(),
            )

        positive = source_prompt(inversion, source)
        words, remarks = words_of(positive, clip, prompt)
        conds = {"positive": positive, "negative": negative}
        latent = source_latent(model, inversion)
        made = run(model, latent, conds, work, gradients=True, advice="lower the image size or use batch 1")
        if made.made_from is not None:
            made = replace(made, made_from=replace(made.made_from, negative=conditioning_print(negative)))
        made = replace(made, words=words or inversion.words)
        report = report_text(inversion_report(made), *remarks, *changed_remarks(inversion, own, source))
        worst = max(max(row) for row in made.info["null_text_loss"])
        report += f"\nnegatives of {made.steps} steps: distance from the path at most {worst:.1e}"
        made = replace(made, latents=inversion.latents)
        return io.NodeOutput(made, own_negative(made, model), report, ui=shown(report))


NODES = [NullTextInversion]
