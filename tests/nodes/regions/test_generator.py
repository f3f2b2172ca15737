"""Region Box Generator and Region Network Trainer with a stand-in for the host: the planted box, stopping, going on,
refusals."""

import json
import re

import pytest
import torch

from semantic_editing.tests.core.regions.tiny_search import SIZES, SPOTS, Shop, WantsBox, box_at, looking, tiny_image
from semantic_editing.tests.nodes.stand_ins import Cancelled, stand_in
from semantic_editing.tools import host_stand_in

generator, trainer, widgets = (
    host_stand_in.module(f"nodes.regions.{name}") for name in ("generator", "trainer", "search_inputs")
)
BOX = box_at(SPOTS[0], SIZES[1])
KEEP, STOP = widgets.KEEP, widgets.STOP


@pytest.fixture(autouse=True)
def bar(monkeypatch, tmp_path):
    """The nodes' bar, which presses Cancel once at ``press_at`` boxes; their cache is a new one."""
    monkeypatch.setattr(widgets, "CACHE", host_stand_in.module("core.regions.cache").RenderCache())
    return stand_in(monkeypatch, tmp_path, widgets)


def defaults(node, **changed):
    """The node's own defaults, for boxes of the tiny world."""
    given = {slot.id: slot.options["default"] for slot in node.define_schema().inputs if "default" in slot.options}
    texts = {"source_text": "the source", "target_text": "the target", "sizes": "0.25, 0.5, 0.75"}
    models = {"vision_features": looking(), "clip_scorer": WantsBox(BOX), "region_editor": Shop()}
    return given | texts | models | changed


@torch.inference_mode()
def generate(**changed):
    image = tiny_image().movedim(1, -1)
    out = generator.RegionBoxGenerator.execute(
        **defaults(generator.RegionBoxGenerator, **({"image": image} | changed))
    ).args
    names = ("mask", "boxes", "json", "edited", "candidates", "scores", "picture", "network", "report", "best", "segs")
    return dict(zip(names, out, strict=True))


@torch.inference_mode()
def train(**changed):
    images = torch.cat([tiny_image(seed) for seed in range(3)]).movedim(1, -1)
    given = {"images": images, "epochs": 12, "learning_rate": 3e-4, "anchors": 1}
    return trainer.RegionNetworkTrainer.execute(**defaults(trainer.RegionNetworkTrainer, **(given | changed))).args


@pytest.mark.parametrize("strategy", ["exact", "halving", "sampled"])
def test_the_planted_box_comes_out_of_every_socket(strategy):
    found = generate(strategy=strategy)
    mask = torch.zeros(1, 24, 40)
    mask[0, BOX.y : BOX.y + BOX.height, BOX.x : BOX.x + BOX.width] = 1
    assert torch.equal(found["mask"], mask)
    image, edited = tiny_image().movedim(1, -1), found["edited"]
    assert torch.equal(edited[mask == 0], image[mask == 0]) and (edited[mask == 1] == 1).all()
    assert torch.equal(found["candidates"][:1], edited) and len(found["candidates"]) == len(found["boxes"])
    assert found["boxes"][0] == found["best"] and sides(found["best"]) == list(BOX)
    assert all(type(side) is int for box in found["boxes"] for side in sides(box))
    told = json.loads(found["json"])["boxes"]
    assert list(map(sides, told)) == list(map(sides, found["boxes"]))
    assert [box["score"] for box in told[:3]] == sorted((box["score"] for box in told[:3]), reverse=True)
    assert len(found["scores"].splitlines()) == len(told) + 1 and found["picture"].shape == (1, 528, 880, 3)
    assert "paints white" in found["report"] and re.search(r"network evaluations: \d+ u", found["report"])
    assert not any(value.requires_grad or value.is_inference() for value in found.values() if torch.is_tensor(value))


def test_by_default_it_takes_a_quarter_of_exact():
    """21 boxes of which none is clipped to another, at the painter's 2 and 20 u."""
    sizes = "0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5"
    units = [
        float(generate(strategy=s, sizes=sizes)["report"].split("evaluations: ")[1].split()[0])
        for s in ("exact", "halving")
    ]
    assert units[0] == 21 * 20 and 0 < units[1] <= units[0] / 4


