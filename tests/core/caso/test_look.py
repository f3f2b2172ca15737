"""The look at held-out pictures: a real edit, a second opinion that does not know them, and a figure put right."""

import pytest
import torch

from semantic_editing.core.caso import look as module
from semantic_editing.core.caso.editing import Window, invert_to_window, semantic_edit
from semantic_editing.core.caso.embedding import GuidanceTerm
from semantic_editing.core.caso.look import Opinion, RealLook, Trust, opinion_of_classifier, opinion_of_folders
from semantic_editing.core.caso.settings import KINDS, Kind
from semantic_editing.core.classifiers.frozen_features import FeatureTrunk
from semantic_editing.core.errors import EditingError
from semantic_editing.core.token_vectors import empty_condition
from semantic_editing.tests.core.caso.tiny_caso import tiny_classifier, tiny_trainer
from semantic_editing.tests.core.tiny_models import tiny_latent, tiny_unet

KIND = Kind(0.5, 0.0, 0.005, 0.5, 0.2, 2.0)


def bright(count, level, seed):
    return torch.rand(count, 3, 24, 24, generator=torch.Generator().manual_seed(seed)) * 0.3 + level


def test_an_opinion_that_guesses_is_not_to_be_believed():
    assert Trust(0.8, 0.2, 100).worth and not Trust(0.6, 0.5, 100).worth


def test_the_second_opinion_of_two_folders_tells_them_apart_and_each_is_asked_by_one_that_does_not_know_it(monkeypatch):
    having, without = bright(12, 0.6, 1), bright(15, 0.1, 2)
    known = []
    train = module.train_classifier

    def watched(pictures, settings, *start, **rest):
        known.append((len(pictures.labels), settings.seed))
        return train(pictures, settings, *start, **rest)

    monkeypatch.setattr(module, "train_classifier", watched)
    monkeypatch.setattr(module, "SIDE", 24)
    monkeypatch.setattr(module, "EPOCHS", 6)
    opinion = opinion_of_folders(having, without, 4, seed=3)
    assert known == [(18, 4), (18, 5), (18, 6)], "two thirds each, of three seeds"
    assert opinion.trust.pictures == 27 and opinion.trust.worth and opinion.trust.recall > 0.8
    assert len(opinion.folds) == 4 and "second opinion from your pictures" in opinion.sentence()
    assert opinion.sentence().endswith("(27 asked)")
    _, seen = opinion.asked(bright(4, 0.6, 5), torch.arange(4), 0)
    _, not_seen = opinion.asked(bright(4, 0.1, 6), torch.arange(4), 0)
    assert int(seen.sum()) >= 3 and int(not_seen.sum()) <= 1
    with pytest.raises(EditingError, match="second opinion needs 6 of each"):
        opinion_of_folders(having[:5], without, 2, seed=0)


def test_over_a_clip_the_second_opinion_is_layers_over_its_features_alone():
    having, without = bright(12, 0.6, 1), bright(15, 0.1, 2)
    seen = []

    def see(images):
        seen.append(tuple(images.shape[2:]))
        level = images.mean((1, 2, 3))  # the same at any size, as of a CLIP, which resizes by itself
        return torch.stack([level, 1 - level], 1)

    opinion = opinion_of_folders(having, without, 4, seed=3, trunk=FeatureTrunk(see, "tiny", 16, 2))
    assert opinion.trust.recall == 1.0 and opinion.trust.false_alarms == 0.0 and opinion.trust.pictures == 27
    assert len(opinion.classifiers) == 3 and all(part.trunk.see is see for part in opinion.classifiers)
    assert set(seen) == {(16, 16)} and "a second opinion from your pictures by CLIP" in opinion.sentence()
    assert opinion.asked(bright(4, 0.6, 5), torch.arange(4), 0)[1].all()
    assert not opinion.asked(bright(4, 0.1, 6), torch.arange(4), 0)[1].any()


def test_each_row_is_asked_by_the_classifier_of_its_fold():
    classifiers = [tiny_classifier(seed) for seed in (0, 7)]
    folds = torch.tensor([1, 0, 1])
    opinion = Opinion(classifiers, "glasses", [1], folds, None, "them")
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    chances, seen = opinion.asked(images, torch.tensor([2, 1, 0]), 0)
    for row, fold in enumerate((1, 0, 1)):
        logits = classifiers[fold].logits(images[row : row + 1])["glasses"]
        assert float(chances[row]) == pytest.approx(float(logits.log_softmax(1)[0, 1]), rel=1e-4)
        assert bool(seen[row]) == (int(logits.argmax()) == 1)
    assert opinion.sentence() == "judged by them"


