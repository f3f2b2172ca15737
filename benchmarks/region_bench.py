"""The parts of ``region_quality.py``: one picture and edit, its boxes rendered once, and every way to choose among them
measured."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from region_boxes import only, overlap, random_boxes, true_region
from torch import Tensor

from semantic_editing.core.content_hash import fingerprint
from semantic_editing.core.demo.builders import demo_scorer, demo_vision_features
from semantic_editing.core.demo.data import DemoPair
from semantic_editing.core.demo.model import DemoModel
from semantic_editing.core.inversion import Inversion
from semantic_editing.core.metrics.image import attributes_kept, psnr, success
from semantic_editing.core.models.vision_features import load_vision_features
from semantic_editing.core.pix2pix_zero.guided_edit import CrossAttentionGuidance, CrossAttentionSettings
from semantic_editing.core.regions.changes import with_changes
from semantic_editing.core.regions.edit_inpaint import InpaintEditor, InpaintSettings, inpaint
from semantic_editing.core.regions.edit_invert import InversionEditor, InversionEditSettings
from semantic_editing.core.regions.editors import Locating, Quality, Sharing
from semantic_editing.core.regions.learning import RegionLearner, RegionTask
from semantic_editing.core.regions.network import RegionNetwork
from semantic_editing.core.regions.paste import Framing, paste, repainted_cells
from semantic_editing.core.regions.proposals import Box, Proposals, propose
from semantic_editing.core.regions.ranking import Candidate, rank
from semantic_editing.core.regions.rewards import ClipJudge, LossWeights
from semantic_editing.core.regions.settings import LearningSettings, Strategy
from semantic_editing.core.regions.table import RewardTable

RANDOM, ATTENDED, OWN_SIZES = (
    "random place, random size",
    "attended place, random size",
    "attended place, a random one of our sizes",
)
EXACT, HALVING, TRUE_BOX = "ours, exact", "ours, halving", "the true box"
SIDE = 128


class SharedRenders:
    """The editor of one picture for all arms: it renders boxes in batches and remembers them, so that an arm's own
    table counts what the arm would have cost alone.

    Args:
        inner: gives texts, settings and cost.
        image: ``[1, 3, H, W]`` in 0..1.
    """

    def __init__(self, inner: InpaintEditor | InversionEditor, image: Tensor, batch: int):
        self.inner, self.image, self.batch, self.identity = inner, image, batch, inner.identity
        self.shared_evaluations = 0  # counted by :meth:`overhead`, for each arm
        self._made: dict[tuple[Box, Quality, int], Tensor] = {}
        self._whole: Tensor | None = None
        self._latent = inner.encode(image)

    def cost(self, quality: Quality) -> float:
        """u of a render."""
        return self.inner.cost(quality)

    @property
    def screening_cost(self) -> float:
        """The inner editor's, see :class:`~.editors.Sharing`."""
        return self.inner.screening_cost if isinstance(self.inner, Sharing) else 0.0

    def overhead(self, qualities: Sequence[Quality], located: bool) -> float:
        """u of the inversions behind renders of these qualities, of the whole picture's edit for screening, and of
        :meth:`change`."""
        if isinstance(self.inner, InpaintEditor):
            return 0.0
        inversions = {self._steps(quality): self._inversion(quality) for quality in qualities}
        whole = (
            0
            if self.inner.settings.screen_steps or "screen" not in qualities
            else self.inner.settings.steps * (1 if self.inner.settings.cfg == 1.0 else 2)
        )
        made = sum(inversion.evaluations + inversion.backward_passes for inversion in inversions.values())
        return made + whole + (self.inner.located if located else 0)

    def render(self, image: Tensor, mask: Tensor, box: Box, *, seed: int, quality: Quality) -> Tensor:
        """As any editor."""
        if (box, quality, seed) not in self._made:
            self.prepare([box], quality, seed)
        return self._made[box, quality, seed]

    @torch.no_grad()
    def prepare(self, boxes: Iterable[Box], quality: Quality = "full", seed: int = 0) -> None:
        """Render the boxes that are missing."""
        missing = [box for box in dict.fromkeys(boxes) if (box, quality, seed) not in self._made]
        size = (self.image.shape[-2], self.image.shape[-1])
        for start in range(0, len(missing), self.batch):
            part = missing[start : start + self.batch]
            masks = torch.cat([only([box], size).mask(box) for box in part])
            cells = repainted_cells(masks, (self._latent.shape[-2], self._latent.shape[-1]))
            pictures = self._pictures(cells, quality, seed)
            for box, mask, picture in zip(part, masks, pictures, strict=True):
                framing = self.inner.settings.framing if isinstance(self.inner, InpaintEditor) else self.inner.framing
                cut = framing.cut(self.image, mask[None], box)
                self._made[box, quality, seed] = paste(self.image, picture[None], cut)

    def change(self) -> Tensor:
        """Where the edit acts, see :class:`~.editors.Locating`."""
        assert isinstance(self.inner, InversionEditor)
        return self.inner.change(self.image)

    def _inversion(self, quality: Quality) -> Inversion:
        assert isinstance(self.inner, InversionEditor)
        inner = self.inner
        return inner.inversion(inner.denoiser, self._latent, inner.source_cond, fingerprint(self.image), quality)

    def _steps(self, quality: Quality) -> int:
        settings = self.inner.settings
        return settings.steps if quality == "full" else settings.screen_steps or settings.steps

    def _pictures(self, cells: Tensor, quality: Quality, seed: int) -> Tensor:
        if quality == "full" or self.inner.settings.screen_steps:
            return self.inner.decode(self._latents(cells, quality, seed))
        return self._edited_whole().expand(len(cells), -1, -1, -1)

    def _edited_whole(self) -> Tensor:
        if self._whole is None:
            self._whole = self.inner.decode(self._latents(torch.ones(1, 1, *self._latent.shape[-2:]), "screen", 0))
        return self._whole

    def _latents(self, cells: Tensor, quality: Quality, seed: int) -> Tensor:
        """Edited latents, one for each mask ``[B, 1, h, w]``, as the inner editor makes them one at a time."""
        inner, count, steps = self.inner, len(cells), self._steps(quality)
        if isinstance(inner, InpaintEditor):
            noise = torch.randn(self._latent.shape, generator=torch.Generator().manual_seed(seed))
            source, noise = self._latent.expand(count, -1, -1, -1), noise.expand(count, -1, -1, -1)
            settings = {"cfg": inner.settings.cfg, "steps": steps, "strength": inner.settings.strength}
            return inpaint(inner.denoiser, source, cells, noise, inner.cond, inner.uncond, **settings)
        inversion = self._inversion(quality)
        many = replace(inversion, latents=inversion.latents.expand(-1, count, -1, -1, -1))
        step = CrossAttentionGuidance(
            inner.denoiser,
            many,
            inner.source_cond,
            inner.target_cond,
            inner.uncond,
            CrossAttentionSettings(
                inner.settings.cfg,
                inner.settings.guidance if quality == "full" else 0.0,
                preset="carried",
                local_fraction=0.0,
            ),
            cells[:, 0],
        )
        return step.run(steps)


