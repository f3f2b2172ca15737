"""Region Box Generator and Region Network Trainer in the host, inside a prompt, on the demo model: searched, stopped
and gone on with."""

import importlib
from types import SimpleNamespace

import comfy.model_management as mm
import numpy as np
import pytest
import torch
from conftest import PACK

import nodes

pytestmark = pytest.mark.skipif(not (PACK / "assets" / "demo" / "unet").is_dir(), reason="assets/demo is not there")

EDITOR = {
    "steps": 2,
    "screening_steps": 1,
    "cfg": 2.0,
    "strength": 1.0,
    "context": 100.0,
    "working_size": 64,
    "feather": 2,
}
SIZES = "0.3, 0.6"


@pytest.fixture(scope="module")
def wired(pack):
    """What the other nodes hand over: image, texts, models."""
    with torch.inference_mode():
        model, clip, vae = pack("nodes.demo.comfy_model").load_demo_model()
        image, caption, _, target = (
            pack("nodes.demo.load").LoadDemoImage.execute(pictures="glasses: none to glasses", number=0).args[:4]
        )
        conds = [nodes.CLIPTextEncode().encode(clip, text)[0] for text in (target, "")]
        models, editors = pack("nodes.regions.models"), pack("nodes.regions.editors")
        editor = editors.RegionInpaintEditor.execute(model, vae, *conds, **EDITOR).args[0]
        return {
            "image": image,
            "vision_features": models.LoadVisionFeatures.execute("demo model", 0).args[0],
            "clip_scorer": models.LoadCLIPScorer.execute("demo model", "").args[0],
            "region_editor": editor,
            "source_text": caption,
            "target_text": target,
        }, vae


@pytest.fixture(autouse=True)
def fresh(pack, monkeypatch):
    monkeypatch.setattr(pack("nodes.regions.search_inputs"), "CACHE", pack("core.regions.cache").RenderCache())


def execute(node, given):
    defaults = {
        slot.id: slot.default for slot in node.define_schema().inputs if getattr(slot, "default", None) is not None
    }
    wanted = {slot.id for slot in node.define_schema().inputs}
    return node.execute(**{name: value for name, value in (defaults | given).items() if name in wanted}).args


def generate(pack, wired, **changed):
    node = pack("nodes.regions.generator").RegionBoxGenerator
    out = execute(node, wired[0] | {"anchors": 2, "sizes": SIZES, "strategy": "exact"} | changed)
    names = ("mask", "boxes", "json", "edited", "candidates", "scores", "picture", "network", "report", "best", "segs")
    return dict(zip(names, out, strict=True))


def sides(box):
    """x, y, width, height of a BOUNDING_BOX."""
    return tuple(box[side] for side in ("x", "y", "width", "height"))


@torch.inference_mode()
def test_boxes_are_drawn_and_cropped_by_the_hosts_own_nodes(pack, wired):
    """Unconverted: Draw BBoxes takes all, Crop Image the best one, and what they take comes back as a proposal."""
    drawing = pytest.importorskip("comfy_extras.nodes_rtdetr", reason="this host has no BOUNDING_BOX nodes")
    images = importlib.import_module("comfy_extras.nodes_images")
    found, image = generate(pack, wired), wired[0]["image"]
    x, y, width, height = sides(found["best"])
    (cropped,) = images.ImageCropV2.execute(image, found["best"]).args
    assert torch.equal(cropped, image[:, y : y + height, x : x + width])
    (drawn,) = drawing.DrawBBoxes.execute(found["boxes"], image).args
    changed = (drawn - image).abs().amax(-1)[0] > 0.1
    assert changed.any()
    assert not (drawing.DrawBBoxes.execute(found["boxes"][:1], image).args[0] == image).all()
    (by_hand,) = images.BoundingBox.execute(x, y, width, height).args
    for given in (by_hand, [by_hand], [[by_hand]]):
        again = generate(pack, wired, given_boxes=given)
        assert [sides(box) for box in again["boxes"]] == [(x, y, width, height)]
        assert torch.equal(again["edited"], found["edited"])


