"""CASO's seams on real hosts: token vectors in place of words, and gradients from an image back to them, inside a
prompt.
"""

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models_base
import comfy.taesd.taesd
import comfy.text_encoders.sd2_clip as sd2_clip
import folder_paths
import pytest
import safetensors.torch
import torch
from conftest import PACK, noise
from test_parts import SMALL

import nodes

KINDS = {
    "sd1": (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
    "sd2": (sd2_clip.SD2Tokenizer, sd2_clip.SD2ClipModel),
    "sdxl": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
}
WORD = "cat"


def tiny_clip(kind, folder=None):
    options = {"dtype": torch.float32, "clip_l_model_config": SMALL}
    options |= {"clip_g_model_config": SMALL | {"hidden_size": 64}, "clip_h_model_config": SMALL | {"hidden_size": 48}}
    clip = comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(*KINDS[kind]), embedding_directory=folder, model_options=options
    )
    generator = torch.Generator().manual_seed(3)
    for parameter in clip.cond_stage_model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return clip


def table(clip, name):
    return getattr(clip.cond_stage_model, name).transformer.get_input_embeddings().weight


def rows_of(clip, text):
    """Encoder -> the table rows of the words of ``text``, ``[1, n, D]``."""
    found = {}
    for key, (block,) in clip.tokenize(text).items():
        ids = [token for token, _ in block]
        end = ids.index(49407)
        found[f"clip_{key}"] = table(clip, f"clip_{key}")[ids[1:end]][None].clone()
    return found


def stock(clip, text):
    return nodes.CLIPTextEncode().encode(clip, text)[0]


def assert_same(found, expected):
    ((states, options),), ((wanted, others),) = found, expected
    torch.testing.assert_close(states, wanted, rtol=0, atol=1e-5)
    assert options.keys() == others.keys()
    if others["pooled_output"] is not None:
        torch.testing.assert_close(options["pooled_output"], others["pooled_output"], rtol=0, atol=1e-5)


@pytest.fixture(scope="module", params=KINDS)
def clip(request):
    with torch.inference_mode():  # as a loader node would
        return tiny_clip(request.param)


@pytest.mark.parametrize("text", [WORD, "two cats", ""])
@torch.inference_mode()
def test_a_words_table_rows_give_its_stock_conditioning(pack, clip, text):
    encoder = pack("nodes.host.tokens").HostVectorEncoder(clip)
    assert_same(encoder(rows_of(clip, text)), stock(clip, text))
    assert_same(encoder({name: rows[None] for name, rows in encoder.word_vectors(text).items()}), stock(clip, text))
    assert encoder.encoder_name == pack("nodes.host.conditioning").text_encoder_name(clip)
    for name, vector in encoder.end_vectors.items():
        torch.testing.assert_close(vector, table(clip, name)[49407])


@torch.inference_mode()
def test_the_chosen_layer_is_respected(pack):
    clip = tiny_clip("sd1")
    clip.clip_layer(-2)
    assert_same(pack("nodes.host.tokens").HostVectorEncoder(clip)(rows_of(clip, WORD)), stock(clip, WORD))


def test_gradient_of_the_encoder_is_the_finite_difference_and_rows_are_prompts_of_their_own(pack, clip):
    with torch.inference_mode():
        vector_encoder = pack("nodes.host.tokens").SessionVectorEncoder(clip)
        before = stock(clip, "a photo of a cat")
        with pack("nodes.host.gradients").gradient_scope(True):
            clip.load_model()
            pack("nodes.host.gradients").materialise(vector_encoder.patcher.model, torch.device("cpu"))
            leaves = {
                name: (noise(2, 2, width, seed=4) * 0.1).requires_grad_()
                for name, width in vector_encoder.widths.items()
            }
            mixed = {name: noise(*leaf.shape, seed=5) for name, leaf in leaves.items()}
            weights = noise(2, 77, sum(vector_encoder.widths.values()), seed=6)

            def loss(vectors):
                states, pooled = vector_encoder.encode(vectors)
                value = (states.double() * weights).sum()
                return value if pooled is None else value + pooled.double().square().sum()

            gradients = torch.autograd.grad(loss(leaves), list(leaves.values()))
            step = 3e-3
            ends = [
                loss({name: leaf.detach() + sign * step * mixed[name] for name, leaf in leaves.items()})
                for sign in (1, -1)
            ]
            joined, _ = vector_encoder.encode(leaves)
            single, _ = vector_encoder.encode({name: leaf[1:] for name, leaf in leaves.items()})
        expected = float(ends[0] - ends[1]) / (2 * step)
        found = sum(float((gradient * mixed[name]).sum()) for name, gradient in zip(leaves, gradients, strict=True))
        assert abs(expected) > 1e-3 and found == pytest.approx(expected, rel=2e-2)
        torch.testing.assert_close(joined[1:], single, rtol=0, atol=1e-5)
        assert not any(module._forward_pre_hooks for module in vector_encoder.patcher.model.modules())
        assert_same(stock(clip, "a photo of a cat"), before)


