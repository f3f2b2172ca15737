"""SPDInv Inversion: the image's noise by solving every inversion step for its fixed point."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...core.sampling import require_negative
from ...core.spdinv.invert import spdinv
from ...core.spdinv.solvers import SOLVERS, SPDInvSettings
from ..common.inputs import steps_input, words_inputs
from ..common.inverting import image_inputs, invert_image, inverting_outputs, sigmas_input
from ..host.schema import io, schema, widget

#: Carries a ``core.spdinv.solvers.SPDInvSettings``.
SPDInvSettingsType = io.Custom("SEMEDIT_SPDINV_SETTINGS")
#: In place of a solver: the paper's descent as it is printed; "gradient" has the optimizer of the released code.
AS_PRINTED = "gradient_descent"


class SPDInvInversion(io.ComfyNode):
    """SPDInv (https://arxiv.org/abs/2403.11105) with a choice of solvers."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_SPDInvInversion",
            display_name="SPDInv Inversion",
            category="semantic editing/inversion",
            description="Turns a real image back into the noise from which this model makes that image again. Every "
            "step is solved to a measured residual, and the report says at how many dB the picture rebuilds. For SD "
            "1.x, SD 2.x, SDXL and flow models.",
            search_aliases=[
                "invert photo",
                "photo to noise",
                "edit photo",
                "real image edit",
                "ddim inversion",
                "fixed point inversion",
                "unsampler",
                "image to noise",
                "AIDI",
                "direct inversion",
                "SPDInv",
            ],
            inputs=[
                *image_inputs(),
                steps_input(
                    "Steps of the trajectory. More is finer and slower; 20 to 50 is usual. Ignored when sigmas is "
                    "wired."
                ),
                widget(
                    io.Combo,
                    "solver",
                    options=[*SOLVERS, AS_PRINTED],
                    default=SPDInvSettings.solver,
                    tooltip="auto: solves each step as far as the rebuilt image needs it. fixed_point, anderson: plain "
                    "iterations, as in AIDI. gradient: the paper's descent, slow (AdamW, as its released code); "
                    "gradient_descent: the same as the paper prints it. ddim: plain DDIM inversion, no "
                    "solving at all; with the engines' stored_shift it is direct inversion. one_evaluation: auto "
                    "stopped after one evaluation a step.",
                ),
                widget(
                    io.Float,
                    "tolerance",
                    default=SPDInvSettings.tolerance,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                    round=1e-9,
                    advanced=True,
                    tooltip="Mean-square residual at which a step counts as solved. 0.000005 is the paper's; smaller "
                    "is slower and more exact, 0 always uses all iterations.",
                ),
                widget(
                    io.Int,
                    "max_iterations",
                    default=SPDInvSettings.max_iterations,
                    min=1,
                    max=500,
                    advanced=True,
                    tooltip="Most evaluations of the model in one step. 25 is the paper's; the best iterate is kept "
                    "when it runs out.",
                ),
                widget(
                    io.Float,
                    "learning_rate",
                    default=SPDInvSettings.learning_rate,
                    min=0.0,
                    max=10.0,
                    step=1e-4,
                    round=1e-9,
                    advanced=True,
                    tooltip="Step size of gradient and gradient_descent. 0.001 is the paper's; others ignore it.",
                ),
                sigmas_input(),
                widget(
                    io.Boolean,
                    "check",
                    default=False,
                    optional=True,
                    tooltip="Rebuild the image from its noise afterwards, and report and draw what was lost. Costs as "
                    "many evaluations as there are steps.",
                ),
                widget(io.Vae, "vae", optional=True, tooltip="For check: tells what was lost in pixels too."),
                widget(
                    io.Float,
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    optional=True,
                    advanced=True,
                    tooltip="Guidance under which the noise must rebuild the image. 1 is usual, whatever cfg the edit "
                    "has. Others need negative and cost more: 3 some 2 times as much, 7.5 some 4 times.",
                ),
                widget(
                    io.Conditioning,
                    "negative",
                    optional=True,
                    tooltip="The negative prompt, for cfg other than 1.",
                ),
                *words_inputs(),
            ],
            outputs=inverting_outputs(),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        latent: dict[str, Any],
        steps: int,
        solver: str,
        tolerance: float,
        max_iterations: int,
        learning_rate: float,
        sigmas: Tensor | None = None,
        check: bool = False,
        vae: Any = None,
        cfg: float = 1.0,
        negative: Any = None,
        clip: Any = None,
        prompt: str = "",
    ) -> Any:
        """Invert, with every residual measured; EditingError for unusable input passes through as it is."""
        require_negative(cfg, negative)
        descent: Any = {"solver": "gradient", "optimizer": AS_PRINTED} if solver == AS_PRINTED else {"solver": solver}
        settings = SPDInvSettings(
            **descent,
            tolerance=tolerance,
            max_iterations=max_iterations,
            learning_rate=learning_rate,
            check_residual=True,
        )
        gradients, line = settings.may_descend, settings.tolerance
        return invert_image(
            cls,
            spdinv,
            settings,
            model,
            positive,
            latent,
            steps,
            sigmas,
            gradients=gradients,
            plot_line=line,
            check=check,
            vae=vae,
            cfg=cfg,
            negative=negative,
            clip=clip,
            prompt=prompt,
        )


NODES = [SPDInvInversion]