def test_a_given_classifier_is_asked_about_real_pictures():
    classifier = tiny_classifier()
    images = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    answers = classifier.logits(images)["glasses"].argmax(1)
    opinion = opinion_of_classifier(classifier, "glasses", ["yes"], 2, "it", images[:5], images[5:])
    assert opinion.trust.recall == pytest.approx(float((answers[:5] == 1).float().mean()))
    assert opinion.trust.false_alarms == pytest.approx(float((answers[5:] == 1).float().mean()))
    assert opinion_of_classifier(classifier, "glasses", ["yes"], 2, "it").trust is None


@pytest.fixture(scope="module")
def parts():
    trainer = tiny_trainer(tiny_latent(3, seed=3), network=tiny_unet())
    return trainer.denoiser, trainer.vector_encoder, trainer.decoder


def test_the_pictures_are_edited_as_the_edit_nodes_do(parts):
    denoiser, encoder, decoder = parts
    latents, classifier = tiny_latent(3, seed=5), tiny_classifier()
    opinion = opinion_of_classifier(classifier, "glasses", ["no", "yes"], 3, "it")
    look = RealLook(denoiser, encoder, decoder, opinion, latents, KIND, steps=4, batch=2)
    vectors = {"clip_l": torch.randn(2, 1, 12, generator=torch.Generator().manual_seed(4))}
    result = look(vectors)
    inversion, window = invert_to_window(denoiser, latents, empty_condition(encoder), 4, Window(0.5))
    seen, chances = [], []
    for target in range(2):
        cond = encoder({"clip_l": vectors["clip_l"][target : target + 1]})
        term = GuidanceTerm(cond, 2.0, focus=0.2)
        images = decoder(semantic_edit(denoiser, inversion, empty_condition(encoder), [term], window)).clamp(0, 1)
        torch.testing.assert_close(result.images[3 * target : 3 * target + 3], images, rtol=1e-3, atol=1e-4)
        found = classifier.logits(images)["glasses"].log_softmax(1)
        chances.append(found[:, target])
        seen.append(found.argmax(1) == target)
    assert result.accuracy == pytest.approx(float(torch.cat(seen).float().mean()))
    assert result.loss == pytest.approx(-float(torch.cat(chances).mean()), rel=1e-3)
    before = denoiser.evaluations.forward
    look(vectors)
    assert denoiser.evaluations.forward - before == 2 * 3 * 2 * 2, "inverted once; 2 guided steps of 2 u"


def test_the_look_decides_which_step_is_kept(parts):
    from semantic_editing.core.caso.settings import TrainingSettings, ValidationResult
    from semantic_editing.core.caso.training import EmbeddingTrainer

    denoiser, encoder, decoder = parts
    asked = []

    def look(vectors):
        asked.append(vectors["clip_l"].clone())
        return ValidationResult([3.0, 1.0, 2.0][len(asked) - 1], 0.5, torch.zeros(1, 3, 8, 8))

    options = {"steps": 6, "batch": 1, "check_every": 2, "averaging": 0.5, "contrast": 1.0, "classification": 0.0}
    settings = TrainingSettings("glasses", ("yes",), learning_rate=0.3, noises_per_image=0, **options)
    latents = tiny_latent(3, seed=3)
    trainer = EmbeddingTrainer(denoiser, encoder, decoder, None, latents, settings, having=latents + 0.5, look=look)
    (kept,) = trainer.run()
    assert len(asked) == 3 and trainer.best_found.step == 3
    assert torch.equal(kept.vectors["clip_l"], asked[1][0]) and not torch.equal(asked[1], asked[2])


def test_every_kind_has_settings_that_a_training_and_an_edit_take():
    for kind in KINDS.values():
        assert Window(kind.start).start == kind.start and 0 < kind.focus <= 1
        assert kind.settings("a", "b").shown and not kind.paper("a", ("b", "c")).shown
        assert kind.edit == {"start": kind.start, "focus": kind.focus, "strength": kind.strength}