def test_vectors_of_another_model_are_refused(pack):
    encoder = pack("nodes.host.tokens").HostVectorEncoder(tiny_clip("sd1"))
    with pytest.raises(ValueError, match="for clip_l 768, but"):
        encoder({"clip_l": torch.zeros(1, 1, 768)})


def test_a_text_encoder_of_another_kind_is_refused(pack):
    clip = tiny_clip("sd1")
    clip.tokenize = lambda text: {"t5xxl": [[]]}
    with pytest.raises(ValueError, match=r"use the CLIP of an SD 1\.x"):
        pack("nodes.host.tokens").HostVectorEncoder(clip)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@torch.inference_mode()
def test_a_saved_embedding_is_the_same_in_the_stock_node(pack, tmp_path, kind):
    clip = tiny_clip(kind, [str(tmp_path)])
    encoder = pack("nodes.host.tokens").HostVectorEncoder(clip)
    vectors = {name: noise(2, width, seed=8) * 0.1 for name, width in encoder.widths.items()}
    made = pack("core.caso.embedding").SemanticEmbedding(vectors, encoder.encoder_name, "mouth", "smile")
    made.save(tmp_path / "my_attribute.safetensors")
    assert_same(made.condition(encoder), stock(clip, "embedding:my_attribute"))
    again = encoder.word_vectors(f"embedding:my_attribute {WORD}")
    for name, rows in again.items():
        torch.testing.assert_close(rows, torch.cat([vectors[name], rows_of(clip, WORD)[name][0]]), rtol=0, atol=0)


def files_of_other_programs(folder):
    """Name -> whether it is for SDXL; every layout that the host reads from a prompt, with vectors of true widths."""

    def made(rows, width, seed=0):
        return noise(rows, width, seed=seed) * 0.1

    both = {"clip_l": made(2, 768), "clip_g": made(4, 1280)}
    plain = {
        "single": {"emb_params": made(2, 768)},
        "single_g": {"emb_params": made(2, 1280)},
        "flat": {"<thing>": made(1, 768)[0]},
        "unequal": both,
        "l_alone": {"clip_l": made(3, 768)},
        "g_alone": {"clip_g": made(3, 1280)},
        "bundle": {
            "bundle_emb.b.clip_l": made(1, 768),
            "bundle_emb.a.clip_l": made(2, 768, 1),
            "bundle_emb.a.clip_g": made(1, 1280),
        }
        | {"lora_unet.lora_up.weight": made(2, 2)},
        "bundle_old": {"bundle_emb.b.string_to_param.*": made(1, 768), "lora_unet.alpha": made(1, 1)},
    }
    pickled = {
        "a1111": {"string_to_token": {"*": 265}, "string_to_param": {"*": made(2, 768)}, "name": "x", "step": 1},
        "list": [{"<a>": made(2, 768)}, {"<b>": made(1, 1280)}, {"<c>": made(1, 768)[0], "<d>": made(2, 1280, 2)}],
        "both": both,
    }
    for name, tensors in plain.items():
        safetensors.torch.save_file(tensors, folder / f"{name}.safetensors")
    for old in (False, True):
        for name, value in pickled.items():
            torch.save(value, folder / f"{name}_{old}.pt", _use_new_zipfile_serialization=not old)
    return sorted(folder.iterdir())


def test_every_layout_is_read_as_the_hosts_own_loader_reads_it(pack, tmp_path):
    """``load_embed``, which every tokenizer calls with its width and name; rows of another width are ignored there."""
    paths = files_of_other_programs(tmp_path)
    assert len(paths) == 14
    for path in paths:
        found = pack("core.caso.embedding").SemanticEmbedding.load(path).vectors
        for name, width in {"clip_l": 768, "clip_g": 1280}.items():
            theirs = comfy.sd1_clip.load_embed(path.name, [str(tmp_path)], width, name)
            theirs = theirs[None] if theirs.ndim == 1 else theirs
            if theirs.shape[-1] == width:
                torch.testing.assert_close(found[name], theirs, rtol=0, atol=0, msg=f"{path.name} {name}")
            else:
                assert name not in found, path.name