def test_the_same_seed_gives_the_same_and_the_batch_can_be_cut():
    one, two = (
        generate(strategy="sampled", budget=5, seed=(1 << 64) - 1),
        generate(strategy="sampled", budget=5, seed=(1 << 64) - 1),
    )
    assert one["boxes"] == two["boxes"] and torch.equal(one["candidates"], two["candidates"]) and len(one["boxes"]) == 5
    cut = generate(strategy="sampled", budget=5, seed=(1 << 64) - 1, most_candidates=2)
    assert torch.equal(cut["candidates"], one["candidates"][:2]) and len(cut["boxes"]) == 5


def test_a_second_run_with_a_larger_budget_only_adds():
    first, second = Shop(), Shop()
    generate(strategy="sampled", budget=4, region_editor=first)
    report = generate(strategy="sampled", budget=7, region_editor=second)["report"]
    assert (len(first.calls), len(second.calls)) == (4, 3) and "rendered 3 fully" in report


def sides(box):
    """x, y, width, height of a BOUNDING_BOX."""
    return [box[side] for side in ("x", "y", "width", "height")]


def test_the_bar_counts_boxes_and_shows_renders(bar):
    generate(strategy="exact")
    pictures = [(done, total, picture.size) for done, total, picture in bar.shown if picture is not None]
    assert pictures == [(done, 9, (40, 24)) for done in range(1, 10)]


def test_cancel_hands_out_the_best_so_far_and_the_next_run_goes_on(bar):
    before = generator.RegionBoxGenerator.fingerprint_inputs(seed=0)
    bar.press_at, first = 5, Shop()
    found = generate(strategy="exact", region_editor=first)
    assert (
        sides(found["best"]) == list(BOX)
        and len(found["boxes"]) == len(first.calls) == 5
        and "stopped" in found["report"]
    )
    assert "learned in 60 epochs" in found["report"]
    assert generator.RegionBoxGenerator.fingerprint_inputs(seed=0) != before, "the host asks again"
    second = Shop()
    assert len(generate(strategy="exact", region_editor=second)["boxes"]) == 9 and len(second.calls) == 4


@pytest.mark.parametrize(("press", "choice"), [(5, STOP), (0, KEEP)])
def test_cancel_can_stop_everything_and_does_where_nothing_was_found(bar, press, choice):
    bar.press_at = press
    shop = Shop()
    shop.make = type(
        "Slow", (shop.make,), {"render": lambda self, *a, **k: self.progress(None) or Shop().make().render(*a, **k)}
    )
    with pytest.raises(Cancelled):
        generate(strategy="exact", on_cancel=choice, region_editor=shop)
    assert shop.diary[-1] == "close"


@pytest.mark.parametrize("shape", [(37, 61), (61, 37)])
def test_transparency_is_dropped_and_any_shape_works(shape):
    image = tiny_image(0, *shape).movedim(1, -1)
    box = box_at(SPOTS[1], SIZES[0], shape)
    found = generate(
        image=torch.cat([image, torch.rand(1, *shape, 1)], -1), clip_scorer=WantsBox(box, shape), strategy="exact"
    )
    assert (
        sides(found["best"]) == list(box)
        and found["edited"].shape == (1, *shape, 3)
        and "transparency" in found["report"]
    )


@pytest.mark.parametrize(("use", "spot"), [("restrict", SPOTS[0]), ("exclude", SPOTS[1])])
def test_a_mask_restricts_or_is_left_alone(use, spot):
    mask = torch.zeros(1, 24, 40)
    mask[:, :, :20] = 1
    wanted = box_at(spot, SIZES[0])
    found = generate(mask=mask, mask_use=use, strategy="exact", clip_scorer=WantsBox(wanted))
    allowed = mask if use == "restrict" else 1 - mask
    assert sides(found["best"]) == list(wanted) and not (found["mask"] > allowed).any()
    assert torch.equal(
        found["candidates"][:, allowed[0] == 0],
        tiny_image().movedim(1, -1)[:, allowed[0] == 0].expand(len(found["boxes"]), -1, -1),
    )


