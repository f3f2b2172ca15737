"""Region Inpaint Editor, Region Inversion Editor, Region Token Editor: what fills the boxes of a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...core.inversion import Inversion
from ...core.regions.edit_inpaint import InpaintSettings
from ...core.regions.edit_invert import InversionEditSettings
from ...core.regions.edit_tokens import TokenEditSettings
from ...core.regions.editors import OpenEditor
from ...core.regions.paste import Framing
from ..common.inputs import cfg_input
from ..common.recording import changed_remarks
from ..common.reports import model_fingerprint
from ..common.sockets import InversionType
from ..host.folders import list_models, resolve_model
from ..host.identity import identity
from ..host.schema import io, schema, widget
from .host_editors import inpaint_opener, inversion_opener, token_opener
from .models import CATEGORY

#: Socket carrying a :class:`RegionEditor`.
RegionEditorType = io.Custom("REGION_EDITOR")


@dataclass(frozen=True, eq=False)
class RegionEditor:
    """What an editor node hands over: the models stay unloaded until a search opens the editor for its image.

    Attributes:
        open: ``(image [1, 3, H, W] in 0..1, progress) -> context manager of an Editor``. ``progress`` is told after
            every step of every render; it and the host's Cancel may raise. Renders are normal tensors without
            gradients, whatever the caller's mode. After the ``with`` block nothing stays loaded or patched on the
            editor's account.
        title: one line for the report.
    """

    open: OpenEditor
    title: str


#: Model folder of Region Token Editor, and the file by which one of its models is known.
TOKEN_MODELS, TOKEN_MARK = "diffusers", "model_index.json"


def steps_input(steps: int, unit: str) -> Any:
    """How fine a render is."""
    return widget(
        io.Int,
        "steps",
        default=steps,
        min=1,
        max=999,
        tooltip=f"{unit} of a render. More is finer and slower.",
    )


def context_input() -> Any:
    """Margin of the crop."""
    return widget(
        io.Float,
        "context",
        default=0.5,
        min=0.0,
        max=100.0,
        step=0.05,
        tooltip="What the model sees around a box, as a share of its longer side, on every side. 0: the box alone; "
        "0.5 is usual; "
        "100: always the whole image.",
    )


def working_size_input() -> Any:
    """Side of what the model works on."""
    return widget(
        io.Int,
        "working_size",
        default=512,
        min=0,
        max=4096,
        step=8,
        tooltip="Pixels to which the side of what is cut out is resized for the model: 512 for SD 1.x, 1024 for "
        "SDXL, 128 for the demo. "
        "0: as it is in the image.",
    )


def feather_input() -> Any:
    """Softness of the paste."""
    return widget(
        io.Int,
        "feather",
        default=4,
        min=0,
        max=256,
        tooltip="Pixels over which the edit fades in, inside the box, at most an eighth of its side. 0 is a hard "
        "edge. Outside the box "
        "every pixel stays exactly.",
    )


def sampler_inputs() -> list[Any]:
    """Sockets for the host's own sampler, for models that need one (LCM, lightning)."""
    return [
        widget(
            io.Sampler,
            "sampler",
            optional=True,
            tooltip="Paints in place of the pack's own steps, as in SamplerCustom: LCM and lightning models need 4 to "
            "8 steps of theirs. Wire sigmas too.",
        ),
        widget(
            io.Sigmas,
            "sigmas",
            optional=True,
            tooltip="The steps of a wired sampler, from a scheduler node; steps is then not used.",
        ),
    ]


def editor_output() -> Any:
    """The REGION_EDITOR."""
    return RegionEditorType.Output(
        "region_editor", display_name="region editor", tooltip="Wire it into Region Box Generator."
    )


