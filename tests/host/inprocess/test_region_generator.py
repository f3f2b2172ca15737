"""Region Box Generator and Region Network Trainer in the host, on the demo model: searched, stopped, gone on with."""

import comfy.model_management as mm
import pytest
import torch
from conftest import PACK

import nodes

pytestmark = pytest.mark.skipif(not (PACK / "assets" / "demo" / "unet").is_dir(), reason="assets/demo is not there")

EDITOR = {"steps": 2, "cfg": 2.0, "strength": 1.0, "context": 100.0, "working_size": 64, "feather": 2}


@pytest.fixture(scope="module")
def wired(pack):
    """What the other nodes hand over: image, texts, models; and the parts to make other editors of."""
    with torch.inference_mode():
        model, clip, vae = pack("nodes.demo.comfy_model").load_demo_model()
        image, caption, _, target = (
            pack("nodes.demo.load").LoadDemoImage.execute(pictures="glasses: none to glasses", number=0).args[:4]
        )
        source, positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (caption, target, ""))
        models, editors = pack("nodes.regions.models"), pack("nodes.regions.editors")
        make = editors.RegionInpaintEditor.execute
        editor = make(model, vae, positive, negative, source=source, **EDITOR).args[0]
        return {
            "image": image,
            "vision_features": models.LoadVisionFeatures.execute("demo model", 0).args[0],
            "clip_scorer": models.LoadCLIPScorer.execute("demo model", "").args[0],
            "region_editor": editor,
            "source_text": caption,
            "target_text": target,
        }, lambda **more: make(model, vae, positive, negative, source=source, **(EDITOR | more)).args[0]


@pytest.fixture(autouse=True)
def fresh(pack, monkeypatch):
    cache = pack("core.regions.cache").RenderCache()
    for name in ("generator", "trainer"):
        monkeypatch.setattr(pack(f"nodes.regions.{name}"), "CACHE", cache)


def execute(node, given):
    defaults = {
        slot.id: slot.default for slot in node.define_schema().inputs if getattr(slot, "default", None) is not None
    }
    wanted = {slot.id for slot in node.define_schema().inputs}
    with torch.inference_mode():
        return node.execute(**{name: value for name, value in (defaults | given).items() if name in wanted}).args


def generate(pack, given, **changed):
    return execute(pack("nodes.regions.generator").RegionBoxGenerator, given | changed)


@pytest.mark.parametrize(("strategy", "boxes"), [("map", range(1, 4)), ("exact", range(3, 30))])
def test_each_strategy_paints_what_it_says(pack, wired, strategy, boxes):
    given, _ = wired
    mask, found, told, edited, *_ = generate(pack, given, strategy=strategy, sizes="0.3, 0.6")
    x, y, width, height = (found[0][side] for side in ("x", "y", "width", "height"))
    assert len(found) in boxes and float(mask.sum()) == width * height == float(mask[0, y:, x:].sum())
    outside = mask[0] == 0
    assert torch.equal(edited[0][outside], given["image"][0][outside]) and '"unedited_score"' in told


def test_the_map_needs_no_scorer_and_paints_one_box(pack, wired):
    _, found, _, edited, *rest = generate(pack, wired[0], clip_scorer=None, vision_features=None)
    assert len(found) == 1 and not torch.equal(edited, wired[0]["image"]) and "16 u" in rest[3]  # 12 to find it


def test_cancel_stops_everything_and_what_was_painted_is_kept(pack, wired):
    given, make = wired
    inner = make()
    seen = []

    class Pressing:
        title = inner.title

        @staticmethod
        def open(image, progress):
            def told(step):
                seen.append(step)
                if len(seen) == 10:  # six of the map, the first batch of two steps, the second batch
                    mm.interrupt_current_processing(True)

            return inner.open(image, told)

    with pytest.raises(mm.InterruptProcessingException):
        generate(pack, given, strategy="exact", sizes="0.3, 0.6", region_editor=Pressing)
    before = len(seen)
    *_, report, _, _ = generate(pack, given, strategy="exact", sizes="0.3, 0.6", region_editor=Pressing)
    fresh = generate(pack, given, strategy="exact", sizes="0.3, 0.6", seed=1)[7]
    units = [float(text.split(" u\n")[0].split()[-1]) for text in (report, fresh)]
    assert before >= 10 and units[0] <= units[1] - 4 * 4  # a batch of four boxes of 4 u at least


def test_a_hosts_own_sampler_paints_in_its_own_steps(pack, wired):
    import comfy.samplers

    given, make = wired
    model = pack("nodes.demo.comfy_model").load_demo_model()[0]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "sgm_uniform", 4)
    outs = {}
    for name in ("lcm", "euler"):
        editor = make(sampler=comfy.samplers.sampler_object(name), sigmas=sigmas)
        mask, _, _, edited, *_ = generate(pack, given, region_editor=editor, clip_scorer=None)
        outside = mask[0] == 0
        assert torch.equal(edited[0][outside], given["image"][0][outside]) and "4 steps" in editor.title
        assert edited.isfinite().all() and not torch.equal(edited, given["image"])
        outs[name] = edited
    assert not torch.equal(outs["lcm"], outs["euler"])
    with pytest.raises(pack("core.errors").EditingError, match="wire both"):
        make(sigmas=sigmas)


def test_hints_of_the_whole_image_are_refused_where_boxes_are_cut_out(pack):

    model, _, vae = pack("nodes.demo.comfy_model").load_demo_model()
    placed = [[torch.zeros(1, 77, 256), {"area": (8, 8, 0, 0), "strength": 1.0}]]
    node = pack("nodes.regions.editors").RegionInpaintEditor
    plain = [[torch.zeros(1, 77, 256), {}]]
    with pytest.raises(pack("core.errors").EditingError, match="set context to 100"):
        node.execute(model, vae, placed, plain, **(EDITOR | {"context": 0.5}))
    node.execute(model, vae, placed, plain, **EDITOR)


def test_the_trainer_learns_from_two_images(pack, wired):
    given = wired[0] | {"images": torch.cat([wired[0]["image"]] * 2), "anchors": 1, "sizes": "0.3, 0.6", "epochs": 2}
    network, plot, report, boxes = execute(pack("nodes.regions.trainer").RegionNetworkTrainer, given)
    assert network.slots == 2 and len(boxes) == 2 and "the largest box" in report and plot.ndim == 4
