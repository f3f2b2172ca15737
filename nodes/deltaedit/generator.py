"""StyleGAN2 Loader, Save StyleGAN2, StyleGAN2 Generate, Decode Style Code, Style Code Mix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.deltaedit.generator_files import load_generator, save_generator
from ...core.deltaedit.style_code import LEVELS, StyleCode, interpolate
from ...core.deltaedit.stylegan2 import StyleGAN2
from ...core.writing import check_target
from ..common.bundled import bundled, bundled_file, bundled_names
from ..common.inputs import saved_name_inputs, seed_input
from ..common.reports import file_fingerprint, report_output, report_text, shown
from ..common.saving import save_or_rescue
from ..host.folders import list_files, output_path, resolve_file
from ..host.memory import memory_advice
from ..host.progress import StoppableBar
from ..host.schema import io, schema, widget
from .sockets import CATEGORY, Managed, StyleCodeType, StyleGAN2Type

FOLDER = "stylegan2"
#: Pixels and pictures that are drawn at once; a picture of 1024 pixels takes about 750 MB while it is drawn.
PIXELS, PICTURES = 2**20, 16
STORED_NOISE = -1


def decode_images(stylegan2: Managed[StyleGAN2], code: StyleCode, noise_seed: int | None = None) -> Tensor:
    """IMAGE ``[B, size, size, 3]`` of style codes, a few at a time, with progress; a press of Cancel ends it.

    Args:
        noise_seed: of the layers' noise; None: the generator's own.

    Raises:
        EditingError: the code was made by another generator.
    """
    stylegan2.network.check(code)
    network, bar = stylegan2.loaded(), StoppableBar()
    noise = network.noise(noise_seed)
    at_once = max(1, min(PICTURES, PIXELS // network.size**2))
    images = torch.empty(len(code), network.size, network.size, 3)
    with memory_advice("free memory, or use a smaller generator"):
        for start in range(0, len(code), at_once):
            bar.show(start, len(code))
            rows = slice(start, start + at_once)
            pictures = network.synthesize(code.select(rows).to(stylegan2.device), noise)
            images[rows] = pictures.add(1).div(2).clamp(0, 1).movedim(1, -1).float().cpu()
    bar.show(len(code), len(code))
    return images


class StyleGAN2Loader(io.ComfyNode):
    """A StyleGAN2 generator from whatever program's file."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        files = [*bundled_names(FOLDER), *list_files(FOLDER)]
        return schema(
            node_id="SemEdit_StyleGAN2Loader",
            display_name="StyleGAN2 Loader",
            category=CATEGORY,
            description="Loads a StyleGAN2 generator of any size: a checkpoint of the PyTorch port (.pt), a snapshot "
            "of stylegan2-ada-pytorch (.pkl), safetensors, or the demo's. No code in a file is run.",
            search_aliases=["load face generator", "gan loader", "load stylegan", "ffhq", "stylegan2-ada", "deltaedit"],
            inputs=[
                widget(
                    io.Combo,
                    "generator_file",
                    options=files,
                    default=files[0] if files else None,
                    tooltip="A file of ComfyUI's models/stylegan2 folder, or the demo's. Press R after adding one.",
                ),
            ],
            outputs=[
                StyleGAN2Type.Output(
                    "stylegan2",
                    display_name="stylegan2",
                    tooltip="The generator; wire it into StyleGAN2 Generate, Decode Style Code or Save StyleGAN2.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, generator_file: str) -> str:
        """Size and time of the file, so that a file saved anew is read anew."""
        return generator_file if bundled(FOLDER, generator_file) else file_fingerprint(FOLDER, generator_file)

    @classmethod
    def execute(cls, generator_file: str) -> Any:
        """Read; EditingError for a damaged, hostile or foreign file."""
        path = bundled_file(FOLDER, generator_file) or resolve_file(FOLDER, generator_file)
        made = Managed.make(lambda: load_generator(path))
        lines = [f"{generator_file}: {made.network.describe()}"]
        if made.network.w_mean.isnan().any():
            lines.append("the mean of W is not in the file; it will be taken over 10,000 samples")
        if made.network.clamp is not None:
            lines.append(f"values of layers are held within {made.network.clamp:g}, as in its training")
        size = made.network.size
        report = report_text(f"It is ready and draws pictures of {size} x {size} pixels.", *lines)
        return io.NodeOutput(made, report, ui=shown(report))


class SaveStyleGAN2(io.ComfyNode):
    """Write a STYLEGAN2 as safetensors: the converter of other programs' files."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_SaveStyleGAN2",
            display_name="Save StyleGAN2",
            category=CATEGORY,
            description="Saves a generator as a safetensors file in ComfyUI's models/stylegan2 folder. That converts a "
            ".pt or .pkl; style codes and mappers made with the one work with the other.",
            search_aliases=["convert stylegan", "stylegan to safetensors", "export stylegan", "pkl to safetensors"],
            inputs=[
                widget(StyleGAN2Type, "stylegan2", tooltip="The generator to save, from StyleGAN2 Loader."),
                *saved_name_inputs("generator"),
                widget(
                    io.Boolean,
                    "half_precision",
                    default=False,
                    advanced=True,
                    tooltip="Store 16 bits for each number instead of 32: half the size, and pictures that differ by "
                    "what nobody sees. Off: exact.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "saved_file", display_name="file", tooltip="Name of the file, as StyleGAN2 Loader lists it."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, stylegan2: Managed[StyleGAN2], filename: str, overwrite: bool, half_precision: bool) -> Any:
        """Write whole or not at all."""
        path, network = check_target(output_path(FOLDER, filename), overwrite=overwrite), stylegan2.network

        def save(target: Path, replacing: bool) -> None:
            save_generator(target, network, replacing, half_precision=half_precision)

        saved = save_or_rescue(save, path, overwrite, is_output=False)
        return io.NodeOutput(saved.file, ui=shown(report_text(saved.line, network.describe())))


class StyleGAN2Generate(io.ComfyNode):
    """Seeded random faces."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_StyleGAN2Generate",
            display_name="StyleGAN2 Generate",
            category=CATEGORY,
            description="Draws random pictures with a StyleGAN2 and gives their style codes, which the other nodes of "
            "DeltaEdit edit.",
            search_aliases=[
                "make a face",
                "new portrait",
                "random face",
                "gan sample",
                "stylegan sample",
                "truncation",
                "deltaedit",
            ],
            inputs=[
                widget(StyleGAN2Type, "stylegan2", tooltip="The generator, from StyleGAN2 Loader."),
                seed_input("Of the random pictures. The same seed gives the same pictures."),
                widget(io.Int, "count", default=1, min=1, max=256, tooltip="How many pictures, as a batch."),
                widget(
                    io.Float,
                    "truncation",
                    default=0.7,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How far pictures may be from the mean one. 1: as the network learned them. Below: fewer "
                    "kinds of picture, better ones; 0 is the mean picture every time.",
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The pictures."),
                StyleCodeType.Output(
                    "style_code",
                    display_name="style code",
                    tooltip="The pictures in the generator's style space; wire it into Style Code Mix or Decode Style "
                    "Code.",
                ),
            ],
        )

    @classmethod
    def execute(cls, stylegan2: Managed[StyleGAN2], seed: int, count: int, truncation: float) -> Any:
        """Draw."""
        network = stylegan2.loaded()
        code = network.styles(network.sample_w_plus(count, seed, truncation)).to("cpu")
        first = f"Drew {count} picture(s) of {network.size} x {network.size} pixels."
        report = report_text(first, f"seed {seed}, truncation {truncation:g}")
        return io.NodeOutput(decode_images(stylegan2, code), code, ui=shown(report))


class DecodeStyleCode(io.ComfyNode):
    """STYLE_CODE to IMAGE."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_DecodeStyleCode",
            display_name="Decode Style Code",
            category=CATEGORY,
            description="Draws the pictures of a style code with the generator that it belongs to.",
            search_aliases=["style code to image", "stylegan decode", "synthesize", "deltaedit"],
            inputs=[
                widget(StyleGAN2Type, "stylegan2", tooltip="The generator that the style code was made with."),
                widget(StyleCodeType, "style_code", tooltip="What to draw; a batch becomes a batch of pictures."),
                widget(
                    io.Int,
                    "noise_seed",
                    default=STORED_NOISE,
                    min=STORED_NOISE,
                    max=2**53 - 1,
                    advanced=True,
                    tooltip="Of the noise that decides hair by hair and pore by pore. -1: the noise stored in the "
                    "generator's file, the same for every picture.",
                ),
            ],
            outputs=[io.Image.Output("image", display_name="image", tooltip="The pictures.")],
        )

    @classmethod
    def execute(cls, stylegan2: Managed[StyleGAN2], style_code: StyleCode, noise_seed: int) -> Any:
        """Draw; EditingError when the code belongs to another generator."""
        images = decode_images(stylegan2, style_code, None if noise_seed == STORED_NOISE else noise_seed)
        first = f"Drew {len(images)} picture(s) of {images.shape[2]} x {images.shape[1]} pixels."
        return io.NodeOutput(images, ui=shown(report_text(first)))


class StyleCodeMix(io.ComfyNode):
    """Two codes interpolated or mixed by level."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""

        def level(name: str, what: str) -> Any:
            return widget(
                io.Float,
                name,
                default=1.0,
                min=-2.0,
                max=2.0,
                step=0.05,
                tooltip=f"Times amount, for the layers that decide {what}. 0 leaves them as the first code has them.",
            )

        return schema(
            node_id="SemEdit_StyleCodeMix",
            display_name="Style Code Mix",
            category=CATEGORY,
            description="Goes from one style code to another: part of the way, in steps, or with some levels of detail "
            "alone. Between a face and its edit it makes the edit weaker or stronger.",
            search_aliases=[
                "mix faces",
                "morph faces",
                "style mixing",
                "style code interpolate",
                "morph",
                "attribute interpolation",
                "deltaedit",
            ],
            inputs=[
                widget(StyleCodeType, "first", tooltip="Where the way begins."),
                widget(
                    StyleCodeType,
                    "second",
                    tooltip="Where it leads, from the same generator; as many pictures as the first, or one of the two "
                    "has one.",
                ),
                widget(
                    io.Float,
                    "amount",
                    default=0.5,
                    min=-2.0,
                    max=3.0,
                    step=0.05,
                    tooltip="How far to go: 0 is the first code, 1 the second, exactly; beyond 1 goes on past it.",
                ),
                widget(
                    io.Int,
                    "steps",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Codes on the way, from the first code to amount, as a batch. 1: only the last.",
                ),
                level("coarse", "pose and shape (4 and 8 pixels)"),
                level("medium", "features (16 and 32 pixels)"),
                level("fine", "colour and texture (64 pixels and more)"),
                widget(
                    io.Boolean,
                    "colour_layers",
                    default=True,
                    advanced=True,
                    tooltip="The layers that make colour go along. Off: they stay the first code's, as in DeltaEdit's "
                    "edits.",
                ),
            ],
            outputs=[
                StyleCodeType.Output(
                    "style_code", display_name="style code", tooltip="The codes; wire it into Decode Style Code."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        first: StyleCode,
        second: StyleCode,
        amount: float,
        steps: int,
        coarse: float,
        medium: float,
        fine: float,
        colour_layers: bool,
    ) -> Any:
        """Blend; EditingError for codes of two generators or batches that do not fit."""
        factors = (coarse, medium, fine)
        made = interpolate(first, second, [amount * factor for factor in factors], steps, colour_layers)
        parts = ", ".join(f"{name} {amount * factor:g}" for name, factor in zip(LEVELS, factors, strict=True))
        return io.NodeOutput(made, ui=shown(report_text(f"Made {len(made)} code(s), up to {parts} of the way.")))


NODES = [StyleGAN2Loader, StyleGAN2Generate, DecodeStyleCode, StyleCodeMix, SaveStyleGAN2]
