"""Region Box Generator and its settings with a stand-in for the host: the planted box, stopping, going on, refusals."""

import dataclasses
import json
import re

import pytest
import torch

from semantic_editing.tests.core.regions.tiny_search import SIZES, SPOTS, Shop, WantsBox, box_at, looking, tiny_image
from semantic_editing.tests.nodes.stand_ins import Cancelled, stand_in
from semantic_editing.tools import host_stand_in

generator, choices, widgets = (
    host_stand_in.module(f"nodes.regions.{name}") for name in ("generator", "search_settings", "search_inputs")
)
BOX = box_at(SPOTS[0], SIZES[1])
KEEP, STOP = choices.KEEP, choices.STOP
RARE = {field.name for field in dataclasses.fields(choices.SearchChoices)}


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
    """The node's outputs; rare widgets go through the settings node."""
    image = tiny_image().movedim(1, -1)
    rare = {name: changed.pop(name) for name in RARE & set(changed)}
    if rare:
        node = choices.RegionSearchSettings
        (changed["settings"],) = node.execute(**{name: defaults(node)[name] for name in RARE} | rare).args
    out = generator.RegionBoxGenerator.execute(
        **defaults(generator.RegionBoxGenerator, **({"image": image} | changed))
    ).args
    names = ("mask", "boxes", "json", "edited", "candidates", "scores", "picture", "report", "best", "segs")
    return dict(zip(names, out, strict=True))


@pytest.mark.parametrize("strategy", ["exact", "halving"])
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
    assert len(found["scores"].splitlines()) == len(told) + 2 and found["picture"].shape == (1, 528, 880, 3)
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
    one, two = (generate(strategy="exact", seed=(1 << 64) - 1) for _ in range(2))
    assert one["boxes"] == two["boxes"] and torch.equal(one["candidates"], two["candidates"]) and len(one["boxes"]) == 9
    cut = generate(strategy="exact", seed=(1 << 64) - 1, most_candidates=2)
    assert torch.equal(cut["candidates"], one["candidates"][:2]) and len(cut["boxes"]) == 9


def test_where_no_box_helps_the_image_comes_back_and_it_is_said():
    class Indifferent(WantsBox):
        """All pictures please it alike."""

        def embed_images(self, images):
            return super().embed_images(torch.zeros_like(images) + 0.1)

    found = generate(strategy="exact", clip_scorer=Indifferent(BOX))
    assert torch.equal(found["edited"], tiny_image().movedim(1, -1)) and not found["mask"].any()
    assert found["report"].startswith("nothing helped: the image comes back as it is") and len(found["boxes"]) == 9
    assert "the image, unedited" in found["scores"].splitlines()[1]
    helped = generate(strategy="exact")
    assert helped["report"].startswith("best box") and "the unedited image has" in helped["report"]


def sides(box):
    """x, y, width, height of a BOUNDING_BOX."""
    return [box[side] for side in ("x", "y", "width", "height")]


def test_the_bar_counts_boxes_and_shows_renders(bar):
    generate(strategy="exact")
    pictures = [(done, total, picture.size) for done, total, picture in bar.shown if picture is not None]
    assert pictures == [(done, 9, (40, 24)) for done in range(1, 10)]


def test_cancel_hands_out_the_best_so_far_where_that_is_wanted_and_the_next_run_goes_on(bar):
    before = generator.RegionBoxGenerator.fingerprint_inputs(seed=0)
    bar.press_at, first = 5, Shop()
    found = generate(strategy="exact", region_editor=first, on_cancel=KEEP)
    assert (
        sides(found["best"]) == list(BOX)
        and len(found["boxes"]) == len(first.calls) == 5
        and "stopped" in found["report"]
    )
    assert generator.RegionBoxGenerator.fingerprint_inputs(seed=0) != before, "the host asks again"
    second = Shop()
    assert len(generate(strategy="exact", region_editor=second)["boxes"]) == 9 and len(second.calls) == 4


def test_by_default_cancel_stops_everything_and_the_next_run_goes_on(bar):
    bar.press_at, first, second = 5, Shop(), Shop()
    with pytest.raises(Cancelled):
        generate(strategy="exact", region_editor=first)
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
        ({"strategy": "zzz"}, "is unknown"),
        ({"winner": "zzz"}, "no winner"),
        ({"mask_use": "zzz"}, "no mask_use"),
        ({"sizes": "large"}, "sizes is 'large'"),
        ({"sizes": ""}, "no box sizes"),
        ({"aspect_ratios": "1:2"}, "aspect_ratios"),
        ({"clip_weight": 0.0, "direction_weight": 0.0, "structure_weight": 0.0}, "loss weights"),
        ({"region_editor": None}, "no region editor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_generator_refuses(changed, said):
    with pytest.raises(ValueError, match=said) as caught:
        generate(**changed)
    sentence = str(caught.value)
    assert type(caught.value).__name__ == "EditingError" and sentence.endswith((".", ").")) and "\n" not in sentence


@pytest.mark.parametrize("node", [generator.RegionBoxGenerator, choices.RegionSearchSettings])
def test_ids_differ_between_inputs_and_outputs(node):
    """0.3.64 refuses the whole node otherwise."""
    schema = node.define_schema()
    ids = [slot.id for slot in (*schema.inputs, *schema.outputs)]
    assert len(set(ids)) == len(ids)
