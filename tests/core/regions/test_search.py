"""A whole search finds the box that was planted, spends what it says, opens one editor at a time and can be stopped and
gone on with."""

import json

import pytest
import torch

from semantic_editing.core.errors import EditingError
from semantic_editing.core.regions.cache import RenderCache
from semantic_editing.core.regions.network import RegionNetwork
from semantic_editing.core.regions.picture import boxes_json, score_table, search_report
from semantic_editing.core.regions.proposals import Box
from semantic_editing.core.regions.search import Example, RegionSearch, SearchSettings
from semantic_editing.core.regions.settings import LearningSettings
from semantic_editing.tests.core.regions.tiny_regions import Painter
from semantic_editing.tests.core.regions.tiny_search import (
    SIZES,
    SPOTS,
    Previewer,
    Shop,
    WantsBox,
    box_at,
    looking,
    tiny_image,
    tiny_search,
)

STRATEGIES = [
    {"strategy": "exact"},
    {"strategy": "sampled", "budget": 9, "epochs": 80},
    {"strategy": "halving"},
    {"strategy": "soft mask", "epochs": 60, "learning_rate": 0.01},
]


class Stop(BaseException):
    pass


def stop_after(looks):
    """A press of Cancel, once."""
    pressed = []

    def watch(done, total, render):
        if done == looks and not pressed:
            pressed.append(done)
            raise Stop

    return watch


def state(network):
    return torch.cat([parameter.flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("planted", [(0, 1), (1, 0), (2, 2)])
@pytest.mark.parametrize("learning", STRATEGIES, ids=lambda options: options["strategy"])
def test_it_finds_the_planted_box(learning, planted):
    box = box_at(SPOTS[planted[0]], SIZES[planted[1]])
    image = tiny_image()
    search = tiny_search(box, Shop(Previewer), image=image, **learning)
    search.run()
    best = search.candidates()[0]
    assert best.box == box and (best.anchor, best.slot) == planted and best.quality == "full"
    mask, edited = search.mask(best), search.edited(best)
    expected = torch.zeros(1, *image.shape[-2:])
    expected[0, box.y : box.y + box.height, box.x : box.x + box.width] = 1
    assert torch.equal(mask, expected)
    assert torch.equal(edited[..., mask[0] == 0], image[..., mask[0] == 0]) and (edited[..., mask[0] == 1] == 1).all()


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0)])
def test_the_order_of_the_anchors_does_not_matter(order):
    box = box_at(SPOTS[2], SIZES[0])
    searches = [
        tiny_search(box, spots=spots, strategy="exact", epochs=2)
        for spots in (SPOTS, [SPOTS[index] for index in order])
    ]
    for search in searches:
        search.run()
    one, two = ([(c.box, c.score, c.loss, c.chosen) for c in search.candidates()] for search in searches)
    assert one == two and one[0][0] == box
    assert searches[0].tables[0].proposals.boxes[order[0]] == searches[1].tables[0].proposals.boxes[0]


def test_a_mask_restricts_or_is_left_alone():
    mask = torch.zeros(tiny_image().shape[-2:])
    mask[:, :20] = 1  # holds the first spot only
    for use, spot in (("restrict", SPOTS[0]), ("exclude", SPOTS[1])):
        search = tiny_search(box_at(spot, SIZES[1]), mask=mask, strategy="exact", epochs=1, boxes={"mask_use": use})
        search.run()
        assert search.candidates()[0].box == box_at(spot, SIZES[1])
        for candidate in search.candidates():
            allowed = mask if use == "restrict" else 1 - mask
            changed = (search.edited(candidate) != tiny_image()).any(1)
            assert (
                changed.any()
                and not (changed & (allowed == 0)).any()
                and torch.equal(changed.float(), search.mask(candidate))
            )


def test_a_larger_budget_only_adds_renders():
    cache, first, second = RenderCache(), Shop(), Shop()
    for shop, budget in ((first, 4), (second, 7)):
        tiny_search(box_at(SPOTS[0], 0.5), shop, cache=cache, strategy="sampled", budget=budget, epochs=80).run()
    assert len(first.calls) == 4 and len(second.calls) == 3
    assert not {box for box, *_ in first.calls} & {box for box, *_ in second.calls}


