"""The demo model's loader: text, images, labels and pairs, against independent computations."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from semantic_editing.core.caso.embedding import SemanticEmbedding
from semantic_editing.core.classifiers.convnet import AttributeClassifier, load_classifier
from semantic_editing.core.demo.caso_recipes import RECIPES
from semantic_editing.core.demo.data import FOLDER, DemoData, embedding_files, pictures_without
from semantic_editing.core.demo.model import CLIP_ROWS, DemoModel, expand_token_table, load_demo_model
from semantic_editing.core.errors import CutTextWarning, EditingError
from semantic_editing.core.files import save_tensors
from semantic_editing.core.metrics.image import psnr

CLASSIFIERS = ("classifier.safetensors", "classifier_judge.safetensors")
needs_classifiers = pytest.mark.skipif(
    not all((FOLDER / name).is_file() for name in CLASSIFIERS), reason="no classifier files yet"
)


@pytest.fixture(scope="module")
def demo():
    return load_demo_model()


@pytest.fixture(scope="module")
def data():
    return DemoData()


def test_token_table_keeps_known_rows_and_fixes_the_others():
    small = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    state = torch.random.get_rng_state()
    table = expand_token_table(small, [7, 0, 49407, 300])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert table.shape == (CLIP_ROWS, 6)
    torch.testing.assert_close(table[[7, 0, 49407, 300]], small, rtol=0, atol=0)
    unseen = torch.ones(CLIP_ROWS, dtype=torch.bool)
    unseen[[7, 0, 49407, 300]] = False
    torch.testing.assert_close(table[unseen].norm(dim=1), small.norm(dim=1).mean().expand(CLIP_ROWS - 4))
    assert len(table[unseen].unique(dim=0)) == CLIP_ROWS - 4
    torch.testing.assert_close(table, expand_token_table(small, [7, 0, 49407, 300]), rtol=0, atol=0)


@pytest.mark.parametrize("vocab", [[1, 2], [1, 2, 3, 49408], [1, 2, 3, -1]])
def test_a_vocabulary_that_does_not_fit_is_refused(vocab):
    with pytest.raises(EditingError, match=r"vocab\.json"):
        expand_token_table(torch.zeros(4, 6), vocab)


def test_token_ids_are_clips(demo):
    ids = demo.tokenize(["a photo of a cat", ""])
    assert ids.shape == (2, 77)
    assert ids[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 49407]
    assert ids[1].tolist() == [49406] + [49407] * 76


def test_text_states_equal_those_of_the_small_vocabulary(demo):
    from transformers import CLIPModel

    small = CLIPModel.from_pretrained(FOLDER / "clip").float().eval()
    vocab = json.loads((FOLDER / "vocab.json").read_text())
    rows = torch.full((CLIP_ROWS,), -1)
    rows[torch.tensor(vocab)] = torch.arange(len(vocab))
    texts = [*demo.captions[:3], ""]
    ids = rows[demo.tokenize(texts)]
    assert (ids >= 0).all()
    with torch.no_grad():
        expected = small.text_model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(demo.encode_text(texts), expected, rtol=1e-5, atol=1e-5)


def test_attention_is_causal(demo):
    short, long = demo.encode_text(["a person smiling", "a person smiling with a beard"])
    torch.testing.assert_close(short[:4], long[:4], rtol=1e-5, atol=1e-5)
    assert (short[4:] - long[4:]).abs().max() > 1e-2


def test_words_never_seen_and_long_texts_can_be_encoded(demo):
    with pytest.warns(CutTextWarning, match=r"^The text 'a person .* fills all 77 tokens .*\.$") as told:
        states = demo.encode_text(["a zebra quantum", "a person " * 100])
    assert len(told) == 1 and told[0].filename == __file__
    assert states.shape == (2, 77, demo.unet.config.cross_attention_dim)
    assert torch.isfinite(states).all()


def test_images_come_back_through_the_vae(demo):
    with torch.no_grad():
        latent = demo.encode_image(demo.images[:8])
        rebuilt = demo.decode(latent)
    assert latent.shape == (8, 4, 16, 16)
    assert 0.7 < float(latent.std()) < 1.4
    assert float(psnr(rebuilt, demo.images[:8]).mean()) > 22
    wrong = rebuilt.roll(1, 0)
    assert float(psnr(wrong, demo.images[:8]).mean()) < 15


def test_other_sizes(demo):
    with torch.no_grad():
        latent = demo.encode_image(torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)))
        assert latent.shape == (1, 4, 8, 12)
        assert demo.decode(latent).shape == (1, 3, 64, 96)


def bare_model(decoded=None):
    """A DemoModel around a stand-in VAE: encoding returns the folded pixels, decoding returns ``decoded``."""
    model = object.__new__(DemoModel)
    model.device = torch.device("cpu")
    model.vae = SimpleNamespace(
        config=SimpleNamespace(scaling_factor=2.0, latent_channels=4),
        encode=lambda folded: SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: folded)),
        decode=lambda latent: SimpleNamespace(sample=decoded),
    )
    return model


def test_encoding_averages_and_unfolds_pixels():
    images = torch.rand(1, 3, 8, 16, generator=torch.Generator().manual_seed(0))
    folded = bare_model().encode_image(images)
    assert folded.shape == (1, 12, 2, 4)
    pixels = images.numpy() * 2 - 1
    for channel in range(3):
        for down in range(2):
            for right in range(2):
                for row in range(2):
                    for column in range(4):
                        top, left = 4 * row + 2 * down, 4 * column + 2 * right
                        expected = pixels[0, channel, top : top + 2, left : left + 2].mean() * 2.0
                        assert float(folded[0, channel * 4 + down * 2 + right, row, column]) == pytest.approx(
                            expected, abs=1e-6
                        )


def test_a_decoder_of_48_channels_paints_every_pixel():
    picture = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(0))
    folded = torch.zeros(1, 48, 4, 6)
    for channel in range(3):
        for down in range(4):
            for right in range(4):
                folded[0, channel * 16 + down * 4 + right] = picture[channel, down::4, right::4] * 2 - 1
    torch.testing.assert_close(bare_model(folded).decode(torch.zeros(1, 4, 2, 3))[0], picture)


def test_a_decoder_of_12_channels_is_doubled():
    images = bare_model(torch.full((1, 12, 4, 6), 0.5)).decode(torch.zeros(1, 4, 2, 3))
    assert images.shape == (1, 3, 16, 24)
    torch.testing.assert_close(images, torch.full_like(images, 0.75))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda demo: demo.encode_image(torch.zeros(1, 3, 20, 16)), "multiples of 8"),
        (lambda demo: demo.encode_image(torch.zeros(3, 16, 16)), r"shape \[3, 16, 16\]"),
        (lambda demo: demo.encode_image(torch.zeros(1, 1, 16, 16)), "3, height, width"),
        (lambda demo: demo.decode(torch.zeros(1, 3, 16, 16)), r"\[batch, 4, height, width\]"),
        (lambda demo: demo.classify(torch.zeros(16, 16)), "3, height, width"),
    ],
)
def test_bad_shapes_are_said(demo, call, said):
    with pytest.raises(EditingError, match=said):
        call(demo)


def test_weights_are_frozen_and_inputs_differentiable(demo):
    networks = (demo.unet, demo.vae, demo.clip)
    assert not any(parameter.requires_grad for network in networks for parameter in network.parameters())
    image = demo.images[:1].clone().requires_grad_()
    demo.encode_image(image).sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0


def test_every_denoiser_counts_from_zero(demo):
    first = demo.denoiser()
    with torch.no_grad():
        first(torch.zeros(2, 4, 16, 16), 1.0, demo.encode_text([""]))
    assert first.evaluations.forward == 2
    assert demo.denoiser().evaluations.forward == 0


def test_clip_knows_which_caption_belongs_to_which_image(demo):
    with torch.no_grad():
        images, texts = demo.image_features(demo.images), demo.text_features(demo.captions)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(len(images)))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(len(texts)))
    right = (images @ texts.T).argmax(1) == torch.arange(len(images))
    assert float(right.float().mean()) > 0.7  # chance is 1/24


def test_pictures_and_labels_fit_together(data):
    assert data.images.shape == (len(data.captions), 3, 128, 128)
    assert float(data.images.min()) >= 0 and float(data.images.max()) <= 1
    assert len(data.attributes) == len(data.captions) >= 24
    assert all(len(labels) == 10 for labels in data.attributes)


def test_pairs_differ_in_the_edited_attribute_only(data):
    assert len(data.edits) >= 9
    for pair in data.pairs:
        changed = {key for key, label in pair.source_attributes.items() if pair.target_attributes[key] != label}
        assert changed == {pair.attribute}
        assert (pair.source_attributes[pair.attribute], pair.target_attributes[pair.attribute]) == (
            pair.before,
            pair.after,
        )
        assert pair.source_caption != pair.target_caption
        difference = (pair.source - pair.target).abs().amax(0) > 0.05
        assert 0 < float(difference.float().mean()) < (0.95 if pair.attribute == "background" else 0.7)


def test_pictures_to_learn_hair_color_from_show_hair_of_another_color(data):
    wrong = {"top": ("bald", "hat", "beanie"), "facial_hair": ("none",)}
    kept = [
        pair.source
        for pair in data.pairs
        if pair.attribute != "hair_color"
        and pair.source_attributes["hair_color"] != "red"
        and not all(pair.source_attributes[key] in labels for key, labels in wrong.items())
    ]
    assert 0 < len(kept) < len([pair for pair in data.pairs if pair.attribute != "hair_color"])
    assert torch.equal(pictures_without(data.pairs, "hair_color", "red"), torch.stack(kept))


def test_every_edit_has_words(data):
    for edit in data.edits:
        source, target = data.pairs_of(edit)[0].words
        assert source != target


def test_an_unknown_edit_is_refused_with_the_known_ones(data):
    with pytest.raises(EditingError, match=r"no pairs for 'wings'.*mouth: sad to smile"):
        data.pairs_of("wings")


@pytest.mark.parametrize("broken", ["missing", "not json", "no pairs", "one pair less"])
def test_damaged_data_is_said(tmp_path, broken):
    if broken != "missing":
        shutil.copytree(FOLDER / "images", tmp_path / "images")
        shutil.copy(FOLDER / "pairs.npz", tmp_path / "pairs.npz")
        listing = json.loads((FOLDER / "demo.json").read_text())
        if broken == "no pairs":
            del listing["pairs"]
        if broken == "one pair less":
            listing["pairs"].pop()
        (tmp_path / "demo.json").write_text("{" if broken == "not json" else json.dumps(listing))
    with pytest.raises(EditingError, match="missing or damaged"):
        _ = DemoData(tmp_path).pairs


def test_a_picture_that_is_gone_is_named(tmp_path):
    shutil.copy(FOLDER / "demo.json", tmp_path / "demo.json")
    with pytest.raises(EditingError, match=r"\.png is missing or damaged"):
        _ = DemoData(tmp_path).images


def test_pickled_pictures_are_refused(tmp_path):
    shutil.copy(FOLDER / "demo.json", tmp_path / "demo.json")
    np.savez(tmp_path / "pairs.npz", images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(EditingError, match=r"pairs\.npz is missing or damaged"):
        _ = DemoData(tmp_path).pairs


def test_a_folder_without_the_model_is_said(tmp_path):
    shutil.copy(FOLDER / "demo.json", tmp_path / "demo.json")
    with pytest.raises(EditingError, match="incomplete or damaged"):
        load_demo_model(tmp_path)


CLASSES = {"colour": ["blue", "red"], "size": ["large", "medium", "small"]}


def test_a_classifier_is_rebuilt_from_its_file_alone(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AttributeClassifier([4, 6, 5], 7, CLASSES, size=40).eval()
    save_tensors(tmp_path / "c.safetensors", made.state_dict(), {"classes": json.dumps(CLASSES), "size": "40"})
    loaded = load_classifier(tmp_path / "c.safetensors")
    images = torch.rand(2, 3, 50, 50, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for attribute, logits in loaded(images).items():
            assert logits.shape == (2, len(CLASSES[attribute]))
            torch.testing.assert_close(logits, made(images)[attribute])
            names = [labels[attribute] for labels in loaded.labels(images)]
            assert names == [CLASSES[attribute][index] for index in logits.argmax(1)]


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, metadata: metadata.pop("classes"),
        lambda tensors, metadata: tensors.pop("fc.2.weight"),
        lambda tensors, metadata: tensors.pop("features.3.weight"),
        lambda tensors, metadata: metadata.update(classes=json.dumps({"colour": ["blue"]})),
        lambda tensors, metadata: metadata.update(classes="[1]"),
    ],
)
def test_a_file_that_is_no_classifier_is_refused(tmp_path, change):
    tensors = AttributeClassifier([4, 6], 7, CLASSES).state_dict()
    metadata = {"classes": json.dumps(CLASSES)}
    change(tensors, metadata)
    path = save_tensors(tmp_path / "c.safetensors", tensors, metadata)
    with pytest.raises(EditingError, match=r"c\.safetensors"):
        load_classifier(path)


@needs_classifiers
@pytest.mark.parametrize("name", ["classifier", "judge"])
def test_the_shipped_classifiers_see_the_true_edits(demo, name):
    pairs = demo.pairs[::8]
    classifier = getattr(demo, name)
    for side, labels in (("source", "source_attributes"), ("target", "target_attributes")):
        seen = classifier.labels(torch.stack([getattr(pair, side) for pair in pairs]))
        right = [
            found[pair.attribute] == getattr(pair, labels)[pair.attribute]
            for found, pair in zip(seen, pairs, strict=True)
        ]
        assert sum(right) / len(right) > 0.85


@needs_classifiers
def test_the_two_classifiers_are_different_networks(demo):
    shapes = [[tuple(parameter.shape) for parameter in net.parameters()] for net in (demo.classifier, demo.judge)]
    assert shapes[0] != shapes[1]


def test_the_unseen_pairs_are_of_faces_that_no_other_pair_or_picture_has(demo):
    unseen = DemoData(FOLDER / "unseen")
    known = {picture.numpy().tobytes() for pair in demo.pairs for picture in (pair.source, pair.target)}
    known |= {picture.numpy().tobytes() for picture in demo.images}
    assert unseen.edits == demo.edits
    learned = {(recipe.attribute, recipe.target) for recipe in RECIPES.values()}
    for edit in unseen.edits:
        pairs = unseen.pairs_of(edit)
        assert len(pairs) >= (40 if (pairs[0].attribute, pairs[0].after) in learned else 16)
        for pair in pairs:
            assert not {pair.source.numpy().tobytes(), pair.target.numpy().tobytes()} & known
            changed = {
                name for name in pair.source_attributes if pair.source_attributes[name] != pair.target_attributes[name]
            }
            assert changed == {pair.attribute} and pair.target_attributes[pair.attribute] == pair.after


def test_the_shipped_embeddings_are_those_of_the_recipes():
    found = {name.replace("_", " "): SemanticEmbedding.load(path) for name, path in embedding_files(FOLDER).items()}
    assert set(found) == set(RECIPES)
    for name, recipe in RECIPES.items():
        assert found[name].info["settings"] == json.loads(json.dumps(recipe.settings().stored()))
        assert (found[name].attribute, found[name].target) == (recipe.attribute, recipe.target)
