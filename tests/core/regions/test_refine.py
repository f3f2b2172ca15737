"""The best box's sides are moved to where the edit is preferred most, where looking costs nothing."""

from dataclasses import replace

import pytest
import torch

from semantic_editing.core.regions.learning import RegionLearner
from semantic_editing.core.regions.proposals import Box
from semantic_editing.core.regions.ranking import LOOKS, can_refine, rank
from semantic_editing.core.regions.rewards import Verdict
from semantic_editing.core.regions.settings import LearningSettings
from semantic_editing.tests.core.regions.tiny_regions import (
    HEIGHT,
    WIDTH,
    Painter,
    tiny_network,
    tiny_proposals,
    tiny_table,
    tiny_task,
)

SIDES = {"right": (0, 0, 2, 0), "upper and right": (0, -1, 2, 1), "smaller": (0, 2, 0, -3)}


class Cutter(Painter):
    """Screening is free."""

    def cost(self, quality):
        return {"screen": 0.0, "full": 20.0}[quality]


def near(moved=SIDES["right"]):
    """A box that is no proposal: one of theirs, moved by ``(x, y, width, height)``."""
    box = tiny_proposals().box(1, 1)
    return Box(*(value + change for value, change in zip(box, moved, strict=True)))


def prepared(planted, editor=None, known=True):
    table = tiny_table(planted, editor=editor or Cutter())
    if known:
        pull = torch.zeros(HEIGHT, WIDTH)
        pull[planted.y : planted.y + planted.height, planted.x : planted.x + planted.width] = 1.0
        table.proposals = replace(table.proposals, change=pull)
    return table


def search(table, **options):
    network = tiny_network()
    settings = LearningSettings(**{"choice": "tightest", "epochs": 2, **options})
    return RegionLearner(network, [tiny_task(table, network)], settings)


@pytest.mark.parametrize("strategy", ["exact", "halving"])
@pytest.mark.parametrize("moved", SIDES.values(), ids=SIDES)
def test_the_sides_move_to_the_planted_box(moved, strategy):
    planted = near(moved)
    table = prepared(planted)
    learner = search(table, strategy=strategy)
    (ranked,) = learner.run()
    assert planted not in learner.tasks[0].boxes, "the proposals do not have it"
    first, origin = ranked[0], table.refined[ranked[0].box]
    assert first.box == planted and first.quality == "full" and first.score == pytest.approx(3.0) and not first.chosen
    place = next(candidate for candidate in ranked if candidate.box == origin)
    assert (first.anchor, first.slot) == (place.anchor, place.slot) and origin == table.proposals.box(
        first.anchor, first.slot
    )


def test_it_costs_one_full_render_and_tells_its_progress():
    without, table = prepared(near()), prepared(near())
    search(without, strategy="exact", refine=False).run()
    learner = search(table, strategy="exact")
    planned, told = learner.planned(), []
    learner.run(told.append)
    assert (table.count.full, table.count.units) == (without.count.full + 1, without.count.units + 20.0)
    assert 0 < table.count.screen <= LOOKS and without.count.screen == 0 and not without.refined
    looks = [progress for progress in told if progress.phase != "learn"]
    assert len(looks) <= planned == without.count.full + LOOKS + 1
    assert all(1 <= progress.done <= progress.total for progress in looks)


def test_halving_keeps_its_share_of_exact():
    """12 boxes of 20 u: 40 % are 96 u, four full renders, of which one is the moved box's."""
    table = prepared(near())
    boxes = len(search(table).tasks[0].boxes)
    search(table, strategy="halving", share=0.4).run()
    assert boxes == 12 and table.count.full == 4 and table.count.units == 80.0


@pytest.mark.parametrize(
    ("options", "editor", "known"),
    [
        ({"refine": False}, Cutter, True),
        ({"choice": "all"}, Cutter, True),
        ({"choice": "anchors"}, Cutter, True),
        ({}, Painter, True),
        ({}, Cutter, False),
        ({"strategy": "sampled", "budget": 3}, Cutter, True),
    ],
    ids=["not wanted", "by score", "the paper's choice", "screening costs", "not known where it acts", "budget spent"],
)
def test_else_nothing_is_moved(options, editor, known):
    table = prepared(near(), editor(), known)
    (ranked,) = search(table, **{"strategy": "exact", **options}).run()
    assert not table.refined and table.count.screen == 0
    assert {candidate.box for candidate in ranked} <= {box for row in table.proposals.boxes for box in row}
    assert can_refine(table) == (editor is Cutter and known)


def test_a_budget_that_is_not_spent_pays_for_the_render():
    table = prepared(near())
    (ranked,) = search(table, strategy="sampled", budget=30, epochs=40).run()
    assert ranked[0].box in table.refined and len(table.evaluated) <= 30


def test_a_moved_box_that_disappoints_stays_behind_the_one_it_came_from():
    class Spoiler(Cutter):
        """Paints nothing where a box is no proposal."""

        def render(self, image, mask, box, *, seed, quality):
            edited = super().render(image, mask, box, seed=seed, quality=quality)
            return image.clone() if quality == "full" and box == near() else edited

    table = prepared(near(), Spoiler())
    (ranked,) = search(table, strategy="exact").run()
    order = [candidate.box for candidate in ranked]
    assert near() in order and order.index(near()) > order.index(table.refined[near()]) == 0


@pytest.mark.parametrize("moved", [(0, 0, 1, 0), (0, -1, 0, 1)])
def test_a_box_moved_forth_and_back_was_not_moved(moved):
    """After a move of one pixel one of the next leads back to where it began."""
    table = prepared(near(moved))
    search(table, strategy="exact").run()
    (origin,) = set(table.refined.values())
    assert near(moved) in table.refined and origin not in table.refined


def test_moved_boxes_stay_inside_a_mask():
    table = prepared(near((0, 0, 2, 0)))
    inside = table.proposals.box(1, 1)
    allowed = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    allowed[:, : inside.x + inside.width + 1] = True
    table.proposals = replace(tiny_proposals(mask=allowed.float()), change=table.proposals.change)
    search(table, strategy="exact").run()
    assert table.refined and all(box.x + box.width <= inside.x + inside.width + 1 for box in table.refined)


def test_where_no_edit_gains_nothing_is_moved():
    class Indifferent:
        identity = "indifferent"

        def __call__(self, edited):
            return Verdict(0.0, 0.0, 0.0, 0.5, 0.5)

    table = prepared(near())
    table.judge = Indifferent()
    search(table, strategy="exact").run()
    assert not table.refined and table.count.screen == 0


@pytest.mark.parametrize("after", [1, 13, 20])
def test_cancelling_keeps_the_best_so_far(after):
    table, looked = prepared(near()), []

    def stop(progress):
        looked.append(progress)
        if len(looked) == after:
            raise KeyboardInterrupt

    learner = search(table, strategy="exact")
    with pytest.raises(KeyboardInterrupt):
        learner.run(stop)
    (ranked,) = learner.results()
    assert len(ranked) == min(after, 12) and all(candidate.quality == "full" for candidate in ranked)
    assert ranked == rank(table, "tightest")
