"""CASO's paper, the half that is not in caso_quality.py: its further claims and baselines on the demo world.

    semantic-editing bench caso_paper                                   # all parts; some hours of one core
    semantic-editing bench caso_paper --parts classes single rivals     # those that train nothing
    semantic-editing bench caso_paper --lpips alexnet.pth               # true LPIPS besides

What is measured is kept in --out, one line a row, and the same command goes on where it ended. Parts:

classes   Proposition 2 with the last layer's weights w_a (Eq. 5): cosine with the class mean of real pictures (Theorem
          1), of pictures edited by a random vector, and of pictures edited by the shipped embedding
single    guidance in one step of the window only (section 4.2)
rivals    Composable Diffusion (Liu et al. 2022) with the picture's caption and the words, and a DiffAE-like edit:
          DeltaEdit-D's style code moved along the normal of a linear classifier of codes
equal     the paper's own training, and ours, read at equal success
species   short hair to a hat, which changes the shape, beside text
pictures  how many pictures the paper's training gets
level     the noise level L of that training
gamma     the weight of its reconstruction loss
fid       Table 3's question: pictures that have it, rebuilt under guidance by their own class. A Frechet distance of
          the demo's second classifier's features, which is no FID: it has another network and far fewer pictures

Unless a row says otherwise: unseen pairs of other faces, 20 steps, the demo recipe's window, focus 1 (the paper has
none). Judge is the demo's second classifier; "moved" is the distance between picture and edit in the form of LPIPS,
without its learned weights, over that classifier's stages: less is more coherent, and nothing at all done has 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from semantic_editing.benchmarks.caso_bench import ATTRIBUTES, BATCH, VALIDATION, Bench, Task, make_task
from semantic_editing.benchmarks.deltaedit_quality import STYLE, large
from semantic_editing.benchmarks.real_models import Kept, Record
from semantic_editing.core.caso.analysis import centred_class_means
from semantic_editing.core.caso.editing import Window, invert_to_window, semantic_edit
from semantic_editing.core.caso.embedding import GuidanceTerm, SemanticEmbedding
from semantic_editing.core.caso.settings import KINDS, TrainingSettings
from semantic_editing.core.classifiers.base import ImageClassifier
from semantic_editing.core.classifiers.loaders import load_image_classifier
from semantic_editing.core.deltaedit.encoder_files import load_encoder
from semantic_editing.core.deltaedit.generator_files import load_generator
from semantic_editing.core.deltaedit.style_diffusion import decode, encode, load_style_diffusion
from semantic_editing.core.demo.caso_recipes import DemoRecipe
from semantic_editing.core.demo.data import DemoData, DemoPair, pictures_without
from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.metrics.distribution import feature_fid
from semantic_editing.core.metrics.image import attributes_kept, perceptual_distance, psnr, success
from semantic_editing.core.metrics.lpips import load_lpips

HAT = "top: short to hat"
SPECIES = DemoRecipe("top", "hat", "", KINDS["species"].noise_level, KINDS["species"].start, 1.0, 5.0)
LEVELS, GAMMAS, PICTURES = (0.2, 0.3, 0.4, 0.6), (0.0, 1.0, 10.0), (25, 50, 100, 200)
PAPER_STRENGTHS, OUR_STRENGTHS = (3.0, 5.0, 7.0, 9.0, 11.0), (1.0, 2.0, 3.0, 4.0, 5.0)
#: Successes at which methods are read, linearly between the strengths measured.
READ_AT = (0.5, 0.8, 0.9)
REAL = 64  # real pictures of a class, most
LAMBDAS = (0.0, 0.3, 1.0, 3.0)


@dataclass(eq=False)
class Row:
    """Edits of pairs by one method at one strength, as a table shows them."""

    method: str
    strength: float
    found: Record

    def cells(self) -> str:
        """Markdown."""
        value = self.found
        true_lpips = f" | {value['lpips']:.3f}" if "lpips" in value else ""
        return (
            f"| {self.method} | {self.strength:g} | {100 * value['success']:.0f} | {100 * value['kept']:.0f} | "
            f"{value['psnr']:.1f} | {value['moved']:.3f}{true_lpips} | {value['n']:.0f} |"
        )


class PaperBench(Bench):
    """The parts, each of which prints a table; everything that is measured is kept."""

    def __init__(self, options: argparse.Namespace):
        super().__init__(load_demo_model(options.assets), argparse.Namespace(**vars(options), training={}))
        self.options = options
        self.kept = Kept(options.out / "caso_paper.jsonl", f"{options.unseen} pairs, {options.steps} steps")
        self.lpips = load_lpips(options.lpips) if options.lpips else None
        self.tasks: dict[str, Task] = {}
        self._inverted: dict[Any, Any] = {}

    def task(self, name: str) -> Task:
        """The pairs and training pictures of an attribute."""
        if name not in self.tasks:
            self.tasks[name] = make_task(self.demo, name, max(PICTURES) + VALIDATION, self.options.unseen)
        return self.tasks[name]

    def once(self, make: Callable[[], Record], *words: object) -> Record:
        """What ``make`` finds, or what it found in an earlier run."""
        found = self.kept.get(*words)
        if found is None:
            found = make()
            self.kept.put(found, *words)
            print(f"{' | '.join(map(str, words))}: {found}", file=sys.stderr, flush=True)
        return found

    def sources(self, pairs: Sequence[DemoPair], start: float, single_step: bool = False) -> Any:
        """Inversions of the pairs' sources as far as a window needs; they are made once."""
        key = (pairs[0].edit, len(pairs), start)
        if key not in self._inverted:
            self._inverted[key] = self.invert(torch.stack([pair.source for pair in pairs]), start)
        return [(made, replace(window, single_step=single_step)) for made, window in self._inverted[key]]

    def judged(self, images: Tensor, pairs: Sequence[DemoPair]) -> Record:
        """Figures of edited ``images [N, 3, 128, 128]``, one for each pair."""
        before, after = (torch.stack([getattr(pair, side) for pair in pairs]) for side in ("source", "target"))
        seen, wanted = self.judge.labels(images), self.judge.labels(after)
        key = pairs[0].attribute
        with torch.no_grad():
            moved = perceptual_distance(self.judge.stages(images), self.judge.stages(before))
        found = {
            "success": float(success(seen, {key: pairs[0].after}).mean()),
            "kept": float(attributes_kept(seen, wanted, key).mean()),
            "psnr": float(psnr(images, after).mean()),
            "moved": float(moved.mean()),
            "n": float(len(pairs)),
        }
        if self.lpips is not None:
            found["lpips"] = float(self.lpips(images, before).mean())
        return found

    def rows(
        self,
        pairs: Sequence[DemoPair],
        start: float,
        method: str,
        terms: Callable[[float, slice], Sequence[GuidanceTerm]],
        strengths: Sequence[float],
        single_step: bool = False,
    ) -> list[Row]:
        """Edits of ``pairs`` by ``terms``, which are asked for a strength and the pairs of a batch."""

        def edit(strength: float) -> Record:
            made, first = [], 0
            for inversion, window in self.sources(pairs, start, single_step):
                part = slice(first, first + len(inversion.noise))
                made.append(
                    semantic_edit(self.demo.denoiser(), inversion, self.uncond, terms(strength, part), window)
                )
                first = part.stop
            return self.judged(self.decode(torch.cat(made)), pairs)

        return [
            Row(method, at, self.once(lambda at=at: edit(at), pairs[0].edit, method, at))  # type: ignore[misc]
            for at in strengths
        ]

    def by(self, embedding: SemanticEmbedding) -> Callable[[float, slice], Sequence[GuidanceTerm]]:
        """Terms of an embedding, for :meth:`rows`."""
        cond = embedding.condition(self.vector_encoder)
        return lambda strength, _: [GuidanceTerm(cond, strength)]

    def shipped(self, name: str) -> SemanticEmbedding:
        """The demo's own embedding."""
        return SemanticEmbedding.load(self.demo.folder / "embeddings" / f"{name.replace(' ', '_')}.safetensors")

    def learned(self, task: Task, settings: TrainingSettings, pictures: int, label: str) -> SemanticEmbedding:
        """An embedding learned from so many pictures and :data:`VALIDATION` more; kept in a file of its own."""
        path = self.options.out / f"{label.replace(' ', '_')}.safetensors"
        if path.is_file():
            return SemanticEmbedding.load(path)
        given = replace(task, training=task.training[: pictures + VALIDATION])
        embedding, cost = self.train(given, settings)
        print(f"trained {label}: {cost['seconds']:.0f} s", file=sys.stderr, flush=True)
        embedding.save(path, overwrite=True)
        return embedding

    def table(self, title: str, rows: Sequence[Row]) -> None:
        """Print rows of edits."""
        also = " LPIPS |" if self.lpips is not None else ""
        print(f"\n### {title}\n\n| method | strength | success, % | others kept, % | PSNR to true, dB | moved |{also} n |")
        print("|---" * (8 if also else 7) + "|")
        print("\n".join(row.cells() for row in rows), flush=True)

    def text(self, pairs: Sequence[DemoPair]) -> Callable[[float, slice], Sequence[GuidanceTerm]]:
        """Guidance by the edit's words."""
        cond = self.demo.encode_text([pairs[0].words[1]])
        return lambda strength, _: [GuidanceTerm(cond, strength)]

    # Parts

    def classes(self) -> None:
        """Proposition 2, Eq. 4 and 5."""
        heads = "attribute | classifier | real pictures (Eq. 4) | random vector | shipped embedding (Eq. 5)"
        print(f"\n### Proposition 2 with w_a\n\n| {heads} | its mean against the real one | n |", flush=True)
        print("|---" * 7 + "|", flush=True)
        for name in self.options.attributes:
            found = self.once(lambda name=name: self._class_means(name), "classes", name)  # type: ignore[misc]
            for role in ("teacher", "judge"):
                cells = [f"{found[f'{role} {what}']:.2f}" for what in ("real", "random", "edited", "means")]
                print(f"| {name} | {role} | {' | '.join(cells)} | {found['n']:.0f} |", flush=True)

    def _class_means(self, name: str) -> Record:
        task = self.task(name)
        pair, recipe = task.forth[0], task.recipe
        width, scale = self.vector_encoder.widths["clip_l"], self.vector_encoder.token_scale["clip_l"]
        noise = torch.randn(1, 1, width, generator=torch.Generator().manual_seed(0)) * scale
        conds = {"random": self.vector_encoder({"clip_l": noise})}
        conds["edited"] = self.shipped(name).condition(self.vector_encoder)
        having, without = (
            torch.stack([p.source for p in self.demo.pairs if p.source_attributes[pair.attribute] == label][:REAL])
            for label in (pair.after, pair.before)
        )
        sources, inverted = torch.stack([p.source for p in task.forth]), self.sources(task.forth, recipe.start)
        edits = {label: self.edit(inverted, cond, recipe.strength)[0] for label, cond in conds.items()}
        second = load_image_classifier(self.demo.folder / "classifier_judge.safetensors")
        found: Record = {"n": float(len(sources))}
        for role, classifier in (("teacher", self.classifier), ("judge", second)):
            weights = classifier.class_weights(pair.attribute).detach().double()
            rows = [classifier.class_index(pair.attribute, label) for label in (pair.before, pair.after)]
            # Of two classes, centred: the last layer is free up to a vector common to all classes of an attribute.
            wanted = (weights[rows[1]] - weights[rows[0]]) / 2
            own = self._centred(classifier, having, without)
            found[f"{role} real"] = cosine(own, wanted)
            for label, images in edits.items():
                moved = self._centred(classifier, images, sources)
                found[f"{role} {label}"] = cosine(moved, wanted)
                found[f"{role} means"] = cosine(moved, own)  # of the last, the embedding
        return found

    @staticmethod
    @torch.no_grad()
    def _centred(classifier: ImageClassifier, after: Tensor, before: Tensor) -> Tensor:
        """Centred class mean of the pictures ``after`` ``[F]``, of these two classes."""
        groups = {"after": after, "before": before}
        features = {
            label: torch.cat([classifier.features(part) for part in images.split(BATCH)])
            for label, images in groups.items()
        }
        return centred_class_means(features)["after"]

    def single(self) -> None:
        """One guided step against all of the window."""
        rows = []
        for name in self.options.attributes:
            task, terms = self.task(name), self.by(self.shipped(name))
            start, best = task.recipe.start, task.recipe.strength
            rows += self.rows(task.forth, start, f"{name}: all steps", terms, (0.0, best))
            rows += self.rows(task.forth, start, f"{name}: a single step", terms, (best, 3 * best, 6 * best), True)
        self.table("Single step", rows)

    def rivals(self) -> None:
        """Composable Diffusion and a linear classifier in DeltaEdit-D's code."""
        for name in self.options.attributes:
            task = self.task(name)
            pairs, rows = task.forth, []
            captions = self.demo.encode_text([pair.source_caption for pair in pairs])
            words = self.demo.encode_text([pairs[0].words[1]])

            def both(strength: float, part: slice, captions: Tensor = captions, words: Tensor = words) -> Any:
                return [GuidanceTerm(captions[part], 1.0), GuidanceTerm(words, strength)]

            strengths = (1.5, 3.0, 5.0)
            rows += self.rows(pairs, task.recipe.start, "CASO as shipped", self.by(self.shipped(name)), OUR_STRENGTHS)
            rows += self.rows(pairs, task.recipe.start, "text", self.text(pairs), strengths)
            rows += self.rows(pairs, task.recipe.start, "Composable Diffusion in the same window", both, strengths)
            rows += self.rows(pairs, 1.0, "Composable Diffusion from the noise", both, strengths)
            rows += self.linear(name, task)
            self.table(f"Rivals: {name}", rows)
            self.equally(rows)

    def linear(self, name: str, task: Task) -> list[Row]:
        """DiffAE's edit with the networks at hand: a linear classifier of style codes, and a move along its normal."""
        label = "DiffAE-like: linear classifier of DeltaEdit-D's code (64 pixels)"
        strengths = (0.0, 1.0, 2.0, 4.0)
        if all(self.kept.get(task.forth[0].edit, label, at) for at in strengths):
            return [Row(label, at, self.kept.get(task.forth[0].edit, label, at) or {}) for at in strengths]
        generator = load_generator(STYLE / "generator.safetensors").eval()
        encoder = load_encoder(STYLE / "encoder.safetensors", generator.layout.rows, generator.style_dim).eval()
        network = load_style_diffusion(STYLE / "diffusion.safetensors").eval()
        pair = task.forth[0]

        def small(images: Tensor) -> Tensor:
            return functional.avg_pool2d(images, 2) * 2 - 1

        with torch.no_grad():
            known = [
                (picture, labels[pair.attribute])
                for each in self.demo.pairs
                for picture, labels in ((each.source, each.source_attributes), (each.target, each.target_attributes))
                if labels[pair.attribute] in (pair.before, pair.after)
            ]
            pictures = small(torch.stack([picture for picture, _ in known]))
            codes = torch.cat([generator.styles(encoder(part)).convs for part in pictures.split(BATCH)])
        answers = torch.tensor([float(text == pair.after) for _, text in known])
        mean, deviation = codes.mean(0), codes.std(0).clamp_min(1e-4)
        normal = linear_classifier((codes - mean) / deviation, answers)
        spread = float(((codes - mean) / deviation @ normal).std())
        rows = []
        with torch.no_grad():
            sources = small(torch.stack([each.source for each in task.forth]))
            code = generator.styles(encoder(sources))
            noise = encode(network, sources, code, self.options.steps, exact=False)
            for at in strengths:

                def edit(at: float = at) -> Record:
                    moved = code.with_convs(code.convs + at * spread * normal * deviation)
                    drawn = decode(network, noise, moved).div(2).add(0.5).clamp(0, 1)
                    return self.judged(large(drawn), task.forth)

                rows.append(Row(label, at, self.once(edit, pair.edit, label, at)))
        return rows

    def equally(self, rows: Sequence[Row]) -> None:
        """Print every method at the same success, linearly between the strengths measured."""
        methods: dict[str, list[Row]] = {}
        for row in rows:
            methods.setdefault(row.method, []).append(row)
        print("\n| at equal success | " + " | ".join(f"{100 * at:.0f} %: kept, PSNR, moved" for at in READ_AT) + " |")
        print("|---" * (1 + len(READ_AT)) + "|")
        for method, own in methods.items():
            cells = [told(read_at(own, at)) for at in READ_AT]
            print(f"| {method} | {' | '.join(cells)} |", flush=True)

    def equal(self) -> None:
        """The paper's training at the success of ours."""
        for name in self.options.attributes:
            task = self.task(name)
            paper = self.learned(task, self.paper(task), 96, f"paper {name}")
            rows = self.rows(task.forth, task.recipe.start, "the paper's training", self.by(paper), PAPER_STRENGTHS)
            own = self.by(self.shipped(name))
            rows += self.rows(task.forth, task.recipe.start, "CASO as shipped", own, OUR_STRENGTHS)
            rows += self.rows(task.forth, task.recipe.start, "text", self.text(task.forth), (1.5, 3.0, 5.0))
            self.table(f"The paper's training: {name}", rows)
            self.equally(rows)

    def species(self) -> None:
        """An edit that changes the shape."""
        pairs = DemoData(self.demo.folder / "unseen").pairs_of(HAT)[: self.options.unseen]
        training = pictures_without(self.demo.pairs, "top", "hat")[: 96 + VALIDATION]
        task = Task(SPECIES, pairs, [], training)
        settings = SPECIES.paper(steps=self.options.train_steps)
        paper = self.learned(task, settings, 96, f"species {settings.steps} steps")
        ours = self.learned(
            task, replace(settings, attribute_preservation=1.0), 96, f"species keep others {settings.steps} steps"
        )
        rows = self.rows(pairs, 0.9, "the paper's training", self.by(paper), (0.0, 3.0, 5.0, 7.0))
        rows += self.rows(pairs, 0.9, "ours (keep_others)", self.by(ours), (3.0, 5.0, 7.0))
        rows += self.rows(pairs, 0.9, "text", self.text(pairs), (1.5, 3.0, 5.0))
        rows += self.rows(pairs, 0.3, "the paper's training, window of faces", self.by(paper), (5.0,))
        self.table(f"Species-like: {HAT}", rows)

    def swept(self, part: str, choices: Mapping[float, tuple[dict[str, Any], int]]) -> None:
        """The paper's training of glasses with one thing otherwise: ``choices`` are of that thing's value."""
        task = self.task("glasses")
        rows = []
        for value, (changes, pictures) in choices.items():
            settings = replace(self.paper(task), steps=self.options.train_steps, **changes)
            label = f"{part} {value:g}, {settings.steps} steps"
            made = self.learned(task, settings, pictures, label)
            rows += self.rows(task.forth, task.recipe.start, label, self.by(made), (5.0, 7.0, 9.0))
        self.table(f"Choice of {part}: glasses", rows)

    def pictures(self) -> None:
        """25 to 200 of them."""
        most = len(self.task("glasses").training) - VALIDATION
        self.swept("pictures", {float(min(count, most)): ({}, min(count, most)) for count in PICTURES})

    def level(self) -> None:
        """The paper's L, without our jitter."""
        self.swept("L", {at: ({"noise_level": at, "noise_level_jitter": 0.0}, 96) for at in LEVELS})

    def gamma(self) -> None:
        """The weight of L_rec."""
        self.swept("gamma", {at: ({"reconstruction": at}, 96) for at in GAMMAS})

    def fid(self) -> None:
        """Reconstruction of pictures that have it, guided by their own class over the whole trajectory."""
        print("\n### Frechet distance of the second classifier's features, pictures rebuilt under their own class\n")
        print(f"| attribute | T | {' | '.join(f'lambda {at:g}' for at in LAMBDAS)} | n rebuilt, real |")
        print("|---" * (3 + len(LAMBDAS)) + "|", flush=True)
        judge = load_image_classifier(self.demo.folder / "classifier_judge.safetensors")
        for name in self.options.attributes:
            task = self.task(name)
            pair, cond = task.forth[0], self.shipped(name).condition(self.vector_encoder)
            having = torch.stack([each.target for each in task.forth])
            real = torch.stack(
                [each.source for each in self.demo.pairs if each.source_attributes[pair.attribute] == pair.after]
                + [each.target for each in self.demo.pairs if each.target_attributes[pair.attribute] == pair.after]
            )
            for steps in self.options.fid_steps:

                def measure(steps: int = steps, having: Tensor = having, real: Tensor = real, cond: Any = cond) -> Record:
                    latents = self.encode(having)
                    whole = [
                        invert_to_window(self.demo.denoiser(), part, self.uncond, steps, Window(1.0))
                        for part in latents.split(BATCH)
                    ]
                    found: Record = {"n": float(len(having)), "real": float(len(real))}
                    with torch.no_grad():
                        goal = torch.cat([judge.features(part) for part in real.split(BATCH)])
                        for at in LAMBDAS:
                            images, _ = self.edit(whole, cond, at)
                            seen = torch.cat([judge.features(part) for part in images.split(BATCH)])
                            found[f"{at:g}"] = feature_fid(seen, goal)
                    return found

                found = self.once(measure, "fid", name, steps)
                cells = " | ".join(f"{found[f'{at:g}']:.1f}" for at in LAMBDAS)
                print(f"| {name} | {steps} | {cells} | {found['n']:.0f}, {found['real']:.0f} |", flush=True)


