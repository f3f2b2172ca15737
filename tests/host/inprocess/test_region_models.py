"""The token editor and the vision models of the region search inside the host, from their folders; the host may evict
them."""

import comfy.model_management as mm
import folder_paths
import pytest
import torch
from conftest import PACK
from test_regions import BOX, assert_only_the_box_changed, box_mask, picture, render

pytestmark = pytest.mark.skipif(not (PACK / "assets" / "demo" / "unet").is_dir(), reason="assets/demo is not there")


@pytest.fixture
def amused(tmp_path, monkeypatch):
    """The folder of a tiny random aMUSEd in models/diffusers: 4 pixels to a token, a codebook of 24."""
    from diffusers import AmusedScheduler, UVit2DModel, VQModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    home = tmp_path / "diffusers" / "more" / "amused"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vqvae = VQModel(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=4,
            num_vq_embeddings=24,
            mid_block_add_attention=False,
            lookup_from_codebook=True,
        )
        vqvae.quantize.embedding.weight.data.normal_()
        UVit2DModel(
            hidden_size=16,
            cond_embed_dim=16,
            micro_cond_encode_dim=2,
            micro_cond_embed_dim=10,
            encoder_hidden_size=16,
            vocab_size=25,
            codebook_size=24,
            in_channels=16,
            block_out_channels=16,
            num_res_blocks=1,
            block_num_heads=2,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            sample_size=6,
        ).save_pretrained(home / "transformer")
        CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=16,
                projection_dim=16,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                bos_token_id=49406,
                eos_token_id=49407,
            )
        ).save_pretrained(home / "text_encoder")
    vqvae.save_pretrained(home / "vqvae")
    AmusedScheduler(mask_token_id=24).save_pretrained(home / "scheduler")
    tokenizer = CLIPTokenizer.from_pretrained(
        PACK / "assets" / "clip_tokenizer", local_files_only=True, model_max_length=77
    )
    tokenizer.save_pretrained(home / "tokenizer")
    (home / "model_index.json").write_text('{"_class_name": "AmusedPipeline"}')
    paths = dict(folder_paths.folder_names_and_paths) | {"diffusers": ([str(tmp_path / "diffusers")], {"folder"})}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", paths)
    return home