@torch.inference_mode()
def test_segs_come_out_as_their_readers_take_them_and_go_in(pack, wired):
    found, image = generate(pack, wired), wired[0]["image"]
    (height, width), parts = found["segs"]
    assert (height, width) == tuple(image.shape[1:3])
    assert len(parts) == len(found["boxes"])
    whole = np.zeros((height, width), dtype=np.float32)
    x1, y1, x2, y2 = parts[0].crop_region
    whole[y1:y2, x1:x2] = parts[0].cropped_mask
    assert np.array_equal(whole, found["mask"][0].numpy())
    own = SimpleNamespace(bbox=np.array([x1 * 2.0, y1 * 2, x2 * 2, y2 * 2]))  # a detector at twice the size
    again = generate(pack, wired, segs=((2 * height, 2 * width), [own]))
    assert [sides(box) for box in again["boxes"]] == [(x1, y1, x2 - x1, y2 - y1)]


@torch.inference_mode()
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"given_boxes": [[1, 2, 3, 4]]}, "x, y, width and height"),
        ({"given_boxes": [[1, 2, 3, 4], [1, 2, 3, 4]]}, "sizes or corners"),
        ({"given_boxes": [[{"x": 0, "y": 0, "width": 4, "height": 4}], []]}, "of 2 images"),
        ({"given_boxes": {"x": 0, "y": 0, "width": float("nan"), "height": 4}}, "not a number"),
        ({"given_boxes": {"x": 9999, "y": 0, "width": 4, "height": 4}}, "None of the 1 boxes"),
        ({"segs": "boxes"}, "SEGS are not"),
        ({"segs": ((0, 0), [SimpleNamespace(bbox=(0, 0, 1, 1))])}, "SEGS are not"),
    ],
)
def test_other_boxes_are_refused_in_a_sentence(pack, wired, given, said):
    with pytest.raises(ValueError, match=said):
        generate(pack, wired, **given)


@torch.inference_mode()
def test_boxes_masks_and_edits_fit_stock_nodes(pack, wired):
    found, image = generate(pack, wired), wired[0]["image"]
    assert found["edited"].shape == image.shape and found["mask"].shape == image.shape[:3]
    outside = found["mask"] == 0
    assert torch.equal(found["edited"][outside], image[outside]) and not torch.equal(found["edited"], image)
    x, y, width, height = sides(found["best"])
    assert found["boxes"][0] == found["best"]
    assert found["mask"].sum() == width * height == found["mask"][0, y : y + height, x : x + width].sum()
    assert (
        2 <= len(found["boxes"]) == len(found["candidates"]) <= 4
        and f"rendered {len(found['boxes'])} fully" in found["report"]
    )
    assert f"network evaluations: {len(found['boxes']) * 4} u" in found["report"], "two steps of two branches a box"
    latent = nodes.VAEEncodeForInpaint().encode(wired[1], image, found["mask"], 2)[0]
    assert latent["noise_mask"].shape[-2:] == image.shape[1:3]
    again = generate(pack, wired)
    assert "rendered 0 fully" in again["report"] and torch.equal(again["candidates"], found["candidates"])
    tensors = [value for value in found.values() if torch.is_tensor(value)] + list(found["network"].parameters())
    assert not any(value.is_inference() for value in tensors)


@torch.inference_mode()
def test_a_picture_of_any_size_comes_back_at_its_own_with_every_pixel_outside_the_box(pack, wired):
    image = wired[0]["image"][:, 3:, 7:][:, :57, :51]  # no side a multiple of 8
    found = generate(pack, wired, image=image)
    outside = found["mask"] == 0
    assert found["edited"].shape == image.shape and found["mask"].shape == image.shape[:3]
    assert torch.equal(found["edited"][outside], image[outside]) and not torch.equal(found["edited"], image)


@torch.inference_mode()
def test_the_inpaint_editor_knows_where_the_text_pulls_once_it_is_told_what_is_there(pack, wired):
    """12 u of a map, boxes that frame it, and for another text another map."""
    given, vae = wired
    model, clip, _ = pack("nodes.demo.comfy_model").load_demo_model()
    texts = [given["target_text"], "", given["source_text"], "a portrait of a person, short red hair"]
    target, empty, source, other = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in texts)
    make = pack("nodes.regions.editors").RegionInpaintEditor.execute

    def found(**told):
        editor = make(model, vae, target, empty, **EDITOR, **told).args[0]
        return generate(pack, wired, region_editor=editor, anchors=1, change_anchors=1)

    plain, told = found(), found(source=source)
    assert "around 1 anchors" in plain["report"]
    assert "around 2 anchors (1 of them where the edit acts)" in told["report"]
    assert {sides(box) for box in told["boxes"]} > {sides(box) for box in plain["boxes"]}
    assert f"network evaluations: {4 * len(told['boxes']) + 12} u" in told["report"]
    assert {sides(box) for box in found(source=other)["boxes"]} != {sides(box) for box in told["boxes"]}