def test_a_stopped_search_hands_out_what_it_found_and_goes_on_where_it_was():
    cache, shop = RenderCache(), Shop()
    search = tiny_search(box_at(SPOTS[0], 0.5), shop, cache=cache, watch=stop_after(5), strategy="exact")
    before = state(search.network)
    with pytest.raises(Stop):
        search.run()
    assert shop.diary == ["open", "Stop", "close"] and torch.equal(state(search.network), before)
    found = search.candidates()
    assert len(found) == 5 and found[0].box == box_at(SPOTS[0], 0.5)
    search.learn_from_known()
    assert not torch.equal(state(search.network), before) and len(search.learner.history) == 60
    assert (search.edited(found[0]) == 1).sum() == 3 * found[0].box.width * found[0].box.height and len(shop.calls) == 5
    again = Shop()
    rest = tiny_search(box_at(SPOTS[0], 0.5), again, cache=cache, strategy="exact")
    rest.run()
    assert len(rest.candidates()) == 9 == 5 + len(again.calls) and again.diary == ["open", "close"]


def test_stopped_before_the_first_look_there_is_nothing():
    class Pressed(Painter):
        def render(self, *given, **named):
            self.progress(None)

    search = tiny_search(box_at(SPOTS[0], 0.5), Shop(Pressed), watch=stop_after(0))
    with pytest.raises(Stop):
        search.run()
    search.learn_from_known()
    assert search.candidates() == [] and search.learner.history == []


def test_watch_is_told_of_every_box_and_of_new_renders():
    told = []
    search = tiny_search(box_at(SPOTS[0], 0.5), watch=lambda *given: told.append(given), strategy="exact", epochs=1)
    search.run()
    renders = [(done, total) for done, total, render in told if render is not None]
    assert renders == [(done, 9) for done in range(1, 10)] and told[0][2].shape == (1, 3, 24, 40)
    told.clear()
    search.run()
    assert all(render is None for *_, render in told), "nothing is rendered a second time"


@pytest.mark.parametrize("learning", STRATEGIES, ids=lambda options: options["strategy"])
def test_units_are_those_of_renders_previews_and_inversions(learning):
    shop = Shop(Previewer)
    search = tiny_search(box_at(SPOTS[0], 0.5), shop, **learning)
    search.run()
    renders = sum(20 if quality == "full" else 2 for *_, quality in shop.calls)
    soft = learning["strategy"] == "soft mask"
    assert search.units == renders + (2 + 7 if soft else 0)
    if learning["strategy"] == "exact":
        assert renders == 9 * 20
    if learning["strategy"] == "halving":
        assert renders <= 9 * 20 / 4
    if soft:
        assert renders <= 3 * 20


def test_several_images_are_opened_one_at_a_time_and_train_one_network_that_serves_a_new_one():
    """The wanted box is always the middle size, and the images differ."""
    box, shop = box_at(SPOTS[0], SIZES[1]), Shop()
    examples = [Example(tiny_image(seed), "the source", "the target") for seed in range(3)]
    settings = SearchSettings(anchors=1, sizes=SIZES, learning=LearningSettings("exact", epochs=12, learning_rate=3e-4))
    search = RegionSearch(examples, looking(), WantsBox(box), shop.open, settings)
    search.run()
    assert shop.diary == ["open", "close"] * 3 and len(shop.calls) == 9
    assert all(search.candidates(number)[0].box == box for number in range(3))
    before, fresh = state(search.network), Shop()
    new = tiny_search(box, fresh, image=tiny_image(9), network=search.network, boxes={"anchors": 1}, strategy="policy")
    new.run()
    assert new.candidates()[0].box == box and len(fresh.calls) == 1
    more = tiny_search(
        box, image=tiny_image(9), network=search.network, boxes={"anchors": 1}, strategy="exact", epochs=3
    )
    more.run()
    assert torch.equal(state(search.network), before) and not torch.equal(state(more.network), before), (
        "the wired network is not changed"
    )


