"""What the CASO samplers share: their widgets, the settings these stand for, and guidance terms for a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...core.caso.editing import PRESETS, EditSettings, Window, guidance_terms
from ...core.caso.embedding import MAX_STRENGTH, GuidanceTerm
from ...core.errors import EditingError
from ...core.token_vectors import empty_condition
from ..common.reports import report_text
from ..host.schema import io, widget
from ..host.session import Session
from ..host.tokens import HostVectorEncoder
from .embeddings import Chosen, SemanticEmbeddingType

CUSTOM = "custom"
LEARNED = "learned"
WHOLE = "whole"
DEFAULTS = EditSettings()
ADVICE = "lower the image size, the batch size or interpolate"
EMPTY = "positive"  # name of the empty prompt; ComfyUI treats the conditioning "positive" by rules of its own
#: Socket that can carry an :class:`~semantic_editing.core.caso.editing.EditSettings`.
EditSettingsType = io.Custom("SEMEDIT_CASO_EDIT_SETTINGS")


def source_inputs() -> list[Any]:
    """The sockets of every CASO sampler."""
    return [
        widget(io.Model, "model", tooltip="The model the embedding was learned for; SD 1.x, SD 2.x or SDXL."),
        widget(io.Clip, "clip", tooltip="Its text encoder."),
        widget(SemanticEmbeddingType, "semantic_embedding", tooltip="From CASO Embedding Loader, Trainer or Combine."),
    ]


def guidance_inputs(strength: str, window: str, windows: list[str]) -> list[Any]:
    """The widgets that :func:`edit_settings` takes, but for focus.

    Args:
        strength: tooltip of strength (the paper's lambda).
        window, windows: the default and the named choices of steps.
    """
    starts = ", ".join(f"{name} {PRESETS[name].start:g}" for name in windows if name in PRESETS)
    learned = "learned: window and focus that the embedding was trained for, or fine. " if LEARNED in windows else ""
    return [
        widget(
            io.Float,
            "strength",
            default=DEFAULTS.strength,
            min=-MAX_STRENGTH,
            max=MAX_STRENGTH,
            step=0.1,
            tooltip=strength,
        ),
        widget(
            io.Combo,
            "window",
            options=[*windows, CUSTOM],
            default=window,
            tooltip=f"Which steps are guided, from where to the end. {learned}{starts} of the way to noise. custom: "
            "start and end below.",
        ),
        widget(
            io.Float,
            "start",
            default=0.5,
            min=0.01,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="For window custom: where guidance begins, 1 is pure noise. Until there the source's trajectory "
            "is followed exactly.",
        ),
        widget(
            io.Float,
            "end",
            default=DEFAULTS.window.end,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="For window custom: where guidance ends, 0 is the finished image. The same as start: only the "
            "first step is guided, quicker and weaker, so raise strength.",
        ),
        widget(
            io.Boolean,
            "joined",
            default=DEFAULTS.joined,
            advanced=True,
            tooltip="Embeddings of equal strength share one prompt and one evaluation, as in the paper. Off: an "
            "evaluation each.",
        ),
    ]


def focus_input() -> Any:
    """The widget that says where guidance acts; added after :func:`guidance_inputs`, so it stands at a node's end."""
    return widget(
        io.Float,
        "focus",
        default=DEFAULTS.focus,
        min=0.01,
        max=1.0,
        step=0.01,
        tooltip="Share of the latent that is guided: at each step the part where the embedding pulls most. 1 is all, "
        "as in the paper; 0.03 (a mouth) to 0.2 (hair) changes less beside the attribute and stands a higher "
        "strength. Not used where window is learned and the embedding says one.",
    )


def against_input() -> Any:
    """The socket of what an edit leads away from."""
    return widget(
        SemanticEmbeddingType,
        "against",
        optional=True,
        tooltip="What the picture has now, to lead it away from: black hair as semantic_embedding against red hair "
        "takes red away more surely than red hair at a negative strength. Of several (CASO Combine) their mean counts; "
        "each costs an evaluation a step. Relative strengths are not used.",
    )


def edit_settings(
    strength: float,
    window: str,
    start: float,
    end: float,
    joined: bool,
    focus: float,
    chosen: Chosen = (),
) -> EditSettings:
    """The values of :func:`guidance_inputs` and :func:`focus_input` as settings; old hosts do not check combos.

    Args:
        chosen: the embeddings, which the window "learned" asks; of several the widest window and focus.

    Raises:
        EditingError: no such window, or an end above the start.
    """
    if window == LEARNED:
        known_edits = [embedding.edit for embedding, _ in chosen if embedding.edit]
        widest = max((edit["start"] for edit in known_edits), default=PRESETS["fine"].start)
        steps = Window(widest)
        focus = max((edit["focus"] for edit in known_edits), default=focus)
    elif window == CUSTOM:
        steps = Window(start, single_step=True) if end == start else Window(start, end)
    else:
        known = {**PRESETS, WHOLE: Window(1.0)}
        if window not in known:
            raise EditingError(f"There is no window {window!r}; use one of {', '.join([LEARNED, *known, CUSTOM])}.")
        steps = known[window]
    return EditSettings(strength, steps, joined, focus)


def learned_remarks(window: str, chosen: Chosen, settings: EditSettings) -> list[str]:
    """What the window "learned" came to, as lines for people; none for another."""
    if window != LEARNED:
        return []
    if any(embedding.edit for embedding, _ in chosen):
        return [f"window from {settings.window.start:g}, as the embedding was trained for"]
    return [f"the embedding does not say which window it was trained for: fine, from {settings.window.start:g}"]


def host_terms(clip: Any, chosen: Chosen, settings: EditSettings, against: Chosen = ()) -> Terms:
    """Guidance terms of embeddings for the text encoder ``clip``, which lead away from those in ``against``."""
    encoder = HostVectorEncoder(clip)
    opposite = [embedding for embedding, _ in against]
    names = [embedding.target or "embedding" for embedding in opposite]
    return Terms(empty_condition(encoder), guidance_terms(encoder, chosen, settings, opposite), names)


@dataclass(frozen=True, eq=False)
class Terms:
    """The empty prompt's CONDITIONING, and terms with CONDITIONING, which :meth:`of` turns into those of a run.

    Attributes:
        against: names of what all terms lead away from, for people.
    """

    empty: Any
    terms: list[GuidanceTerm]
    against: Sequence[str] = ()

    @property
    def conds(self) -> dict[str, Any]:
        """CONDITIONING by name."""
        opposite = self.terms[0].against if self.terms else ()
        named = {f"term {number}": term.cond for number, term in enumerate(self.terms)}
        return {EMPTY: self.empty} | named | {f"against {number}": cond for number, cond in enumerate(opposite)}

    def of(self, session: Session) -> list[GuidanceTerm]:
        """The terms with the conditionings of a running ``session``."""
        opposite = [session.conds[f"against {number}"] for number in range(len(self.against))] if self.terms else []
        return [
            replace(term, cond=session.conds[f"term {number}"], against=opposite)
            for number, term in enumerate(self.terms)
        ]

    def report(self, session: Session, images: int, done: str) -> str:
        """What was done to ``images`` images and what it cost.

        Args:
            done: what it was, e.g. "Edited".
        """
        cost = session.denoiser.evaluations.forward / images
        parts = [f"{term.label or 'embedding'} {term.strength:+g}" for term in self.terms] or [
            "nothing: the image is rebuilt"
        ]
        parts += [f"away from {' and '.join(self.against)}"] if self.terms and self.against else []
        focus = min((term.focus for term in self.terms), default=1.0)
        parts += [f"guided where it pulls most ({100 * focus:.0f} %)"] if focus < 1 else []
        turned = [f"{term.label or 'embedding'} turned {'up' if term.strength > 0 else 'down'}" for term in self.terms]
        first = f"{done} {images} picture(s): {' and '.join(turned)}." if turned else "Nothing was to be guided."
        return report_text(first, ", ".join(parts), f"{images} image(s), {cost:.0f} network evaluations per image")
