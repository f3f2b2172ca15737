"""Image Caption on a tiny random BLIP in the host's models folder."""

import comfy.model_management as mm
import folder_paths
import pytest
import torch
from conftest import noise
from transformers import BlipConfig, BlipForConditionalGeneration

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
PIECES = ["[PAD]", "[UNK]", "[DEC]", "[SEP]", "a", "cat", "##s", "on", "the", "mat"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The models folder, with a captioner called "tiny" and a file that is none."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "image_captioners", raising=False)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    text = SMALL | {"vocab_size": len(PIECES), "encoder_hidden_size": 16, "max_position_embeddings": 64}
    text |= {"pad_token_id": 0, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
    vision = SMALL | {"image_size": 16, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = BlipForConditionalGeneration(
            BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=8)
        )
        made.text_decoder.cls.predictions.bias.data[5] = 9.0  # it always says cat
        made.save_pretrained(tmp_path / "image_captioners" / "tiny")
    (tmp_path / "image_captioners" / "tiny" / "vocab.txt").write_text("\n".join(PIECES), encoding="utf-8")
    (tmp_path / "image_captioners" / "file.safetensors").write_bytes(b"")
    yield tmp_path
    mm.unload_all_models()


@torch.inference_mode()
def test_a_batch_is_described_line_by_line(pack, home):
    node, image = pack("nodes.pix2pix_zero.caption").ImageCaption, noise(2, 20, 24, 3).sigmoid()
    (models,) = [slot for slot in node.define_schema().inputs if slot.id == "caption_model"]
    assert models.options == ["file.safetensors", "tiny"]
    before = node.fingerprint_inputs("tiny", image=None)
    caption, report = node.execute(image, "tiny", 3, 2).args[:2]
    assert caption == "cat cat cat\ncat cat cat" and report.endswith(f"\ntiny, 2 beams:\n{caption}")
    assert node.execute(image[:1, ..., :1], "tiny", 1, 1).args[0] == "cat"  # a grey picture
    (home / "image_captioners" / "tiny" / "vocab.txt").write_text("other", encoding="utf-8")
    assert node.fingerprint_inputs("tiny", image=None) != before


@torch.inference_mode()
def test_cancel_ends_it(pack, home):
    node, image = pack("nodes.pix2pix_zero.caption").ImageCaption, noise(1, 20, 24, 3).sigmoid()
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        node.execute(image, "tiny", 9, 1)
    mm.interrupt_current_processing(False)


@torch.inference_mode()
def test_what_is_no_captioner_is_said(pack, home):
    node, image = pack("nodes.pix2pix_zero.caption").ImageCaption, noise(1, 20, 24, 3).sigmoid()
    with pytest.raises(ValueError, match="is a single file; use the model's whole folder"):
        node.execute(image, "file.safetensors", 9, 1)
    with pytest.raises(ValueError, match="is not in ComfyUI's models/image_captioners folder"):
        node.execute(image, "../tiny", 9, 1)
