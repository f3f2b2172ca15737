"""What is saved here, read by diffusers itself and by the rules that AUTOMATIC1111's reader follows."""

import pytest
import safetensors.torch
import torch

from semantic_editing.core.caso.embedding import SemanticEmbedding
from semantic_editing.core.diffusers.checkpoint import Checkpoint
from semantic_editing.core.diffusers.token_vectors import checkpoint_vector_encoder
from semantic_editing.tests.core.diffusers.test_single_file import tiny_pipeline


def saved(vector_encoder, path, counts):
    """A learned embedding of ``counts`` vectors for each encoder, in a file."""
    generator = torch.Generator().manual_seed(5)
    vectors = {
        name: torch.randn(count, width, generator=generator) * vector_encoder.token_scale[name]
        for (name, width), count in zip(vector_encoder.widths.items(), counts, strict=True)
    }
    made = SemanticEmbedding(vectors, vector_encoder.encoder_name, "glasses", "yes", "caso", {"level": 0.3})
    return made.save(path)


@pytest.mark.parametrize(
    ("family", "counts"), [("sd1", (1,)), ("sd1", (3,)), ("sd2", (2,)), ("sdxl", (2, 2)), ("sdxl", (1, 3))]
)
def test_diffusers_reads_it_and_encodes_what_we_do(tmp_path, family, counts):
    """``load_textual_inversion`` itself, as its documentation has it for SD and for SDXL; the prompt is the token."""
    checkpoint = Checkpoint(tiny_pipeline(family))
    vector_encoder = checkpoint_vector_encoder(checkpoint)
    path = saved(vector_encoder, tmp_path / "mine.safetensors", counts)
    ours, pipeline = SemanticEmbedding.load(path).condition(vector_encoder), checkpoint.pipeline
    if family == "sdxl":
        state = safetensors.torch.load_file(path)
        parts = {
            "clip_l": (pipeline.text_encoder, pipeline.tokenizer),
            "clip_g": (pipeline.text_encoder_2, pipeline.tokenizer_2),
        }
        for name, (text_encoder, tokenizer) in parts.items():
            pipeline.load_textual_inversion(state[name], token="<mine>", text_encoder=text_encoder, tokenizer=tokenizer)
    else:
        pipeline.load_textual_inversion(str(tmp_path), weight_name="mine.safetensors", token="<mine>")
    embeds, pooled = checkpoint.encode_text(["<mine>"])
    torch.testing.assert_close(embeds, ours.embeds, rtol=0, atol=1e-5)
    if family == "sdxl":
        torch.testing.assert_close(pooled, ours.pooled, rtol=0, atol=1e-5)
    assert float((embeds - checkpoint.encode_text([""])[0]).abs().max()) > 1e-3


def test_a_file_for_one_encoder_leaves_the_other_the_empty_prompt(tmp_path):
    checkpoint = Checkpoint(tiny_pipeline("sdxl"))
    vector_encoder = checkpoint_vector_encoder(checkpoint)
    width, other = vector_encoder.widths.values()
    alone = SemanticEmbedding({"clip_l": torch.randn(2, width, generator=torch.Generator().manual_seed(1))})
    embeds = alone.condition(vector_encoder).embeds
    pipeline = checkpoint.pipeline
    pipeline.load_textual_inversion(
        alone.vectors["clip_l"], token="<l>", text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer
    )
    encoded = pipeline.encode_prompt(prompt=["<l>"], prompt_2=[""], device="cpu", num_images_per_prompt=1,
                                     do_classifier_free_guidance=False)[0]  # fmt: skip
    torch.testing.assert_close(embeds, encoded, rtol=0, atol=1e-5)
    torch.testing.assert_close(embeds[..., width:], checkpoint.encode_text([""])[0][..., width:], rtol=0, atol=1e-5)
    assert other and float((embeds - checkpoint.encode_text([""])[0]).abs().max()) > 1e-3


def read_as_automatic1111(path):
    """``(vectors by encoder, width by which the program tells models apart, number of vectors)``.

    The rules of its textual inversion loader, in our words: a table with ``string_to_param`` holds one tensor there;
    one with both ``clip_l`` and ``clip_g`` is for SDXL, its width is the sum and its length that of ``clip_g``; any
    other table must hold exactly one tensor, ``[n, D]`` or ``[D]``.
    """
    table = safetensors.torch.load_file(path)
    assert "string_to_param" not in table
    if "clip_l" in table and "clip_g" in table:
        return table, sum(table[name].shape[-1] for name in ("clip_l", "clip_g")), len(table["clip_g"])
    (vectors,) = table.values()
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    return {"": vectors}, vectors.shape[-1], len(vectors)


@pytest.mark.parametrize(
    ("widths", "width"),
    [({"clip_l": 768}, 768), ({"clip_h": 1024}, 1024), ({"clip_l": 768, "clip_g": 1280}, 2048)],
)
def test_automatic1111_finds_the_model_and_the_vectors(tmp_path, widths, width):
    made = SemanticEmbedding({name: torch.randn(2, side) for name, side in widths.items()}, target="yes")
    found, side, count = read_as_automatic1111(made.save(tmp_path / "mine.safetensors"))
    assert (side, count) == (width, 2) and set(found) in (set(widths), {""})
    for name, vectors in found.items():
        expected = made.vectors[name or next(iter(widths))]
        assert vectors.dtype == torch.float32 and torch.equal(vectors, expected)
