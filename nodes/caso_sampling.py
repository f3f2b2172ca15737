"""CASO Edit Sampler and CASO Guider: an attribute turned up or down on a real image. CASO Generate: on made-up ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.caso.editing import PRESETS, SemanticStep, Window, generate, invert_to_window, semantic_edit
from ..core.caso.editing import interpolate as interpolated
from ..core.caso.embedding import MAX_STRENGTH, GuidanceTerm, guidance_terms
from ..core.caso.seams import empty_condition
from ..core.errors import EditingError
from ..core.inversion import Inversion
from .caso_embeddings import CATEGORY, Chosen
from .guidance import EulerOnly, on_device
from .host import (
    DenoiserGuider,
    InversionType,
    SemanticEmbeddingType,
    Session,
    TokenEncoder,
    conditioning_tensors,
    io,
    latent_from_model,
    run,
    schema,
    sigmas_out,
    widget,
)
from .reports import report_output, shown

CUSTOM = "custom"
WHOLE = "whole"
ADVICE = "lower the image size, the batch size or interpolate"
EMPTY = "positive"  # the host's rules go by this name
MOST_STRIP = 15


def strength_widget(tooltip: str) -> Any:
    """The lambda of the paper."""
    return widget(io.Float, "strength", default=5.0, min=-MAX_STRENGTH, max=MAX_STRENGTH, step=0.1, tooltip=tooltip)


def window_widgets(default: str, names: list[str]) -> list[Any]:
    """Which steps are guided."""
    starts = ", ".join(f"{name} {PRESETS[name].start:g}" for name in names if name in PRESETS)
    return [
        widget(
            io.Combo,
            "window",
            options=[*names, CUSTOM],
            default=default,
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


def source_widgets() -> list[Any]:
    """The sockets that all three nodes share."""
    return [
        widget(io.Model, "model", tooltip="The model the embedding was learned for; SD 1.x, SD 2.x or SDXL."),
        widget(io.Clip, "clip", tooltip="Its text encoder."),
        widget(SemanticEmbeddingType, "semantic_embedding", tooltip="From CASO Embedding Loader, Trainer or Combine."),
    ]


def chosen_window(window: str, start: float, end: float, single_step: bool) -> Window:
    """The widgets' choice; old hosts do not check combos.

    Raises:
        EditingError: no such preset, or a start that is not above the end.
    """
    if window == CUSTOM:
        return Window(start, end, single_step)
    known = {**PRESETS, WHOLE: Window(1.0)}
    if window not in known:
        raise EditingError(f"There is no window {window!r}; use one of {', '.join([*known, CUSTOM])}.")
    return replace(known[window], single_step=single_step)


class Terms:
    """Conditionings of an edit by the host's names, and the guidance terms they become inside a run."""

    def __init__(self, clip: Any, chosen: Chosen, strength: float, joined: bool):
        encoder = TokenEncoder(clip)
        self.empty = empty_condition(encoder)
        scaled = [(embedding, own * strength) for embedding, own in chosen]
        self.terms = guidance_terms(encoder, scaled, joined=joined)

    @property
    def conds(self) -> dict[str, Any]:
        """CONDITIONING by name."""
        return {EMPTY: self.empty} | {f"term {number}": term.cond for number, term in enumerate(self.terms)}

    def of(self, session: Session) -> list[GuidanceTerm]:
        """The terms with conditionings of ``session``."""
        return [replace(term, cond=session.conds[f"term {number}"]) for number, term in enumerate(self.terms)]


def factors_of(count: int) -> list[float]:
    """``count`` factors evenly from -1 to 1."""
    return torch.linspace(-1, 1, count).tolist()


