"""What an inversion was made from: kept in files, compared where it is used, and absent in older files."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from semantic_editing.core.denoiser import ModelIdentity
from semantic_editing.core.errors import EditingError
from semantic_editing.core.inversion import Inversion, MadeFrom, Words
from semantic_editing.core.pix2pix_zero.guided_edit import CrossAttentionGuidance, CrossAttentionSettings
from semantic_editing.core.prints.weights import weight_print
from semantic_editing.core.sampling import reconstruct, reference_from_noise
from semantic_editing.tests.core.tiny_models import tiny_denoiser


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def identity(seed=0, **more):
    return ModelIdentity("sd1", 4, "eps", (1.0, 2.0), weight_print([randn(40, 40, seed=seed)]), **more)


def inversion(**more):
    steps, batch = 2, 1
    counts = torch.ones(steps, batch, dtype=torch.long)
    given = {
        "latents": randn(steps + 1, batch, 4, 8, 8),
        "sigmas": torch.tensor([0.1, 1.0, 5.0]),
        "residuals": torch.zeros(steps, batch),
        "forward_evaluations": counts,
        "backward_evaluations": counts * 0,
        "identity": identity(patches="abc", patch_names=("PAG",), latent_format="SD15 0.18215", file="a.safetensors"),
        "method": "test",
        "cond": {"embeds": randn(1, 7, 12, seed=1)},
        "uncond": {"embeds": randn(1, 7, 12, seed=2)},
        "made_from": MadeFrom(5.0, "euler", "p", "n", (1, 3)),
        "noise_mask": torch.ones(1, 8, 8),
        "words": Words("a cat, sitting", {"l": ((1, 7, 8, 9, 2, 2, 2),), "g": ((1, 7, -5, 9, 2, 0, 0),)}),
    }
    return Inversion(**(given | more))


def test_everything_goes_through_a_file(tmp_path):
    made = inversion()
    read = Inversion.load(made.save(tmp_path / "a.safetensors"))
    assert read.made_from == made.made_from and read.identity == made.identity
    assert read.identity.weights.hash == made.identity.weights.hash and read.identity.file == "a.safetensors"
    assert torch.equal(read.uncond["embeds"], made.uncond["embeds"])
    assert torch.equal(read.noise_mask, made.noise_mask)
    assert read.words == made.words and read.words.length == 7
    assert read.remarks(made.identity) == []


def test_a_file_of_an_older_version_loads_and_says_what_it_cannot_tell(tmp_path):
    """Only the four fields that they had: the old comparison of a few weights, and one line."""
    path = inversion(uncond=None, noise_mask=None, info={"cfg": 3.0}).save(tmp_path / "new.safetensors")
    tensors = {key: value for key, value in load_file(path).items() if not key.startswith("weights.")}
    with path.open("rb") as stream:
        head = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))["__metadata__"]
    old = {key: value for key, value in head.items() if key not in ("made_from", "words")}
    old["identity"] = json.dumps({"family": "sd1", "latent_channels": 4, "prediction": "eps", "signature": [1.0, 2.0]})
    save_file(tensors, tmp_path / "old.safetensors", old)
    read = Inversion.load(tmp_path / "old.safetensors")
    read.require_model(identity(seed=5))  # other weights, but the few are the same: as it was
    with pytest.raises(EditingError, match="another model"):
        read.require_model(replace(identity(), signature=(1.0, 2.5)))
    remarks = read.remarks(identity(patches="whatever"))
    assert "older version" in remarks[0] and len(remarks) == 2
    assert read.made_from is None and read.words is None and read.cfg == 3.0
    read.require_sampler()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("weights.values", lambda t: t[:, :0].reshape(-1)),
        ("weights.sizes", lambda t: torch.cat([t, t])),
        ("weights.values", lambda t: t * float("nan")),
        ("noise_mask", lambda t: t[:, :4]),
        ("noise_mask", lambda t: t * float("nan")),
        ("uncond.embeds", lambda t: t * float("nan")),
    ],
)
def test_damaged_parts_are_refused(tmp_path, name, change):
    path = inversion().save(tmp_path / "a.safetensors")
    with path.open("rb") as stream:
        head = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))["__metadata__"]
    tensors = load_file(path)
    save_file(tensors | {name: change(tensors[name]).contiguous()}, tmp_path / "b.safetensors", head)
    with pytest.raises(EditingError):
        Inversion.load(tmp_path / "b.safetensors")


def test_other_weights_are_refused_with_both_prints_and_files():
    other = replace(identity(seed=1), file="b.safetensors")
    with pytest.raises(EditingError) as error:
        inversion().require_model(other)
    for part in ("a.safetensors", "b.safetensors", inversion().identity.weights.code, other.weights.code):
        assert part in str(error.value)


def test_other_latent_scales_are_refused():
    with pytest.raises(EditingError, match=r"SD15 0.18215 against SDXL 0.13025"):
        inversion().require_model(replace(identity(), latent_format="SDXL 0.13025"))


def test_other_patches_are_one_line_and_no_refusal():
    bare = identity()
    inversion().require_model(bare)
    (line,) = inversion().remarks(bare)
    assert "PAG" in line and "no LoRA or patch" in line


def test_another_prompt_is_one_line():
    made = inversion()
    same, other = {"embeds": made.cond["embeds"] + 1e-5}, {"embeds": randn(1, 7, 12, seed=9)}
    assert made.remarks(made.identity, same, "p") == []
    assert len(made.remarks(made.identity, other, "q")) == 1
    assert len(made.remarks(made.identity, {"embeds": randn(1, 14, 12)}, "q")) == 1
    areas = inversion(cond=None)  # more than text: by print
    assert areas.remarks(made.identity, None, "p") == [] and len(areas.remarks(made.identity, other, "q")) == 1


def test_another_picture_is_refused_and_the_same_encoded_anew_is_not():
    made = inversion()
    own = made.latents[0]
    made.require_picture(own + 0.1 * own.std() * randn(*own.shape, seed=3))
    with pytest.raises(EditingError, match="another picture"):
        made.require_picture(randn(*own.shape, seed=4))
    with pytest.raises(EditingError, match="at its own size"):
        made.require_picture(randn(1, 4, 8, 10))


def test_steps_of_another_sampler_are_refused():
    with pytest.raises(EditingError, match="dpmpp_2m"):
        inversion(made_from=MadeFrom(sampler="dpmpp_2m")).require_sampler()


@pytest.mark.parametrize("guidance", [0.0, 0.1])
def test_a_made_up_picture_comes_back_with_nothing_but_its_prompt(guidance):
    """Its cfg and negative are its own: the edit towards its own prompt is the picture itself."""
    denoiser = tiny_denoiser()
    cond, uncond = randn(1, 7, 12, seed=1), randn(1, 7, 12, seed=2)
    made = reference_from_noise(denoiser, randn(1, 4, 8, 8, seed=3), cond, 5.0, uncond, 4)
    assert made.cfg == 5.0 and torch.equal(made.uncond["embeds"], uncond)
    settings = CrossAttentionSettings(5.0, guidance)
    edited = CrossAttentionGuidance(denoiser, made, cond, cond, settings=settings).run(made.steps)
    assert (edited - made.latents[0]).abs().max() < 1e-4 * made.latents[0].abs().max()
    rebuilt = reconstruct(denoiser, made, cond, 5.0, uncond)
    assert torch.equal(rebuilt, made.latents[0])
