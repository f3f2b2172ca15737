"""Region Box Generator and Region Network Trainer with a stand-in for the host: the planted box, stopping, going on,
refusals."""

import json

import pytest
import torch

from semantic_editing.tests.core.regions.tiny_regions import SIZES, SPOTS, Shop, WantsArea, box_at, looking, tiny_image
from semantic_editing.tests.nodes.stand_ins import Cancelled, stand_in
from semantic_editing.tools import host_stand_in

generator, trainer, widgets = (
    host_stand_in.module(f"nodes.regions.{name}") for name in ("generator", "trainer", "search_inputs")
)
EditingError = host_stand_in.module("core.errors").EditingError
BOX = box_at(SPOTS[0], SIZES[1])


@pytest.fixture(autouse=True)
def bar(monkeypatch, tmp_path):
    """The nodes' bar, which presses Cancel once at ``press_at`` boxes; their cache is a new one."""
    cache = host_stand_in.module("core.regions.cache").RenderCache()
    made = None
    for module in (generator, trainer):
        monkeypatch.setattr(module, "CACHE", cache)
        made = stand_in(monkeypatch, tmp_path, module)
    monkeypatch.setattr(generator, "StoppableBar", made)
    return made


def defaults(node, **changed):
    """The node's own defaults, for boxes of the tiny world."""
    given = {slot.id: slot.options["default"] for slot in node.define_schema().inputs if "default" in slot.options}
    texts = {"source_text": "the source", "target_text": "the target", "sizes": "0.25, 0.5, 0.75"}
    scorer = WantsArea(BOX.width * BOX.height)
    models = {"vision_features": looking(), "clip_scorer": scorer, "region_editor": Shop()}
    return given | texts | models | changed


NAMES = ("mask", "boxes", "json", "edited", "candidates", "scores", "picture", "report", "best", "segs")


@torch.inference_mode()
def generate(**changed):
    given = {"image": tiny_image().movedim(1, -1), "strategy": "exact"} | changed
    out = generator.RegionBoxGenerator.execute(**defaults(generator.RegionBoxGenerator, **given)).args
    return dict(zip(NAMES, out, strict=True))


def sides(box):
    return [box[side] for side in ("x", "y", "width", "height")]


def test_the_planted_box_comes_out_of_every_socket():
    found = generate()
    mask = torch.zeros(1, 24, 40)
    mask[0, BOX.y : BOX.y + BOX.height, BOX.x : BOX.x + BOX.width] = 1
    assert torch.equal(found["mask"], mask)
    image, edited = tiny_image().movedim(1, -1), found["edited"]
    assert torch.equal(edited[mask == 0], image[mask == 0]) and (edited[mask == 1] == 1).all()
    assert torch.equal(found["candidates"][:1], edited) and sides(found["best"]) == list(BOX)
    told = json.loads(found["json"])
    assert told["helped"] and [sides(box) for box in told["boxes"]] == [sides(box) for box in found["boxes"]]
    assert all(box["unedited_score"] == told["boxes"][0]["unedited_score"] for box in told["boxes"])
    assert len(found["scores"].splitlines()) == len(told["boxes"]) + 1 and "unedited" in found["scores"]
    assert "paints white" in found["report"] and f"{20 * len(told['boxes'])} u" in found["report"]
    assert len(found["candidates"]) == min(8, len(told["boxes"]))
    assert not any(value.requires_grad or value.is_inference() for value in found.values() if torch.is_tensor(value))


def test_where_nothing_helps_the_image_comes_back_and_it_is_said():
    bright = 0.9 + tiny_image().movedim(1, -1)  # as white as the paint for this scorer: no box can gain
    found = generate(image=bright)
    assert torch.equal(found["edited"], bright) and "Nothing helped" in found["report"]
    assert not json.loads(found["json"])["helped"] and found["mask"].any()


def test_given_boxes_need_neither_map_nor_vision_and_alpha_is_kept():
    image = torch.cat([tiny_image().movedim(1, -1), torch.rand(1, 24, 40, 1)], -1)
    given = {"x": 4, "y": 5, "width": 6, "height": 7}
    found = generate(image=image, strategy="map", given_boxes=given, vision_features=None, clip_scorer=None)
    assert sides(found["best"]) == [4, 5, 6, 7] and torch.equal(found["edited"][..., 3:], image[..., 3:])
    assert found["edited"].shape == found["candidates"].shape == image.shape


def test_a_stopped_search_goes_on_where_it_was(bar):
    shop = Shop()
    bar.press_at = 3
    with pytest.raises(Cancelled):
        generate(region_editor=shop)
    assert len(shop.calls) == 3
    found = generate(region_editor=shop)
    assert len(shop.calls) == len(found["boxes"])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"strategy": "halving"}, "choose map or exact"),
        ({"strategy": "map"}, "wire source into Region Inpaint Editor"),
        ({"clip_scorer": None}, "wire clip_scorer"),
        ({"mask_use": "blend"}, "restrict or exclude"),
        ({"image": torch.zeros(2, 24, 40, 3)}, "Rebatch Images"),
        ({"region_editor": None}, "no region editor"),
        ({"sizes": "a"}, "numbers separated by commas"),
        ({"given_boxes": {"x": 99, "y": 0, "width": 4, "height": 4}}, "None of the 1 boxes"),
    ],
)
def test_refusals(changed, told):
    with pytest.raises(EditingError, match=told):
        generate(**changed)


@torch.inference_mode()
def train(**changed):
    images = torch.cat([tiny_image(seed) for seed in range(3)]).movedim(1, -1)
    given = {"images": images, "anchors": 1, "epochs": 12, "learning_rate": 3e-3}
    return trainer.RegionNetworkTrainer.execute(**defaults(trainer.RegionNetworkTrainer, **(given | changed))).args


def test_the_trainer_learns_and_tells_the_largest_box_beside_it():
    network, plot, report, boxes = train()
    assert network.slots == 3 and plot.ndim == 4 and "the largest box" in report and "Experimental" in report
    assert len(boxes) == 3 and all(len(each) == 1 for each in boxes)
    shop = Shop()
    more, *_ = train(region_network=network, region_editor=shop)
    assert not shop.calls and more is not network  # the renders are kept, the wired network is not changed


def test_the_trainer_refuses_lines_that_do_not_fit():
    with pytest.raises(EditingError, match="2 lines for 3 images"):
        train(source_text="the source\nthe source")