def cosine(first: Tensor, second: Tensor) -> float:
    """Of two vectors ``[F]``."""
    return float(functional.cosine_similarity(first.double(), second.double(), dim=0))


def linear_classifier(codes: Tensor, answers: Tensor, penalty: float = 1e-2, steps: int = 300) -> Tensor:
    """Unit normal ``[S]`` of a logistic regression of ``answers [N]`` (0 or 1) on standardised ``codes [N, S]``."""
    weight = torch.zeros(codes.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.01)
    share = answers.mean()
    balance = torch.where(answers > 0, 0.5 / share, 0.5 / (1 - share))
    for _ in range(steps):
        loss = functional.binary_cross_entropy_with_logits(codes @ weight + bias, answers, weight=balance)
        optimizer.zero_grad()
        (loss + penalty * weight.square().sum()).backward()
        optimizer.step()
    return functional.normalize(weight.detach(), dim=0)


def read_at(rows: Sequence[Row], wanted: float) -> Record | None:
    """Figures where the success is ``wanted``, linearly between two strengths that have less and at least that; None
    where no strength reaches it, or the first has it already."""
    ordered = sorted(rows, key=lambda row: row.strength)
    for low, high in zip(ordered, ordered[1:], strict=False):
        less, more = low.found["success"], high.found["success"]
        if less < wanted <= more:
            share = (wanted - less) / (more - less)
            return {
                name: low.found[name] + share * (high.found[name] - low.found[name])
                for name in ("kept", "psnr", "moved")
            }
    return None


def told(found: Record | None) -> str:
    """A cell of the table at equal success."""
    return "not reached between the strengths" if found is None else (
        f"{100 * found['kept']:.0f} %, {found['psnr']:.1f} dB, {found['moved']:.3f}"
    )


PARTS = ("classes", "single", "rivals", "equal", "species", "pictures", "level", "gamma", "fid")


def main() -> int:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(
        prog="semantic-editing bench caso_paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--attributes", nargs="+", choices=list(ATTRIBUTES), default=list(ATTRIBUTES))
    parser.add_argument("--unseen", type=int, default=40, help="pairs that are edited, at most")
    parser.add_argument("--steps", type=int, default=20, help="of an edit's whole trajectory")
    parser.add_argument("--train-steps", type=int, default=150, help="of the sweeps' trainings")
    parser.add_argument("--fid-steps", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--lpips", type=Path, help="torchvision's AlexNet weights, for LPIPS besides")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--assets", type=Path, help="another folder with the demo model's files")
    parser.add_argument("--out", type=Path, default=Path("bench_out/caso_paper"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = PaperBench(options)
    try:
        for part in options.parts:
            getattr(bench, part)()
    except KeyboardInterrupt:
        print("semantic-editing bench: interrupted; the same command goes on from there.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
