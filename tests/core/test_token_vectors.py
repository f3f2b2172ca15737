"""CASO's seams: vectors in place of words, and images back out, with gradients."""

import pytest
import torch

from semantic_editing.core.caso.settings import TrainingSettings
from semantic_editing.core.caso.training import EmbeddingTrainer
from semantic_editing.core.demo.builders import DemoDecoder, demo_vector_encoder
from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.diffusers.checkpoint import Checkpoint
from semantic_editing.core.diffusers.denoiser import frozen
from semantic_editing.core.diffusers.token_vectors import (
    DiffusersDecoder,
    TransformersVectorEncoder,
    checkpoint_vector_encoder,
)
from semantic_editing.core.errors import EditingError
from semantic_editing.core.gradient_checkpointing import blocks_of, checkpointed
from semantic_editing.core.token_vectors import clamp_through, empty_condition, start_vectors
from semantic_editing.tests.core.caso.tiny_caso import (
    END,
    PAD,
    START,
    TinyDecoder,
    text_network,
    tiny_classifier,
    tiny_tower,
    tiny_vector_encoder,
)
from semantic_editing.tests.core.diffusers.test_single_file import tiny_pipeline
from semantic_editing.tests.core.test_gradient_checkpointing import kept_bytes
from semantic_editing.tests.core.tiny_models import TOKENS, tiny_denoiser, tiny_latent

WORDS = ["red", "red hair", ""]


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def checkpoint(request):
    return Checkpoint(tiny_pipeline(request.param))


@pytest.mark.parametrize("text", WORDS)
def test_a_words_table_row_gives_the_words_own_conditioning(checkpoint, text):
    vector_encoder = checkpoint_vector_encoder(checkpoint)
    assert vector_encoder.encoder_name == checkpoint.encoder_name
    pipeline = checkpoint.pipeline
    ids = pipeline.tokenizer(text, add_special_tokens=False).input_ids
    rows = {tower.name: tower.table.weight[ids][None] for tower in vector_encoder.towers}
    got = vector_encoder(rows)
    embeds, pooled = checkpoint.encode_text([text])
    torch.testing.assert_close(got.embeds, embeds, rtol=0, atol=1e-5)
    if checkpoint.is_xl:
        torch.testing.assert_close(got.pooled, pooled, rtol=0, atol=1e-5)
    else:
        assert got.pooled is None and pooled is None


def test_end_vectors_at_the_start_of_learning_are_the_empty_prompt_where_padding_is_the_end_token():
    vector_encoder = tiny_vector_encoder()
    vector = vector_encoder.end_vectors["clip_l"][None, None].expand(1, 2, -1)
    torch.testing.assert_close(
        vector_encoder({"clip_l": vector}).embeds, empty_condition(vector_encoder).embeds, rtol=0, atol=1e-6
    )


def test_a_row_of_the_batch_is_its_own_prompt_and_the_hook_is_gone_afterwards():
    vector_encoder = tiny_vector_encoder()
    vectors = torch.randn(3, 2, vector_encoder.widths["clip_l"], generator=torch.Generator().manual_seed(0))
    together = vector_encoder({"clip_l": vectors}).embeds
    for number in range(3):
        torch.testing.assert_close(
            together[number : number + 1],
            vector_encoder({"clip_l": vectors[number : number + 1]}).embeds,
            rtol=1e-5,
            atol=1e-5,
        )
    tower = vector_encoder.towers[0]
    ids = torch.tensor([[START, 1, END] + [PAD] * (TOKENS - 3)])
    before = text_network()(input_ids=ids).last_hidden_state
    torch.testing.assert_close(tower.network(input_ids=ids).last_hidden_state, before, rtol=0, atol=0)
    assert not tower.table._forward_hooks


def test_the_hook_is_gone_even_when_the_encoder_fails():
    tower = tiny_tower(text_network())
    with pytest.raises(RuntimeError):
        tower.encode(torch.zeros(1, 1, 5), "last")
    assert not tower.table._forward_hooks


def test_gradient_through_the_whole_chain_is_the_finite_difference_and_reaches_only_the_vectors():
    denoiser, decoder, classifier = tiny_denoiser(dtype=torch.float64), TinyDecoder().double(), tiny_classifier()
    vector_encoder = TransformersVectorEncoder([tiny_tower(text_network().double())])
    x = tiny_latent(2).double()
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(1, 2, vector_encoder.widths["clip_l"], generator=generator, dtype=torch.float64) * 0.3
    direction = torch.randn(vectors.shape, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64)

    def loss(value):
        return (decoder(denoiser(x, 2.0, vector_encoder({"clip_l": value}))) * weights).sum()

    leaf = vectors.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    step = 1e-5
    difference = (loss(vectors + step * direction) - loss(vectors - step * direction)) / (2 * step)
    torch.testing.assert_close((leaf.grad * direction).sum(), difference, rtol=1e-5, atol=1e-8)
    assert float(difference.abs()) > 1e-3
    networks = [denoiser.unet, decoder, classifier, vector_encoder.towers[0].network]
    assert all(parameter.grad is None for network in networks for parameter in network.parameters())


def test_vectors_of_another_model_are_refused_by_both_names():
    with pytest.raises(EditingError, match=r"for clip_l 768, but .* is clip_l 12"):
        tiny_vector_encoder()({"clip_l": torch.zeros(1, 1, 768)})


def test_decoder_agrees_with_the_checkpoints_own_and_gradient_checkpointing_changes_no_gradient(checkpoint):
    latent = tiny_latent()
    torch.testing.assert_close(
        DiffusersDecoder(checkpoint.pipeline.vae)(latent).clamp(0, 1), checkpoint.decode(latent), rtol=0, atol=1e-6
    )
    gradients = []
    for gradient_checkpointing in (False, True):
        leaf = latent.clone().requires_grad_()
        DiffusersDecoder(checkpoint.pipeline.vae, gradient_checkpointing)(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)