class Bench:
    """What all pairs share.

    Args:
        options: the command line of ``region_quality.py``.
    """

    def __init__(self, demo: DemoModel, options: argparse.Namespace):
        self.demo, self.options = demo, options
        self.scorer = demo_scorer(demo)
        self.vision = load_vision_features(options.vision) if options.vision else demo_vision_features(demo)
        self.weights = LossWeights(*options.weights)

    def editor(self, pair: DemoPair) -> InpaintEditor | InversionEditor:
        """The editor that all arms use."""
        demo, options = self.demo, self.options
        negative = pair.source_caption if options.negative == "source" else ""
        with torch.no_grad():
            source, target, uncond = (
                demo.encode_text([text]) for text in (pair.source_caption, pair.target_caption, negative)
            )
        if options.editor == "inpaint":
            framing = Framing(context=float("inf"), working_size=SIDE)
            return InpaintEditor(
                demo.denoiser(),
                demo.encode_image,
                demo.decode,
                target,
                uncond,
                InpaintSettings(options.cfg, options.steps, options.screen_steps, options.strength, framing),
            )
        return InversionEditor(
            demo.denoiser(),
            demo.encode_image,
            demo.decode,
            source,
            target,
            uncond,
            InversionEditSettings(options.cfg, options.guidance, options.steps, options.screen_steps, options.solver),
        )

    def run(self, pair: DemoPair, number: int) -> dict[str, Any]:
        """All arms on one pair: the figures of each arm's choice, one for each draw of the random ones."""
        return PairBench(self, pair, number).run()