def test_it_is_determined_by_its_seed():
    runs = []
    for seed in (3, 3, 4):
        search = tiny_search(box_at(SPOTS[1], 0.5), shop := Shop(), strategy="sampled", budget=4, epochs=10, seed=seed)
        search.run()
        runs.append((search.candidates(), state(search.network).tolist(), shop.calls))
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("shape", [(37, 61), (61, 37)])
def test_images_of_any_shape(shape):
    image = tiny_image(0, *shape)
    box = box_at(SPOTS[1], SIZES[1], shape)
    search = tiny_search(box, image=image, strategy="exact", epochs=1)
    search.run()
    assert search.candidates()[0].box == box and search.edited(search.candidates()[0]).shape == image.shape


def test_the_table_and_the_json_tell_the_ranking():
    search = tiny_search(box_at(SPOTS[0], 0.5), strategy="exact", epochs=1)
    search.run()
    found = search.candidates()
    lines = score_table(found).splitlines()[1:]
    assert len(lines) == 9 and [int(line[:3]) for line in lines] == list(range(1, 10))
    stars = ["*" in line for line in lines]
    scores = [float(line.replace(",", "").replace("*", "").split()[5]) for line in lines]
    assert stars == sorted(stars, reverse=True) and sum(stars) == 3
    for group in (scores[:3], scores[3:]):
        assert group == sorted(group, reverse=True)
    best, verdict = found[0], found[0].verdict
    assert str(tuple(best.box))[1:-1] in lines[0]
    assert scores[0] == pytest.approx(2 * verdict.text_similarity + verdict.image_similarity, abs=1e-3)
    told = json.loads(boxes_json(found, (24, 40)))
    assert told["image"] == {"width": 40, "height": 24} and len(told["boxes"]) == 9
    assert tuple(told["boxes"][0][side] for side in ("x", "y", "width", "height")) == tuple(best.box)
    report = search_report(search)
    assert "9 different boxes around 3 anchors" in report and "rendered 9 fully" in report and "180 u" in report


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"examples": [Example(tiny_image(), " ", "the target")]}, "text is empty"),
        ({"examples": [Example(tiny_image(), "the same", "the same")]}, "mean the same"),
        ({"examples": []}, "no image to search"),
        ({"examples": [Example(tiny_image() * 0 + 0.5, "the source", "the target")]}, "one flat colour"),
        ({"examples": [Example(tiny_image(0, 3, 3), "the source", "the target")]}, "smaller than a patch"),
        ({"examples": [Example(tiny_image(), "the source", "the target", torch.zeros(24, 40))]}, "leaves no patch"),
        ({"learning": LearningSettings("policy")}, "asks a trained region network"),
        ({"learning": LearningSettings("sampled", budget=2)}, "budget is 2 for 3 anchors"),
        ({"learning": LearningSettings("soft mask")}, "cannot preview"),
        ({"network": RegionNetwork(48, 3, vision="another")}, "trained with another vision model"),
        ({"network": RegionNetwork(48, 5)}, "takes 5 boxes for each anchor"),
    ],
)
def test_what_it_refuses_before_the_first_render(changed, said):
    given = {
        "examples": [Example(tiny_image(), "the source", "the target")],
        "learning": LearningSettings(),
        "network": None,
    } | changed
    shop = Shop()
    with pytest.raises(EditingError, match=said) as caught:
        settings = SearchSettings(anchors=3, sizes=SIZES, learning=given["learning"])
        RegionSearch(
            given["examples"], looking(), WantsBox(box_at((0, 0), 0.5)), shop.open, settings, given["network"]
        ).run()
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value) and not shop.calls


class Locator(Painter):
    """Says that it acts in :data:`ACTS`, off every place that is attended to."""

    def change(self, image):
        change = torch.zeros(image.shape[-2:])
        change[ACTS.y : ACTS.y + ACTS.height, ACTS.x : ACTS.x + ACTS.width] = 0.4
        return change


ACTS = Box(2, 14, 20, 8)


def test_an_editor_that_can_tell_adds_the_places_where_it_acts():
    found = {}
    for changes in (0, 1):
        search = tiny_search(ACTS, Shop(Locator), boxes={"changes": changes}, strategy="exact", choice="all")
        search.run()
        found[changes] = search.candidates()[0].score
        by_change = [anchor.found_by == "change" for anchor in search.tables[0].proposals.anchors]
        assert by_change == [False] * 3 + [True] * changes
        assert ("where the edit acts" in search_report(search)) == bool(changes)
    assert search.tables[0].proposals.anchors[search.candidates()[0].anchor].found_by == "change"
    assert found[1] > found[0]


