"""Semantic embeddings: files in and out, what is refused, and how several are combined."""

import json
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from semantic_editing.core.caso.editing import EditSettings, guidance_terms
from semantic_editing.core.caso.embedding import (
    GuidanceTerm,
    SemanticEmbedding,
    concatenate,
    scaled_terms,
)
from semantic_editing.core.errors import EditingError
from semantic_editing.tests.core.caso.tiny_caso import tiny_vector_encoder


def vectors(width=12, tokens=1, seed=0):
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))


def embedding(width=12, tokens=1, seed=0, name="clip_l", target="yes"):
    return SemanticEmbedding(
        {name: vectors(width, tokens, seed)}, attribute="glasses", target=target, method="caso", info={"level": 0.3}
    )


def test_one_encoder_is_saved_as_emb_params_and_nothing_else(tmp_path):
    made = embedding(tokens=2)
    path = made.save(tmp_path / "glasses.safetensors")
    with safe_open(path, framework="pt") as stream:
        assert list(stream.keys()) == ["emb_params"]
        torch.testing.assert_close(stream.get_tensor("emb_params"), made.vectors["clip_l"], rtol=0, atol=0)
        metadata = stream.metadata()
    assert (metadata["method"], metadata["base_model"], metadata["target"]) == ("caso", "clip_l 12", "yes")
    assert json.loads(metadata["info"]) == {"level": 0.3}


def test_two_encoders_are_saved_under_their_names(tmp_path):
    made = SemanticEmbedding({"clip_l": vectors(768), "clip_g": vectors(1280)}, target="yes")
    path = made.save(tmp_path / "xl.safetensors")
    with safe_open(path, framework="pt") as stream:
        assert sorted(stream.keys()) == ["clip_g", "clip_l"]
    loaded = SemanticEmbedding.load(path)
    assert loaded.encoder_name == "clip_l 768 + clip_g 1280" and list(loaded.vectors) == ["clip_l", "clip_g"]
    for name, tensor in made.vectors.items():
        torch.testing.assert_close(loaded.vectors[name], tensor, rtol=0, atol=0)


def test_round_trip_keeps_vectors_and_facts(tmp_path):
    made = embedding(width=1024, tokens=3, name="clip_h")
    loaded = SemanticEmbedding.load(made.save(tmp_path / "x.safetensors"))
    torch.testing.assert_close(loaded.vectors["clip_h"], made.vectors["clip_h"], rtol=0, atol=0)
    for field in ("encoder_name", "attribute", "target", "method", "info"):
        assert getattr(loaded, field) == getattr(made, field), field
    assert loaded.tokens == 3 and "3 tokens" in loaded.describe()


@pytest.mark.parametrize(("tensors", "name"), [
    ({"emb_params": vectors(768, 2)}, "clip_l 768"),
    ({"emb_params": vectors(1024)}, "clip_h 1024"),
    ({"clip_l": vectors(768).half()}, "clip_l 768"),
    ({"clip_l": vectors(768), "clip_g": vectors(1280)}, "clip_l 768 + clip_g 1280"),
    ({"emb_params": vectors(768)[0]}, "clip_l 768"),
    ({"emb_params": vectors(1280)}, "clip_g 1280"),
    ({"clip_g": vectors(1280)}, "clip_g 1280"),
    ({"clip_l": vectors(768, 2), "clip_g": vectors(1280, 5)}, "clip_l 768 + clip_g 1280"),
    ({"text_encoders_0": vectors(768, 2), "text_encoders_1": vectors(1280, 2)}, "clip_l 768 + clip_g 1280"),
    ({"<s0>": vectors(768), "<s1>": vectors(768)}, "clip_l 768"),
    ({"<s0>": vectors(768), "<s1>": vectors(1280)}, "clip_l 768 + clip_g 1280"),
    ({"bundle_emb.x.string_to_param.*": vectors(768), "lora_te.lora_up.weight": vectors(768)}, "clip_l 768"),
    ({"bundle_emb.x.clip_g": vectors(1280), "bundle_emb.x.clip_l": vectors(768)}, "clip_l 768 + clip_g 1280"),
])  # fmt: skip
def test_other_programs_textual_inversion_files_load(tmp_path, tensors, name):
    save_file(tensors, tmp_path / "mine.safetensors")
    loaded = SemanticEmbedding.load(tmp_path / "mine.safetensors")
    assert loaded.encoder_name == name and loaded.target == "mine"
    assert all(tensor.dtype == torch.float32 for tensor in loaded.vectors.values())