@pytest.mark.parametrize("counts", [(1, 3), (2, 0), (0, 2)])
@torch.inference_mode()
def test_unequal_and_missing_vectors_give_the_stock_conditioning(pack, tmp_path, counts):
    clip = tiny_clip("sdxl", [str(tmp_path)])
    encoder = pack("nodes.host.tokens").HostVectorEncoder(clip)
    vectors = {
        name: noise(count, encoder.widths[name], seed=8) * 0.1
        for name, count in zip(("clip_l", "clip_g"), counts, strict=True)
        if count
    }
    safetensors.torch.save_file(vectors, tmp_path / "mine.safetensors")
    made = pack("core.caso.embedding").SemanticEmbedding.load(tmp_path / "mine.safetensors")
    assert_same(made.condition(encoder), stock(clip, "embedding:mine"))
    loader = pack("nodes.caso.embeddings")
    assert loader.prompt_text(clip, "mine.safetensors", made) == ("embedding:mine", "")
    said = loader.silent_encoders(made, encoder)
    assert len(said) == (0 in counts) and all("alone" in line and "empty prompt" in line for line in said)


@torch.inference_mode()
def test_what_the_host_reads_only_a_part_of_has_no_prompt_text(pack, tmp_path):
    """SDXL embeddings by numbered encoders: the host puts the first one's vectors before the second, which ignores
    them."""
    clip = tiny_clip("sdxl", [str(tmp_path)])
    encoder = pack("nodes.host.tokens").HostVectorEncoder(clip)
    names = dict(zip(("text_encoders_0", "text_encoders_1"), encoder.names, strict=True))
    vectors = {key: noise(2, encoder.widths[name], seed=3) * 0.1 for key, name in names.items()}
    safetensors.torch.save_file(vectors, tmp_path / "numbered.safetensors")
    made = pack("core.caso.embedding").SemanticEmbedding.load(tmp_path / "numbered.safetensors")
    assert_same(encoder({name: vectors[key][None] for key, name in names.items()}), made.condition(encoder))
    text, why = pack("nodes.caso.embeddings").prompt_text(clip, "numbered.safetensors", made)
    assert text == "" and "only a part" in why and len(why) <= 300


@torch.inference_mode()
def test_text_for_a_prompt_is_what_the_host_finds(pack, tmp_path):
    """Tried with the host's own tokenizer: a plain name, one with brackets, one with a space."""
    clip = tiny_clip("sd1", [str(tmp_path)])
    rows = noise(2, table(clip, "clip_l").shape[1])
    embedding = pack("core.caso.embedding").SemanticEmbedding({"clip_l": rows})
    spell = pack("nodes.caso.embeddings").prompt_text
    found = {}
    for name in ("plain", "face(old)", "my face", "face (old)"):
        safetensors.torch.save_file({"emb_params": rows}, tmp_path / f"{name}.safetensors")
        found[name], why = spell(clip, f"{name}.safetensors", embedding)
        assert bool(why) != bool(found[name])
    assert found["plain"] == "embedding:plain" and found["my face"] == found["face (old)"] == ""
    assert found["face(old)"] in ("", r"embedding:face\(old\)")
    assert "rename the file" in spell(None, "my face.pt", embedding)[1]
    assert spell(None, "face.pt", embedding) == ("embedding:face", "")


demo_only = pytest.mark.skipif(not (PACK / "assets" / "demo" / "unet").is_dir(), reason="assets/demo is not there")


@demo_only
def test_the_demo_clip_finds_embeddings(pack, tmp_path, monkeypatch):
    paths = dict(folder_paths.folder_names_and_paths)
    paths["embeddings"] = ([str(tmp_path)], paths["embeddings"][1])
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", paths)
    with torch.inference_mode():
        clip = pack("nodes.demo.comfy_model").load_demo_model()[1]
        encoder = pack("nodes.host.tokens").HostVectorEncoder(clip)
        assert_same(encoder(rows_of(clip, "smiling")), stock(clip, "smiling"))
        made = pack("core.caso.embedding").SemanticEmbedding(
            {"clip_l": noise(1, encoder.widths["clip_l"])}, encoder.encoder_name
        )
        made.save(tmp_path / "mine.safetensors")
        assert_same(made.condition(encoder), stock(clip, "embedding:mine"))