class FreeLocator(Locator):
    """A quick look at a box costs nothing."""

    def cost(self, quality):
        return 0.0 if quality == "screen" else super().cost(quality)


def test_the_sides_of_the_best_box_are_moved_and_it_is_told():
    wanted = Box(ACTS.x, ACTS.y, ACTS.width + 2, ACTS.height)
    scores, reports = [], []
    for refine in (False, True):
        watched = []
        search = tiny_search(
            wanted,
            Shop(FreeLocator),
            boxes={"changes": 1},
            watch=lambda *told, watched=watched: watched.append(told[:2]),
            strategy="exact",
            choice="tightest",
            refine=refine,
        )
        search.run()
        best = search.candidates()[0]
        scores.append(best.score)
        reports.append(search_report(search))
        assert (best.box in search.tables[0].refined) == refine
        assert all(done <= total for done, total in watched) and len({total for _, total in watched[1:]}) == 1
    assert scores[1] > scores[0] and "sides were moved" in reports[1] and "moved" not in reports[0]


def test_a_trained_network_and_a_training_keep_to_attended_places():
    trained = RegionNetwork(48, 3, vision=looking().identity)
    policy = tiny_search(ACTS, Shop(Locator), network=trained, strategy="policy")
    policy.run()
    examples = [Example(tiny_image(seed), "the source", "the target") for seed in (0, 1)]
    settings = SearchSettings(anchors=2, sizes=SIZES, learning=LearningSettings("exact", epochs=1))
    training = RegionSearch(examples, looking(), WantsBox(ACTS), Shop(Locator).open, settings)
    training.run()
    for table in (*policy.tables, *training.tables):
        assert {anchor.found_by for anchor in table.proposals.anchors} == {"attention"}
    with pytest.raises(EditingError, match="changes is -1"):
        SearchSettings(changes=-1)


class CountingLocator(Locator):
    """Says what telling costs."""

    def __init__(self):
        super().__init__()
        self.shared_evaluations, self.screening_cost = 0, 0

    def change(self, image):
        self.shared_evaluations += 11
        return super().change(image)


def test_where_the_edit_acts_is_asked_once_for_an_image_and_an_editor():
    cache = RenderCache()
    searches = [
        tiny_search(ACTS, Shop(CountingLocator), cache=cache, boxes={"changes": 2}, strategy="exact") for _ in range(2)
    ]
    for search in searches:
        search.run()
    assert searches[0].units > 11 and searches[1].units == 0
    first = searches[1].tables[0].proposals
    searches[1].run()
    again = searches[1].tables[0].proposals
    assert again.anchors == first.anchors and again.boxes == first.boxes, "a second run adds nothing"


@pytest.mark.parametrize(
    ("learning", "said"),
    [
        ({"strategy": "sampled", "budget": 2}, "budget is 2 for 3 anchors"),
        ({"strategy": "soft mask"}, "cannot preview"),
    ],
)
def test_what_cannot_work_is_refused_before_the_whole_image_is_edited(learning, said):
    shop = Shop(CountingLocator)
    with pytest.raises(EditingError, match=said):
        tiny_search(ACTS, shop, **learning).run()
    assert sum(painter.shared_evaluations for painter in shop.painters) == 0


@pytest.mark.parametrize(("budget", "added"), [(3, 0), (4, 1), (9, 1)])
def test_a_budget_that_does_not_last_for_more_places_gets_none(budget, added):
    search = tiny_search(ACTS, Shop(CountingLocator), strategy="sampled", budget=budget)
    search.run()
    assert len(search.tables[0].proposals.anchors) == 3 + added, "there is one place where the edit acts"


def test_halving_pays_for_telling_where_the_edit_acts():
    """12 boxes of 20 u: 35 % are 84 u, less 24 u of screening for 3 full renders, or 2 if 11 u are spent before."""
    for editor, finalists in ((Locator, 3), (CountingLocator, 2)):
        search = tiny_search(ACTS, Shop(editor), strategy="halving", rungs=1, share=0.35)
        search.run()
        assert search.tables[0].count.screen == 12 and search.tables[0].count.full == finalists and search.units <= 84