@torch.inference_mode()
@pytest.mark.parametrize(("strategy", "most"), [("halving", 4), ("soft mask", 2), ("sampled", 3)])
def test_every_strategy_runs_inside_a_prompt(pack, wired, strategy, most):
    found = generate(pack, wired, strategy=strategy, budget=3, epochs=2)
    full = int(found["report"].split("rendered ")[1].split()[0])
    assert 1 <= full <= most and found["scores"].count("\n") == len(found["boxes"])


@torch.inference_mode()
def test_cancel_hands_out_the_best_so_far_or_stops(pack, wired, monkeypatch):
    previews, presses = [], [2]

    def press(value, total, preview=None, **named):
        previews.append(preview)
        if [value] == presses:
            presses.clear()
            mm.interrupt_current_processing(True)

    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", press)
    with pytest.raises(mm.InterruptProcessingException):
        generate(pack, wired, on_cancel=pack("nodes.regions.search_inputs").STOP)
    assert any(preview is not None for preview in previews)
    rest = generate(pack, wired)
    assert "2 were kept from earlier" in rest["report"]
    presses.append(2)
    found = generate(pack, wired, seed=1)
    assert "stopped" in found["report"] and 2 <= len(found["boxes"]) < len(rest["boxes"])


@torch.inference_mode()
def test_a_trained_network_serves_the_generator(pack, wired):
    node, image = pack("nodes.regions.trainer").RegionNetworkTrainer, wired[0]["image"]
    given = {
        "images": torch.cat([image, image.flip(2)]),
        "anchors": 2,
        "sizes": SIZES,
        "epochs": 3,
        "folder": "",
        "strategy": "halving",
    }
    network, plot, report = execute(node, wired[0] | given)
    assert "2 image(s)" in report and "learned in 3 epochs" in report and plot.shape[0] == 1
    found = generate(pack, wired, region_network=network, strategy="policy")
    assert 1 <= len(found["boxes"]) <= 2


@torch.inference_mode()
def test_the_inversion_editor_shows_where_it_acts_and_a_rerun_costs_nothing(pack, wired):
    given, vae = wired
    model, clip, _ = pack("nodes.demo.comfy_model").load_demo_model()
    conds = [nodes.CLIPTextEncode().encode(clip, given[text])[0] for text in ("source_text", "target_text")]
    node = pack("nodes.regions.editors").RegionInversionEditor
    wires = {"model": model, "vae": vae, "source": conds[0], "target": conds[1]}
    settings = {"steps": 4, "cfg": 1.5, "guidance": 0.0, "working_size": 128}
    (editor,) = execute(node, wires | settings)
    found = generate(pack, wired, region_editor=editor, change_anchors=1, anchors=1, winner="tightest of the best")
    assert "around 2 anchors (1 of them where the edit acts)" in found["report"]
    # The inversion takes some evaluations for each of its 4 long steps, the edit of the whole image 8, each box 8.
    units = int(found["report"].split("evaluations: ")[1].split()[0])
    assert 8 * len(found["boxes"]) + 12 <= units <= 8 * len(found["boxes"]) + 12 + 4 * 12
    assert not found["network"].state_dict()[next(iter(found["network"].state_dict()))].is_inference()
    again = generate(pack, wired, region_editor=editor, change_anchors=1, anchors=1, winner="tightest of the best")
    assert "evaluations: 0 u" in again["report"] and again["boxes"] == found["boxes"]
    alone = generate(pack, wired, region_editor=editor, change_anchors=0, anchors=1)
    assert "around 1 anchors" in alone["report"] and set(map(sides, alone["boxes"])) <= set(map(sides, found["boxes"]))