def test_a_trained_network_chooses_on_a_new_image_with_a_render_a_place():
    network, plot, report = train()
    assert plot.shape[0] == 1 and plot.shape[-1] == 3 and "3 image(s)" in report and "learned in 12 epochs" in report
    figures = [
        float(value)
        for value in re.findall(r"anchor: ([\d.]+) .*?, ([\d.]+) a box by chance, ([\d.]+) the best", report)[0]
    ]
    assert figures[2] == figures[0] < figures[1]
    shop = Shop()
    found = generate(
        image=tiny_image(9).movedim(1, -1), region_network=network, strategy="policy", anchors=1, region_editor=shop
    )
    assert list(map(sides, found["boxes"])) == [list(BOX)] and len(shop.calls) == 1


def test_the_papers_schedule_and_lines_of_text():
    lines = {"source_text": "the source\n\nthe source b\nthe source c", "target_text": "the target"}
    assert "learned in 5 epochs" in train(schedule=trainer.SCHEDULES[1], **lines)[2]


def test_cancelled_training_keeps_what_was_learned_and_goes_on(bar):
    bar.press_at, first = 4, Shop()
    fresh = host_stand_in.module("core.regions.network").RegionNetwork(48, 3, vision=looking().identity)
    network, _, report = train(region_editor=first, region_network=fresh)
    assert "stopped" in report and len(first.calls) == 4
    weights = [torch.cat([value.flatten() for value in net.state_dict().values()]) for net in (network, fresh)]
    assert not torch.equal(*weights)
    second = Shop()
    train(region_editor=second)
    assert len(second.calls) == 5


def foreign_network():
    return host_stand_in.module("core.regions.network").RegionNetwork(48, 3, vision="another")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"target_text": " "}, "text is empty"),
        ({"source_text": "the target"}, "mean the same"),
        ({"image": torch.rand(2, 24, 40, 3)}, "2 images"),
        ({"image": torch.rand(1, 24, 40, 3), "mask": torch.rand(2, 24, 40)}, "2 masks"),
        ({"image": torch.rand(1, 24, 40, 1)}, "RGB"),
        ({"image": torch.full((1, 24, 40, 3), 0.5)}, "flat colour"),
        ({"image": torch.rand(1, 3, 3, 3)}, "smaller than a patch"),
        ({"mask": torch.zeros(1, 24, 40)}, "mask is empty"),
        ({"given_boxes": [[1, 2, 3, 4]]}, "x, y, width and height"),
        ({"strategy": "sampled", "budget": 2}, "at least one render for each anchor"),
        ({"strategy": "policy"}, "trained region network"),
        ({"strategy": "soft mask"}, "cannot preview"),
        ({"strategy": "zzz"}, "is unknown"),
        ({"winner": "zzz"}, "no winner"),
        ({"mask_use": "zzz"}, "no mask_use"),
        ({"sizes": "large"}, "sizes is 'large'"),
        ({"sizes": ""}, "no box sizes"),
        ({"aspect_ratios": "1:2"}, "aspect_ratios"),
        ({"clip_weight": 0.0, "direction_weight": 0.0, "structure_weight": 0.0}, "loss weights"),
        ({"region_network": foreign_network()}, "another vision model"),
        ({"region_editor": None}, "no region editor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_generator_refuses(changed, said):
    with pytest.raises(ValueError, match=said) as caught:
        generate(**changed)
    sentence = str(caught.value)
    assert type(caught.value).__name__ == "EditingError" and sentence.endswith((".", ").")) and "\n" not in sentence


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images": None}, "no pictures to learn from"),
        ({"folder": "x"}, "Both a folder and images"),
        ({"target_text": "the target\nthe target b"}, "2 lines for 3 images"),
        ({"target_text": "\n"}, "text is empty"),
        ({"schedule": "zzz"}, "no schedule"),
        ({"strategy": "policy"}, "learns nothing"),
        ({"region_editor": None}, "no region editor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_trainer_refuses(changed, said):
    with pytest.raises(ValueError, match=said):
        train(**changed)


@pytest.mark.parametrize("node", [generator.RegionBoxGenerator, trainer.RegionNetworkTrainer])
def test_ids_differ_between_inputs_and_outputs(node):
    """0.3.64 refuses the whole node otherwise."""
    schema = node.define_schema()
    ids = [slot.id for slot in (*schema.inputs, *schema.outputs)]
    assert len(set(ids)) == len(ids)
