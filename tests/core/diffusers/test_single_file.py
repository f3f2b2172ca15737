"""Single-file checkpoints without a network: tiny models in the original key layout against the same weights as a
diffusers folder.
"""

import socket
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from semantic_editing import cli
from semantic_editing.benchmarks.original_layout import original
from semantic_editing.core.diffusers import single_file
from semantic_editing.core.diffusers.checkpoint import load_checkpoint
from semantic_editing.core.diffusers.checkpoint_shapes import configurations, family_of
from semantic_editing.core.errors import EditingError

LAYERS = 2  # of the text towers as diffusers uses them; SD 2's file has one more
WIDTH, WIDTH_2, POOLED = 16, 64, 24
CHANNELS = (32, 64)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("something wants to go online")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# Tiny models
# ----------------------------------------------------------------------------------------------------------------


def text_encoder(kind, width, is_open):
    from transformers import CLIPTextConfig

    return kind(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=LAYERS,
            num_attention_heads=1,
            projection_dim=POOLED,
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
            hidden_act="gelu" if is_open else "quick_gelu",
        )
    )


def tiny_pipeline(family):
    """A random model of the family as diffusers' pipeline, heads as in the real ones."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    xl = family == "sdxl"
    options = {
        "sample_size": 8,
        "block_out_channels": CHANNELS,
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH + WIDTH_2 if xl else WIDTH,
        "attention_head_dim": 8 if family == "sd1" else (1, 1),
        "use_linear_projection": family != "sd1",
        "down_block_types": ("DownBlock2D" if xl else "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D" if xl else "CrossAttnUpBlock2D"),
    }
    if xl:
        options |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 6 * 4 + POOLED,
            "transformer_layers_per_block": (1, 2),
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**options)
        vae = AutoencoderKL(
            block_out_channels=(32, 32, 32, 32),
            layers_per_block=1,
            latent_channels=4,
            scaling_factor=0.13025 if xl else 0.18215,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        first = text_encoder(CLIPTextModel, WIDTH, family == "sd2")
        second = text_encoder(CLIPTextModelWithProjection, WIDTH_2, True) if xl else None
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction" if family == "sd2" else "epsilon",
    )
    tokenizer = CLIPTokenizer.from_pretrained(
        single_file.CLIP_TOKENIZER, pad_token="!" if family == "sd2" else "<|endoftext|>"
    )
    parts = {"unet": unet, "vae": vae, "text_encoder": first, "tokenizer": tokenizer, "scheduler": scheduler}
    if xl:
        tokenizer_2 = CLIPTokenizer.from_pretrained(single_file.CLIP_TOKENIZER, pad_token="!")
        return StableDiffusionXLPipeline(text_encoder_2=second, tokenizer_2=tokenizer_2, **parts)
    return StableDiffusionPipeline(safety_checker=None, feature_extractor=None, requires_safety_checker=False, **parts)


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def model(request, tmp_path_factory):
    """(family, single file, diffusers folder) of the same weights."""
    family, folder = request.param, tmp_path_factory.mktemp(request.param)
    pipeline = tiny_pipeline(family)
    tensors = original(pipeline, family)
    if family == "sd2":  # the mark of v-prediction
        key = "model.diffusion_model.output_blocks.3.1.transformer_blocks.0.norm1.bias"
        tensors[key] = torch.linspace(-0.3, 0.3, CHANNELS[0])
        pipeline.unet.up_blocks[1].attentions[1].transformer_blocks[0].norm1.bias.data.copy_(tensors[key])
    pipeline.save_pretrained(folder / "folder")
    save_file(tensors, folder / "model.safetensors")
    return family, folder / "model.safetensors", folder / "folder"


def test_it_is_the_same_model_as_the_folder(model):
    family, file, folder = model
    ours, theirs = load_checkpoint(file), load_checkpoint(folder)
    texts = ["a photo of a cat", "a dog, at night"]
    embeds, pooled = ours.encode_text(texts)
    expected, expected_pooled = theirs.encode_text(texts)
    torch.testing.assert_close(embeds, expected, rtol=0, atol=1e-6)
    assert ours.encoder_name == theirs.encoder_name and ours.patch == theirs.patch
    if family == "sdxl":
        torch.testing.assert_close(pooled, expected_pooled, rtol=0, atol=1e-6)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    latent = ours.encode_image(image)
    torch.testing.assert_close(latent, theirs.encode_image(image), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.decode(latent), theirs.decode(latent), rtol=0, atol=1e-6)
    denoised = ours.denoiser()(latent, 3.0, ours.cond(embeds[:1], None if pooled is None else pooled[:1]))
    wanted = theirs.denoiser()(latent, 3.0, theirs.cond(embeds[:1], None if pooled is None else pooled[:1]))
    torch.testing.assert_close(denoised, wanted, rtol=0, atol=1e-5)
    assert ours.denoiser().identity == theirs.denoiser().identity


def test_the_command_line_edits_with_it(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    arguments = [
        "edit",
        "--model",
        str(model[1]),
        "--image",
        str(tmp_path / "in.png"),
        "--out",
        str(tmp_path / "out.png"),
    ]
    words = ["--source", "cat", "--target", "dog", "--steps", "2", "--sentences", "2", "--size", "32"]
    assert cli.main([*arguments, *words]) == 0
    assert Image.open(tmp_path / "out.png").size == (48, 32)


def test_padding_of_the_texts(model):
    family, file, _ = model
    pipeline = load_checkpoint(file).pipeline
    ids = pipeline.tokenizer("cat", padding="max_length").input_ids
    assert len(ids) == 77 and ids[:3] == [49406, 2368, 49407] and set(ids[3:]) == ({0} if family == "sd2" else {49407})
    if family == "sdxl":
        assert set(pipeline.tokenizer_2("cat", padding="max_length").input_ids[3:]) == {0}


# Prediction and family
# ------------------------------------------------------------------------------------------------------


def minimal(family="sd1", **more):
    """Names and shapes by which a family is known."""
    texts = {
        "sd1": ["cond_stage_model.transformer.text_model.x"],
        "sd2": ["cond_stage_model.model.x"],
        "sdxl": ["conditioner.embedders.0.transformer.text_model.x", "conditioner.embedders.1.model.x"],
    }[family]
    names = ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x", *texts]
    return dict.fromkeys(names, (1,)) | more


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_family_by_the_text_encoders(family):
    assert family_of(minimal(family)) == family


@pytest.mark.parametrize(
    ("drop", "add", "said"),
    [
        ("model.diffusion_model.", "lora_unet_down_blocks_0.lora_up.weight", "no Stable Diffusion U-Net"),
        (
            "model.diffusion_model.",
            "model.diffusion_model.double_blocks.0.img_attn.qkv.weight",
            "another kind of diffusion model",
        ),
        ("first_stage_model.", None, "no VAE"),
        ("cond_stage_model.", None, "no text encoder"),
        ("cond_stage_model.", "conditioner.embedders.0.model.x", "refiner"),
    ],
)
def test_other_files_are_refused_by_what_they_are(drop, add, said):
    shapes = {key: value for key, value in minimal().items() if not key.startswith(drop)} | ({add: (1,)} if add else {})
    with pytest.raises(EditingError, match=said):
        family_of(shapes, "x.safetensors")


@pytest.fixture(scope="module")
def sd1_tensors():
    return original(tiny_pipeline("sd1"), "sd1")


def test_what_is_predicted_is_found_in_the_file_or_told(tmp_path, sd1_tensors):
    def predicted(metadata=None, told=None, **tensors):
        save_file(sd1_tensors | tensors, tmp_path / "m.safetensors", metadata=metadata)
        return single_file.describe(tmp_path / "m.safetensors", told)

    assert predicted().prediction == "epsilon"
    assert predicted({"modelspec.prediction_type": "v"}).prediction == "v_prediction"
    assert predicted({"modelspec.prediction_type": "epsilon"}, v_pred=torch.ones(1)).prediction == "epsilon"
    assert predicted(told="v_prediction").prediction == "v_prediction"
    rescaled = predicted(v_pred=torch.ones(1), ztsnr=torch.ones(1))
    assert rescaled.prediction == "v_prediction" and rescaled.zero_terminal_snr
    with pytest.raises(EditingError, match="EDM noise schedule"):
        predicted(edm_mean=torch.ones(1))


def test_a_file_with_a_hole_is_refused(tmp_path, sd1_tensors):
    for lost in (
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "first_stage_model.decoder.conv_out.bias",
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
    ):
        save_file({key: value for key, value in sd1_tensors.items() if key != lost}, tmp_path / "m.safetensors")
        with pytest.raises(EditingError, match="lacks parts"):
            load_checkpoint(tmp_path / "m.safetensors")


def test_inpainting_models_are_refused_before_an_edit(tmp_path, sd1_tensors):
    key = "model.diffusion_model.input_blocks.0.0.weight"
    save_file(sd1_tensors | {key: torch.zeros(CHANNELS[0], 9, 3, 3)}, tmp_path / "m.safetensors")
    with pytest.raises(EditingError, match="9 channels"):
        load_checkpoint(tmp_path / "m.safetensors").denoiser()


# The real sizes, against the published configurations
# ------------------------------------------------------------------------

SD1 = {
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD2 = SD1 | {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
SDXL = {
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
}
CLIP_H = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
}


@pytest.mark.parametrize(
    ("family", "prediction", "unet", "texts", "side"),
    [
        ("sd1", "epsilon", SD1, [CLIP_L], 64),
        ("sd2", "v_prediction", SD2, [CLIP_H], 96),
        ("sd2", "epsilon", SD2, [CLIP_H], 64),
        ("sdxl", "epsilon", SDXL, [CLIP_L, CLIP_G | {"projection_dim": 1280}], 128),
    ],
)
def test_the_published_configurations_are_found(family, prediction, unet, texts, side):
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    vae = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4}
    vae |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    with torch.device("meta"):  # no weights, only their names and shapes
        pipeline = SimpleNamespace(unet=UNet2DConditionModel(**unet), vae=AutoencoderKL(**vae))
        pipeline.text_encoder = CLIPTextModel(CLIPTextConfig(vocab_size=49408, **texts[0]))
        if family == "sdxl":
            pipeline.text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=49408, **texts[1]))
    shapes = {key: tuple(value.shape) for key, value in original(pipeline, family).items()}
    found = configurations(shapes, family_of(shapes), prediction)
    names = ("unet", "vae", "text_encoder", "text_encoder_2")
    for name, wanted in zip(names, [unet | {"in_channels": 4, "sample_size": side}, vae, *texts], strict=False):
        assert {key: found[name][key] for key in wanted} == wanted
    assert found["vae"]["scaling_factor"] == (0.13025 if family == "sdxl" else 0.18215)
    assert len(found) == 2 + len(texts)