def test_the_token_editor_node(pack, amused):
    """From the node to the picture, against the core's editor on the same folder; the host may evict the model between
    renders."""
    node, tokens = pack("nodes.regions.editors").RegionTokenEditor, pack("core.regions.edit_tokens")
    assert node.define_schema().inputs[0].options == ["more/amused"]
    widgets = {"steps": 3, "cfg": 4.0, "context": 0.5, "feather": 2}
    image, text = picture(), "a face with glasses"
    with torch.inference_mode():
        (editor,) = node.execute("more/amused", text, "", **widgets).result
    assert editor.title == "more/amused, masked tokens: 3 rounds, cfg 4"
    result = render(editor.open, image)
    assert_only_the_box_changed(result, image)
    mm.unload_all_models()
    assert torch.equal(result, render(editor.open, image))
    model = tokens.load_token_model(amused)
    framing = pack("core.regions.paste").Framing(0.5, 4, 24, 2)
    plain = tokens.TokenEditor(model, text, settings=tokens.TokenEditSettings(4.0, 3, framing=framing))
    torch.testing.assert_close(result, plain.render(image, box_mask(image), BOX, seed=5), rtol=0, atol=1e-5)

    def press(told):
        mm.interrupt_current_processing(True)

    with torch.inference_mode(), pytest.raises(mm.InterruptProcessingException):
        render(editor.open, image, progress=press)
    before = node.fingerprint_inputs("more/amused", text="", steps=3)
    (amused / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert node.fingerprint_inputs("more/amused", text="", steps=3) != before
    with pytest.raises(ValueError, match=r"is a StableDiffusionPipeline; the token editor needs an aMUSEd model\.$"):
        node.execute("more/amused", text, "", **widgets)
    with pytest.raises(ValueError, match="is not in ComfyUI's models/diffusers folder"):
        node.execute("amused", text, "", **widgets)


def test_vision_models_are_the_hosts_and_can_be_evicted(pack):
    model = pack("core.demo.model").load_demo_model()
    image = picture(64, 64)
    expected = pack("core.demo.builders").demo_vision_features(model)(image)
    towers = pack("core.demo.builders").demo_scorer(model)
    with torch.inference_mode():
        vision, scorer = (
            pack("nodes.host.managed_models").manage_vision(
                lambda: pack("core.demo.builders").demo_vision_features(model)
            ),
            pack("nodes.host.managed_models").manage_scorer(lambda: pack("core.demo.builders").demo_scorer(model)),
        )
        assert torch.equal(vision(image).attention, expected.attention) and vision.identity == expected.vision
        held = {
            id(loaded.model.model.network)
            for loaded in mm.current_loaded_models
            if hasattr(loaded.model.model, "network")
        }
        assert id(vision) in held
        mm.unload_all_models()
        assert torch.equal(vision(image).features, expected.features)
        assert scorer.identity == towers.identity
        assert torch.equal(scorer.text_features(["a face"]), towers.text_features(["a face"]))
        mm.unload_all_models()
    pixels = image.clone().requires_grad_()
    found = scorer.embed_images(pixels)
    assert torch.equal(found.similarity, towers.embed_images(image).similarity)
    (gradient,) = torch.autograd.grad(found.features[0, 0], pixels)
    assert gradient.abs().sum() > 0
    mm.unload_all_models()


def test_folders_and_files_are_choices(pack, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    for kind in ("vision_features", "clip_scorer", "region_networks"):
        monkeypatch.delitem(folder_paths.folder_names_and_paths, kind, raising=False)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    home = tmp_path / "vision_features"
    for name in (
        "dino/config.json",
        "dino/model.safetensors",
        "more/v2/config.json",
        "more/v2/deep/config.json",
        "more/own.safetensors",
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(b"{}")
    hosts = tmp_path / "clip_vision"
    paths = dict(folder_paths.folder_names_and_paths) | {"clip_vision": ([str(hosts)], {".safetensors", ".pt"})}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", paths)
    for name in ("more/own.safetensors", "clip.safetensors", "old.pt"):  # the first has a namesake, which comes first
        (hosts / name).parent.mkdir(parents=True, exist_ok=True)
        (hosts / name).write_bytes(b"{}")
    models, clips = (pack("nodes.host.folders").list_models(kind) for kind in ("vision_features", "clip_scorer"))
    assert models == ["dino", "more/own.safetensors", "more/v2", "clip.safetensors"]
    assert clips == ["clip.safetensors", "more/own.safetensors"]
    assert pack("nodes.host.folders").list_models("region_networks") == []
    found = pack("nodes.host.folders").resolve_model("vision_features", "clip.safetensors")
    assert found == hosts / "clip.safetensors"
    assert pack("nodes.host.folders").resolve_model("vision_features", "more/v2") == home / "more" / "v2"
    assert (
        pack("nodes.host.folders").resolve_model("vision_features", "more/own.safetensors")
        == home / "more" / "own.safetensors"
    )
    for name in ("../up", "more", "absent", "", ".", "/etc", "dino/../dino", "old.pt"):
        with pytest.raises(ValueError, match="is not in ComfyUI's models/vision_features folder nor"):
            pack("nodes.host.folders").resolve_model("vision_features", name)
    nodes_pack = pack("nodes.regions.models")
    before = nodes_pack.model_fingerprint("vision_features", "dino")
    (home / "dino" / "model.safetensors").write_bytes(b"longer")
    assert nodes_pack.model_fingerprint("vision_features", "dino") != before


def test_a_single_file_of_clip_vision_is_a_judge_and_sees(pack, tmp_path, monkeypatch):
    """As the host's dialog for missing models would have put it there."""
    from transformers import CLIPConfig, CLIPModel

    sides = {"num_hidden_layers": 1, "intermediate_size": 32}
    config = CLIPConfig(
        vision_config=sides | {"hidden_size": 128, "num_attention_heads": 2, "image_size": 16, "patch_size": 8},
        text_config=sides | {"hidden_size": 64, "num_attention_heads": 1},
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(tmp_path / "saved")
    hosts = tmp_path / "clip_vision"
    hosts.mkdir()
    (tmp_path / "saved" / "model.safetensors").rename(hosts / "tiny.safetensors")
    paths = dict(folder_paths.folder_names_and_paths) | {"clip_vision": ([str(hosts)], {".safetensors"})}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", paths)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    nodes = pack("nodes.regions.models")
    for node in (nodes.LoadCLIPScorer, nodes.LoadVisionFeatures):
        assert "tiny.safetensors" in node.define_schema().inputs[0].options
        assert node.validate_inputs("tiny.safetensors") is True
        assert "models/clip_vision; put the file" in node.validate_inputs("other.safetensors")
    with torch.inference_mode():
        scorer = nodes.LoadCLIPScorer.execute("tiny.safetensors", "").args[0]
        vision = nodes.LoadVisionFeatures.execute("tiny.safetensors", 0).args[0]
        assert scorer.text_features(["a face", "a dog"]).shape == (2, 16)
        assert scorer.embed_images(picture(20, 24)).similarity.shape == (1, 4, 4)
        assert vision(picture(32, 16)).attention.shape == (1, 2, 4, 2)
    mm.unload_all_models()
