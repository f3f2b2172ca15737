"""Style Diffusion Loader, Encode, Decode: DeltaEdit-D, which draws a face from its style code and its noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.deltaedit.style_code import StyleCode, blend
from ...core.deltaedit.style_diffusion import (
    StyleDiffusion,
    StyleNoise,
    decode,
    encode,
    fitted,
    interpolate_noise,
    load_style_diffusion,
    random_noise,
)
from ...core.errors import EditingError
from ..common.bundled import bundled, bundled_file, bundled_names
from ..common.inputs import seed_input
from ..common.reports import file_fingerprint, report_output, report_text, shown
from ..host.folders import STYLE_DIFFUSION, list_files, resolve_file
from ..host.memory import memory_advice
from ..host.progress import PicturePreviewer, PreviewBar
from ..host.schema import io, schema, widget
from .sockets import CATEGORY, Managed, StyleCodeType, StyleDiffusionType, StyleNoiseType

#: Steps where neither a widget nor a noise says how many.
STEPS = 20
#: The paper's Fig. 13 shows six pictures, the two ends among them.
FRAMES = 6
ADVICE = "give fewer pictures at once"


class StyleDiffusionLoader(io.ComfyNode):
    """A trained style diffusion as STYLE_DIFFUSION."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_StyleDiffusionLoader",
            display_name="Style Diffusion Loader",
            category=CATEGORY,
            description="Loads a diffusion model of faces that style codes steer (DeltaEdit-D): the demo's, or one "
            "that Style Diffusion Trainer saved. It understands the codes of the one generator that it learned from.",
            search_aliases=["deltaedit-d", "diffusion autoencoder", "diffae", "style conditioned diffusion"],
            inputs=[
                widget(
                    io.Combo,
                    "style_diffusion_file",
                    options=[*bundled_names(STYLE_DIFFUSION), *list_files(STYLE_DIFFUSION)],
                    default="demo",
                    tooltip="A file of ComfyUI's models/style_diffusion folder, or the demo's. Press R after adding "
                    "one.",
                )
            ],
            outputs=[
                StyleDiffusionType.Output(
                    "style_diffusion",
                    display_name="style diffusion",
                    tooltip="The model; wire it into Style Diffusion Encode and Decode.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, style_diffusion_file: str) -> str:
        """Size and time of the file, so that a file saved anew is read anew."""
        if bundled(STYLE_DIFFUSION, style_diffusion_file):
            return style_diffusion_file
        return file_fingerprint(STYLE_DIFFUSION, style_diffusion_file)

    @classmethod
    def execute(cls, style_diffusion_file: str) -> Any:
        """Read; EditingError for a damaged or foreign file."""
        path = bundled_file(STYLE_DIFFUSION, style_diffusion_file) or resolve_file(
            STYLE_DIFFUSION, style_diffusion_file
        )
        managed = Managed.make(lambda: load_style_diffusion(path))
        size = managed.network.shape.size
        first = f"It is ready and draws faces of {size} x {size} pixels."
        report = report_text(first, f"{style_diffusion_file}: {network_report(managed.network)}")
        return io.NodeOutput(managed, report, ui=shown(report))


def network_report(network: StyleDiffusion) -> str:
    """What the network takes and how long it learned, in a line."""
    size = network.shape.size
    said = f"pictures of {size} x {size}, codes of {network.layout.width} channels"
    known = {name: network.facts.get(name) for name in ("steps", "pictures")}
    if all(isinstance(value, int) for value in known.values()):
        said += f", trained {known['steps']} steps on {known['pictures']} pictures"
    return said


class StyleDiffusionEncode(io.ComfyNode):
    """The noise x_T of pictures under their style codes (Eq. 15 run backwards)."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_StyleDiffusionEncode",
            display_name="Style Diffusion Encode",
            category=CATEGORY,
            description="Finds the noise from which a style diffusion draws exactly this face under its style code: "
            "what the code does not say. Decode it with an edited code to edit the face.",
            search_aliases=["deltaedit-d", "ddim inversion", "stochastic code", "x_T", "diffusion autoencoder encode"],
            inputs=[
                widget(StyleDiffusionType, "style_diffusion", tooltip="The model, from Style Diffusion Loader."),
                widget(
                    io.Image,
                    "image",
                    tooltip="The face, square, as the style code was made of it; it is brought to the model's size. "
                    "Several are encoded together.",
                ),
                widget(
                    StyleCodeType,
                    "style_code",
                    tooltip="The code of these pictures, not yet edited, from Invert to Style Code: one each, or one "
                    "for all.",
                ),
                widget(
                    io.Int,
                    "steps",
                    default=STEPS,
                    min=1,
                    max=999,
                    tooltip="Steps from the picture to its noise. 20 are enough where exact is on; without it more "
                    "come "
                    "back closer, and the paper takes 100.",
                ),
                widget(
                    io.Boolean,
                    "exact",
                    default=True,
                    tooltip="Solve every step for the point from which sampling comes back (SPDInv), in about four "
                    "evaluations. Off: plain DDIM inversion as in the paper, one a step; edits come out weaker.",
                ),
            ],
            outputs=[
                StyleNoiseType.Output(
                    "style_noise",
                    display_name="noise",
                    tooltip="What the style code does not say of the pictures; wire it into Style Diffusion Decode.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def execute(
        cls, style_diffusion: Managed[StyleDiffusion], image: Tensor, style_code: StyleCode, steps: int, exact: bool
    ) -> Any:
        """Encode; EditingError for pictures or codes that do not fit the model."""
        style_diffusion.network.check(style_code)
        size = style_diffusion.network.shape.size
        pictures = fitted(image[..., :3].movedim(-1, 1).float(), size)
        with memory_advice(ADVICE):
            noise = encode(
                style_diffusion.loaded(), pictures, style_code, steps, exact=exact, callback=PreviewBar(None, None)
            )
        height = image.shape[1]
        lines = [
            f"{len(noise)} picture(s), {steps} steps, {noise.evaluations:.0f} network evaluations for each",
            f"noise: mean {float(noise.noise.mean()):+.3f}, standard deviation {float(noise.noise.std()):.3f} (1 is "
            "ideal)",
        ]
        if exact:
            lines.append(f"worst residual of a step: {noise.residual:.1e}")
        if height != size:
            lines.append(f"brought from {height} to {size} pixels")
        report = report_text(f"Found the noise of {len(noise)} picture(s).", *lines)
        return io.NodeOutput(noise, report, ui=shown(report))


class StyleDiffusionDecode(io.ComfyNode):
    """Pictures from style codes and noise (Eq. 15), and the way from one picture to another (Eq. 16)."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_StyleDiffusionDecode",
            display_name="Style Diffusion Decode",
            category=CATEGORY,
            description="Draws faces from style codes and noise. With a picture's own noise and an edited code it "
            "edits that picture; with random noise it shows what a code alone says; with a second code or noise it "
            "goes from one picture to the other.",
            search_aliases=[
                "deltaedit-d",
                "ddim sampling",
                "diffusion autoencoder decode",
                "face interpolation",
                "morph",
            ],
            inputs=[
                widget(StyleDiffusionType, "style_diffusion", tooltip="The model, from Style Diffusion Loader."),
                widget(
                    StyleCodeType,
                    "style_code",
                    tooltip="What to draw: the code as it is rebuilds, an edited one (DeltaEdit Mapper) or a mixed one "
                    "edits.",
                ),
                widget(
                    io.Int,
                    "steps",
                    default=0,
                    min=0,
                    max=999,
                    tooltip="Steps from the noise to the picture, one network evaluation each. 0: as many as the noise "
                    f"was encoded in, which comes back closest; {STEPS} for random noise.",
                ),
                seed_input("Of random noise, where no noise is wired."),
                widget(
                    io.Int,
                    "frames",
                    default=FRAMES,
                    min=2,
                    max=256,
                    tooltip="With a second code or noise: pictures on the way, both ends among them. Otherwise unused.",
                ),
                widget(
                    StyleNoiseType,
                    "style_noise",
                    optional=True,
                    tooltip="A picture's noise, from Style Diffusion Encode. Unwired: random noise.",
                ),
                widget(
                    StyleCodeType,
                    "to_style_code",
                    optional=True,
                    tooltip="Code to arrive at, in even steps from style_code.",
                ),
                widget(
                    StyleNoiseType,
                    "to_style_noise",
                    optional=True,
                    tooltip="Noise to arrive at, on the arc from style_noise (spherical interpolation).",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "images", display_name="images", tooltip="The pictures, a batch with a row for each code or frame."
                ),
                report_output(),
            ],
        )

    @classmethod
    def execute(
        cls,
        style_diffusion: Managed[StyleDiffusion],
        style_code: StyleCode,
        steps: int,
        seed: int,
        frames: int,
        style_noise: StyleNoise | None = None,
        to_style_code: StyleCode | None = None,
        to_style_noise: StyleNoise | None = None,
    ) -> Any:
        """Draw; EditingError for codes or noise of another model, or that do not fit each other."""
        network = style_diffusion.network
        network.check(style_code)
        told = []
        if style_noise is None:
            if to_style_noise is not None:
                raise EditingError("to_style_noise is wired and style_noise is not; wire the noise to start from.")
            moving = to_style_code is not None  # one face on its way keeps one noise
            style_noise = random_noise(network, 1 if moving else len(style_code), steps or STEPS, seed)
            told.append(f"random noise of seed {seed}: this shows what the style code alone says")
        code, noise = style_code, style_noise
        if to_style_code is not None or to_style_noise is not None:
            code, noise = on_the_way(style_code, to_style_code, style_noise, to_style_noise, frames)
            told.append(f"{frames} pictures from one to the other")
        with memory_advice(ADVICE):
            pictures = decode(
                style_diffusion.loaded(),
                noise,
                code,
                steps or noise.steps,
                callback=PreviewBar(PicturePreviewer(), None),
            )
        images = (pictures.clamp(-1, 1) / 2 + 0.5).movedim(1, -1).contiguous()
        used = steps or noise.steps
        told.insert(0, f"{len(images)} picture(s), {used} steps, {used} network evaluations for each")
        if used != noise.steps:
            told.append(f"the noise was encoded in {noise.steps} steps; in as many it comes back closest")
        report = report_text(f"Drew {len(images)} picture(s) in {used} steps.", *told)
        return io.NodeOutput(images, report, ui=shown(report, images, cls))


def on_the_way(
    code: StyleCode, to_code: StyleCode | None, noise: StyleNoise, to_noise: StyleNoise | None, frames: int
) -> tuple[StyleCode, StyleNoise]:
    """Codes and noises of ``frames`` pictures from the first of each to the second (section 5.3.1).

    Raises:
        EditingError: they are of several faces, or of different generators or models.
    """
    for what, value in (("style_code", code), ("to_style_code", to_code)):
        if value is not None and len(value) != 1:
            raise EditingError(f"{what} holds {len(value)} faces; the way from one to another takes one of each.")
    amounts = torch.linspace(0, 1, frames).tolist()
    if to_code is not None:
        parts = [blend(code, to_code, [amount] * 3).convs for amount in amounts]
        code = StyleCode(code.layout, torch.cat(parts), code.rgbs.expand(frames, -1), code.generator)
    if to_noise is not None:
        noise = interpolate_noise(noise, to_noise, amounts)
    if len(noise) not in (1, frames):
        raise EditingError(f"style_noise is of {len(noise)} pictures; the way from one to another takes one of each.")
    return code, noise


NODES = [StyleDiffusionLoader, StyleDiffusionEncode, StyleDiffusionDecode]
