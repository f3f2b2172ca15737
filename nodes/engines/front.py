"""What the nodes of all engines share: their sockets, their prompts, and the GUIDER."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ...core.engines.engine import Engine, EngineSettings
from ...core.engines.words import Prompt, ReadPrompt, read_prompt
from ...core.errors import EditingError
from ...core.inversion import Inversion
from ..common.inputs import cfg_input, mask_input
from ..common.recording import changed_remarks
from ..common.reports import READY, report_text, shown
from ..common.sockets import InversionType
from ..common.trajectory_edit import EulerOnly, edit_conditionings, edit_mask, on_device, refuse_noise_mask
from ..host.identity import identity
from ..host.sampling import DenoiserGuider
from ..host.schema import io, widget
from ..host.session import Session
from ..host.words import encoded_text, prompt_blocks, prompt_words

CATEGORY = "semantic editing/sampling"
ADVICE = "use a smaller image or batch 1"
OTHER_NODE = "Cross-Attn Guided Sampler"
#: ``(source text, target text, their reader)`` -> what makes an engine.
MakeOfWords = Callable[[str, str, ReadPrompt], Callable[..., Engine]]


def front_inputs(source_text: str) -> list[Any]:
    """Model, texts and inversion.

    Args:
        source_text: what an empty source text means.
    """
    return [
        widget(io.Model, "model", tooltip="The model the inversion was made with; SD 1.x, SD 2.x or SDXL."),
        widget(io.Clip, "clip", tooltip="The model's CLIP; it reads both texts."),
        widget(
            InversionType,
            "inversion",
            tooltip="From SPDInv Inversion, Null-Text Inversion, Autocorr DDIM Inversion, Reference From Noise or Load "
            "Inversion.",
        ),
        widget(
            io.String,
            "source_text",
            default="",
            multiline=True,
            tooltip=f"The prompt the image was inverted with, as text. {source_text}",
        ),
        widget(
            io.String,
            "target_text",
            default="",
            multiline=True,
            tooltip="The prompt of the edited image: the source prompt with the words changed or added.",
        ),
        cfg_input(
            "How strongly the target text pulls. 1 is no extra pull; 1.5 to 7.5 is usual; higher edits more and keeps "
            "less.",
            EngineSettings.cfg,
        ),
    ]


def share_input(name: str, default: float, tooltip: str) -> Any:
    """A share of the steps, 0 to 1."""
    return widget(io.Float, name, default=default, min=0.0, max=1.0, step=0.05, tooltip=tooltip)


def shift_input(*, advanced: bool = False) -> Any:
    """Whether what the inversion left over is added back."""
    return widget(
        io.Boolean,
        "stored_shift",
        default=EngineSettings.stored_shift,
        advanced=advanced,
        tooltip="Add back what the inversion left over of each step (direct inversion), so that the source is exact "
        "whatever inverted it. Costs one evaluation on steps that take nothing from the source.",
    )


def back_inputs() -> list[Any]:
    """Sockets that may stay unwired."""
    return [
        widget(
            io.Conditioning,
            "target",
            optional=True,
            tooltip="The target prompt as conditioning, where it has more than its text (ControlNet, LoRA hooks). It "
            "must be of target_text. Unwired: target_text, encoded.",
        ),
        widget(
            io.Conditioning,
            "source",
            optional=True,
            tooltip="The source prompt as conditioning, likewise. Unwired: the one in the inversion.",
        ),
        widget(
            io.Conditioning,
            "negative",
            optional=True,
            tooltip="What to move away from when cfg is not 1. Unwired: the negatives the inversion was made with, if "
            "any (null-text), else the source prompt (negative-prompt inversion).",
        ),
        mask_input(),
    ]


def guider_output() -> Any:
    """The GUIDER."""
    return io.Guider.Output(
        "guider",
        display_name="guider",
        tooltip="Wire it into SamplerCustomAdvanced, with sampler euler and the inversion's noise, noise latent and "
        "sigmas.",
    )


def reader(clip: Any) -> Callable[[str], Prompt]:
    """Reads a text as ``clip`` does."""

    def read(text: str) -> Prompt:
        blocks, piece, end = prompt_blocks(clip, text)
        return read_prompt(text, blocks, piece, end)

    return read


def source_words(inversion: Inversion, source_text: str, clip: Any, *, needed: bool = False) -> str:
    """``source_text``, or the text whose words the INVERSION keeps where it is empty; "" where neither is there.

    Raises:
        EditingError: this CLIP reads those words as other tokens, or a text is ``needed`` and neither is there.
    """
    words = inversion.words
    if source_text.strip():
        return source_text
    if words is None and needed:
        raise EditingError(
            "source_text is empty and the inversion has no words: write the prompt that the image was inverted with, "
            "or wire clip and prompt into the node that inverts."
        )
    if words is None:
        return ""
    if prompt_words(clip, words.text) != words:
        raise EditingError(
            "This CLIP reads the words in the inversion as other tokens than the CLIP did that it was made with "
            "(another embedding file, or another model's CLIP); wire that one, or write the source text here."
        )
    return words.text


def no_words(make: Callable[..., Engine]) -> MakeOfWords:
    """``make`` for :func:`engine_guider`, of an engine that needs no words."""
    return lambda source, target, read: make


def engine_guider(
    of_words: MakeOfWords,
    settings: EngineSettings,
    model: Any,
    clip: Any,
    inversion: Inversion,
    source_text: str,
    target_text: str,
    needed: bool = False,
    target: Any = None,
    source: Any = None,
    negative: Any = None,
    mask: Tensor | None = None,
) -> Any:
    """The GUIDER of an engine, which keeps no state between sampling runs, with remarks shown on the node.

    Args:
        of_words: makes of both texts and their reader an engine's maker, of (denoiser, inversion, source, target,
            negative, settings, mask).
        needed: whether the engine needs the source's text.

    Raises:
        EditingError: no target, another model, an empty mask, or what the engine refuses.
    """
    source_text = source_words(inversion, source_text, clip, needed=needed)
    make = of_words(source_text, target_text, reader(clip))
    if target is None and not target_text.strip():
        raise EditingError("target_text is empty: write the prompt of the edited image.")
    where = edit_mask(mask)
    inversion.require_model(own := identity(model))
    refuse_noise_mask(inversion, OTHER_NODE)
    said = encoded_text(clip, source_text) if source is None and source_text.strip() else source
    if source is None and inversion.cond is None:
        source = said
    target = encoded_text(clip, target_text) if target is None else target
    conds = edit_conditionings(model, inversion, target, source, negative)

    def engine(session: Session, conds: Mapping[str, Any]) -> Engine:
        parts = conds["source"], conds["positive"], conds.get("negative")
        return make(session.denoiser, on_device(inversion, session), *parts, settings, where)

    return remarked_guider(model, conds, engine, changed_remarks(inversion, own, said, negative, settings.cfg))


def remarked_guider(
    model: Any,
    conds: dict[str, Any],
    engine: Callable[[Session, Mapping[str, Any]], Engine],
    remarks: list[str],
) -> Any:
    """The node's output: a GUIDER of the ``engine`` of a session and its conditionings, and remarks on the node."""

    def prepare(session: Session) -> Callable[[Tensor, float], Tensor]:
        return EulerOnly(engine(session, session.conds))

    guider = DenoiserGuider(model, conds, prepare, advice=ADVICE)
    return io.NodeOutput(guider, ui=shown(report_text(READY, *remarks)) if remarks else None)
