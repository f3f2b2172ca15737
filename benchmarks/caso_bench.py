"""The parts of ``caso_quality.py``: one attribute trained, its unseen pictures edited in several ways, and measured."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semantic_editing.core.caso.analysis import class_mean_cosines, reconstruction_errors
from semantic_editing.core.caso.editing import Window, invert_to_window, semantic_edit
from semantic_editing.core.caso.embedding import GuidanceTerm, SemanticEmbedding
from semantic_editing.core.caso.settings import TrainingSettings
from semantic_editing.core.caso.training import EmbeddingTrainer
from semantic_editing.core.classifiers.loaders import load_image_classifier
from semantic_editing.core.demo.builders import DemoDecoder, demo_vector_encoder
from semantic_editing.core.demo.caso_recipes import RECIPES, DemoRecipe
from semantic_editing.core.demo.data import DemoData, DemoPair, pictures_without
from semantic_editing.core.demo.model import DemoModel
from semantic_editing.core.inversion import Inversion
from semantic_editing.core.metrics.image import attributes_kept, psnr, success
from semantic_editing.core.token_vectors import empty_condition

#: Name, as of its recipe -> edit whose pairs are the truth.
ATTRIBUTES = {
    "glasses": "glasses: none to glasses",
    "smile": "mouth: sad to smile",
    "beard": "facial hair: none to beard",
    "red hair": "hair color: black to red",
}
BATCH = 16
VALIDATION = 24  # of the pictures to learn from, to decide what is best
REBUILT, REBUILT_STEPS, OWN_CLASS_STRENGTHS = 24, 20, (0.1, 0.3, 1.0)  # of the reconstruction by an image's own class


@dataclass(frozen=True)
class Task:
    """What is done for one attribute: unseen pairs without and with it, their way back, and pictures to learn from."""

    recipe: DemoRecipe
    forth: list[DemoPair]
    back: list[DemoPair]
    training: Tensor


def make_task(demo: DemoModel, name: str, pictures: int, unseen: int) -> Task:
    """Training pictures are sources of other edits that lack the attribute; none of their faces is edited."""
    edit = ATTRIBUTES[name]
    forth = [*demo.pairs_of(edit), *DemoData(demo.folder / "unseen").pairs_of(edit)][:unseen]
    training = pictures_without(demo.pairs, forth[0].attribute, forth[0].after)[:pictures]
    return Task(RECIPES[name], forth, [undone(pair) for pair in forth], training)


def undone(pair: DemoPair) -> DemoPair:
    """The same pair the other way."""
    edit = f"{pair.attribute.replace('_', ' ')}: {pair.after} to {pair.before}"
    return DemoPair(
        pair.target,
        pair.source,
        edit,
        pair.attribute,
        pair.after,
        pair.before,
        pair.target_caption,
        pair.source_caption,
        pair.target_attributes,
        pair.source_attributes,
    )


class Bench:
    """Shared work of all attributes."""

    def __init__(self, demo: DemoModel, arguments: argparse.Namespace):
        self.demo, self.arguments = demo, arguments
        self.vector_encoder, self.decoder = demo_vector_encoder(demo), DemoDecoder(demo)
        self.classifier = load_image_classifier(demo.folder / "classifier.safetensors")
        self.judge = demo.judge
        self.uncond = empty_condition(self.vector_encoder)

    def encode(self, images: Tensor) -> Tensor:
        """Images -> clean latents."""
        with torch.no_grad():
            return torch.cat([self.demo.encode_image(part) for part in images.split(BATCH)])

    def decode(self, latents: Tensor) -> Tensor:
        """Clean latents -> images."""
        with torch.no_grad():
            return torch.cat([self.demo.decode(part) for part in latents.split(BATCH)])

    def recipe(self, task: Task) -> TrainingSettings:
        """Ours for this attribute, with what the command line changes."""
        return task.recipe.settings(**self.arguments.training)

    def paper(self, task: Task) -> TrainingSettings:
        """The paper's, in no more steps than ours."""
        return task.recipe.paper(steps=min(TrainingSettings.steps, self.recipe(task).steps))

    def train(self, task: Task, settings: TrainingSettings) -> tuple[SemanticEmbedding, dict[str, Any]]:
        """One attribute from its pictures: the embedding, and what it cost."""
        latents, denoiser = self.encode(task.training), self.demo.denoiser()
        trainer = EmbeddingTrainer(
            denoiser,
            self.vector_encoder,
            self.decoder,
            self.classifier,
            latents[VALIDATION:],
            settings,
            latents[:VALIDATION],
        )
        began = time.perf_counter()
        (embedding,) = trainer.run()
        spent = time.perf_counter() - began
        last = next(entry.validation for entry in reversed(trainer.history) if entry.validation is not None)
        u = denoiser.evaluations
        return embedding, {
            "seconds": spent,
            "steps": settings.steps,
            "seconds_per_step": spent / settings.steps,
            "u_forward": u.forward,
            "u_backward": u.backward,
            "held_accuracy": last.accuracy,
            "best_step": trainer.best_found.step + 1,
        }

    def invert(self, images: Tensor, start: float) -> list[tuple[Inversion, Window]]:
        """Batches of images, inverted as far as the window needs."""
        parts = self.encode(images).split(BATCH)
        return [
            invert_to_window(self.demo.denoiser(), part, self.uncond, self.arguments.steps, Window(start))
            for part in parts
        ]

    def edit(
        self, inverted: list[tuple[Inversion, Window]], cond: Any, strength: float, focus: float = 1.0
    ) -> tuple[Tensor, float]:
        """Edited images ``[B, 3, H, W]`` and forwards per image, inversion included."""
        edited, u, count = [], 0.0, 0
        for inversion, window in inverted:
            denoiser = self.demo.denoiser()
            edited.append(
                semantic_edit(denoiser, inversion, self.uncond, [GuidanceTerm(cond, strength, focus=focus)], window)
            )
            u += denoiser.evaluations.forward + inversion.evaluations * len(inversion.noise)
            count += len(inversion.noise)
        return self.decode(torch.cat(edited)), u / count

    def measure(self, images: Tensor, pairs: list[DemoPair], label: str, strength: float, u: float) -> dict[str, Any]:
        """Figures of edited ``images``, one for each pair."""
        key = pairs[0].attribute
        targets = torch.stack([pair.target for pair in pairs])
        row: dict[str, Any] = {"method": label, "strength": strength, "u": u, "images": len(images)}
        for name, judge in (("guide", self.demo.classifier), ("judge", self.judge)):
            seen = judge.labels(images)
            row[f"success_{name}"] = float(success(seen, {key: pairs[0].after}).mean())
            row[f"kept_{name}"] = float(attributes_kept(seen, judge.labels(targets), key).mean())
        row["psnr_true"] = float(psnr(images, targets).mean())
        return row

    def attribute(
        self, task: Task, embedding: SemanticEmbedding, as_printed: SemanticEmbedding | None
    ) -> dict[str, Any]:
        """All methods on one attribute; ``as_printed`` was learned as the paper does."""
        options, start, focus = self.arguments, task.recipe.start, task.recipe.focus
        sources = torch.stack([pair.source for pair in task.forth])
        inverted = self.invert(sources, start)
        text, learned = self.demo.encode_text([task.forth[0].words[1]]), embedding.condition(self.vector_encoder)
        plain, u = self.edit(inverted, self.uncond, 0.0)
        true = self.decode(self.encode(torch.stack([pair.target for pair in task.forth])))
        rows = [
            self.measure(true, task.forth, "true picture through the VAE", 0.0, 0.0),
            self.measure(plain, task.forth, "reconstruction", 0.0, u),
        ]
        methods = [
            ("text", text, 1.0, options.text_strengths),
            ("text, SEGA", text, focus, options.text_strengths),
            ("CASO", learned, 1.0, options.strengths),
            ("CASO, focused", learned, focus, options.strengths),
        ]
        if as_printed is not None:
            methods.insert(
                2, ("CASO, the paper's", as_printed.condition(self.vector_encoder), 1.0, options.paper_strengths)
            )
        for label, cond, part, strengths in methods:
            for strength in strengths:
                images, u = self.edit(inverted, cond, strength, part)
                rows.append(self.measure(images, task.forth, label, strength, u))
        removal, having = [], self.invert(torch.stack([pair.source for pair in task.back]), start)
        for strength in (0.0, *options.strengths):
            removed, u = self.edit(having, learned, -strength, focus)
            removal.append(self.removed(removed, task, -strength, u))
        return {"rows": rows, "removal": removal, "proposition_2": self.proposition(task, sources, inverted, images)}

    def removed(self, images: Tensor, task: Task, strength: float, u: float) -> dict[str, Any]:
        """Figures of pictures that had the attribute; success is that the judge no longer sees it."""
        row = self.measure(images, task.back, "CASO, focused" if strength else "reconstruction", strength, u)
        for name, judge in (("guide", self.demo.classifier), ("judge", self.judge)):
            row[f"success_{name}"] = 1 - float(
                success(judge.labels(images), {task.back[0].attribute: task.back[0].before}).mean()
            )
        return row

    def proposition(
        self, task: Task, sources: Tensor, inverted: list[tuple[Inversion, Window]], edited: Tensor
    ) -> dict[str, float]:
        """Cosine of class means, edited against real, before training (a random vector) and after (Proposition 2)."""
        pair = task.forth[0]
        generator = torch.Generator().manual_seed(0)
        width, scale = self.vector_encoder.widths["clip_l"], self.vector_encoder.token_scale["clip_l"]
        random = self.vector_encoder({"clip_l": torch.randn(1, 1, width, generator=generator) * scale})
        untrained, _ = self.edit(inverted, random, self.arguments.strengths[-1])
        labels = (pair.before, pair.after)
        real = {
            label: torch.stack([p.source for p in self.demo.pairs if p.source_attributes[pair.attribute] == label][:48])
            for label in labels
        }
        result = {}
        for name, images in (("before", untrained), ("after", edited)):
            result[name] = class_mean_cosines(self.classifier, real, {pair.before: sources, pair.after: images})[
                pair.after
            ]
        return result

    def reconstruction(self, task: Task, embedding: SemanticEmbedding) -> list[dict[str, float]]:
        """Plain DDIM reconstruction of pictures that have the attribute, without and with its embedding (4.4)."""
        latents = self.encode(torch.stack([pair.target for pair in task.forth[:REBUILT]]))
        term, rows = GuidanceTerm(embedding.condition(self.vector_encoder), 1.0), []
        for window in (Window(0.3), Window(1.0)):
            plain, *guided = (
                reconstruction_errors(
                    self.demo.denoiser(), latents, self.uncond, [term], REBUILT_STEPS, OWN_CLASS_STRENGTHS, window
                )
                .mean(1)
                .tolist()
            )
            for strength, error in zip(OWN_CLASS_STRENGTHS, guided, strict=True):
                rows.append({"start": window.start, "strength": strength, "plain": plain, "guided": error})
        return rows
