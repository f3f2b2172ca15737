"""Finding where an edit belongs in one image, or training one network on several: all parts of the method put together.

Vision features give anchors and boxes, an editor renders them, CLIP judges the renders, a strategy decides what to
render next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from ..content_hash import content_hash
from ..denoiser import Progress
from ..errors import EditingError
from ..models.clip import ClipScorer, check_texts
from ..models.vision_features import FeatureMap, VisionFeatures
from .cache import RenderCache
from .changes import DEFAULT_CHANGES, with_changes
from .editors import Editor, Locating, Previewing, Quality, Sharing
from .learning import RegionLearner, RegionTask
from .network import RegionNetwork
from .proposals import DEFAULT_ANCHORS, DEFAULT_SIZES, Box, MaskUse, propose
from .ranking import Candidate
from .rewards import ClipJudge, LossWeights
from .settings import LearningProgress, LearningSettings
from .table import RewardTable

#: Makes an editor ready for an image ``[1, 3, H, W]`` in 0..1; the function is told of every step of its renders.
OpenEditor = Callable[[Tensor, Callable[[Progress], None]], AbstractContextManager[Editor]]
#: Told of the boxes looked at, of how many they will be at most, and of the last render ``[1, 3, H, W]`` if it is a new
#: one. What it raises ends the search.
Watch = Callable[[int, int, "Tensor | None"], None]


@dataclass(frozen=True, eq=False)
class Example:
    """An image and what to change in it.

    Attributes:
        image: ``[1, 3, H, W]`` in 0..1.
        source_text, target_text: what it shows and what it should show.
        mask: ``[H, W]``, see :func:`~.proposals.propose`.
        boxes: places to try in place of attended ones and of those that the text pulls at.
    """

    image: Tensor
    source_text: str
    target_text: str
    mask: Tensor | None = None
    boxes: Sequence[Box] = ()


@dataclass(frozen=True)
class SearchSettings:
    """Which boxes there are, how they are judged and how they are searched.

    Attributes:
        anchors, sizes, aspects, spread, mask_use: see :func:`~.proposals.propose`.
        weights: of the losses.
        crops: see :class:`~.rewards.ClipJudge`.
        learning: the strategy; its seed is that of the renders, the crops and a new network too.
        changes: in the search of one image, further anchors where the text pulls most, see
            :func:`~.changes.with_changes`. None with an editor that cannot tell (see :class:`~.editors.Locating`), nor
            with the strategy "policy": a trained network knows attended places.
    """

    anchors: int = DEFAULT_ANCHORS
    sizes: Sequence[float] = DEFAULT_SIZES
    aspects: Sequence[float] = (1.0,)
    spread: int = 0
    mask_use: MaskUse = "restrict"
    weights: LossWeights = field(default_factory=LossWeights)
    crops: int = 0
    learning: LearningSettings = field(default_factory=LearningSettings)
    changes: int = DEFAULT_CHANGES

    def __post_init__(self) -> None:
        if self.changes < 0:
            raise EditingError(f"changes is {self.changes}; use 0 (only what the vision model attends to) or more.")


class RegionSearch:
    """A search of one image, or the training of a network on several. An exception from ``watch`` can end it at any
    point.

    Args:
        examples: images with their texts.
        features: finds anchors.
        scorer: judges.
        open_editor: one editor is open at a time.
        network: to start from; it is copied, not changed. Without one a new network is made.
        cache: shared between searches to make reruns cheap.
        watch: see :data:`Watch`.

    Attributes:
        views: what the vision model sees in each image.
        tables: of each image.
        network: learned by :meth:`run`.
        preview_units, shared_units: u of previews, and u that renders shared (see :class:`~.editors.Sharing`).
        last_render: the last new render ``[1, 3, H, W]``, until ``watch`` is told of it.

    Raises:
        EditingError: no image; texts that are empty or mean the same; whatever the parts refuse; strategy "policy"
            without a network.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        features: VisionFeatures,
        scorer: ClipScorer,
        open_editor: OpenEditor,
        settings: SearchSettings | None = None,
        network: RegionNetwork | None = None,
        cache: RenderCache | None = None,
        watch: Watch | None = None,
    ):
        self.settings = settings or SearchSettings()
        if not examples:
            raise EditingError("There is no image to search; give at least one.")
        if network is None and self.settings.learning.strategy == "policy":
            raise EditingError(
                "The strategy policy asks a trained region network, and none is given; give one or use another "
                "strategy."
            )
        for example in examples:
            check_texts([example.source_text, example.target_text])
        self.preview_units = 0.0
        self.shared_units = 0
        self.last_render: Tensor | None = None
        self._watch, self._looked, self._planned = watch, 0, 0
        self._open_editor = open_editor
        self._opened = ExitStack()
        self._current: tuple[Tensor, Editor] | None = None
        self._shared_before = 0
        self.views: list[FeatureMap] = []
        self.tables: list[RewardTable] = []
        cache = RenderCache() if cache is None else cache
        for example in examples:
            view, table = self._prepared(example, features, scorer, cache)
            self.views.append(view)
            self.tables.append(table)
        self._attended = self.tables[0].proposals
        channels, slots = self.views[0].features.shape[1], len(self.tables[0].proposals.boxes[0])
        if network is None:
            self.network = RegionNetwork(channels, slots, seed=self.settings.learning.seed, vision=features.identity)
        else:
            network.check_vision(features.identity)
            self.network = network.copy()
        self.learner: RegionLearner | None = None

    def run(self) -> None:
        """Search.

        Raises:
            EditingError: from the editor or the judge; an editor without preview for the strategy "soft mask".
        """
        with self._opened:
            soft = self.settings.learning.strategy == "soft mask"
            previews = [self._preview(number) if soft else None for number in range(len(self.tables))]
            self.learner = self._learner(previews)  # it refuses what cannot work before the whole image is edited
            if self._locate():
                self.learner = self._learner(previews)
            self._planned = self.learner.planned()
            self.learner.run(self._told)

    def learn_from_known(self) -> None:
        """After a stop, see :meth:`~.learning.RegionLearner.learn_from_known`."""
        if self.learner is not None:
            self.learner.learn_from_known()

    def candidates(self, number: int = 0) -> list[Candidate]:
        """The boxes of an image, the best first; empty before the first look."""
        return [] if self.learner is None else self.learner.results()[number]

    def edited(self, candidate: Candidate, number: int = 0) -> Tensor:
        """A candidate's edit ``[1, 3, H, W]`` in 0..1."""
        with self._opened:
            return self.tables[number].render(candidate.box, candidate.quality)

    def mask(self, candidate: Candidate, number: int = 0) -> Tensor:
        """Where a candidate changed the image, ``[1, H, W]``."""
        return self.tables[number].proposals.mask(candidate.box)

    def editor(self, image: Tensor) -> Editor:
        """The editor, open for ``image [1, 3, H, W]``; one at a time, because a host lends its model to one only."""
        if self._current is None or self._current[0] is not image:
            self._opened.close()
            editor = self._opened.enter_context(self._open_editor(image, self._step))
            self._shared_before = editor.shared_evaluations if isinstance(editor, Sharing) else 0
            self._current = image, editor
            self._opened.callback(self._closed, editor)
        return self._current[1]

    def shared_by(self, editor: Editor) -> int:
        """u that renders of the open ``editor`` have shared since it was opened."""
        return editor.shared_evaluations - self._shared_before if isinstance(editor, Sharing) else 0

    @property
    def units(self) -> float:
        """Network sample-evaluations (u) spent so far, previews and inversions included."""
        return self.preview_units + self.shared_units + sum(table.count.units for table in self.tables)

    def _prepared(
        self, example: Example, features: VisionFeatures, scorer: ClipScorer, cache: RenderCache
    ) -> tuple[FeatureMap, RewardTable]:
        settings, seed = self.settings, self.settings.learning.seed
        view = features(example.image)
        proposals = propose(
            view.attention[0],
            view.image_size,
            settings.anchors,
            settings.sizes,
            settings.aspects,
            spread=settings.spread,
            mask=example.mask,
            mask_use=settings.mask_use,
            given=example.boxes,
        )
        judge = ClipJudge(
            scorer, example.image, example.source_text, example.target_text, crops=settings.crops, seed=seed
        )
        editor = _ImageEditor(self, example.image)
        return view, RewardTable(example.image, proposals, editor, judge, settings.weights, seed, cache)

    def _learner(self, previews: Sequence[Tensor | None]) -> RegionLearner:
        parts = zip(self.tables, self.views, previews, strict=True)
        tasks = [RegionTask.of(table, view.features[0], self.network, preview) for table, view, preview in parts]
        return RegionLearner(self.network, tasks, self.settings.learning)

    def _locate(self) -> bool:
        """Add the places where the edit acts, if they are wanted and the editor can tell; True where it did."""
        settings, table = self.settings, self.tables[0]
        wanted = settings.changes if len(self.tables) == 1 and settings.learning.strategy != "policy" else 0
        if settings.learning.strategy == "sampled":  # its budget must last for a box of each place
            wanted = min(wanted, settings.learning.budget - len(self._attended.anchors))
        if wanted <= 0 or self._attended.anchors[0].found_by == "given":
            return False
        editor = self.editor(table.image)
        if not isinstance(editor, Locating):
            return False
        key = content_hash("change", table.image, table.editor.identity)
        change = table.cache.map(key, lambda: editor.change(table.image))
        table.proposals = with_changes(self._attended, change, wanted)
        return True

    def _preview(self, number: int) -> Tensor:
        editor = self.editor(self.tables[number].image)
        if not isinstance(editor, Previewing):
            raise EditingError(
                "This editor cannot preview its edit, which the strategy soft mask needs; use an inpainting editor."
            )
        self.preview_units += editor.preview_cost
        return editor.preview(self.tables[number].image, seed=self.settings.learning.seed)

    def _closed(self, editor: Editor) -> None:
        self._current = None
        self.shared_units += self.shared_by(editor)

    def _step(self, progress: Progress) -> None:
        self._tell(None)

    def _told(self, progress: LearningProgress) -> None:
        if progress.phase != "learn":
            self._looked += 1
        render, self.last_render = self.last_render, None
        self._tell(render)

    def _tell(self, render: Tensor | None) -> None:
        if self._watch is not None:
            self._watch(self._looked, max(self._planned, self._looked, 1), render)


