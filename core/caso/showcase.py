"""The demo's embeddings turned up and down on portraits: CASO's part of ``semantic-editing demo``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..backends.caso import demo_injector
from ..demo import DemoModel
from ..demo_data import DemoPair, embedding_files
from ..measures import attributes_kept, psnr
from .editing import PRESETS, invert_to_window, semantic_edit
from .embedding import GuidanceTerm, SemanticEmbedding
from .seams import empty_condition

if TYPE_CHECKING:
    from ..showcase import Showcase

MOST = 4  # embeddings, to keep the command quick
#: Found by eye on the demo model, for each of its embeddings; STRENGTH is for any other.
STRENGTHS, STRENGTH, WINDOW = {"beard": 5.0, "glasses": 3.0, "red_hair": 5.0, "smile": 5.0}, 3.0, PRESETS["middle"]
FOCUS = 0.1  # leaves more of the rest alone at the same success, see README


def show_embeddings(demo: DemoModel, steps: int, number: int, result: Showcase) -> None:
    """With each of the demo's embeddings give a portrait what it means, and take it from another that has it; without any words.

    Args:
        steps: of the whole trajectory, of which an edit needs the window only.
        number: which pair gives the first portrait; the other one is the target of the next.
    """
    figures = result.measures["embeddings"] = {}
    for name, (embedding, pairs) in known_embeddings(demo).items():
        without, having = (pairs[index % len(pairs)] for index in (number, number + 1))
        strength = STRENGTHS.get(name, STRENGTH)
        added, up = _turned(demo, embedding, without.source, without.target, strength, steps)
        taken, down = _turned(demo, embedding, having.target, having.source, -strength, steps)
        figures[name] = {"added": up, "removed": down}
        cells = [
            result.show(f"embedding_{name}_source", without.source, "source"),
            result.show(f"embedding_{name}_true", without.target, "the true edited picture"),
            result.judged(f"embedding_{name}_added", added, f"strength {strength:+g}", up),
            result.show(f"embedding_{name}_having", having.target, "another source"),
            result.show(f"embedding_{name}_true_without", having.source, "the true edited picture"),
            result.judged(f"embedding_{name}_removed", taken, f"strength {-strength:+g}", down),
        ]
        result.rows.append((f"{name.replace('_', ' ')}, up and down by an embedding that a classifier taught (CASO)", cells))


def known_embeddings(demo: DemoModel) -> dict[str, tuple[SemanticEmbedding, list[DemoPair]]]:
    """Name -> (embedding, pairs whose targets have what it means): the first :data:`MOST` for which the demo has the truth."""
    found: dict[str, tuple[SemanticEmbedding, list[DemoPair]]] = {}
    for name, path in embedding_files(demo.folder).items():
        embedding = SemanticEmbedding.load(path)
        pairs = [pair for pair in demo.pairs if (pair.attribute, pair.after) == (embedding.attribute, embedding.target)]
        if pairs and len(found) < MOST:
            found[name] = embedding, pairs
    return found


def _turned(
    demo: DemoModel, embedding: SemanticEmbedding, source: Tensor, true: Tensor, strength: float, steps: int
) -> tuple[Tensor, dict[str, float]]:
    """``(edited image [3, H, W], figures)``; labels are the judge's, a classifier that taught no embedding."""
    injector, denoiser = demo_injector(demo), demo.denoiser()
    uncond, term = empty_condition(injector), GuidanceTerm(embedding.condition(injector), strength, focus=FOCUS)
    inversion, window = invert_to_window(denoiser, demo.encode_image(source[None]), uncond, steps, WINDOW)
    edited = demo.decode(semantic_edit(denoiser, inversion, uncond, [term], window))
    labels = demo.judge.labels(edited)
    return edited[0], {
        "psnr_to_true": float(psnr(edited, true[None])),
        "success": float((labels[0][embedding.attribute] == embedding.target) == (strength > 0)),
        "others_kept": float(attributes_kept(labels, demo.judge.labels(true[None]), embedding.attribute)),
        "u_forward": float(denoiser.evaluations.forward),
        "u_backward": float(denoiser.evaluations.backward),
    }