@pytest.mark.parametrize("whole", [True, False])
def test_the_released_linear_layer_is_weight_plus_bias(tmp_path, whole):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = torch.nn.Sequential(torch.nn.Linear(1, 768))
    path = tmp_path / "mustache_1_0_epoch19.pt"
    torch.save(layer if whole else layer.state_dict(), path)
    loaded = SemanticEmbedding.load(path)
    torch.testing.assert_close(loaded.vectors["clip_l"], layer(torch.ones(1, 1)).detach())
    assert loaded.encoder_name == "clip_l 768" and loaded.target == path.stem


def by_automatic1111(vector):
    facts = {"name": "mine", "step": 500, "sd_checkpoint": None, "sd_checkpoint_name": "v1-5"}
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": vector}} | facts


def by_the_original_program(vector):
    return {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(vector)}),
    }


@pytest.mark.parametrize(("layout", "suffix"), [
    (by_automatic1111, "pt"), (by_the_original_program, "pt"), (lambda vector: {"<my-thing>": vector}, "bin"),
    (lambda vector: {"<my-thing>": vector[0]}, "bin"), (lambda vector: {"emb_params": vector}, "pt"),
    (lambda vector: {"clip_l": vector}, "pt"),
])  # fmt: skip
def test_other_programs_pickled_textual_inversions_load(tmp_path, layout, suffix):
    vector = vectors(768, 1 if suffix == "bin" else 3)
    torch.save(layout(vector.clone()), tmp_path / f"mine.{suffix}")
    loaded = SemanticEmbedding.load(tmp_path / f"mine.{suffix}")
    assert loaded.encoder_name == "clip_l 768" and loaded.target == "mine" and loaded.method == ""
    torch.testing.assert_close(loaded.vectors["clip_l"], vector, rtol=0, atol=0)
    assert not loaded.vectors["clip_l"].requires_grad


def test_two_encoders_of_one_pickle_load_and_diffusers_layout_in_safetensors_too(tmp_path):
    torch.save({"clip_l": vectors(768), "clip_g": vectors(1280)}, tmp_path / "xl.pt")
    assert SemanticEmbedding.load(tmp_path / "xl.pt").encoder_name == "clip_l 768 + clip_g 1280"
    save_file({"<my-thing>": vectors(1024, 2).half()}, tmp_path / "learned_embeds.safetensors")
    loaded = SemanticEmbedding.load(tmp_path / "learned_embeds.safetensors")
    torch.testing.assert_close(loaded.vectors["clip_h"], vectors(1024, 2).half().float(), rtol=0, atol=0)


def test_several_vectors_of_a_file_stand_one_after_another_and_the_report_says_so(tmp_path):
    rows = {f"<s{number}>": vectors(768, seed=number) for number in (0, 1, 2, 10)}
    save_file(rows, tmp_path / "pivotal.safetensors")
    loaded = SemanticEmbedding.load(tmp_path / "pivotal.safetensors")
    torch.testing.assert_close(loaded.vectors["clip_l"], torch.cat(list(rows.values())), rtol=0, atol=0)
    assert loaded.describe().endswith("4 tokens, one after another: <s0>, <s1>, <s2>, <s10>")
    torch.save([{"<a>": vectors(768, 2)[0]}, {"<b>": vectors(1280, 2), "<c>": vectors(768)}], tmp_path / "list.pt")
    loaded = SemanticEmbedding.load(tmp_path / "list.pt")
    assert loaded.encoder_name == "clip_l 768 + clip_g 1280" and loaded.note == ""
    assert [len(rows) for rows in loaded.vectors.values()] == [2, 2]
    bundle = {f"bundle_emb.{name}.clip_l": vectors(768, seed=seed) for seed, name in enumerate("ab")}
    save_file(
        bundle | {f"lora_{at}.lora_up.weight": torch.zeros(2, 2) for at in range(100)}, tmp_path / "lora.safetensors"
    )
    loaded = SemanticEmbedding.load(tmp_path / "lora.safetensors")
    torch.testing.assert_close(loaded.vectors["clip_l"], torch.cat(list(bundle.values())), rtol=0, atol=0)
    assert loaded.note == "bundled with a LoRA, which this node does not apply: a, b"


def test_a_list_that_names_one_table_again_and_again_is_refused_at_once(tmp_path):
    table = {f"<{at}>": torch.zeros(768) for at in range(300)}
    torch.save([table] * 5000, tmp_path / "again.pt")
    with pytest.raises(EditingError, match="more tensors than any embedding has"):
        SemanticEmbedding.load(tmp_path / "again.pt")


