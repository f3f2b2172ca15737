"""Edit by Words, Place Found in the host: a plain MODEL and a nine-channel one, a judge, masks, boxes, refusals."""

import pytest
import torch
from conftest import PACK, comfy_model, diffusers_unet

pytestmark = pytest.mark.skipif(not (PACK / "assets" / "demo" / "unet").is_dir(), reason="assets/demo is not there")

TEXTS = {"change": "clean shaven", "into": "with a beard", "sentence": "a portrait of a person, {}"}
QUICK = {"steps": 3, "cfg": 1.5, "seed": 1, "context": 100.0, "working_size": 128}


@pytest.fixture(scope="module")
def demo(pack):
    """MODEL, CLIP and VAE as a prompt makes them: of inference tensors."""
    with torch.inference_mode():
        return pack("nodes.demo.comfy_model").load_demo_model()


@pytest.fixture(scope="module")
def portrait(pack):
    pair = next(
        pair for pair in pack("core.demo.data").DemoData().pairs if (pair.before, pair.after) == ("none", "beard")
    )
    return pair.source[None].movedim(1, -1)


def run(pack, demo, image, model=None, **changed):
    node = pack("nodes.regions.words").EditByWords
    with torch.inference_mode():
        values = {"model": model or demo[0], "clip": demo[1], "vae": demo[2], "image": image}
        return node.execute(**{**values, **TEXTS, **QUICK, **changed}).result


def sides(box):
    """x, y, width, height of a BOUNDING_BOX."""
    return [box[side] for side in ("x", "y", "width", "height")]


def check(image, result, mask, boxes):
    """One box, the mask is that box, and outside it every pixel is the image's."""
    x, y, width, height = sides(boxes[0][0])
    drawn = torch.zeros_like(mask)
    drawn[:, y : y + height, x : x + width] = 1
    assert torch.equal(mask, drawn) and 0 < float(mask.mean()) < 1
    assert torch.equal(result[mask == 0], image[mask == 0])
    assert not torch.equal(result[mask == 1], image[mask == 1])


def test_a_plain_model_finds_the_chin(pack, demo, portrait):
    result, mask, boxes, report = run(pack, demo, portrait)
    check(portrait, result, mask, boxes)
    _, y, _, height = sides(boxes[0][0])
    assert y + height / 2 > 64 and "48" not in report and "16 u" in report  # 12 to find it, 0.8 of 3 steps of two


def test_a_nine_channel_model_is_asked_through_its_own_conditioning(pack, demo, portrait):
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(3)
        shape = {**diffusers_unet("sd1").config, "in_channels": 9, "cross_attention_dim": 256}
        unet = UNet2DConditionModel.from_config(shape).eval().requires_grad_(False)
    with torch.inference_mode():
        model = comfy_model(pack, "sd1", unet)
    model.model.set_inpaint()
    seen = []
    apply = model.model.diffusion_model.forward

    def watched(x, *args, **kwargs):
        seen.append(x.detach().clone())
        return apply(x, *args, **kwargs)

    model.model.diffusion_model.forward = watched
    *_, report = run(pack, demo, portrait, model)
    assert "18 u" in report  # all 3 steps: it was trained to paint from noise
    assert {x.shape[1] for x in seen} == {9}
    assert torch.equal(seen[0][:, 4], torch.ones_like(seen[0][:, 4]))  # the map: everything is to be painted
    assert not torch.equal(seen[-1][:, 4], torch.ones_like(seen[-1][:, 4]))  # the render: the box is


def test_a_judge_compares_boxes_and_tells_the_unedited_score(pack, demo, portrait):
    scorer = pack("core.demo.builders").demo_scorer(pack("core.demo.model").load_demo_model())
    result, mask, boxes, report = run(pack, demo, portrait, clip_scorer=scorer)
    assert len(boxes[0]) > 1 and "unedited" in report
    if "Nothing helped" in report:
        assert torch.equal(result, portrait) and not mask.any()
    else:
        check(portrait, result, mask, boxes)


def test_masks_boxes_and_batches(pack, demo, portrait):
    allowed = torch.zeros(1, 128, 128)
    allowed[:, :, :64] = 1
    both = torch.cat([portrait, portrait])
    given = {"x": 40, "y": 70, "width": 60, "height": 40}
    result, mask, boxes, _ = run(pack, demo, both, mask=allowed, boxes=given)
    assert [[sides(box) for box in each] for each in boxes] == [[[40, 70, 24, 40]]] * 2 and mask.shape == (2, 128, 128)
    assert torch.equal(result[:, :, 64:], both[:, :, 64:])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"into": ""}, "A text is missing"),
        ({"into": "clean shaven "}, "say the same"),
        ({"sentence": "a photo"}, "where the texts go"),
        ({"boxes": {"x": 500, "y": 0, "width": 5, "height": 5}}, "None of the 1 boxes"),
        ({"boxes": ["cat"]}, "x, y, width and height"),
    ],
)
def test_refusals(pack, demo, portrait, changed, told):
    with pytest.raises(pack("core.errors").EditingError, match=told):
        run(pack, demo, portrait, **changed)
