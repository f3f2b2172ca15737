"""Reference From Noise: an image that the model makes up, with its trajectory, to be edited like an inverted one."""

from __future__ import annotations

from typing import Any

from ...core.inversion import Inversion
from ...core.sampling import reference_from_noise
from ..common.inputs import cfg_input, seed_input, steps_input, words_inputs
from ..common.recording import as_lines, recorded, unused_latent, words_of
from ..common.reports import inversion_outputs, inversion_values, report_text, shown
from ..host.latents import latent_from_model, seeded_noise
from ..host.sampling import run
from ..host.schema import io, schema, widget
from ..host.session import Session


class GenerateReference(io.ComfyNode):
    """Sample an image and record its trajectory."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_GenerateReference",
            display_name="Reference From Noise",
            category="semantic editing/inversion",
            description="Generates an image from a seed and records its trajectory, so that a made-up image can be "
            "edited like a real one, without any inversion.",
            search_aliases=[
                "make a picture to edit",
                "synthetic image edit",
                "text to image reference",
                "pix2pix-zero synthetic",
            ],
            inputs=[
                widget(io.Model, "model", tooltip="The diffusion model; edit with the same one."),
                widget(io.Conditioning, "positive", tooltip="The prompt of the image; edit from the same prompt."),
                widget(
                    io.Conditioning,
                    "negative",
                    tooltip="What to move away from; an empty prompt is usual. Has no effect at cfg 1.",
                ),
                widget(
                    io.Latent, "empty_latent", tooltip="From Empty Latent Image: only its size and batch size count."
                ),
                seed_input("Which noise to start from; the same seed makes the same image."),
                steps_input("Steps of the trajectory; 20 to 50 is usual."),
                cfg_input("How strongly the prompt pulls. 1 is no extra pull; 3 to 7.5 is usual."),
                *words_inputs(),
            ],
            outputs=[
                *inversion_outputs(),
                io.Latent.Output("latent", display_name="latent", tooltip="The generated image; for VAE Decode."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        empty_latent: Any,
        seed: int,
        steps: int,
        cfg: float,
        clip: Any = None,
        prompt: str = "",
    ) -> Any:
        """Generate; EditingError for unusable input passes through as it is."""
        words, remarks = words_of(positive, clip, prompt)

        def work(session: Session) -> Inversion:
            noise = seeded_noise(empty_latent, session.latent.shape, seed).to(session.latent.device)
            conds, callback = session.conds, session.callback()
            return reference_from_noise(
                session.denoiser, noise, conds["positive"], cfg, conds["negative"], steps, callback=callback
            )

        reference = run(model, empty_latent, {"positive": positive, "negative": negative}, work, seed=seed)
        reference = recorded(reference, model, empty_latent, positive, negative, cfg, words)
        report = report_text(
            f"Made {reference.latents.shape[1]} picture(s) from seed {seed}, and kept the way for editing.",
            f"generated from seed {seed}: {steps} steps, {reference.evaluations:.0f} network evaluations per image",
        )
        report += unused_latent(model, empty_latent) + as_lines(remarks)
        return io.NodeOutput(
            *inversion_values(model, reference), latent_from_model(model, reference.latents[0]), ui=shown(report)
        )


NODES = [GenerateReference]