class _ImageEditor:
    """The :class:`~.editors.Editor` of one image of a search, opened whenever it is asked for something.

    What a host cannot say twice alike is asked once: an editor opened again may not know its own renders (see
    :func:`~..content_hash.fingerprint`).
    """

    def __init__(self, search: RegionSearch, image: Tensor):
        self._search, self._image = search, image
        self._costs: dict[Quality, float] = {}

    @cached_property
    def identity(self) -> str:
        """See :class:`~.editors.Editor`."""
        return self._search.editor(self._image).identity

    def cost(self, quality: Quality) -> float:
        """See :class:`~.editors.Editor`."""
        if quality not in self._costs:
            self._costs[quality] = self._search.editor(self._image).cost(quality)
        return self._costs[quality]

    @property
    def shared_evaluations(self) -> int:
        """Those of all images of the search, whose editors are closed."""
        return self._search.shared_units

    @property
    def screening_cost(self) -> float:
        """See :class:`~.editors.Sharing`; or what renders of the image share already, where that is more."""
        editor = self._search.editor(self._image)
        return max(editor.screening_cost, self._search.shared_by(editor)) if isinstance(editor, Sharing) else 0.0

    def render(self, image: Tensor, mask: Tensor, box: Box, *, seed: int, quality: Quality) -> Tensor:
        """See :class:`~.editors.Editor`; the search shows the render to whoever watches it."""
        edited = self._search.editor(self._image).render(image, mask, box, seed=seed, quality=quality)
        self._search.last_render = edited.detach().cpu()
        return edited
