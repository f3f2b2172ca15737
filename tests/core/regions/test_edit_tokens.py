"""The token editor on a tiny random aMUSEd: against diffusers' own inpainting pipeline, the box, cost, seeds, files,
refusals."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from diffusers import AmusedInpaintPipeline, AmusedScheduler, UVit2DModel, VQModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from semantic_editing.core.demo.data import TOKENIZER
from semantic_editing.core.errors import CutTextWarning, EditingError
from semantic_editing.core.regions.edit_tokens import TokenEditor, TokenEditSettings, TokenModel, load_token_model
from semantic_editing.core.regions.paste import Framing

WIDTH, CODES, MASK = 16, 24, 24
TEXT, BOX = "a face with glasses", (8, 4, 12, 8)


def parts(seed=0, lookup=True):
    """4 pixels to a token, a codebook of 24 and the mask token after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vqvae = VQModel(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=4,
            num_vq_embeddings=CODES,
            mid_block_add_attention=False,
            lookup_from_codebook=lookup,
        )
        # diffusers starts it within 1/24 of zero: pictures would hardly differ
        vqvae.quantize.embedding.weight.data.normal_()
        transformer = UVit2DModel(
            hidden_size=WIDTH,
            cond_embed_dim=WIDTH,
            micro_cond_encode_dim=2,
            micro_cond_embed_dim=10,
            encoder_hidden_size=WIDTH,
            vocab_size=CODES + 1,
            codebook_size=CODES,
            in_channels=WIDTH,
            block_out_channels=WIDTH,
            num_res_blocks=1,
            block_num_heads=2,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=WIDTH,
            sample_size=6,
        )
        text_encoder = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=WIDTH,
                projection_dim=WIDTH,
                intermediate_size=WIDTH,
                num_hidden_layers=2,
                num_attention_heads=2,
                bos_token_id=49406,
                eos_token_id=49407,
            )
        )
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER, local_files_only=True, model_max_length=77)
    return {
        "vqvae": vqvae,
        "transformer": transformer,
        "scheduler": AmusedScheduler(mask_token_id=MASK),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
    }


@pytest.fixture(scope="module")
def components(one_thread):
    return parts()


@pytest.fixture
def model(components):
    return TokenModel(**components)


def picture(height=24, width=24):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(5))


def render(edit, image=None, box=BOX, **options):
    image = picture() if image is None else image
    return edit.render(image, torch.ones(1, *image.shape[-2:]), box, **({"seed": 3} | options))


def whole(**options):
    return Framing(float("inf"), 4, **({"feather": 0} | options))


