"""The search finds a planted box by every strategy, its gradients are the true ones, and it renders no more than it
says."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from semantic_editing.core.content_hash import content_hash
from semantic_editing.core.errors import EditingError
from semantic_editing.core.regions.cache import RenderCache
from semantic_editing.core.regions.learning import RegionLearner, expected_loss, halving_plan, reinforce_loss
from semantic_editing.core.regions.network import gumbel_argmax
from semantic_editing.core.regions.proposals import Box
from semantic_editing.core.regions.ranking import rank
from semantic_editing.core.regions.rewards import Verdict
from semantic_editing.core.regions.settings import LearningSettings
from semantic_editing.core.regions.table import RewardTable
from semantic_editing.tests.core.regions.tiny_regions import (
    HEIGHT,
    WIDTH,
    HiddenBox,
    Painter,
    black_image,
    tiny_network,
    tiny_proposals,
    tiny_table,
    tiny_task,
)

PLANTED = [(0, 0), (1, 2), (2, 1)]


def search(table, seed=0, network=None, **options):
    network = network or tiny_network(seed)
    return RegionLearner(network, [tiny_task(table, network)], LearningSettings(seed=seed, **options))


def slow_losses():
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    logits[1, 2] = float("-inf")
    losses = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    losses[1, 2] = float("nan")
    return logits, losses


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize(
    "options", [{"strategy": "exact"}, {"strategy": "sampled", "budget": 12}, {"strategy": "halving"}], ids=str
)
def test_every_strategy_finds_the_planted_box(options, planted):
    table = tiny_table(planted)
    (ranked,) = search(table, **options).run()
    assert ranked[0].box == table.proposals.box(*planted) and ranked[0].quality == "full"
    assert ranked[0].loss == pytest.approx(0.0, abs=1e-6) and ranked[0].chosen


@pytest.mark.parametrize(
    "options", [{"strategy": "exact"}, {"strategy": "sampled", "budget": 12, "draws": 4, "epochs": 150}], ids=str
)
def test_the_policy_itself_learns_the_best_box_of_each_anchor(options):
    table = tiny_table((1, 1))
    learner = search(table, **options)
    before = [parameter.clone() for parameter in learner.network.parameters()]
    first = learner.logits(0).softmax(1)
    learner.run()
    assert all(not torch.equal(old, new) for old, new in zip(before, learner.network.parameters(), strict=True))
    full = tiny_table((1, 1))
    losses = torch.tensor(
        [[math.inf if b is None else full.evaluate(b).loss(full.weights) for b in row] for row in full.proposals.boxes]
    )
    after = learner.logits(0).softmax(1)
    assert after.argmax(1).tolist() == losses.argmin(1).tolist()
    finite = losses.nan_to_num(posinf=0.0)
    assert float((after * finite).sum()) < 0.5 * float((first * finite).sum()) + 0.5 * float(losses.min(1).values.sum())


def test_the_exact_gradient_is_p_times_the_advantage_and_the_finite_difference():
    logits, losses = slow_losses()
    variable = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(expected_loss(variable, losses), variable)
    chances = logits.softmax(1)
    values = losses.nan_to_num()
    closed = chances * (values - (chances * values).sum(1, keepdim=True)) / 3
    torch.testing.assert_close(gradient, closed)
    for anchor, slot in [(0, 1), (1, 3), (2, 0)]:
        moved = [logits.clone() for _ in range(2)]
        moved[0][anchor, slot] += 1e-5
        moved[1][anchor, slot] -= 1e-5
        difference = (expected_loss(moved[0], losses) - expected_loss(moved[1], losses)) / 2e-5
        assert float(gradient[anchor, slot]) == pytest.approx(float(difference), rel=1e-5, abs=1e-9)


def test_the_gradient_on_a_weight_of_the_network_is_the_finite_difference():
    table = tiny_table()
    network = tiny_network().double()
    task = tiny_task(table, network)
    for box in task.boxes:
        table.evaluate(box)
    losses, valid = table.losses(), table.proposals.valid

    def loss():
        return expected_loss(network(task.regions.double(), valid), losses.double())

    loss().backward()
    for parameter in network.parameters():
        index = int(parameter.grad.abs().argmax())
        gradient = float(parameter.grad.flatten()[index])
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.view(-1)[index] += step
                values.append(float(loss()))
                parameter.view(-1)[index] -= step
        assert gradient == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-3) and gradient != 0


@pytest.mark.parametrize("draws", [2, 3])
def test_reinforce_is_unbiased(draws):
    """The mean of many estimates is the exact gradient, to four standard errors. All repetitions are one batch of
    anchors."""
    logits, losses = slow_losses()
    repeats = 30000
    variable = logits.clone().requires_grad_()
    (exact,) = torch.autograd.grad(expected_loss(variable, losses), variable)
    many = logits.repeat(repeats, 1).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    choices = torch.stack([gumbel_argmax(many, generator) for _ in range(draws)])
    chosen = losses.repeat(repeats, 1).expand(draws, -1, -1).gather(2, choices[..., None])[..., 0]
    (gradient,) = torch.autograd.grad(reinforce_loss(many, choices, chosen), many)
    estimates = gradient.reshape(repeats, 3, 4) * repeats  # the mean runs over all anchors of all repetitions
    error = (estimates.mean(0) - exact).abs()
    assert (error <= 4.5 * estimates.std(0) / repeats**0.5 + 1e-12).all()
    assert exact.abs().max() > 20 * (estimates.std(0) / repeats**0.5).max()  # the check could fail


def test_equal_losses_give_no_gradient_and_one_draw_is_refused():
    logits = torch.randn(2, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(
        reinforce_loss(logits, torch.tensor([[0, 1], [2, 2]]), torch.full((2, 2), 0.7)), logits
    )
    assert not gradient.abs().gt(1e-7).any()
    with pytest.raises(EditingError, match="use 2 or more"):
        reinforce_loss(logits, torch.tensor([[0, 1]]), torch.ones(1, 2))


def test_exact_renders_each_different_box_once():
    editor = Painter()
    table = tiny_table(editor=editor)
    learner = search(table, epochs=1)
    learner.run()
    different = {box for row in table.proposals.boxes for box in row if box is not None}
    assert Counter(box for box, _, _ in editor.calls) == Counter(different)
    assert table.count.full == len(different) and table.count.units == 20.0 * len(different)
    assert not torch.isnan(table.losses()[table.proposals.valid]).any()


@pytest.mark.parametrize(("rungs", "keep"), [(1, 0.25), (2, 1 / 3), (3, 0.5)])
def test_halving_counts_exactly(rungs, keep):
    editor = Painter()
    table = tiny_table(editor=editor)
    learner = search(table, strategy="halving", rungs=rungs, keep=keep, share=1.0, epochs=1)
    left = len(learner.tasks[0].boxes)
    learner.run()
    screens = 0
    for _ in range(rungs):
        screens += left
        left = next(n for n in range(1, left + 1) if n >= left * keep - 1e-9)
    assert (table.count.screen, table.count.full) == (screens, left)
    assert table.count.units == 2.0 * screens + 20.0 * left
    assert {seed for _, seed, quality in editor.calls if quality == "screen"} == set(range(rungs))
    assert not torch.isnan(table.losses()[table.proposals.valid]).any()


def test_halving_costs_at_most_its_share_of_exact():
    """By default a quarter: counted on a table of 27 boxes, with the price of screening set as an editor would."""
    for screen in (1.0, 2.0, 4.0):
        editor = Painter()
        editor.cost = lambda quality, screen=screen: screen if quality == "screen" else 20.0
        proposals = tiny_proposals(anchors=8)
        table = RewardTable(black_image(), proposals, editor, HiddenBox(black_image(), proposals.box(2, 1)))
        learner = search(table, strategy="halving", epochs=1)
        boxes, looks = len(learner.tasks[0].boxes), []
        learner.run(lambda progress, looks=looks: looks.append(progress.phase))
        assert boxes >= 20 and 20.0 < table.count.units <= 0.25 * 20.0 * boxes
        assert table.count.screen >= boxes and len(editor.calls) == learner.planned() == looks.count(
            "screen"
        ) + looks.count("full")
        assert learner.results()[0][0].loss < 0.5 * max(candidate.loss for candidate in rank(full_table(proposals)))


def full_table(proposals):
    table = RewardTable(black_image(), proposals, Painter(), HiddenBox(black_image(), proposals.box(2, 1)))
    search(table, epochs=0).run()
    return table


def test_a_plan_of_halving_keeps_its_share_and_spends_what_it_can():
    for boxes, screen, share, rungs, keep, once in itertools.product(
        (1, 2, 3, 7, 21, 63), (1, 4, 8, 20), (0.1, 0.25, 1.0), (1, 2, 3), (0.2, 1 / 3, 1.0), (0, 60)
    ):
        full = 40
        plan = halving_plan(boxes, screen, full, share=share, rungs=rungs, keep=keep, once=once)
        cost = sum(plan.screened) * screen + plan.finalists * full + (once if plan.screened else 0)
        least = min(boxes * screen + once + full, boxes * full)
        assert cost <= max(share * boxes * full, least) + 1e-6 and cost <= boxes * full and 1 <= plan.finalists <= boxes
        assert list(plan.screened) == sorted(plan.screened, reverse=True) and plan.screened[:1] in ((), (boxes,))
        survivors = math.ceil(plan.screened[-1] * keep - 1e-9) if plan.screened else boxes
        assert plan.finalists == survivors or cost + full > share * boxes * full or cost <= least
    assert halving_plan(21, 4, 40).screened == (21, 7) and halving_plan(21, 4, 40).finalists == 2


def test_where_screening_a_box_is_free_the_rest_of_the_share_renders_finalists():
    """28 boxes of 24 u make a share of 168; less 36 for the whole edit, five are left."""
    plan = halving_plan(28, 0, 24, once=36)
    assert plan.screened == (28,) and plan.finalists == 5
    assert halving_plan(2, 0, 24, once=36).finalists == 2, "dearer than rendering both"


@pytest.mark.parametrize(
    ("choice", "first"), [("anchors", "least loss"), ("all", "highest score"), ("tightest", "highest score")]
)
def test_finalists_are_picked_by_what_decides_in_the_end(choice, first):
    class Torn:
        """The smaller the box, the less the loss; the larger, the higher the score."""

        identity = "torn"

        def __call__(self, edited):
            area = float((edited > 0).float().mean())
            return Verdict(area, 0.0, 0.0, area, 1.0)

    table = RewardTable(black_image(), tiny_proposals(), Painter(), Torn())
    learner = search(table, strategy="halving", epochs=0, choice=choice, share=0.01)
    learner.run()
    (finalist,) = table.evaluated
    areas = {box: box.width * box.height for box in learner.tasks[0].boxes}
    assert areas[finalist] == (min if first == "least loss" else max)(areas.values())


def test_a_screening_loss_is_moved_by_the_mean_difference_to_full_renders():
    class Judge:
        identity = "by brightness"

        def __call__(self, edited):
            return Verdict(float(edited.max()) * float((edited > 0).sum()) / 1000, 0.0, 0.0, 0.0, 0.0)

    proposals = tiny_proposals(anchors=1)
    table = RewardTable(black_image(), proposals, Painter(), Judge())
    boxes = [box for box in proposals.boxes[0] if box is not None]
    for box in boxes:
        table.evaluate(box, "screen")
    for box in boxes[:2]:
        table.evaluate(box)
    area = {box: 3 * box.width * box.height / 1000 for box in boxes}
    offset = sum(0.1 * area[box] for box in boxes[:2]) / 2
    expected = [area[box] if box in boxes[:2] else 0.9 * area[box] + offset for box in boxes]
    assert table.losses()[0][proposals.valid[0]].tolist() == pytest.approx(expected, rel=1e-5)


def test_the_aim_of_an_edit_is_the_mean_pull_where_it_changed_the_image():
    table = tiny_table()
    box, other = (next(one for one in row if one is not None) for row in table.proposals.boxes[:2])
    pull = torch.full((HEIGHT, WIDTH), 0.5)
    pull[box.y : box.y + box.height, box.x : box.x + box.width // 2] = 2.0
    assert table.evaluate(box) and table.aim(box) == 0.0  # where the text pulls is not known
    table.proposals = replace(table.proposals, change=pull)
    expected = float(pull[box.y : box.y + box.height, box.x : box.x + box.width].mean()) / 2.0
    assert table.aim(box) == pytest.approx(expected, rel=1e-5) and 0.25 < expected < 1
    assert (table.aim(other), table.aim(box, "screen")) == (0.0, 0.0)
    assert (len(table.editor.calls), table.count.full, table.count.reused) == (1, 1, 0)


@pytest.mark.parametrize("first", [4, 6])
def test_a_larger_budget_only_adds_renders(first):
    cache = RenderCache()
    small, large = Painter(), Painter()
    one = search(tiny_table((0, 0), editor=small, cache=cache), strategy="sampled", budget=first)
    one.run()
    assert len(small.calls) == first == one.tasks[0].table.count.full
    two = search(tiny_table((0, 0), editor=large, cache=cache), strategy="sampled", budget=first + 3)
    two.run()
    assert len(large.calls) == 3 and two.tasks[0].table.count.reused == first
    boxes = [[box for box, _, _ in painter.calls] for painter in (small, large)]
    assert not set(boxes[0]) & set(boxes[1])
    alone = Painter()
    search(tiny_table((0, 0), editor=alone), strategy="sampled", budget=first + 3).run()
    assert [box for box, _, _ in alone.calls] == boxes[0] + boxes[1]  # and the cache changes no choice


def test_the_cache_tells_apart_what_decides_a_render():
    cache = RenderCache()
    box = tiny_proposals().box(0, 1)
    base = tiny_table(cache=cache)
    base.evaluate(box)
    again = tiny_table(planted=(2, 2), cache=cache)  # another judge needs no other render
    again.evaluate(box)
    assert (again.count.full, again.count.reused) == (0, 1)
    other = Painter()
    other.identity = "another painter"
    image = black_image()
    image[0, 0, 0, 0] = 0.5
    judge = HiddenBox(image, box)
    tables = [
        tiny_table(cache=cache, seed=0, editor=other),
        RewardTable(image, tiny_proposals(), Painter(), judge, cache=cache),
    ]
    tables += [
        RewardTable(black_image(), tiny_proposals(), Painter(), HiddenBox(black_image(), box), seed=3, cache=cache)
    ]
    for table in tables:
        table.evaluate(box)
        assert table.count.full == 1
    base.evaluate(box, "screen")
    assert base.count.screen == 1


def test_a_verdict_is_asked_for_once_for_each_judge():
    cache, box, asked = RenderCache(), tiny_proposals().box(0, 1), []

    class Counting(HiddenBox):
        def __call__(self, edited):
            asked.append(self.identity)
            return super().__call__(edited)

    for planted in (0, 1, 0, 1):
        judge = Counting(black_image(), tiny_proposals().box(1, planted))
        table = RewardTable(black_image(), tiny_proposals(), Painter(), judge, cache=cache)
        verdict = table.evaluate(box)
        assert verdict == HiddenBox(black_image(), tiny_proposals().box(1, planted))(table.render(box))
    assert len(asked) == len(set(asked)) == 2


def test_a_cached_render_is_bit_equal_also_where_the_editor_changed_more_than_the_box():
    cache = RenderCache()
    source = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    box = Box(2, 1, 3, 4)
    inside, everywhere = source.clone(), source * 0.5
    inside[..., 1:5, 2:5] = 0.25
    cache.put("inside", inside, source, box)
    cache.put("everywhere", everywhere, source, box)
    assert torch.equal(cache.get("inside", source, box), inside)
    assert torch.equal(cache.get("everywhere", source, box), everywhere)
    assert cache.get("never", source, box) is None
    small = RenderCache(max_bytes=2 * 3 * 12 * 4)
    for key in "abc":
        small.put(key, inside, source, box)
        small.get("a", source, box)
    assert len(small) == 2 and small.get("b", source, box) is None and small.get("a", source, box) is not None


def test_hashes_tell_shapes_types_and_bytes_apart():
    base = torch.arange(6.0)
    different = [base, base.reshape(2, 3), base.double(), base + 1, "0", "01", base.bool()]
    assert len({content_hash(part) for part in different}) == len(different)
    assert content_hash("a", "bc") != content_hash("ab", "c")
    assert content_hash(base.reshape(2, 3).T) == content_hash(base.reshape(2, 3).T.contiguous())


def test_the_order_is_anchors_choices_by_score_then_the_others():
    class Judge:
        """Area decides the score, and the loss the other way round or not."""

        identity = "areas"

        def __call__(self, edited):
            area = float((edited > 0).float().mean())
            return Verdict(area, 0.0, 0.0, area, 0.0)

    proposals = tiny_proposals(anchors=2)
    table = RewardTable(black_image(), proposals, Painter(), Judge())
    for row in proposals.boxes:
        for box in row:
            if box is not None:
                table.evaluate(box)
    by_anchor, of_all = rank(table, "anchors"), rank(table, "all")
    smallest = [min((b for b in row if b is not None), key=lambda b: b.width * b.height) for row in proposals.boxes]
    assert {candidate.box for candidate in by_anchor[:2]} == set(smallest)
    assert by_anchor[0].score >= by_anchor[1].score and not by_anchor[2].chosen
    assert (
        of_all[0].score == max(candidate.score for candidate in by_anchor) == pytest.approx(2 * of_all[0].verdict.clip)
    )
    assert {candidate.box for candidate in of_all} == {candidate.box for candidate in by_anchor}


@pytest.mark.parametrize("strategy", ["exact", "sampled", "halving"])
def test_cancelling_keeps_the_best_so_far(strategy):
    class Stop(Exception):
        pass

    seen = []

    def stop(progress):
        seen.append(progress)
        if len(seen) == 5:
            raise Stop

    learner = search(tiny_table((0, 0)), strategy=strategy)
    assert learner.results() == [[]]
    with pytest.raises(Stop):
        learner.run(stop)
    (ranked,) = learner.results()
    assert len(ranked) == sum(progress.phase in ("full", "screen") for progress in seen)
    assert min(candidate.loss for candidate in ranked) == pytest.approx(min(p.loss for p in seen if p.phase != "learn"))
    assert ranked[0].quality == ("screen" if strategy == "halving" else "full")


def test_progress_counts_renders_and_epochs():
    seen = []
    learner = search(tiny_table(), epochs=3)
    learner.run(seen.append)
    renders = [progress for progress in seen if progress.phase == "full"]
    assert [progress.done for progress in renders] == list(range(1, renders[0].total + 1))
    assert [(p.done, p.total) for p in seen if p.phase == "learn"] == [(1, 3), (2, 3), (3, 3)]
    assert [p.loss for p in seen if p.phase == "learn"] == learner.history


def test_the_same_seed_searches_alike_and_the_global_generator_is_left_alone():
    state = torch.random.get_rng_state()
    runs = []
    for _ in range(2):
        learner = search(tiny_table((2, 1)), seed=4, strategy="sampled", budget=8)
        learner.run()
        runs.append((learner.results(), learner.logits(0)))
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_it_learns_under_inference_mode():
    with torch.inference_mode():
        learner = search(tiny_table((0, 0)), epochs=2)
        (ranked,) = learner.run()
    assert ranked[0].loss == pytest.approx(0.0, abs=1e-6) and len(learner.history) == 2


def test_one_network_learns_several_images_and_serves_a_new_one_with_a_render_an_anchor():
    """The hidden box is always the second size around the first anchor, so what was learned carries over."""
    network = tiny_network(3)
    tasks = []
    for seed in range(4):
        table = tiny_table((0, 1), seed=seed)
        tasks.append(tiny_task(table, network, seed))
    learner = RegionLearner(network, tasks, LearningSettings("exact", epochs=80))
    learner.run()
    assert learner.history[-1] < learner.history[0]
    editor = Painter()
    fresh = tiny_table((0, 1), seed=9, editor=editor)
    (ranked,) = RegionLearner(network, [tiny_task(fresh, network, 9)], LearningSettings("policy")).run()
    assert len(editor.calls) <= 3 and ranked[0].box == fresh.proposals.box(0, 1)


def test_the_official_schedule():
    settings = LearningSettings.official()
    assert (settings.epochs, settings.learning_rate) == (5, 0.003)
    learner = search(tiny_table(), strategy=settings.strategy, epochs=settings.epochs)
    assert isinstance(learner._optimizer, torch.optim.Adam) and learner._optimizer.param_groups[0]["lr"] == 0.003
    learner.run()
    assert len(learner.history) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "sampled", "budget": 2}, "one render for each anchor"),
        ({"strategy": "guess"}, "is unknown"),
        ({"draws": 1}, "draws is 1"),
        ({"epochs": -1}, "epochs is -1"),
        ({"keep": 0.0}, "keep is 0"),
        ({"share": 1.5}, "share is 1.5"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(EditingError, match=message):
        search(tiny_table(), **options)


def test_bad_images_and_editors_are_refused():
    proposals, judge = tiny_proposals(), HiddenBox(black_image(), Box(0, 0, 2, 2))
    with pytest.raises(EditingError, match="one RGB image"):
        RewardTable(torch.zeros(1, 3, 40, 24), proposals, Painter(), judge)
    with pytest.raises(EditingError, match="not a number"):
        RewardTable(black_image() * float("nan"), proposals, Painter(), judge)
    shrinking, broken = Painter(), Painter()
    shrinking.render = lambda image, mask, box, *, seed, quality: image[..., ::2]
    broken.render = lambda image, mask, box, *, seed, quality: image / 0
    for editor, message in ((shrinking, "must keep the size"), (broken, "not a number")):
        with pytest.raises(EditingError, match=message):
            RewardTable(black_image(), proposals, editor, judge).evaluate(proposals.box(0, 0))
    with pytest.raises(EditingError, match="at least one"):
        RegionLearner(tiny_network(), [], LearningSettings())