def test_encoders_may_hold_unequal_numbers_of_vectors():
    made = SemanticEmbedding({"clip_l": vectors(768, 2), "clip_g": vectors(1280, 5)})
    assert made.tokens == 5 and "2 + 5 tokens" in made.describe()
    both = concatenate(
        [made, SemanticEmbedding({"clip_g": vectors(1280)}), SemanticEmbedding({"clip_l": vectors(768)})]
    )
    assert {name: len(rows) for name, rows in both.vectors.items()} == {"clip_l": 3, "clip_g": 6}
    for foreign in ({"clip_h": vectors(1024)}, {"clip_l": vectors(12)}):
        with pytest.raises(EditingError, match="combine embeddings of one kind of model"):
            concatenate([made, SemanticEmbedding(foreign)])


def test_sentences_stay_short_whatever_a_file_is_called_or_says(tmp_path):
    name = "n" * 240
    made = {
        "none": {f"{'k' * 290}{at}": torch.zeros(2, 2) for at in range(3)},
        "shape": {"clip_l": torch.zeros(1, 1, 1, 1, 768)},
        "bundle": {f"bundle_emb.{'k' * 270}.t5": torch.zeros(1, 768)},
        "long": {"emb_params": torch.zeros(76, 768)},
    }
    for tensors in made.values():
        save_file(tensors, tmp_path / f"{name}.safetensors", {"base_model": "x" * 9000})
        torch.save(tensors, tmp_path / f"{name}.pt")
        for suffix in ("safetensors", "pt"):
            with pytest.raises(EditingError) as caught:
                SemanticEmbedding.load(tmp_path / f"{name}.{suffix}")
            assert len(str(caught.value)) <= 300 and str(caught.value).endswith(".")
    save_file({"emb_params": vectors(768)}, tmp_path / "a.safetensors", {"base_model": "x" * 2000})
    assert SemanticEmbedding.load(tmp_path / "a.safetensors").encoder_name == "clip_l 768"


@pytest.mark.parametrize("value", [
    {"a": torch.zeros(1, 12), "b": torch.zeros(1, 12)}, {"a.weight": torch.zeros(1, 768), "b": torch.zeros(1, 768)},
    {"weight": torch.zeros(768)}, [], [torch.zeros(1, 768)], [{"a": torch.zeros(1, 768)}, 7], [{"a": "text"}],
    {"x": torch.zeros(1, 77, 768)},
    by_automatic1111(torch.zeros(76, 768)), {"string_to_param": "nothing"}, {"string_to_param": {}},
    {"string_to_param": [torch.zeros(1, 768)]},
])  # fmt: skip
def test_pickles_of_tensors_that_are_no_textual_inversion_are_refused(tmp_path, value):
    torch.save(value, tmp_path / "other.pt")
    with pytest.raises(EditingError):
        SemanticEmbedding.load(tmp_path / "other.pt")


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


@pytest.mark.parametrize("how", ["torch", "pickle", "string_to_param", "beside it", "diffusers"])
def test_a_hostile_pickle_is_refused_without_running(tmp_path, how):
    path, good = tmp_path / "evil.pt", torch.zeros(1, 768)
    bad = {
        "torch": {"0.weight": torch.zeros(768, 1), "0.bias": Hostile()}, "string_to_param": by_automatic1111(Hostile()),
        "beside it": by_automatic1111(good) | {"sd_checkpoint": Hostile()},
        "diffusers": {"<thing>": good, "more": [Hostile()]},
    }  # fmt: skip
    if how in bad:
        torch.save(bad[how], path)
    else:
        path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(EditingError, match=r"evil\.pt") as caught:
        SemanticEmbedding.load(path)
    assert "classifier" not in str(caught.value), "it is an embedding that the person was loading"


