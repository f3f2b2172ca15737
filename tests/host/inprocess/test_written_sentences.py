"""Sentences from a Text Model on a tiny random GPT-2 in the host's models folder."""

import json

import comfy.model_management as mm
import folder_paths
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

WORDS = ["<end>", "a", "cat", "dog", "sits", "on", "the", "mat"]
ASKED = {"source": "cat", "target": "dog", "prompt": "a {word}", "count": 12, "seed": 0}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The models folder, with a text model called "tiny" and a file that is none."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "LLM", raising=False)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    config = GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=64, eos_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "LLM" / "tiny")
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    listed = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<end>"},
    }
    (tmp_path / "LLM" / "tiny" / "tokenizer.json").write_text(json.dumps(listed), encoding="utf-8")
    (tmp_path / "LLM" / "file.safetensors").write_bytes(b"")
    yield tmp_path
    mm.unload_all_models()


@torch.inference_mode()
def test_both_lists_are_pairs_and_the_seed_decides(pack, home):
    node = pack("nodes.pix2pix_zero.written").WrittenSentences
    (models,) = [slot for slot in node.define_schema().inputs if slot.id == "text_model"]
    assert models.options == ["file.safetensors", "tiny"]
    source, target, report = node.execute("tiny", **ASKED).args[:3]
    sources, targets = source.split("\n"), target.split("\n")
    assert 3 < len(sources) == len(targets) < 12 and f"tiny: {len(sources)} pairs of sentences from" in report
    assert "Fewer than the 12 wanted" in report  # it says nonsense, often without the word
    assert all("cat" in one.split() and "dog" in other.split() for one, other in zip(sources, targets, strict=True))
    assert node.execute("tiny", **ASKED).args[0] == source != node.execute("tiny", **ASKED | {"seed": 1}).args[0]
    pairs = pack("core.pix2pix_zero.shift_field").why_unpaired
    assert pairs([text.split() for text in sources], [text.split() for text in targets]) == ""


@torch.inference_mode()
def test_cancel_ends_it(pack, home):
    node = pack("nodes.pix2pix_zero.written").WrittenSentences
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        node.execute("tiny", **ASKED)
    mm.interrupt_current_processing(False)


@torch.inference_mode()
def test_what_is_no_text_model_or_writes_junk_is_said(pack, home):
    node = pack("nodes.pix2pix_zero.written").WrittenSentences
    with pytest.raises(ValueError, match="is a single file; use the model's whole folder"):
        node.execute("file.safetensors", **ASKED)
    with pytest.raises(ValueError, match="is not in ComfyUI's models/LLM folder"):
        node.execute("../tiny", **ASKED)
    with pytest.raises(ValueError, match="none a sentence of 3 to 40 words with 'owl' or 'fox'"):
        node.execute("tiny", **ASKED | {"source": "owl", "target": "fox"})
