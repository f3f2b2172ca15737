"""DeltaSpace Analysis on real hosts: inside a prompt, with the host's managed CLIP, and stopped by Cancel."""

import comfy.model_management as mm
import folder_paths
import pytest
import torch
from conftest import PACK
from PIL import Image

pytestmark = pytest.mark.skipif(not (PACK / "assets" / "demo" / "unet").is_dir(), reason="assets/demo is not there")


@pytest.fixture
def demo(pack):
    with torch.inference_mode():
        (scorer, *_) = pack("nodes.regions.models").LoadCLIPScorer.execute("demo model", "").result
    yield pack("nodes.deltaedit.analysis"), scorer
    mm.unload_all_models()


def test_the_demos_pictures_and_a_folder(demo, pack, tmp_path, monkeypatch):
    module, scorer = demo
    node = module.DeltaSpaceAnalysis
    with torch.inference_mode():
        plot, report = node.execute(scorer, "demo pictures", 16, 1).result
    assert report.startswith("Texts and pictures agree in their differences")
    assert plot.shape[0] == 1 and plot.shape[3] == 3 and not plot.requires_grad
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    (tmp_path / "my" / "faces").mkdir(parents=True)
    pictures, captions = pack("nodes.demo.comfy_model").captioned_pictures()
    for number, (picture, caption) in enumerate(zip(pictures[:8], captions, strict=False)):
        pixels = (picture[0].permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(tmp_path / "my" / "faces" / f"{number}.png")
        (tmp_path / "my" / "faces" / f"{number}.txt").write_text(caption, "utf-8")
    assert node.define_schema().inputs[1].options == ["demo pictures", "my/faces"]
    with torch.inference_mode():
        _, report = node.execute(scorer, "my/faces", 200, 0).result
    assert "8 pictures with captions from 'my/faces'" in report
    with pytest.raises(ValueError, match="is no folder inside ComfyUI's input folder"):
        node.execute(scorer, "faces", 200, 0)


def test_cancel_stops_it(demo):
    module, scorer = demo
    looked = []

    class Pressed:
        identity = "pressed"

        def image_features(self, images, preprocessing="own"):
            looked.append(len(images))
            mm.interrupt_current_processing(True)
            return scorer.image_features(images, preprocessing)

    with torch.inference_mode(), pytest.raises(mm.InterruptProcessingException):
        module.DeltaSpaceAnalysis.execute(Pressed(), "demo pictures", 64, 0)
    assert len(looked) == 1
