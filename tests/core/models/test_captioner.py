"""Captions of tiny random BLIPs: as transformers makes them from the same pixels, and in its tokenizers' words."""

import json

import pytest
import torch

from semantic_editing.benchmarks.fuzz_samples import SAMPLES
from semantic_editing.core.errors import EditingError
from semantic_editing.core.models.captioner import BYTES, ImageCaptioner, load_captioner

transformers = pytest.importorskip("transformers")
#: transformers' class, and a seed whose words differ from picture to picture
KINDS = {
    "captioner": ("BlipForConditionalGeneration", 0),
    "captioner, BLIP-2": ("Blip2ForConditionalGeneration", 5),
    "captioner, BLIP-2 with T5": ("Blip2ForConditionalGeneration", 2),
}


def pictures(count=2, height=20, width=24):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path, request):
    """Weights of unit variance: as drawn by default, every picture looks alike."""
    path, generator = SAMPLES[request.param].make(tmp_path), torch.Generator().manual_seed(KINDS[request.param][1])
    network = load_captioner(path).network
    for _, parameter in sorted(network.named_parameters()):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    network.save_pretrained(path)
    return path


@pytest.mark.parametrize("folder", KINDS, indirect=True)
@pytest.mark.parametrize("beams", [1, 3])
def test_captions_are_transformers_own(folder, request, beams):
    kind = request.node.callspec.params["folder"]
    model = getattr(transformers, KINDS[kind][0]).from_pretrained(folder).eval()
    images = pictures(3, 16, 16)  # the size that it sees
    settings = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
    mean, std = (torch.tensor(settings[key]).reshape(3, 1, 1) for key in ("image_mean", "image_std"))
    options = {"max_new_tokens": 6, "num_beams": beams, "do_sample": False}
    expected = model.generate(pixel_values=(images - mean) / std, **options)
    captioner = load_captioner(folder)
    found = captioner.caption(images, longest=6, beams=beams)
    assert found == [captioner.words(ids) for ids in expected.tolist()] and all(found)
    assert beams > 1 or len(set(found)) > 1


@pytest.mark.parametrize("folder", ["captioner"], indirect=True)
def test_a_picture_is_described_alone_as_in_a_batch_and_twice_alike(folder):
    captioner, images = load_captioner(folder), pictures()
    together = captioner.caption(images, 5)
    assert together == [captioner.caption(image[None], 5)[0] for image in images] == captioner.caption(images, 5)


def captioner(pieces, in_bytes):
    return ImageCaptioner(torch.nn.Linear(1, 1), (8, 8), [0.0] * 3, [1.0] * 3, "bicubic", pieces, in_bytes, "tiny")


SENTENCES = ["a cat sat on the mat, and purred.", "two dogs' well-worn toys", "it's a dog!"]


def test_pieces_of_words_are_put_together_as_berts_tokenizer_does(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "sat", "on", "the", "mat", ",", "and", "pur",
             "##red", ".", "two", "dog", "##s", "'", "well", "-", "worn", "toys", "it", "s", "!"]  # fmt: skip
    tokenizer = transformers.BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    ours = captioner(dict(enumerate(words)), False)
    for sentence in SENTENCES:
        ids = tokenizer(sentence).input_ids
        assert 1 not in ids  # every word is in the list
        assert ours.words([*ids, 0, 10**6]) == sentence


def test_pieces_of_bytes_are_put_together_as_gpt2s_tokenizer_does():
    characters = sorted(BYTES, key=BYTES.get)
    vocabulary = {character: index for index, character in enumerate(characters)} | {"</s>": 256}
    tokenizer = transformers.GPT2Tokenizer(vocab=vocabulary, merges=[], unk_token="</s>")  # nosec B106
    ours = captioner({index: piece for piece, index in vocabulary.items()}, True)
    for sentence in [*SENTENCES, "ein größerer Hund", "\u732b and \U0001f431"]:
        ids = tokenizer(sentence).input_ids
        assert len(ids) == len(sentence.encode()) and ours.words([*ids, 256, 10**6]) == sentence