def test_a_training_moves_the_vectors_of_every_encoder(checkpoint):
    vector_encoder, latents = checkpoint_vector_encoder(checkpoint), tiny_latent(2)
    trainer = EmbeddingTrainer(
        checkpoint.denoiser(),
        vector_encoder,
        DiffusersDecoder(checkpoint.pipeline.vae),
        tiny_classifier(),
        latents,
        TrainingSettings("glasses", ("yes",), steps=2, batch=1, noise_level=0.9),
    )
    (made,) = trainer.run()
    assert list(made.vectors) == list(vector_encoder.widths) and len(made.vectors) == 1 + checkpoint.is_xl
    for name, start in vector_encoder.end_vectors.items():
        assert float((made.vectors[name][0] - start).norm()) > 1e-3 * vector_encoder.token_scale[name]


def test_a_tiny_autoencoder_is_a_decoder_too():
    from diffusers import AutoencoderTiny

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )
    leaf = tiny_latent().requires_grad_()
    images = DiffusersDecoder(vae)(leaf)
    images.sum().backward()
    torch.testing.assert_close(images, vae.decode(leaf).sample / 2 + 0.5)
    assert images.shape[1] == 3 and float(leaf.grad.abs().sum()) > 0


def test_unet_gradient_checkpointing_changes_no_gradient_and_counts_the_same_and_keeps_less():
    gradients, counts, kept = [], [], []
    for gradient_checkpointing in (False, True):
        denoiser = tiny_denoiser()
        leaf = torch.zeros(1, 7, 12, requires_grad=True)
        blocks = blocks_of(denoiser.unet) if gradient_checkpointing else []
        with frozen(denoiser.unet), checkpointed(blocks):
            prediction, size = kept_bytes(lambda leaf, denoiser=denoiser: denoiser(tiny_latent(2), 1.0, leaf), leaf)
            prediction.square().sum().backward()
        kept.append(size)
        gradients.append(leaf.grad)
        counts.append((denoiser.evaluations.forward, denoiser.evaluations.backward))
        assert not any("forward" in part.__dict__ for part in denoiser.unet.modules())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)
    assert counts[0] == counts[1] == (2, 2) and kept[1] < kept[0] / 3


def test_clipping_keeps_values_in_range_and_lets_the_gradient_through():
    leaf = torch.tensor([-0.5, 0.25, 1.5], requires_grad=True)
    clipped = clamp_through(leaf)
    clipped.sum().backward()
    assert clipped.tolist() == [0.0, 0.25, 1.0] and leaf.grad.tolist() == [1.0, 1.0, 1.0]


def test_the_demo_models_seams_agree_with_its_own_text_and_pictures():
    demo = load_demo_model()
    vector_encoder = demo_vector_encoder(demo)
    words = demo.tokenize(["red hair", "glasses", ""])
    table = demo.clip.text_model.embeddings.token_embedding.weight
    for text, ids in (("red hair", words[0, 1:3]), ("glasses", words[1, 1:2]), ("", words[2, 1:1])):
        torch.testing.assert_close(
            vector_encoder({"clip_l": table[ids][None]}).embeds, demo.encode_text([text]), rtol=0, atol=1e-5
        )
    latent = demo.encode_image(demo.images[:1])
    torch.testing.assert_close(DemoDecoder(demo)(latent).clamp(0, 1), demo.decode(latent), rtol=0, atol=1e-6)
    leaf = latent.clone().requires_grad_()
    DemoDecoder(demo, gradient_checkpointing=True)(leaf).sum().backward()
    assert float(leaf.grad.abs().min()) > 0


@pytest.mark.parametrize("text", WORDS)
def test_word_vectors_are_the_rows_that_the_tokenizer_would_look_up(checkpoint, text):
    vector_encoder = checkpoint_vector_encoder(checkpoint)
    found = vector_encoder.word_vectors(text)
    assert list(found) == list(vector_encoder.widths)
    embeds, _ = checkpoint.encode_text([text])
    torch.testing.assert_close(
        vector_encoder({name: rows[None] for name, rows in found.items()}).embeds, embeds, rtol=0, atol=1e-5
    )


def test_learning_starts_with_neutral_vectors_before_the_words():
    vector_encoder = tiny_vector_encoder()
    table, end = vector_encoder.towers[0].table.weight, vector_encoder.end_vectors["clip_l"]
    started = start_vectors(vector_encoder, 3, " 5 7 ")["clip_l"]
    torch.testing.assert_close(started, torch.stack([end, table[5], table[7]]), rtol=0, atol=0)
    torch.testing.assert_close(start_vectors(vector_encoder, 2)["clip_l"], end.expand(2, -1), rtol=0, atol=0)
    torch.testing.assert_close(start_vectors(vector_encoder, 1, "5")["clip_l"], table[5:6], rtol=0, atol=0)


def test_start_words_that_do_not_fit_are_refused():
    with pytest.raises(EditingError, match=r"'1 2 3' are 3 tokens, but tokens is 2; set tokens to 3"):
        start_vectors(tiny_vector_encoder(), 2, "1 2 3")
    vector_encoder = tiny_vector_encoder()
    vector_encoder.word_vectors = lambda text: {"clip_l": torch.zeros(0, vector_encoder.widths["clip_l"])}
    with pytest.raises(EditingError, match="cannot begin from 'embedding:lost'"):
        start_vectors(vector_encoder, 2, "embedding:lost")
