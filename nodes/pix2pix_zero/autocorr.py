"""Autocorr DDIM Inversion: DDIM inversion whose noise is kept white, pix2pix-zero's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...core.pix2pix_zero.autocorr_inversion import (
    PRESETS,
    SHIFTS,
    AutocorrSettings,
    Preset,
    ShiftChoice,
    autocorr_invert,
)
from ..common.inputs import seed_input, steps_input, words_inputs
from ..common.inverting import image_inputs, invert_image, inverting_outputs, sigmas_input
from ..host.schema import io, schema, widget

#: Carries a ``core.pix2pix_zero.autocorr_inversion.AutocorrSettings``.
AutocorrSettingsType = io.Custom("SEMEDIT_AUTOCORR_SETTINGS")


class AutocorrDDIMInversion(io.ComfyNode):
    """The regularised inversion of pix2pix-zero (https://arxiv.org/abs/2302.03027, section 3.1)."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_AutocorrDDIMInversion",
            display_name="Autocorr DDIM Inversion",
            category="semantic editing/inversion",
            description="DDIM inversion of pix2pix-zero: every step's predicted noise is pushed towards white noise "
            "(neighbours uncorrelated, variance 1). Rebuilds the image less exactly than SPDInv Inversion, but its "
            "noise edits well.",
            search_aliases=[
                "pix2pix-zero inversion",
                "regularized ddim inversion",
                "noise regularization",
                "autocorrelation",
                "image to noise",
            ],
            inputs=[
                *image_inputs(),
                steps_input("Steps of the trajectory. 50 to 100 (the paper) is usual. Ignored when sigmas is wired."),
                widget(
                    io.Float,
                    "weight_pair",
                    default=AutocorrSettings.weight_pair,
                    min=0.0,
                    max=1000.0,
                    step=1.0,
                    tooltip="How strongly correlations between pixels are taken out of the noise. 0 is off; 20 is the "
                    "paper's.",
                ),
                widget(
                    io.Float,
                    "weight_kl",
                    default=AutocorrSettings.weight_kl,
                    min=0.0,
                    max=1000.0,
                    step=1.0,
                    tooltip="How strongly mean 0 and variance 1 are restored. 0 is off; 20 is the paper's; 40 and more "
                    "overshoots.",
                ),
                widget(
                    io.Int,
                    "iterations",
                    default=AutocorrSettings.iterations,
                    min=0,
                    max=100,
                    tooltip="Regularisation rounds in each step. 0 is plain DDIM inversion; 5 is the paper's.",
                ),
                widget(
                    io.Combo,
                    "shifts",
                    options=list(SHIFTS),
                    default=AutocorrSettings.shifts,
                    advanced=True,
                    tooltip="random: the paper's random shift per round. all: every shift at once, without any "
                    "randomness.",
                ),
                widget(
                    io.Combo,
                    "preset",
                    options=list(PRESETS),
                    default=AutocorrSettings.preset,
                    advanced=True,
                    tooltip="consistent: inverts the very levels that sampling visits. released: does as the published "
                    "code, for comparison.",
                ),
                seed_input("Which random shifts are drawn; without effect for shifts 'all'.", advanced=True),
                sigmas_input(),
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
        weight_pair: float,
        weight_kl: float,
        iterations: int,
        shifts: ShiftChoice,
        preset: Preset,
        seed: int,
        sigmas: Tensor | None = None,
        clip: Any = None,
        prompt: str = "",
    ) -> Any:
        """Invert; EditingError for unusable input passes through as it is."""
        settings = AutocorrSettings(weight_pair, weight_kl, iterations, shifts, seed, preset)
        return invert_image(
            cls, autocorr_invert, settings, model, positive, latent, steps, sigmas, clip=clip, prompt=prompt
        )


NODES = [AutocorrDDIMInversion]