class RegionInpaintEditor(io.ComfyNode):
    """Fill boxes with any MODEL."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_RegionInpaintEditor",
            display_name="Region Inpaint Editor",
            category=CATEGORY,
            description="Tells Region Box Generator to fill boxes by inpainting: each is cut out with some context, "
            "painted at the model's "
            "size and pasted back. Plain models and true inpainting models (SD 1.5, SDXL inpaint) work.",
            search_aliases=["inpaint", "crop and stitch", "box editor", "learnable regions"],
            inputs=[
                widget(
                    io.Model,
                    "model",
                    tooltip="What paints: a plain model, or an inpainting model, which fits its paint in better.",
                ),
                widget(io.Vae, "vae", tooltip="The model's own VAE."),
                widget(
                    io.Conditioning,
                    "positive",
                    tooltip="What the box should show, from CLIP Text Encode. Areas and ControlNets in it need "
                    "context 100.",
                ),
                widget(
                    io.Conditioning,
                    "negative",
                    tooltip="What to steer away from; an empty prompt does. Not used at cfg 1.",
                ),
                steps_input(20, "Steps"),
                cfg_input(
                    "How strongly the prompt pulls. 1 is no extra pull; 3 to 8 is usual; higher follows the prompt "
                    "more closely."
                ),
                widget(
                    io.Float,
                    "strength",
                    default=1.0,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the steps taken. 1 paints anew; below it the paint starts from what is in the "
                    "box and changes less.",
                ),
                context_input(),
                working_size_input(),
                feather_input(),
                widget(
                    io.Conditioning,
                    "source",
                    optional=True,
                    tooltip="What the box shows now, worded as positive is. With it the editor knows where the two "
                    "differ most (12 evaluations), and Region Box Generator tries boxes that frame it.",
                ),
                *sampler_inputs(),
            ],
            outputs=[editor_output()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        positive: Any,
        negative: Any,
        steps: int,
        cfg: float,
        strength: float,
        context: float,
        working_size: int,
        feather: int,
        source: Any = None,
        sampler: Any = None,
        sigmas: Any = None,
    ) -> Any:
        """Keep what is wired; EditingError for a model that cannot inpaint, a foreign VAE or values out of range."""
        framing = Framing(context, working_size=working_size or None, feather=feather)
        settings = InpaintSettings(cfg, steps, strength=strength, framing=framing)
        opener = inpaint_opener(model, vae, positive, negative, settings, source, sampler, sigmas)
        count = steps if sigmas is None else len(sigmas) - 1
        return io.NodeOutput(RegionEditor(opener, f"inpainting: {count} steps, cfg {cfg:g}"))


class RegionInversionEditor(io.ComfyNode):
    """Edit boxes along the image's own inversion."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_RegionInversionEditor",
            display_name="Region Inversion Editor",
            category=CATEGORY,
            description="Tells Region Box Generator to edit boxes by the pack's own sampler: the image is inverted "
            "once, and inside a box "
            "the target prompt takes over while cross-attention guidance keeps the layout. For colours, materials, "
            "looks.",
            search_aliases=["pix2pix-zero", "inversion edit", "box editor", "learnable regions"],
            inputs=[
                widget(
                    io.Model,
                    "model",
                    tooltip="An SD 1.x, SD 2.x or SDXL model, not an inpainting one; at guidance 0 any image model.",
                ),
                widget(io.Vae, "vae", tooltip="The model's own VAE."),
                widget(io.Conditioning, "source", tooltip="What the image shows; it is inverted with this prompt."),
                widget(io.Conditioning, "target", tooltip="What the box should show instead, in about the same words."),
                steps_input(20, "Steps"),
                cfg_input(
                    "How strongly the target prompt pulls. 1 is no extra pull; 3 to 7.5 is usual; higher edits more."
                ),
                widget(
                    io.Float,
                    "guidance",
                    default=0.1,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How strongly the layout is kept, in full renders. 0 is off and several times quicker; "
                    "0.05 to 0.3 is usual.",
                ),
                working_size_input(),
                feather_input(),
                widget(
                    io.Conditioning,
                    "negative",
                    optional=True,
                    tooltip="What to steer away from when cfg is not 1. Unwired: the source prompt, or the "
                    "negative that a wired inversion was made with.",
                ),
                widget(
                    InversionType,
                    "inversion",
                    optional=True,
                    tooltip="The image's inversion at the working size, from SPDInv Inversion; steps are then its "
                    "own. Unwired: it is "
                    "made here.",
                ),
            ],
            outputs=[editor_output()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        source: Any,
        target: Any,
        steps: int,
        cfg: float,
        guidance: float,
        working_size: int,
        feather: int,
        negative: Any = None,
        inversion: Inversion | None = None,
    ) -> Any:
        """Keep what is wired; EditingError for a model, VAE or inversion that cannot be used so, or values out of
        range."""
        settings = InversionEditSettings(cfg, guidance, steps, working_size=working_size or None, feather=feather)
        opener = inversion_opener(model, vae, source, target, negative, inversion, settings)
        remarks = [] if inversion is None else changed_remarks(inversion, identity(model), source, negative, cfg)
        steps = steps if inversion is None else inversion.steps
        title = f"along the inversion: {steps} steps, cfg {cfg:g}, guidance {guidance:g}"
        return io.NodeOutput(RegionEditor(opener, "; ".join([title, *remarks])))


class RegionTokenEditor(io.ComfyNode):
    """Fill boxes with a masked token transformer."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_RegionTokenEditor",
            display_name="Region Token Editor",
            category=CATEGORY,
            description="Tells Region Box Generator to fill boxes with aMUSEd, a masked token transformer (the "
            "paper's second engine): few "
            "steps, whole boxes only. Put its diffusers folder (amused-256 or amused-512) into models/diffusers.",
            search_aliases=["amused", "maskgit", "muse", "masked transformer", "box editor", "learnable regions"],
            inputs=[
                widget(
                    io.Combo,
                    "token_model",
                    options=list_models(TOKEN_MODELS, TOKEN_MARK),
                    tooltip="The folder of an aMUSEd model in ComfyUI's models/diffusers folder; press R after "
                    "adding one.",
                ),
                widget(
                    io.String, "text", default="", multiline=True, tooltip="What the box should show, as a caption."
                ),
                widget(
                    io.String,
                    "negative_text",
                    default="",
                    multiline=True,
                    tooltip="What to steer away from; empty is usual.",
                ),
                steps_input(12, "Rounds"),
                widget(
                    io.Float,
                    "cfg",
                    default=10.0,
                    min=1.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How strongly the text pulls. 1 is off and costs half; 10 is the model's usual.",
                ),
                context_input(),
                feather_input(),
            ],
            outputs=[editor_output()],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        token_model: str,
        text: str = "",
        negative_text: str = "",
        steps: int = 0,
        cfg: float = 0.0,
        context: float = 0.0,
        feather: int = 0,
    ) -> str:
        """Sizes and times of the files, so that a model put in anew is read anew."""
        return model_fingerprint(TOKEN_MODELS, token_model, TOKEN_MARK)

    @classmethod
    def execute(
        cls,
        token_model: str,
        text: str,
        negative_text: str,
        steps: int,
        cfg: float,
        context: float,
        feather: int,
    ) -> Any:
        """Read; EditingError for a damaged or foreign model, no text, or values out of range."""
        folder = resolve_model(TOKEN_MODELS, token_model, TOKEN_MARK)
        settings = TokenEditSettings(cfg, steps)
        opener = token_opener(folder, text, negative_text, settings, context, feather)
        title = f"{token_model}, masked tokens: {steps} rounds, cfg {cfg:g}"
        return io.NodeOutput(RegionEditor(opener, title))


NODES = [RegionInpaintEditor, RegionInversionEditor, RegionTokenEditor]
