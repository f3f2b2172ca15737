"""The demo's embeddings turned up and down on portraits: CASO's part of ``semantic-editing demo``."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..caso.editing import PRESETS, Window, invert_to_window, semantic_edit
from ..caso.embedding import GuidanceTerm, SemanticEmbedding
from ..metrics.image import attributes_kept, psnr
from ..token_vectors import empty_condition
from .builders import demo_vector_encoder
from .caso_recipes import RECIPES
from .data import DemoPair, embedding_files
from .model import DemoModel
from .showcase_result import Showcase

MOST = 4  # embeddings, to keep the command quick
#: (strength, window, focus) for an embedding without a recipe.
ANY = 3.0, PRESETS["middle"], 1.0


def show_embeddings(demo: DemoModel, steps: int, number: int, result: Showcase) -> None:
    """With each of the demo's embeddings give a portrait what it means, and take it from another that has it; without
    any words.

    Args:
        steps: of the whole trajectory, of which an edit needs the window only.
        number: which pair gives the first portrait; the other one is the target of the next.
    """
    figures = result.measures["embeddings"] = {}
    for name, (embedding, pairs) in known_embeddings(demo).items():
        without, having = (pairs[index % len(pairs)] for index in (number, number + 1))
        recipe = RECIPES.get(name.replace("_", " "))
        strength, window, focus = ANY if recipe is None else (recipe.strength, Window(recipe.start), recipe.focus)
        term = GuidanceTerm(embedding.condition(demo_vector_encoder(demo)), strength, focus=focus)
        added, up = _turned(demo, embedding, without.source, without.target, term, window, steps)
        taken, down = _turned(
            demo, embedding, having.target, having.source, replace(term, strength=-strength), window, steps
        )
        figures[name] = {"added": up, "removed": down}
        cells = [
            result.show(f"embedding_{name}_source", without.source, "source"),
            result.show(f"embedding_{name}_true", without.target, "the true edited picture"),
            result.judged(f"embedding_{name}_added", added, f"strength {strength:+g}", up),
            result.show(f"embedding_{name}_having", having.target, "another source"),
            result.show(f"embedding_{name}_true_without", having.source, "the true edited picture"),
            result.judged(f"embedding_{name}_removed", taken, f"strength {-strength:+g}", down),
        ]
        result.rows.append(
            (f"{name.replace('_', ' ')}, up and down by an embedding that a classifier taught (CASO)", cells)
        )


def known_embeddings(demo: DemoModel) -> dict[str, tuple[SemanticEmbedding, list[DemoPair]]]:
    """Name -> (embedding, pairs whose targets have what it means): the first :data:`MOST` with pairs in the demo."""
    found: dict[str, tuple[SemanticEmbedding, list[DemoPair]]] = {}
    for name, path in embedding_files(demo.folder).items():
        embedding = SemanticEmbedding.load(path)
        pairs = [pair for pair in demo.pairs if (pair.attribute, pair.after) == (embedding.attribute, embedding.target)]
        if pairs and len(found) < MOST:
            found[name] = embedding, pairs
    return found


def _turned(
    demo: DemoModel,
    embedding: SemanticEmbedding,
    source: Tensor,
    true: Tensor,
    term: GuidanceTerm,
    window: Window,
    steps: int,
) -> tuple[Tensor, dict[str, float]]:
    """``(edited image [3, H, W], figures)``; labels are the judge's, a classifier that taught no embedding."""
    denoiser, uncond = demo.denoiser(), empty_condition(demo_vector_encoder(demo))
    inversion, window = invert_to_window(denoiser, demo.encode_image(source[None]), uncond, steps, window)
    edited = demo.decode(semantic_edit(denoiser, inversion, uncond, [term], window))
    labels = demo.judge.labels(edited)
    return edited[0], {
        "psnr_to_true": float(psnr(edited, true[None])),
        "success": float((labels[0][embedding.attribute] == embedding.target) == (term.strength > 0)),
        "others_kept": float(attributes_kept(labels, demo.judge.labels(true[None]), embedding.attribute)),
        "u_forward": float(denoiser.evaluations.forward),
        "u_backward": float(denoiser.evaluations.backward),
    }
