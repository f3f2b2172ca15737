"""What tiny random text models write: drawn from the very probabilities of transformers, by a seed alone."""

import json

import pytest
import torch

from semantic_editing.benchmarks.fuzz_samples import SAMPLES
from semantic_editing.core.errors import EditingError
from semantic_editing.core.models import text_generator
from semantic_editing.core.models.text_generator import drawn_from, load_text_generator

transformers = pytest.importorskip("transformers")
KINDS = {"text model": "GPT2LMHeadModel", "text model, T5": "T5ForConditionalGeneration"}


@pytest.fixture
def folder(tmp_path, request):
    return SAMPLES[getattr(request, "param", "text model")].make(tmp_path)


def written_plainly(folder, class_name, prompt, seed, longest):
    """One text, every token by a whole evaluation of transformers' own network."""
    model, writer = getattr(transformers, class_name).from_pretrained(folder).eval(), load_text_generator(folder)
    ids, generator, drawn = writer.tokenizer.encode(prompt).ids, torch.Generator().manual_seed(seed), []
    while len(drawn) < longest and 0 not in drawn:
        with torch.no_grad():
            if class_name.startswith("T5"):
                logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[0, *drawn]])).logits
            else:
                logits = model(torch.tensor([[*ids, *drawn]])).logits
        shares = (logits[0, -1].double() / text_generator.TEMPERATURE).softmax(0)  # a dozen words: all are likely
        order = shares.argsort(descending=True)
        drawn.append(int(order[torch.multinomial(shares[order].float(), 1, generator=generator)]))
    return writer.tokenizer.decode([token for token in drawn if token != 0])


@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_it_writes_what_transformers_would(folder, request):
    writer, class_name = load_text_generator(folder), KINDS[request.node.callspec.params["folder"]]
    said = [*map(writer.write, ["a photo of the cat"] * 3, [1] * 3, range(3), [9] * 3)]
    assert said == [[written_plainly(folder, class_name, "a photo of the cat", seed, 9)] for seed in range(3)]
    assert max(len(text.split()) for (text,) in said) > 2


def test_a_seed_and_nothing_else_decides(folder):
    writer, before = load_text_generator(folder), torch.random.get_rng_state()
    first = writer.write("the cat", 5, seed=1)
    assert first == load_text_generator(folder).write("the cat", 5, seed=1) != writer.write("the cat", 5, seed=2)
    assert len(first) == 5 and len(set(first)) > 1 and torch.equal(torch.random.get_rng_state(), before)
    assert all(len(text.split()) <= 4 for text in writer.write("the cat", 3, longest=4))


def test_words_are_drawn_by_their_probability_among_the_likeliest(monkeypatch):
    monkeypatch.setattr(text_generator, "LIKELIEST", 2)
    scores = torch.tensor([[0.0, 2.0, -50.0, 1.0]]).repeat(4000, 1)
    drawn = drawn_from(scores, torch.Generator().manual_seed(0))
    share = 1 / (1 + torch.tensor(-1.0 / text_generator.TEMPERATURE).exp())
    assert set(drawn.flatten().tolist()) == {1, 3}
    assert float((drawn == 1).float().mean()) == pytest.approx(float(share), abs=4 * (0.25 / 4000) ** 0.5)


def test_cancelling_is_passed_on(folder):
    class Stop(BaseException):
        pass

    def stop():
        raise Stop

    with pytest.raises(Stop):
        load_text_generator(folder).write("the cat", 1, callback=stop)


def test_prompts_that_cannot_be_gone_on_with(folder):
    writer = load_text_generator(folder)
    with pytest.raises(EditingError, match="holds no words"):
        writer.write(" ", 1)
    with pytest.raises(EditingError, match="has 401 tokens; use at most 400"):
        writer.write("cat " * 401, 1)
    with pytest.raises(EditingError, match="cannot write"):  # its table of places ends at 64
        writer.write("cat " * 70, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "bloom"}, "holds a bloom network; use a text model of kind gpt2 or t5"),
        ({"n_layer": 200}, "lacks weights"),
        ({"n_embd": "wide"}, "damaged config.json"),
    ],
)
def test_models_of_another_kind_are_refused(folder, change, said):
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    with pytest.raises(EditingError, match=said):
        load_text_generator(folder)


def test_tokenizers_that_are_none(folder):
    listed = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(listed | {"pre_tokenizer": 3}), encoding="utf-8")
    with pytest.raises(EditingError, match=r"has a damaged tokenizer\.json"):
        load_text_generator(folder)
    unknown = listed | {"model": listed["model"] | {"unk_token": "nowhere"}}
    (folder / "tokenizer.json").write_text(json.dumps(unknown), encoding="utf-8")
    with pytest.raises(EditingError, match=r"has a damaged tokenizer\.json"):
        load_text_generator(folder).write("a zebra", 1)  # a word that the list lacks
    (folder / "tokenizer.json").unlink()
    with pytest.raises(EditingError, match=r"has no tokenizer\.json"):
        load_text_generator(folder)