class CASOEditSampler(io.ComfyNode):
    """CASO's editing (Chang et al., sections 3.3 and 4.2) in one node."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_CASOEditSampler",
            display_name="CASO Edit Sampler",
            category=CATEGORY,
            description="Turns an attribute up, down or into its opposite on real images, without words: guides the image's own trajectory "
            "by semantic embeddings. A batch gives a batch of edits.",
            search_aliases=["semantic edit", "attribute slider", "concept slider", "caso", "add glasses", "remove beard"],
            inputs=[
                *source_widgets(),
                strength_widget("How strongly (lambda). 0 rebuilds the image, 3 to 10 is usual, below 0 turns the attribute round."),
                *window_widgets("fine", list(PRESETS)),
                widget(
                    io.Int,
                    "steps",
                    default=50,
                    min=1,
                    max=999,
                    tooltip="Steps of the whole trajectory, when a latent is wired; an inversion brings its own.",
                ),
                widget(
                    io.Int,
                    "interpolate",
                    default=0,
                    min=0,
                    max=MOST_STRIP,
                    tooltip="Pictures of the strip output, from -strength to +strength; 5 is good, an odd number has the unedited one in "
                    "its middle. 0: no strip. Each costs an edit.",
                ),
                widget(io.Latent, "latent", optional=True, tooltip="The image, from VAE Encode: it is inverted here, as far as needed."),
                widget(
                    InversionType,
                    "inversion",
                    optional=True,
                    tooltip="In place of a latent: an inversion made with an empty prompt, e.g. by SPDInv Inversion.",
                ),
                widget(
                    io.Mask,
                    "mask",
                    optional=True,
                    tooltip="Where to edit (white). Outside it the source stays exactly. Unwired: everywhere.",
                ),
            ],
            outputs=[
                io.Latent.Output("edited", display_name="latent", tooltip="The edited image; wire it into VAE Decode."),
                io.Latent.Output(
                    "strip",
                    display_name="strip",
                    tooltip="The image from -strength to +strength as a batch (a batch of images one after another); for VAE Decode. "
                    "Without interpolate: the edit alone.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        semantic_embedding: Chosen,
        strength: float,
        window: str,
        start: float,
        end: float,
        single_step: bool,
        joined: bool,
        steps: int,
        interpolate: int,
        latent: Any = None,
        inversion: Inversion | None = None,
        mask: Any = None,
    ) -> Any:
        """Edit; EditingError for unusable input passes through as it is."""
        if (latent is None) == (inversion is None):
            raise EditingError("Wire either a latent or an inversion into CASO Edit Sampler, not both and not none.")
        if not 0 <= interpolate <= MOST_STRIP or interpolate == 1:
            raise EditingError(f"interpolate is {interpolate}; use 0 for no strip, or 2 to {MOST_STRIP} pictures.")
        wanted = chosen_window(window, start, end, single_step)
        terms = Terms(clip, semantic_embedding, strength, joined)

        def work(session: Session) -> tuple[Tensor, Tensor, str]:
            uncond, own = session.conds[EMPTY], terms.of(session)
            if inversion is None:
                source, limits = invert_to_window(session.denoiser, session.latent, uncond, steps, wanted, session.callback())
            else:
                source, limits = on_device(inversion, session), wanted
            edited = semantic_edit(session.denoiser, source, uncond, own, limits, mask=mask, callback=session.callback())
            rows = edited
            if interpolate:
                rows = strip_of(session, source, uncond, own, interpolate, limits, mask)
            return edited, rows, edit_report(session, terms, edited)

        place = latent if inversion is None else latent_from_model(model, inversion.latents[0])
        sigmas = None if inversion is None else sigmas_out(inversion.sigmas)
        inverts = inversion is None  # which may take gradients, where iterations alone do not converge
        edited, rows, report = run(model, place, terms.conds, work, gradients=inverts, sigmas=sigmas, advice=ADVICE)
        report += foreign_prompt(inversion, terms.empty)
        return io.NodeOutput(latent_from_model(model, edited), latent_from_model(model, rows), report, ui=shown(report))


def strip_of(
    session: Session, source: Inversion, uncond: Any, terms: list[GuidanceTerm], count: int, window: Window, mask: Any
) -> Tensor:  # fmt: skip
    """Edits from -1 to +1 times the strengths, ``[B * count, C, H, W]``, those of one image together."""
    made = interpolated(session.denoiser, source, uncond, terms, factors_of(count), window, mask=mask, callback=session.callback())
    return made.transpose(0, 1).flatten(0, 1)


def edit_report(session: Session, terms: Terms, edited: Tensor) -> str:
    """What was done and what it cost."""
    cost = session.denoiser.evaluations.forward / len(edited)
    parts = [f"{term.label or 'embedding'} {term.strength:+g}" for term in terms.terms] or ["nothing: the image is rebuilt"]
    return f"{', '.join(parts)}\n{len(edited)} image(s), {cost:.0f} network evaluations per image"


def foreign_prompt(inversion: Inversion | None, empty: Any) -> str:
    """A remark when the inversion was made under another prompt than the empty one, "" otherwise."""
    mine = conditioning_tensors(empty)
    if inversion is None or inversion.cond is None or mine is None:
        return ""
    theirs = inversion.cond["embeds"]
    same = theirs.shape[1:] == mine["embeds"].shape[1:] and torch.allclose(theirs, mine["embeds"].expand_as(theirs), atol=1e-4)
    return "" if same else "\nthe inversion was made with a prompt; an empty prompt rebuilds the image better here"


class CASOGuider(io.ComfyNode):
    """The same edit as a GUIDER, for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_CASOGuider",
            display_name="CASO Guider",
            category=CATEGORY,
            description="CASO Edit Sampler as a guider for SamplerCustomAdvanced. Wire the inversion's own noise, noise latent and sigmas, "
            "and the euler sampler.",
            search_aliases=["semantic edit", "attribute slider", "custom guider", "caso"],
            inputs=[
                *source_widgets(),
                widget(InversionType, "inversion", tooltip="Of the image, made with an empty prompt, e.g. by SPDInv Inversion."),
                strength_widget("How strongly (lambda). 0 rebuilds the image, 3 to 10 is usual, below 0 turns the attribute round."),
                *window_widgets("fine", list(PRESETS)),
                widget(
                    io.Mask,
                    "mask",
                    optional=True,
                    tooltip="Where to edit (white). Outside it the source stays exactly. Unwired: everywhere.",
                ),
            ],
            outputs=[io.Guider.Output("guider", display_name="guider", tooltip="Wire it into SamplerCustomAdvanced, with sampler euler.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        semantic_embedding: Chosen,
        inversion: Inversion,
        strength: float,
        window: str,
        start: float,
        end: float,
        single_step: bool,
        joined: bool,
        mask: Any = None,
    ) -> Any:
        """A guider that keeps no state between sampling runs."""
        wanted = chosen_window(window, start, end, single_step)
        terms = Terms(clip, semantic_embedding, strength, joined)

        def prepare(session: Session) -> Callable[[Tensor, float], Tensor]:
            source = on_device(inversion, session)
            return EulerOnly(SemanticStep(session.denoiser, source, session.conds[EMPTY], terms.of(session), wanted, mask))

        return io.NodeOutput(DenoiserGuider(model, terms.conds, prepare, advice=ADVICE))


class CASOGenerate(io.ComfyNode):
    """Images from plain noise, guided by embeddings (Chang et al., section 4.3)."""

    @classmethod
    def define_schema(cls) -> Any:
        """Sockets and texts; widgets are saved by position in workflows, so new ones go to the end."""
        return schema(
            node_id="SemEdit_CASOGenerate",
            display_name="CASO Generate",
            category=CATEGORY,
            description="Makes new images that have the attribute of a semantic embedding, from noise: guidance by the embedding in place "
            "of words, or on top of a prompt.",
            search_aliases=["generate from embedding", "text to image", "semantic embedding", "caso"],
            inputs=[
                *source_widgets(),
                widget(io.Latent, "empty_latent", tooltip="From Empty Latent Image: only its size and batch size count."),
                strength_widget("How strongly (lambda). 1 is the plain prompt of the embedding, 3 to 10 is usual, below 0 its opposite."),
                *window_widgets(WHOLE, [WHOLE, *PRESETS]),
                widget(io.Int, "steps", default=50, min=1, max=999, tooltip="Steps of sampling; 20 to 50 is usual."),
                widget(
                    io.Int,
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Which noise to start from; the same seed makes the same image.",
                ),
                widget(
                    io.Conditioning,
                    "base",
                    optional=True,
                    tooltip="A prompt of which the embedding makes variations. Unwired: the empty prompt, as in the paper.",
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
        single_step: bool,
        joined: bool,
        steps: int,
        seed: int,
        base: Any = None,
    ) -> Any:
        """Generate; EditingError for unusable input passes through as it is."""
        wanted = chosen_window(window, start, end, single_step)
        terms = Terms(clip, semantic_embedding, strength, joined)

        def work(session: Session) -> tuple[Tensor, str]:
            generator = torch.Generator("cpu").manual_seed(seed)
            noise = torch.randn(session.latent.shape, generator=generator).to(session.latent.device)
            made = generate(session.denoiser, noise, session.conds[EMPTY], terms.of(session), steps, wanted, callback=session.callback())
            return made, edit_report(session, terms, made)

        conds = terms.conds if base is None else terms.conds | {EMPTY: base}
        made, report = run(model, empty_latent, conds, work, seed=seed, advice=ADVICE)
        return io.NodeOutput(latent_from_model(model, made), report, ui=shown(report))


NODES = [CASOEditSampler, CASOGuider, CASOGenerate]