def test_sentencepieces_are_put_together_as_t5s_tokenizer_does(tmp_path):
    folder = SAMPLES["captioner, BLIP-2 with T5"].make(tmp_path)
    pieces = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    ids = {piece: index for index, (piece, _) in enumerate(pieces)}
    reader = load_captioner(folder)
    said = ["<pad>", "\u2581a", "\u2581cat", "s", ",", "\u2581the", "\u2581mat", "\u00e9", "</s>"]
    assert reader.words([ids[piece] for piece in said] + [23]) == "a cats, the mat\u00e9"


def test_cancelling_is_passed_on_and_ends_the_run(tmp_path):
    made, calls = load_captioner(SAMPLES["captioner"].make(tmp_path)), []

    class Cancelled(BaseException):
        pass

    def cancel():
        calls.append(1)
        if len(calls) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        made.caption(pictures(), 20, 1, cancel)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("images", "options", "said"),
    [
        (torch.zeros(3, 8, 8), {}, r"use \[batch, 3, height, width\]"),
        (torch.zeros(0, 3, 8, 8), {}, r"use \[batch, 3, height, width\]"),
        (torch.full((1, 3, 8, 8), float("nan")), {}, "not a number"),
        (torch.zeros(1, 3, 8, 8), {"longest": 0}, "use 1 to 75"),
        (torch.zeros(1, 3, 8, 8), {"beams": 17}, "use 1 to 16"),
        (torch.zeros(1, 3, 8, 8), {}, "cannot describe pictures"),  # its network is none
    ],
)
def test_what_cannot_be_described(images, options, said):
    with pytest.raises(EditingError, match=said):
        captioner({}, False).caption(images, **options)


def changed(config, **changes):
    return {key: value for key, value in (config | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("sample", "changes", "said"),
    [
        ("captioner", {"model_type": "vit"}, "holds a vit network; use a captioner of kind blip or blip-2"),
        ("captioner", {"model_type": None}, "holds a None network"),
        ("captioner", {"text_config": {"num_hidden_layers": 200}}, "lacks weights"),
        ("captioner", {"text_config": {"hidden_size": "wide"}}, "damaged config.json"),
        (
            "captioner, BLIP-2",
            {"text_config": {"model_type": "bloom"}},
            "writes with bloom; use a BLIP-2 with opt or t5",
        ),
        ("captioner, BLIP-2 with T5", {"text_config": {"model_type": "t5", "num_layers": 200}}, "lacks weights"),
        ("captioner, BLIP-2 with T5", {"text_config": {"model_type": "t5", "feed_forward_proj": "x"}}, "damaged"),
        ("captioner, BLIP-2", {"text_config": None}, "writes with None"),
        ("captioner, BLIP-2", {"num_query_tokens": 9}, "lacks weights"),
    ],
)
def test_models_of_another_kind_are_refused(tmp_path, sample, changes, said):
    folder = SAMPLES[sample].make(tmp_path)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(changed(config, **changes)), encoding="utf-8")
    with pytest.raises(EditingError, match=said):
        load_captioner(folder)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("vocab.txt", "has no tokenizer"),
        ("model.safetensors", "no .safetensors weights"),
        ("config.json", "no readable config.json"),
    ],
)
def test_folders_that_lack_a_file(tmp_path, lost, said):
    folder = SAMPLES["captioner"].make(tmp_path)
    (folder / lost).unlink()
    with pytest.raises(EditingError, match=said):
        load_captioner(folder)


def test_the_size_is_the_networks_own_whatever_the_preprocessor_says(tmp_path):
    folder = SAMPLES["captioner"].make(tmp_path)
    settings = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"size": 32}), encoding="utf-8")
    assert load_captioner(folder).size == (16, 16)
    (folder / "preprocessor_config.json").unlink()
    bare = load_captioner(folder)
    assert bare.size == (16, 16) and bare.interpolation == "bicubic" and len(bare.caption(pictures(), 3)) == 2