class PairBench:
    """All arms on one pair; ``number`` seeds its random boxes."""

    def __init__(self, bench: Bench, pair: DemoPair, number: int):
        options = bench.options
        self.bench, self.pair, self.options = bench, pair, options
        self.image, self.truth = pair.source[None], true_region(pair)
        self.size = (self.image.shape[-2], self.image.shape[-1])
        with torch.no_grad():
            self.features = bench.vision(self.image)
            self.renders = SharedRenders(bench.editor(pair), self.image, options.batch)
        texts = [options.sentence.format(words) for words in pair.words]
        self.judge = ClipJudge(bench.scorer, self.image, *texts, crops=options.crops)
        self.proposals = self._attended(options.anchors)
        if options.changes and isinstance(self.renders.inner, Locating):
            with torch.no_grad():
                self.proposals = with_changes(self.proposals, self.renders.change(), options.changes)
        self.generator = torch.Generator().manual_seed(options.seed * 100_003 + number)
        self.expected = bench.demo.judge.labels(pair.target[None])

    def run(self) -> dict[str, Any]:
        """One record of the report."""
        attended = self._attended(len(self.proposals.anchors))
        centres = [(anchor.x, anchor.y) for anchor in attended.anchors]
        drawn: dict[str, list[Proposals]] = {RANDOM: [], ATTENDED: [], OWN_SIZES: []}
        for _ in range(self.options.draws):
            drawn[RANDOM].append(random_boxes(len(centres), self.size, self.generator))
            drawn[ATTENDED].append(random_boxes(centres, self.size, self.generator))
            drawn[OWN_SIZES].append(only(map(self._any_size, attended.boxes), self.size))
        boxes = [box for row in self.proposals.boxes for box in row if box is not None]
        self.renders.prepare(
            [*boxes, *(box for draws in drawn.values() for one in draws for row in one.boxes for box in row)]
        )
        arms = {name: [self._best_of(proposals) for proposals in draws] for name, draws in drawn.items()}
        arms[EXACT], arms[HALVING] = [self._search("exact")], [self._search("halving")]
        arms[TRUE_BOX] = [self._best_of(only([self.truth], self.size))]
        return {
            "edit": self.pair.edit,
            "truth": self.truth,
            "arms": arms,
            "boxes": len(set(boxes)),
            "best_iou": max(overlap(box, self.truth) for box in boxes),
            "psnr_unedited": float(psnr(self.image, self.pair.target[None])),
        }

    def _attended(self, anchors: int) -> Proposals:
        options = self.options
        return propose(
            self.features.attention[0], self.size, anchors, options.sizes, options.aspects, spread=options.spread
        )

    def _any_size(self, row: Sequence[Box | None]) -> Box:
        boxes = [box for box in row if box is not None]
        return boxes[int(torch.randint(len(boxes), (), generator=self.generator))]

    def _table(self, proposals: Proposals) -> RewardTable:
        return RewardTable(self.image, proposals, self.renders, self.judge, self.bench.weights)

    def _best_of(self, proposals: Proposals) -> dict[str, Any]:
        """Render the boxes, take the one of highest score."""
        table = self._table(proposals)
        for (box,) in proposals.boxes:
            table.evaluate(box)
        return self._figures(table, rank(table)[0], ["full"])

    def _search(self, strategy: Strategy) -> dict[str, Any]:
        """The pack's search. Its network is not trained: for one picture the ranking does not ask it."""
        table = self._table(self.proposals)
        features = self.features.features[0]
        network = RegionNetwork(len(features), len(self.proposals.boxes[0]))
        task = RegionTask.of(table, features, network)
        settings = LearningSettings(strategy, epochs=0, choice=self.options.choice, refine=self.options.refine)
        ((best, *_),) = RegionLearner(network, [task], settings).run()
        qualities: list[Quality] = ["full", "screen"] if table.count.screen else ["full"]
        return self._figures(table, best, qualities, located=bool(self.options.changes))

    def _figures(
        self, table: RewardTable, best: Candidate, qualities: list[Quality], located: bool = False
    ) -> dict[str, Any]:
        edited, demo = table.render(best.box), self.bench.demo
        seen = demo.judge.labels(edited)
        return {
            "box": best.box,
            "iou": overlap(best.box, self.truth),
            "score": best.score,
            "loss": best.loss,
            "success": float(success(seen, {self.pair.attribute: self.pair.after})),
            "clip": self._clip_success(edited),
            "kept": float(attributes_kept(seen, self.expected, self.pair.attribute)),
            "psnr": float(psnr(edited, self.pair.target[None])),
            "u": table.count.units + self.renders.overhead(qualities, located),
        }

    def _clip_success(self, edited: Tensor) -> float:
        """Whether CLIP finds the target text nearer than the source text."""
        features = self.bench.scorer.embed_images(edited).features[0]
        return float(features @ self.judge.text_change > 0)