def test_what_is_no_embedding_is_refused_by_name(tmp_path):
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(EditingError, match=r"lora\.safetensors is no textual-inversion file"):
        SemanticEmbedding.load(tmp_path / "lora.safetensors")
    save_file(
        {"embeds": torch.zeros(1, 77, 768)}, tmp_path / "d.safetensors", {"format": "semantic_editing.edit_direction"}
    )
    with pytest.raises(EditingError, match="edit_direction"):
        SemanticEmbedding.load(tmp_path / "d.safetensors")
    torch.save(torch.nn.Linear(3, 768).state_dict(), tmp_path / "l.pt")
    with pytest.raises(EditingError, match="CASO linear layer"):
        SemanticEmbedding.load(tmp_path / "l.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    with pytest.raises(EditingError, match="damaged"):
        SemanticEmbedding.load(tmp_path / "cut.safetensors")


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = embedding(seed=0).save(tmp_path / "x.safetensors")
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(EditingError, match="could not be written"):
        embedding(seed=1).save(path, overwrite=True)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "tensor", [torch.zeros(0, 12), torch.zeros(76, 12), torch.zeros(1, 1, 12), torch.full((1, 12), float("nan"))]
)
def test_vectors_of_a_wrong_shape_or_value_are_refused(tensor):
    with pytest.raises(EditingError):
        SemanticEmbedding({"clip_l": tensor})


def test_another_base_model_is_refused_with_both_names():
    with pytest.raises(EditingError, match=r"clip_l 768.*clip_l 12"):
        embedding(width=768).condition(tiny_vector_encoder())
    with pytest.raises(EditingError, match=r"clip_l 12.*clip_l 768"):
        concatenate([embedding(), embedding(width=768)])


def test_concatenation_is_the_prompt_of_all_tokens_in_order():
    vector_encoder = tiny_vector_encoder()
    first, second = embedding(seed=1), embedding(seed=2, tokens=2)
    expected = vector_encoder({"clip_l": torch.cat([first.vectors["clip_l"], second.vectors["clip_l"]])[None]}).embeds
    torch.testing.assert_close(concatenate([first, second]).condition(vector_encoder).embeds, expected)
    swapped = concatenate([second, first]).condition(vector_encoder).embeds
    assert float((swapped - expected).abs().max()) > 1e-3  # attention is causal: order matters


def test_equal_strengths_share_a_prompt_and_others_have_their_own():
    vector_encoder = tiny_vector_encoder()
    one, two, three, off = (embedding(seed=seed, target=str(seed)) for seed in range(4))
    terms = guidance_terms(vector_encoder, [(one, 1.0), (two, -0.5), (three, 1.0), (off, 0.0)], EditSettings(2.0))
    assert [(term.strength, term.label) for term in terms] == [(2.0, "glasses: 0 + glasses: 2"), (-1.0, "1")]
    torch.testing.assert_close(terms[0].cond.embeds, concatenate([one, three]).condition(vector_encoder).embeds)
    torch.testing.assert_close(terms[1].cond.embeds, two.condition(vector_encoder).embeds)
    apart = guidance_terms(vector_encoder, [(one, 2.0), (three, 2.0)], EditSettings(1.0, joined=False))
    assert [term.label for term in apart] == ["0", "2"]
    (led,) = guidance_terms(vector_encoder, [(one, 1.0)], EditSettings(2.0), [two, three])
    expected = [part.condition(vector_encoder).embeds for part in (two, three)]
    assert all(torch.equal(found.embeds, wanted) for found, wanted in zip(led.against, expected, strict=True))


def test_strengths_scale_and_vanish_at_zero():
    terms = [GuidanceTerm(None, 2.0), GuidanceTerm(None, -3.0)]
    assert [term.strength for term in scaled_terms(terms, -0.5)] == [-1.0, 1.5]
    assert scaled_terms(terms, 0.0) == []
    with pytest.raises(EditingError, match="strength is 101"):
        GuidanceTerm(None, 101.0)
    with pytest.raises(EditingError, match="strength is nan"):
        GuidanceTerm(None, float("nan"))


def test_too_many_tokens_together_are_refused():
    with pytest.raises(EditingError, match="1 to 75"):
        concatenate([embedding(tokens=40), embedding(tokens=40)])


def test_how_it_is_used_in_edits_is_read_where_a_file_says_what_can_be(tmp_path):
    edit = {"start": 0.5, "focus": 0.1, "strength": 4.0}
    made = SemanticEmbedding({"clip_l": torch.ones(1, 8)}, info={"edit": edit})
    assert SemanticEmbedding.load(made.save(tmp_path / "a.safetensors")).edit == edit
    for wrong in (None, [], "5", {"start": 0.5}, {**edit, "start": 0}, {**edit, "focus": 2}, {**edit, "strength": "5"}):
        assert SemanticEmbedding({"clip_l": torch.ones(1, 8)}, info={"edit": wrong}).edit == {}
    nan = {**edit, "strength": float("nan")}
    assert SemanticEmbedding({"clip_l": torch.ones(1, 8)}, info={"edit": nan}).edit == {}
