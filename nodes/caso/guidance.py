"""What the CASO samplers share: how strongly and on which steps an embedding guides, and how that reaches a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...core.caso.editing import PRESETS, Window
from ...core.caso.embedding import MAX_STRENGTH, GuidanceTerm, guidance_terms
from ...core.errors import EditingError
from ...core.token_vectors import empty_condition
from ..host.schema import io, widget
from ..host.session import Session
from ..host.tokens import HostVectorEncoder
from .embeddings import Chosen, SemanticEmbeddingType

CUSTOM = "custom"
WHOLE = "whole"
ADVICE = "lower the image size, the batch size or interpolate"
EMPTY = "positive"  # the host's rules go by this name


def source_inputs() -> list[Any]:
    """The sockets of every CASO sampler."""
    return [
        widget(io.Model, "model", tooltip="The model the embedding was learned for; SD 1.x, SD 2.x or SDXL."),
        widget(io.Clip, "clip", tooltip="Its text encoder."),
        widget(SemanticEmbeddingType, "semantic_embedding", tooltip="From CASO Embedding Loader, Trainer or Combine."),
    ]


def guidance_inputs(strength: str, window: str, windows: list[str]) -> list[Any]:
    """The widgets that :class:`Guidance` is made of.

    Args:
        strength: tooltip of strength (the paper's lambda).
        window, windows: the default and the named choices of steps.
    """
    starts = ", ".join(f"{name} {PRESETS[name].start:g}" for name in windows if name in PRESETS)
    return [
        widget(io.Float, "strength", default=5.0, min=-MAX_STRENGTH, max=MAX_STRENGTH, step=0.1, tooltip=strength),
        widget(
            io.Combo,
            "window",
            options=[*windows, CUSTOM],
            default=window,
            tooltip=f"Which steps are guided, from where to the end: {starts} of the way to noise. custom: start and end below.",
        ),
        widget(
            io.Float,
            "start",
            default=0.5,
            min=0.01,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="For window custom: where guidance begins, 1 is pure noise. Until there the source's trajectory is followed exactly.",
        ),
        widget(
            io.Float,
            "end",
            default=0.0,
            min=0.0,
            max=0.99,
            step=0.01,
            advanced=True,
            tooltip="For window custom: where guidance ends, 0 is the finished image.",
        ),
        widget(
            io.Boolean,
            "single_step",
            default=False,
            advanced=True,
            tooltip="Guide the first step of the window only: quicker and weaker, so raise strength.",
        ),
        widget(
            io.Boolean,
            "joined",
            default=True,
            advanced=True,
            tooltip="Embeddings of equal strength share one prompt and one evaluation, as in the paper. Off: an evaluation each.",
        ),
    ]


def focus_input() -> Any:
    """Where guidance acts; new beside :func:`guidance_inputs`, so it goes to the end of a node."""
    return widget(
        io.Float,
        "focus",
        default=1.0,
        min=0.01,
        max=1.0,
        step=0.01,
        tooltip="Share of the latent that is guided: at each step the part where the embedding pulls most. 1 is all, as in the paper; "
        "0.03 (a mouth) to 0.2 (hair) changes less beside the attribute and stands a higher strength.",
    )


@dataclass(frozen=True)
class Guidance:
    """Values of :func:`guidance_inputs` and :func:`focus_input`."""

    strength: float
    window: str
    start: float
    end: float
    single_step: bool
    joined: bool
    focus: float = 1.0

    def limits(self) -> Window:
        """The steps to guide; old hosts do not check combos.

        Raises:
            EditingError: no such preset, or a start that is not above the end.
        """
        if self.window == CUSTOM:
            return Window(self.start, self.end, self.single_step)
        known = {**PRESETS, WHOLE: Window(1.0)}
        if self.window not in known:
            raise EditingError(f"There is no window {self.window!r}; use one of {', '.join([*known, CUSTOM])}.")
        return replace(known[self.window], single_step=self.single_step)

    def terms(self, clip: Any, chosen: Chosen) -> Terms:
        """What the embeddings are for the text encoder ``clip``."""
        encoder = HostVectorEncoder(clip)
        scaled = [(embedding, own * self.strength) for embedding, own in chosen]
        return Terms(empty_condition(encoder), guidance_terms(encoder, scaled, joined=self.joined, focus=self.focus))


@dataclass(frozen=True, eq=False)
class Terms:
    """The empty prompt's CONDITIONING, and guidance terms whose conditionings are the host's until :meth:`of` a run."""

    empty: Any
    terms: list[GuidanceTerm]

    @property
    def conds(self) -> dict[str, Any]:
        """CONDITIONING by name."""
        return {EMPTY: self.empty} | {f"term {number}": term.cond for number, term in enumerate(self.terms)}

    def of(self, session: Session) -> list[GuidanceTerm]:
        """The terms with conditionings of ``session``."""
        return [replace(term, cond=session.conds[f"term {number}"]) for number, term in enumerate(self.terms)]

    def report(self, session: Session, images: int) -> str:
        """What was done to ``images`` images and what it cost."""
        cost = session.denoiser.evaluations.forward / images
        parts = [f"{term.label or 'embedding'} {term.strength:+g}" for term in self.terms] or [
            "nothing: the image is rebuilt"
        ]
        focus = min((term.focus for term in self.terms), default=1.0)
        parts += [f"guided where it pulls most ({100 * focus:.0f} %)"] if focus < 1 else []
        return f"{', '.join(parts)}\n{images} image(s), {cost:.0f} network evaluations per image"
