"""Who is first among rendered boxes."""

from types import SimpleNamespace

import pytest
import torch

from semantic_editing.core.regions.proposals import Anchor, Box, Proposals
from semantic_editing.core.regions.ranking import TOLERANCE, preferences, rank
from semantic_editing.core.regions.rewards import LossWeights, Verdict

BOXES = (Box(0, 0, 8, 8), Box(0, 0, 4, 4), Box(4, 4, 2, 2), Box(1, 1, 3, 3))


def table(scores, evaluated=BOXES, change=None, unedited=0.5, aims=None, refined=None):
    """What ranking asks of a table; the loss falls with the area, so that anchors' choices are their largest boxes."""
    verdicts = {
        box: Verdict(1 / (box.width * box.height), 0.0, 0.0, score / 2, 0.0)
        for box, score in zip(BOXES, scores, strict=True)
        if box in evaluated
    }
    proposals = Proposals(
        (8, 8), (Anchor(0, 0, 4, 4, 1.0),) * 2, (BOXES[:2], BOXES[2:]), torch.ones(8, 8, dtype=torch.bool), change
    )
    return SimpleNamespace(
        evaluated=list(verdicts),
        proposals=proposals,
        weights=LossWeights(),
        known=lambda box, quality: verdicts.get(box),
        unedited_score=unedited,
        aim=lambda box, quality: (aims or {}).get(box, 0.0),
        refined=refined or {},
    )


def test_the_smallest_box_about_as_good_as_the_best_is_first_and_the_rest_follow_by_score():
    scores = (1.5, 1.5 - 0.9 * TOLERANCE, 1.5 - 1.1 * TOLERANCE, 1.5 - 0.5 * TOLERANCE)
    order = [candidate.box for candidate in rank(table(scores), "tightest")]
    assert order == [BOXES[3], BOXES[1], BOXES[0], BOXES[2]]
    assert [candidate.box for candidate in rank(table(scores), "all")] == [BOXES[0], BOXES[3], BOXES[1], BOXES[2]]
    assert [candidate.box for candidate in rank(table(scores), "anchors")] == [BOXES[0], BOXES[3], BOXES[1], BOXES[2]]


def test_where_the_change_is_known_the_box_that_frames_it_is_first():
    """BOXES[1] holds all of the change in 1/4 of the image: 0.75; [0] 0.0, [2] -1/16, [3] 9/16 - 9/64."""
    change = torch.zeros(8, 8)
    change[:4, :4] = 0.3
    found = table((1.5, 1.49, 1.49, 1.495), change=change)
    assert [found.proposals.tightness(box) for box in BOXES] == [0.0, 0.75, -1 / 16, 9 / 16 - 9 / 64]
    assert [candidate.box for candidate in rank(found, "tightest")] == [BOXES[1], BOXES[3], BOXES[0], BOXES[2]]


def test_the_share_of_the_gain_counts_as_much_as_the_tightness():
    change = torch.zeros(8, 8)
    change[:4, :4] = 0.3
    # [1] gains 0.3 of what [0] does and is 0.75 tighter; then 0.2 of it
    assert rank(table((1.5, 0.8, 0.5, 0.5), change=change), "tightest")[0].box == BOXES[1]
    assert rank(table((1.5, 0.7, 0.5, 0.5), change=change), "tightest")[0].box == BOXES[0]
    # nothing gains: the best scores, the smallest of those about as good
    assert rank(table((0.5, 0.2, 0.1, 0.3), change=change, unedited=0.9), "tightest")[0].box == BOXES[0]


def test_of_boxes_alike_the_edit_that_changed_what_the_text_pulls_at_is_first():
    change = torch.zeros(8, 8)
    change[:4, :4] = 0.3
    # tightness puts [1] 0.75 before [0], which a gain 0.6 larger does not outweigh alone
    scores = (1.5, 0.9, 0.5, 0.5)
    assert rank(table(scores, change=change, aims={BOXES[0]: 0.4}), "tightest")[0].box == BOXES[1]
    assert rank(table(scores, change=change, aims={BOXES[0]: 0.6}), "tightest")[0].box == BOXES[0]


def test_a_moved_box_is_compared_with_the_one_it_came_from_by_how_it_frames():
    """[3] was moved from [1], whose tightness is 0.75 - 27/64 = 21/64 more: a share of the gain of 0.5 outweighs it
    once, not twice."""
    change = torch.zeros(8, 8)
    change[:4, :4] = 0.3
    scores, moved = (0.5, 1.0, 0.5, 1.5), {BOXES[3]: BOXES[1]}  # gains 0, 0.5, 0, 1
    assert [c.box for c in rank(table(scores, change=change), "tightest")][:2] == [BOXES[3], BOXES[1]]
    assert [c.box for c in rank(table(scores, change=change, refined=moved), "tightest")][:2] == [BOXES[1], BOXES[3]]
    liked = preferences(table(scores, change=change, refined=moved), dict(zip(BOXES, scores, strict=True)))
    assert liked[BOXES[3]] - liked[BOXES[1]] == pytest.approx(0.5 - 2 * 21 / 64)
    halved = preferences(table(scores, change=change, refined=moved), dict(zip(BOXES, scores, strict=True)), most=2.5)
    assert halved[BOXES[3]] - halved[BOXES[1]] == pytest.approx(0.25 - 2 * 21 / 64), (
        "gains are shares of what the best gains"
    )


def test_a_clearly_better_box_is_first_whatever_its_size_and_equal_areas_go_by_score():
    assert rank(table((2.0, 1.0, 1.2, 1.1)), "tightest")[0].box == BOXES[0]
    assert [c.box for c in rank(table((1.0, 1.0, 1.0, 1.0)), "tightest")] == [BOXES[2], BOXES[3], BOXES[1], BOXES[0]]
    assert rank(table((1.0,) * 4, evaluated=()), "tightest") == []