@demo_only
def test_gradient_through_the_whole_demo_model_is_the_finite_difference(pack):
    """Vectors -> text encoder -> U-Net -> VAE -> classifier, all loaded inside a prompt as stock loaders do."""
    with torch.inference_mode():
        model, clip, vae = pack("nodes.demo.comfy_model").load_demo_model()
        held = pack("nodes.host.managed_models").manage_classifier(
            lambda: pack("core.classifiers.loaders").load_image_classifier(
                PACK / "assets" / "demo" / "classifier.safetensors"
            )
        )
        vector_encoder, decoder = (
            pack("nodes.host.tokens").SessionVectorEncoder(clip),
            pack("nodes.host.vae").SessionDecoder(vae),
        )

        def work(session):
            vector_encoder.bind(session), decoder.bind(session)
            x = noise(2, 4, 8, 8, seed=2) * 2
            start = vector_encoder.end_vectors["clip_l"].expand(1, 1, -1)

            def loss(vectors):
                images = decoder(session.denoiser(x, torch.tensor([1.0, 2.0]), vector_encoder({"clip_l": vectors})))
                assert images.shape == (2, 3, 64, 64)
                return held.classifier.logits(images)["mouth"].double().square().mean()

            leaf = start.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(leaf), [leaf])
            # Steepest uphill the change of the loss stands out from what fp32 rounds away; a part missing in the
            # gradient would show.
            direction = gradient / gradient.norm() * vector_encoder.token_scale["clip_l"] * start.numel() ** 0.5
            with torch.no_grad():
                ends = [loss(start + sign * 1e-2 * direction) for sign in (1, -1)]
            parameters = [
                p
                for patcher in (vector_encoder.patcher, decoder.patcher, held.patcher)
                for p in patcher.model.parameters()
            ]
            assert not any(p.requires_grad or p.grad is not None for p in parameters)
            return float((gradient * direction).sum()), float(ends[0] - ends[1]) / 2e-2, gradient

        empty = {"samples": torch.zeros(2, 4, 8, 8)}
        additional_models = [vector_encoder.patcher, decoder.patcher, held.patcher]
        conds = {"positive": stock(clip, "")}
        found, expected, gradient = pack("nodes.host.sampling").run(
            model, empty, conds, work, gradients=True, additional_models=additional_models
        )
    assert float(gradient.norm()) > 0
    assert found == pytest.approx(expected, rel=0.02)


@demo_only
@pytest.mark.parametrize("tiny", [False, True], ids=["demo", "taesd"])
def test_decoder_is_the_stock_one_before_clipping(pack, tiny):
    with torch.inference_mode():
        model, clip, vae = pack("nodes.demo.comfy_model").load_demo_model()
        images = noise(3, 40, 48, 3).sigmoid()
        latent = pack("nodes.host.vae").encode_images(vae, images, batch_size=2)
        torch.testing.assert_close(
            latent["samples"], nodes.VAEEncode().encode(vae, images)[0]["samples"], rtol=1e-4, atol=1e-4
        )
        if tiny:
            values = comfy.taesd.taesd.TAESD().state_dict()  # unset memory but for the scale
            weights = {name: noise(*value.shape, seed=1) * 0.05 for name, value in values.items() if value.ndim}
            vae = comfy.sd.VAE(sd=weights | {"vae_scale": torch.tensor(0.2), "vae_shift": torch.tensor(0.0)})
        decoder = pack("nodes.host.vae").SessionDecoder(vae, gradient_checkpointing=True)
        clean = pack("nodes.host.latents").latent_to_model(model, latent)
        conds = {"positive": stock(clip, "")}

        def work(session):
            leaf = clean.clone().requires_grad_()
            found = decoder.bind(session)(leaf)
            (gradient,) = torch.autograd.grad(found.sum(), leaf)
            return found.detach(), gradient

        found, gradient = pack("nodes.host.sampling").run(
            model, latent, conds, work, gradients=True, additional_models=[decoder.patcher]
        )
        expected = nodes.VAEDecode().decode(vae, latent)[0].movedim(-1, 1)
    torch.testing.assert_close(found.clamp(0, 1), expected, rtol=0, atol=1e-4)
    assert float(expected.std()) > 1e-3 and float(gradient.abs().max()) > 0


@pytest.mark.parametrize("images", [torch.zeros(0, 8, 8, 3), torch.full((1, 8, 8, 3), float("nan"))])
def test_pictures_that_cannot_be_encoded(pack, images):
    with pytest.raises(ValueError, match="pictures"):
        pack("nodes.host.vae").encode_images(None, images)
