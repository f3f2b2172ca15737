"""The parts of ``caso_quality.py``: one attribute trained, its unseen pictures edited in several ways, and measured."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semantic_editing.core.backends.caso import DemoDecoder, demo_injector
from semantic_editing.core.caso.analysis import class_mean_cosines, reconstruction_errors
from semantic_editing.core.caso.demo_recipes import RECIPES
from semantic_editing.core.caso.editing import Window, invert_to_window, semantic_edit
from semantic_editing.core.caso.embedding import GuidanceTerm, SemanticEmbedding
from semantic_editing.core.caso.seams import empty_condition
from semantic_editing.core.caso.settings import TrainingSettings
from semantic_editing.core.caso.training import EmbeddingTrainer
from semantic_editing.core.classifiers.loaders import load_image_classifier
from semantic_editing.core.demo import DemoModel, DemoPair
from semantic_editing.core.demo_data import pictures_without
from semantic_editing.core.inversion import Inversion
from semantic_editing.core.measures import attributes_kept, psnr, success

#: Name, as of its recipe -> (edit whose pairs are the truth, the way back, where guidance starts).
ATTRIBUTES = {
    "glasses": ("glasses: none to glasses", "glasses: glasses to none", 0.5),
    "smile": ("mouth: sad to smile", "mouth: smile to sad", 0.5),
    "beard": ("facial hair: none to beard", "facial hair: beard to none", 0.5),
    "red hair": ("hair color: black to red", None, 0.7),
}
BATCH = 16
HELD = 8
REBUILT_STEPS, OWN_CLASS_STRENGTHS = 20, (0.1, 0.3, 1.0)  # of the reconstruction by an image's own class
SEGA = 0.05  # focus of the text in the way of SEGA (Brack et al. 2023)


@dataclass(frozen=True)
class Task:
    """What is done for one attribute: unseen pictures with their truth, and pictures to learn from."""

    name: str
    forth: list[DemoPair]
    back: list[DemoPair]
    extra: Tensor  # further unseen pictures without the attribute
    training: Tensor
    start: float


def make_task(demo: DemoModel, name: str, pictures: int, unseen: int, start: float | None) -> Task:
    """Training pictures are sources of other edits that lack the attribute; none of their faces is edited."""
    forth_name, back_name, own_start = ATTRIBUTES[name]
    forth = demo.pairs_of(forth_name)[:unseen]
    back = demo.pairs_of(back_name)[:unseen] if back_name else []
    key, target = forth[0].attribute, forth[0].after
    others = pictures_without(demo.pairs, key, target)
    training, extra = others[:pictures], others[pictures : pictures + max(0, unseen - len(forth))]
    return Task(name, forth, back, extra, training, start if start is not None else own_start)


class Bench:
    """Shared work of all attributes."""

    def __init__(self, demo: DemoModel, arguments: argparse.Namespace):
        self.demo, self.arguments = demo, arguments
        self.injector, self.decoder = demo_injector(demo), DemoDecoder(demo)
        self.classifier = load_image_classifier(demo.folder / "classifier.safetensors")
        self.judge = demo.judge
        self.uncond = empty_condition(self.injector)

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
        return RECIPES[task.name].settings(**self.arguments.training)

    def paper(self, task: Task) -> TrainingSettings:
        """The paper's, in no more steps than ours."""
        return RECIPES[task.name].paper(steps=min(TrainingSettings.steps, self.recipe(task).steps))

    def train(self, task: Task, settings: TrainingSettings) -> tuple[SemanticEmbedding, dict[str, Any]]:
        """One attribute from its pictures: the embedding, and what it cost."""
        latents, denoiser = self.encode(task.training), self.demo.denoiser()
        trainer = EmbeddingTrainer(denoiser, self.injector, self.decoder, self.classifier, latents[HELD:], settings, latents[:HELD])
        began = time.perf_counter()
        (embedding,) = trainer.run()
        spent = time.perf_counter() - began
        held = next(entry.held for entry in reversed(trainer.history) if entry.held is not None)
        u = denoiser.evaluations
        return embedding, {
            "seconds": spent, "steps": settings.steps, "seconds_per_step": spent / settings.steps, "u_forward": u.forward,
            "u_backward": u.backward, "held_accuracy": held.accuracy, "best_step": trainer.best_found.step + 1,
        }  # fmt: skip

    def invert(self, images: Tensor, start: float) -> list[tuple[Inversion, Window]]:
        """Batches of images, inverted as far as the window needs."""
        parts = self.encode(images).split(BATCH)
        return [invert_to_window(self.demo.denoiser(), part, self.uncond, self.arguments.steps, Window(start)) for part in parts]

    def edit(self, inverted: list[tuple[Inversion, Window]], cond: Any, strength: float, focus: float = 1.0) -> tuple[Tensor, float]:
        """Edited images ``[B, 3, H, W]`` and forwards per image, inversion included."""
        edited, u, count = [], 0.0, 0
        for inversion, window in inverted:
            denoiser = self.demo.denoiser()
            edited.append(semantic_edit(denoiser, inversion, self.uncond, [GuidanceTerm(cond, strength, focus=focus)], window))
            u += denoiser.evaluations.forward + inversion.evaluations * len(inversion.noise)
            count += len(inversion.noise)
        return self.decode(torch.cat(edited)), u / count

    def measure(
        self, images: Tensor, pairs: list[DemoPair], extra: Tensor, wanted: str, label: str, strength: float, u: float
    ) -> dict[str, Any]:
        """Figures of edited ``images``, of the pairs first and then of ``extra``, which have no true picture and thus no PSNR.

        The other attributes of an edited extra picture must be those of the picture itself.
        """
        key = pairs[0].attribute
        targets = torch.stack([pair.target for pair in pairs])
        kept = torch.cat([targets, extra])[: len(images)]
        row: dict[str, Any] = {"method": label, "strength": strength, "u": u, "images": len(images)}
        for name, judge in (("guide", self.demo.classifier), ("judge", self.judge)):
            seen = judge.labels(images)
            row[f"success_{name}"] = float(success(seen, key, wanted).mean())
            row[f"kept_{name}"] = float(attributes_kept(seen, judge.labels(kept), key).mean())
        row["psnr_true"] = float(psnr(images[: len(pairs)], targets).mean())
        return row

    def attribute(self, task: Task, embedding: SemanticEmbedding, as_printed: SemanticEmbedding | None) -> dict[str, Any]:
        """All methods on one attribute; ``as_printed`` was learned as the paper does."""
        pair = task.forth[0]
        sources = torch.cat([torch.stack([pair.source for pair in task.forth]), task.extra])
        inverted = self.invert(sources, task.start)
        text, learned = self.demo.encode_text([pair.words[1]]), embedding.condition(self.injector)
        plain, u = self.edit(inverted, self.uncond, 0.0)
        true = self.decode(self.encode(torch.stack([pair.target for pair in task.forth])))
        rows = [
            self.measure(true, task.forth, task.extra, pair.after, "true picture through the VAE", 0.0, 0.0),
            self.measure(plain, task.forth, task.extra, pair.after, "reconstruction", 0.0, u),
        ]
        options = self.arguments
        methods = [
            ("text", text, 1.0, options.text_strengths),
            ("text, SEGA", text, SEGA, options.text_strengths),
            ("CASO, focused", learned, options.focus, options.strengths),
            ("CASO", learned, 1.0, options.strengths),
        ]
        if as_printed is not None:
            methods.insert(2, ("CASO, the paper's", as_printed.condition(self.injector), 1.0, options.paper_strengths))
        for label, cond, focus, strengths in methods:
            for strength in strengths:
                images, u = self.edit(inverted, cond, strength, focus)
                rows.append(self.measure(images, task.forth, task.extra, pair.after, label, strength, u))
        removal = []
        if task.back:
            having = self.invert(torch.stack([pair.source for pair in task.back]), task.start)
            removal.append(self.remove(task, having, "reconstruction", learned, 0.0))
            for label, _, focus, strengths in methods[-2:]:
                removal += [self.remove(task, having, label, learned, -strength, focus) for strength in strengths]
        return {"rows": rows, "removal": removal, "proposition_2": self.proposition(task, sources, inverted, images)}

    def remove(
        self, task: Task, inverted: list[tuple[Inversion, Window]], label: str, cond: Any, strength: float, focus: float = 1.0
    ) -> dict[str, Any]:
        """Negative strength on pictures that have the attribute; success is that the judge no longer sees it."""
        images, u = self.edit(inverted, cond, strength, focus)
        row = self.measure(images, task.back, task.extra[:0], task.back[0].after, label, strength, u)
        for name, judge in (("guide", self.demo.classifier), ("judge", self.judge)):
            row[f"success_{name}"] = 1 - float(success(judge.labels(images), task.back[0].attribute, task.back[0].before).mean())
        return row

    def proposition(self, task: Task, sources: Tensor, inverted: list[tuple[Inversion, Window]], edited: Tensor) -> dict[str, float]:
        """Cosine of class means, edited against real, before training (a random vector) and after (Proposition 2)."""
        pair = task.forth[0]
        generator = torch.Generator().manual_seed(0)
        width, scale = self.injector.widths["clip_l"], self.injector.token_scale["clip_l"]
        random = self.injector({"clip_l": torch.randn(1, 1, width, generator=generator) * scale})
        untrained, _ = self.edit(inverted, random, self.arguments.strengths[-1])
        labels = (pair.before, pair.after)
        real = {
            label: torch.stack([p.source for p in self.demo.pairs if p.source_attributes[pair.attribute] == label][:48]) for label in labels
        }
        result = {}
        for name, images in (("before", untrained), ("after", edited)):
            result[name] = class_mean_cosines(self.classifier, real, {pair.before: sources, pair.after: images})[pair.after]
        return result

    def reconstruction(self, task: Task, embedding: SemanticEmbedding) -> list[dict[str, float]]:
        """Plain DDIM reconstruction of pictures that have the attribute, without and with their own class's embedding (4.4)."""
        latents = self.encode(torch.stack([pair.target for pair in task.forth]))
        term, rows = GuidanceTerm(embedding.condition(self.injector), 1.0), []
        for window in (Window(0.3), Window(1.0)):
            plain, *guided = reconstruction_errors(
                self.demo.denoiser(), latents, self.uncond, [term], REBUILT_STEPS, OWN_CLASS_STRENGTHS, window
            ).mean(1).tolist()  # fmt: skip
            for strength, error in zip(OWN_CLASS_STRENGTHS, guided, strict=True):
                rows.append({"start": window.start, "strength": strength, "plain": plain, "guided": error})
        return rows
