"""Style Diffusion Trainer: a style diffusion from pictures and their style codes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.deltaedit.latents import seed_of
from ...core.deltaedit.style_diffusion import StyleDiffusion, load_style_diffusion
from ...core.deltaedit.style_diffusion_training import (
    DiffusionProgress,
    DiffusionSettings,
    DiffusionTrainer,
    StyledPictures,
    gather_pictures,
    made_by,
    resume_training,
    save_training,
)
from ...core.deltaedit.style_unet import DEMO_SHAPE, UNetShape
from ...core.deltaedit.stylegan2 import StyleGAN2
from ...core.errors import EditingError
from ...core.images.curves import curves_plot
from ...core.images.files import picture_files, read_picture
from ..common.claimed_files import ClaimedFiles
from ..common.reports import plot_output, report_output, report_text, shown
from ..common.saving import Saved, save_or_rescue
from ..host.folders import STYLE_DIFFUSION, STYLE_DIFFUSION_TRAININGS, input_folder, output_path
from ..host.managed_models import training_scope
from ..host.progress import StoppableBar, counting_bar
from ..host.schema import io, schema, widget
from .sockets import CATEGORY, DeltaLatentsType, Managed, StyleDiffusionType, StyleGAN2Type
from .training_settings import DEFAULTS, TrainingChoices, training_settings_input

SMALL, PAPER = "small, 64 pixels", "paper, 128 pixels"
#: Name -> network and training.
PRESETS = {SMALL: (DEMO_SHAPE, DiffusionSettings()), PAPER: (UNetShape(), DiffusionSettings.paper())}
#: Seconds between two saves of the state to go on from.
SAVE_EVERY = 60


class StyleDiffusionTrainer(io.ComfyNode):
    """Eq. 14: a diffusion model learns to predict noise, told the style code."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_StyleDiffusionTrainer",
            display_name="Style Diffusion Trainer",
            category=CATEGORY,
            description="Trains a diffusion model that draws faces from their style codes (DeltaEdit-D), and saves "
            "it. Takes hours on a GPU; it can be stopped and gone on with. Cancel keeps the best so far.",
            search_aliases=[
                "deltaedit-d",
                "train diffusion autoencoder",
                "diffae training",
                "style conditioned diffusion",
            ],
            inputs=[
                widget(
                    DeltaLatentsType,
                    "latents",
                    tooltip="Style codes of the pictures, from DeltaEdit Latents.",
                ),
                widget(
                    io.String,
                    "folder",
                    default="",
                    tooltip="The folder of pictures inside ComfyUI's input folder that the latents were made of. "
                    "Empty: only generated samples, which stylegan2 draws anew.",
                ),
                widget(
                    io.String,
                    "filename",
                    default="my_style_diffusion",
                    tooltip="A plain name without folders; .safetensors is added.",
                ),
                widget(
                    io.Boolean,
                    "overwrite",
                    default=False,
                    tooltip="Replace a file of that name; a workflow that comes with this on does so without asking. "
                    "Off (the default): refuse when there is one, before training.",
                ),
                widget(
                    io.Combo,
                    "preset",
                    options=list(PRESETS),
                    default=SMALL,
                    tooltip="small: the demo's network of 2 million weights, with noise levels drawn where the picture "
                    "is decided. paper: DiffAE's network and the paper's training, for a GPU.",
                ),
                widget(
                    io.Int,
                    "steps",
                    default=10_000,
                    min=1,
                    max=10_000_000,
                    tooltip="Of training. May be raised later to go on; the best average by held-out loss is kept.",
                ),
                widget(
                    io.Int,
                    "batch_size",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Pictures in one step. 0: the preset's, 16 or 64. Lower it when memory runs out.",
                ),
                widget(
                    io.Boolean,
                    "resume",
                    default=True,
                    tooltip="Go on with the training of this name where it was stopped, if there is one.",
                ),
                widget(
                    io.Float,
                    "minutes",
                    default=0.0,
                    min=0.0,
                    max=100_000.0,
                    step=1.0,
                    tooltip="Stop after so long, even before the last step; the next run goes on. 0: no limit.",
                ),
                widget(
                    StyleGAN2Type,
                    "stylegan2",
                    optional=True,
                    tooltip="The generator of the latents, to draw their generated samples anew. Unwired: samples "
                    "among them are left out.",
                ),
                training_settings_input(),
            ],
            outputs=[
                StyleDiffusionType.Output(
                    "style_diffusion",
                    display_name="style diffusion",
                    tooltip="The best average; it is saved too. Wire it into Style Diffusion Encode and Decode.",
                ),
                plot_output(),
                report_output(),
                io.String.Output(
                    "saved_file",
                    display_name="file",
                    tooltip="Name of the file, as Style Diffusion Loader lists it.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        latents: Any,
        folder: str,
        filename: str,
        overwrite: bool,
        preset: str,
        steps: int,
        batch_size: int,
        resume: bool,
        minutes: float,
        stylegan2: Managed[StyleGAN2] | None = None,
        settings: TrainingChoices = DEFAULTS,
    ) -> Any:
        """Train and save; Cancel saves the best so far, and the state to go on from, before it ends the run."""
        shape, training = chosen(preset, steps, batch_size, settings)
        path, state = (output_path(kind, filename) for kind in (STYLE_DIFFUSION, STYLE_DIFFUSION_TRAININGS))
        going_on, files = resume and state.exists(), ClaimedFiles(state)
        files.claim(path, overwrite, (lambda file: _made_by(file, training)) if going_on else None)
        files.claim(state, overwrite, (lambda file: True) if going_on else None)  # compared when it is read
        data, left_out = styled_pictures(latents, folder, shape.size, stylegan2)
        bar, began = StoppableBar(), time.monotonic()
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            torch.manual_seed(training.seed % 2**63)
            network = StyleDiffusion(shape, data.layout, data.generator)
        weights = sum(value.numel() * value.element_size() for value in network.parameters())
        with training_scope(weights) as device:
            trainer = DiffusionTrainer(network.to(device), data, training)
            if going_on:
                resume_training(trainer, state)
            saved_at = began

            def save_state(target: Path, replacing: bool) -> None:
                save_training(trainer, target, overwrite=replacing)

            def report(progress: DiffusionProgress) -> None:
                nonlocal saved_at
                now = time.monotonic()
                if progress.step % training.check_every == 0 and now - saved_at > SAVE_EVERY:
                    files.save_state(save_state)
                    saved_at = time.monotonic()
                text = f"step {progress.step}, loss {progress.loss:.4f}"
                if trainer.best_step:
                    text += f", held out {trainer.best_score:.4f} at step {trainer.best_step}"
                bar.show(progress.step, training.steps, None, text)

            with bar.catching():
                for progress in trainer.steps():
                    report(progress)
                    if minutes and time.monotonic() - began > 60 * minutes:
                        break
            if trainer.step:
                if not trainer.best_step:
                    trainer.look()
                files.save_state(save_state)
            best = trainer.best().cpu()
        saved = Saved("", "")
        if trainer.step:
            saved = save_or_rescue(
                lambda target, replacing: best.save(target, overwrite=replacing), path, path in files.replaceable
            )
        if not trainer.step or (saved.file and not files.trouble):
            bar.finish()  # else it would be lost, or nobody would hear where it went
        first = f"Learned to draw {len(data.pictures)} faces from their codes, for {trainer.step} steps."
        if trainer.step:
            first = saved.first(first)
        text = report_text(first, saved.line, training_report(trainer), trainer.trouble, files.trouble, left_out)
        plot = training_plot(trainer)[None]
        managed = Managed.make(lambda: best)
        return io.NodeOutput(managed, plot, text, saved.file, ui=shown(text, plot, cls))


def chosen(preset: str, steps: int, batch_size: int, given: TrainingChoices) -> tuple[UNetShape, DiffusionSettings]:
    """Network and training of a preset with the changes of widgets and settings; 0 leaves the preset's own.

    Raises:
        EditingError: there is no such preset, or a value is unusable.
    """
    if preset not in PRESETS:
        raise EditingError(f"There is no preset '{preset[:40]}'; use one of {', '.join(PRESETS)}.")
    shape, settings = PRESETS[preset]
    settings = replace(
        settings,
        steps=steps,
        batch=batch_size or settings.batch,
        learning_rate=given.learning_rate or settings.learning_rate,
        check_every=given.check_every or settings.check_every,
        seed=given.seed,
    )
    return shape, settings


def styled_pictures(
    latents: Any, folder: str, size: int, stylegan2: Managed[StyleGAN2] | None
) -> tuple[StyledPictures, str]:
    """The pictures that latents were made of, with their codes; and what was left out, in words.

    Args:
        latents: a ``core.deltaedit.latents.Latents``.

    Raises:
        EditingError: fewer than two pictures, or another generator than that of the latents.
    """
    if stylegan2 is not None and stylegan2.network.identity != latents.origin.generator:
        raise EditingError("The latents were made with another generator; wire the one that made them.")
    files = {}
    if folder.strip():
        names = picture_files(input_folder(folder.strip()))
        files = {path.name.encode("utf-8", "backslashreplace").decode(): path for path in names}
    find = picture_finder(files, stylegan2, latents.origin.truncation)
    with torch.no_grad():
        pictures, rows = gather_pictures(latents.names, find, size, counting_bar())
        convs = latents.styles(rows).clone()
    missing = len(latents.names) - len(rows)
    left_out = f"{missing} of {len(latents.names)} faces have no picture here and were left out" if missing else ""
    return StyledPictures(pictures, convs, latents.layout, latents.origin.generator), left_out


def picture_finder(
    files: dict[str, Path], stylegan2: Managed[StyleGAN2] | None, truncation: float
) -> Callable[[str], Tensor | None]:
    """A name of the latents -> its square picture ``[1, 3, H, H]`` in 0..1; None where there is none."""
    generator = None if stylegan2 is None else stylegan2.loaded()

    def find(name: str) -> Tensor | None:
        if name not in files:
            seed = seed_of(name)
            if generator is None or seed is None:
                return None
            w_plus = generator.sample_w_plus(1, seed, truncation)
            return (generator(w_plus) / 2 + 0.5).clamp(0, 1)
        try:
            picture, _ = read_picture(files[name], multiple=1)
        except EditingError:
            return None
        side = min(picture.shape[-2:])
        top, left = ((length - side) // 2 for length in picture.shape[-2:])
        return picture[..., top : top + side, left : left + side]

    return find


def _made_by(path: Path, settings: DiffusionSettings) -> bool:
    try:
        return made_by(load_style_diffusion(path), settings)
    except EditingError:
        return False


def training_report(trainer: DiffusionTrainer) -> str:
    """A few lines for people."""
    lines = [f"{trainer.step} steps on {len(trainer.training)} pictures, {len(trainer.held_out)} held out"]
    if trainer.best_step:
        lines.append(
            f"best at step {trainer.best_step}: mean error of the held-out pictures' noise (Eq. 14) "
            f"{trainer.best_score:.4f}"
        )
    return "\n".join(lines)


def training_plot(trainer: DiffusionTrainer) -> Tensor:
    """Loss of every step and of every look, ``[H, W, 3]`` in 0..1."""
    panels = {
        "loss as trained": {"training": [entry.loss for entry in trainer.history]},
        "error of the noise": {"held out": [entry.held_out for entry in trainer.history]},
    }
    return curves_plot(panels, mark=trainer.best_step - 1 if trainer.best_step else None, axis="step")


NODES = [StyleDiffusionTrainer]