def cells(box=BOX, height=24, width=24):
    x, y, box_width, box_height = box
    grid = torch.zeros(1, height // 4, width // 4, dtype=torch.bool)
    grid[:, y // 4 : (y + box_height + 3) // 4, x // 4 : (x + box_width + 3) // 4] = True
    return grid


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_is_diffusers_own_inpainting_inside_the_box(components, model, cfg):
    """The same tokens drawn by the same generator; of them only the box is pasted."""
    image, mask = (
        picture(32, 32),
        torch.zeros(1, 1, 32, 32),
    )  # 8 x 8 tokens: the pipeline's mask knows multiples of 4 tokens only
    mask[..., 4:12, 8:20] = 1
    pipeline = AmusedInpaintPipeline(**components)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        TEXT,
        image,
        mask,
        num_inference_steps=5,
        guidance_scale=cfg,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
    ).images
    result = render(TokenEditor(model, TEXT, settings=TokenEditSettings(cfg=cfg, steps=5, framing=whole())), image)
    torch.testing.assert_close(result[..., 4:12, 8:20], expected[..., 4:12, 8:20], rtol=0, atol=1e-5)
    outside = torch.ones(32, 32, dtype=torch.bool)
    outside[4:12, 8:20] = False
    assert torch.equal(result[..., outside], image[..., outside])
    assert not torch.equal(result, image) and model.evaluations.forward == 5 * (1 if cfg == 1 else 2)


@torch.no_grad()
def test_a_text_that_is_cut_is_told(model):
    with pytest.warns(CutTextWarning, match=r"^The text 'a face .* fills all 77 tokens .*\.$") as told:
        model.encode_text([TEXT, "a face " * 40])
    assert len(told) == 1


@torch.no_grad()
def test_tokens_outside_the_box_stay_and_inside_none_is_masked(model):
    tokens, heard = model.encode(picture()), []
    text = model.encode_text(["", TEXT])
    known = tokens.clone()
    painted = model.repaint(
        tokens,
        cells(),
        text,
        cfg=4.0,
        steps=6,
        generator=torch.Generator().manual_seed(0),
        callback=lambda p: heard.append(p.denoised),
    )
    assert torch.equal(tokens, known) and torch.equal(painted[~cells()], known[~cells()])
    assert int(painted.min()) >= 0 and int(painted.max()) < CODES
    forgotten = [int((state == MASK).sum()) for state in heard]
    assert forgotten == sorted(forgotten, reverse=True) and forgotten[0] < 6 and forgotten[-1] == 0 and len(heard) == 6
    # Among confident rounds MaskGIT keeps what it drew: a token once known never changes.
    for before, after in pairwise(heard):
        assert torch.equal(after[before != MASK], before[before != MASK])


@torch.no_grad()
def test_a_forgotten_token_has_no_influence(model):
    """Whatever the box held, the prediction is the same: other pictures of the box, the same tokens."""
    first = model.encode(picture())
    other = torch.where(cells(), (first + 7) % CODES, first)
    text = model.encode_text(["", TEXT])
    runs = [
        model.repaint(t, cells(), text, steps=3, generator=torch.Generator().manual_seed(1)) for t in (first, other)
    ]
    assert torch.equal(*runs)
    known = torch.where(cells(), first, (first + 7) % CODES)
    cond = {"micro_conds": torch.ones(1, 5), "pooled_text_emb": text[0][:1], "encoder_hidden_states": text[1][:1]}
    logits = [model.transformer(t.masked_fill(cells(), MASK), **cond) for t in (first, known)]
    assert not torch.equal(*logits)


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_cost_is_what_is_spent(model, cfg):
    edit = TokenEditor(model, TEXT, settings=TokenEditSettings(cfg=cfg, steps=4))
    render(edit)
    assert model.evaluations.forward == edit.cost() == 4 * (1 if cfg == 1 else 2)


@pytest.mark.parametrize("box", [(0, 0, 5, 30), (49, 28, 1, 2), (21, 9, 3, 2), (0, 0, 50, 30)])
def test_only_the_box_changes(model, box):
    image = picture(30, 50)
    for framing in (None, whole(), Framing(0.0, 8)):
        result = render(TokenEditor(model, TEXT, settings=TokenEditSettings(steps=2, framing=framing)), image, box)
        x, y, width, height = box
        changed = (result != image).any(1)[0]
        assert changed[y : y + height, x : x + width].any()
        changed[y : y + height, x : x + width] = False
        assert not changed.any()


def test_same_seed_same_picture_and_the_global_generator_is_left_alone(model):
    edit = TokenEditor(model, TEXT, settings=TokenEditSettings(steps=3))
    before = torch.get_rng_state()
    first = render(edit)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    render(edit)
    assert torch.equal(render(edit), first) and not torch.equal(render(edit, seed=4), first)


def test_identity_names_what_decides_the_picture(model):
    same = TokenEditor(model, TEXT).identity
    assert same == TokenEditor(TokenModel(**parts()), TEXT).identity and same.startswith("tokens/")
    others = [
        TokenEditor(model, "a face with a beard"),
        TokenEditor(model, TEXT, settings=TokenEditSettings(cfg=2.0)),
        TokenEditor(model, TEXT, settings=TokenEditSettings(steps=3)),
        TokenEditor(model, TEXT, settings=TokenEditSettings(framing=whole())),
        TokenEditor(TokenModel(**parts(seed=1)), TEXT),
    ]
    assert len({same, *(other.identity for other in others)}) == 6


def test_a_saved_model_comes_back(components, model, tmp_path):
    for name, part in components.items():
        part.save_pretrained(tmp_path / name)
    index = {"_class_name": "AmusedPipeline"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    loaded = load_token_model(tmp_path)
    assert torch.equal(
        render(TokenEditor(loaded, TEXT, settings=TokenEditSettings(steps=2))),
        render(TokenEditor(model, TEXT, settings=TokenEditSettings(steps=2))),
    )
    assert (
        loaded.patch == 4
        and loaded.native_size == 24
        and not any(p.requires_grad for p in loaded.transformer.parameters())
    )

    (tmp_path / "transformer" / "config.json").unlink()
    with pytest.raises(EditingError, match=r"config\.json was not found; download the model again"):
        load_token_model(tmp_path)
    index["_class_name"] = "StableDiffusionPipeline"
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(EditingError, match="is a StableDiffusionPipeline; the token editor needs an aMUSEd model"):
        load_token_model(tmp_path)
    for text in ("{", "[]", "{}"):
        (tmp_path / "model_index.json").write_text(text)
        with pytest.raises(EditingError, match=r"model_index\.json (is damaged|holds damaged)"):
            load_token_model(tmp_path)
    with pytest.raises(EditingError, match="no diffusers model"):
        load_token_model(tmp_path / "nowhere")


def test_bad_settings_are_refused(model):
    for options, words in [
        ({"steps": 0}, "steps is 0"),
        ({"cfg": 0.5}, "cfg is 0.5"),
        ({"framing": Framing(multiple=6)}, "multiple of 4 pixels"),
    ]:
        with pytest.raises(EditingError, match=words):
            TokenEditor(model, TEXT, settings=TokenEditSettings(**options))
    with pytest.raises(EditingError, match="target text is empty"):
        TokenEditor(model, "  ")
    with pytest.raises(EditingError, match="outside the image"):
        render(TokenEditor(model, TEXT), box=(20, 0, 10, 10))
    with pytest.raises(EditingError, match="empty within the box"):
        TokenEditor(model, TEXT).render(picture(), torch.zeros(1, 24, 24), BOX, seed=0)
    with pytest.raises(EditingError, match="one token"):
        render(TokenEditor(model, TEXT, settings=TokenEditSettings(framing=Framing(0.0, 4))), box=(5, 5, 2, 2))
    with pytest.raises(EditingError, match="codebook"):
        TokenModel(**parts(lookup=False))
