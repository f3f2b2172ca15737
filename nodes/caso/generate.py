"""CASO Generate: new images that have the attributes of semantic embeddings."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...core.caso.editing import PRESETS, EditSettings, generate
from ..common.inputs import seed_input
from ..common.recording import unused_latent
from ..common.reports import report_output, shown
from ..host.latents import latent_from_model, seeded_noise
from ..host.sampling import run
from ..host.schema import io, schema, widget
from ..host.session import Session
from .embeddings import CATEGORY, Chosen
from .guidance import ADVICE, EMPTY, WHOLE, edit_settings, focus_input, guidance_inputs, host_terms, source_inputs

STRENGTH = "How strongly (lambda). 1 is the plain prompt of the embedding, 3 to 10 is usual, below 0 its opposite."


class CASOGenerate(io.ComfyNode):
    """Images from plain noise, guided by embeddings (Chang et al., section 4.3)."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_CASOGenerate",
            display_name="CASO Generate",
            category=CATEGORY,
            description="Makes new images that have the attribute of a semantic embedding, from noise: guidance by "
            "the embedding in place of words, or on top of a prompt.",
            search_aliases=["generate from embedding", "text to image", "semantic embedding", "caso"],
            inputs=[
                *source_inputs(),
                widget(
                    io.Latent, "empty_latent", tooltip="From Empty Latent Image: only its size and batch size count."
                ),
                *guidance_inputs(STRENGTH, WHOLE, [WHOLE, *PRESETS]),
                widget(io.Int, "steps", default=50, min=1, max=999, tooltip="Steps of sampling; 20 to 50 is usual."),
                seed_input("Which noise to start from; the same seed makes the same image."),
                focus_input(),
                widget(
                    io.Conditioning,
                    "base",
                    optional=True,
                    tooltip="A prompt of which the embedding makes variations. Unwired: the empty prompt, as in the "
                    "paper.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", display_name="latent", tooltip="The generated images; for VAE Decode."),
                report_output(),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        semantic_embedding: Chosen,
        empty_latent: Any,
        strength: float,
        window: str,
        start: float,
        end: float,
        joined: bool,
        steps: int,
        seed: int,
        focus: float = EditSettings.focus,
        base: Any = None,
    ) -> Any:
        """Generate; EditingError for unusable input passes through as it is."""
        settings = edit_settings(strength, window, start, end, joined, focus)
        terms = host_terms(clip, semantic_embedding, settings)

        def work(session: Session) -> tuple[Tensor, str]:
            noise = seeded_noise(empty_latent, session.latent.shape, seed).to(session.latent.device)
            made = generate(
                session.denoiser,
                noise,
                session.conds[EMPTY],
                terms.of(session),
                steps,
                settings.window,
                callback=session.callback(),
            )
            return made, terms.report(session, len(made), "Made")

        conds = terms.conds if base is None else terms.conds | {EMPTY: base}
        made, report = run(model, empty_latent, conds, work, seed=seed, advice=ADVICE)
        report += unused_latent(model, empty_latent)
        return io.NodeOutput(latent_from_model(model, made), report, ui=shown(report))


NODES = [CASOGenerate]
