"""Learning from pictures that have it: each loss by hand, what it costs, averages, and going on to the same bits."""

import json
import math

import pytest
import torch

from semantic_editing.core.caso.contrast import contrast_loss
from semantic_editing.core.caso.embedding import SemanticEmbedding
from semantic_editing.core.caso.look import RealLook, opinion_of_classifier
from semantic_editing.core.caso.schedule import noisy
from semantic_editing.core.caso.settings import KINDS, Kind, TrainingSettings
from semantic_editing.core.caso.training_state import made_by, resume_training, save_training
from semantic_editing.core.errors import EditingError
from semantic_editing.core.files import load_tensors, save_tensors
from semantic_editing.core.token_vectors import empty_condition
from semantic_editing.tests.core.caso.tiny_caso import tiny_classifier, tiny_trainer
from semantic_editing.tests.core.tiny_models import tiny_latent, tiny_unet

WITHOUT, HAVING = tiny_latent(5, seed=3), tiny_latent(4, seed=8)
CONTRAST = {"classification": 0.0, "contrast": 1.0, "noises_per_image": 0}
STATE = {"steps": 5, "check_every": 0, "averaging": 0.8, "learning_rate": 0.3}


@pytest.fixture(scope="module")
def network():
    return tiny_unet()


def trainer_of(network, having=HAVING, classifier=None, look=None, **settings):
    from semantic_editing.core.caso.training import EmbeddingTrainer

    plain = tiny_trainer(WITHOUT, network=network)
    values = {"attribute": "glasses", "targets": ("yes",), "steps": 4, "batch": 2, **CONTRAST, **settings}
    return EmbeddingTrainer(
        plain.denoiser,
        plain.vector_encoder,
        plain.decoder,
        classifier,
        WITHOUT,
        TrainingSettings(**values),
        having=having,
        look=look,
    )


def look_of(network, judge=None, **changes):
    """Edits of two held-out pictures, judged by a tiny classifier."""
    trainer = tiny_trainer(WITHOUT, network=network)
    opinion = opinion_of_classifier(judge or tiny_classifier(), "glasses", ["yes"], 2, "the second opinion wired")
    given = {"kind": Kind(0.5, 0.0, 0.005, 0.5, 1.0, 2.0), "steps": 4, "batch": 2, **changes}
    return RealLook(trainer.denoiser, trainer.vector_encoder, trainer.decoder, opinion, WITHOUT[:2], **given)


def test_the_contrast_is_log_two_of_nothing_and_grows_with_what_is_told_wrong():
    nothing = torch.zeros(3)
    assert float(contrast_loss(nothing, nothing, 0.004)) == pytest.approx(math.log(2))
    gains = torch.tensor([0.01, -0.002, 0.004])
    by_hand = sum(math.log1p(math.exp(-gain / 0.004)) for gain in gains.tolist()) / 3
    assert float(contrast_loss(gains, -gains, 0.004)) == pytest.approx(by_hand, rel=1e-5), "alike for both kinds"
    right, wrong = (float(contrast_loss(sign * gains.abs(), -sign * gains.abs(), 0.004)) for sign in (1, -1))
    assert right < math.log(2) < wrong
    small, large = (torch.tensor([0.01], requires_grad=True) for _ in range(2))
    contrast_loss(small, -small, 0.001).backward()
    contrast_loss(large, -large, 0.02).backward()
    assert abs(float(small.grad)) < 0.1 < abs(float(large.grad)), "a gain far beyond the scale teaches no more"


def test_a_step_s_loss_is_that_of_its_pictures_under_one_noise(network):
    """By hand: a picture that has it gets the level and the noise of its partner."""
    trainer = trainer_of(network, contrast=2.0, contrast_scale=0.01, noise_level_jitter=0.2)
    for move in trainer.moves.values():  # away from the neutral start, which explains nothing
        move.data.copy_(torch.randn(move.shape, generator=torch.Generator().manual_seed(5)))
    vectors = trainer.vectors["clip_l"].detach()
    first, second = trainer.schedule.draws(0), trainer.partners.draws(0)
    keys = [(0, "noise", draw.image, draw.noise) for draw in first]
    gains = {}
    for kind, latents in (
        ("without", WITHOUT[[d.image for d in first]]),
        ("having", HAVING[[d.image for d in second]]),
    ):
        gains[kind] = []
        for row, key in enumerate(keys):
            x, sigma = noisy(latents[row : row + 1], trainer.denoiser.identity, trainer.levels, [key])
            conds = empty_condition(trainer.vector_encoder), trainer.vector_encoder({"clip_l": vectors})
            with torch.no_grad():
                plain, learned = (
                    float((trainer.denoiser(x, sigma, cond) - latents[row]).square().mean()) for cond in conds
                )
            gains[kind].append(plain - learned)
    progress = trainer.advance()
    expected = contrast_loss(torch.tensor(gains["having"]), torch.tensor(gains["without"]), 0.01)
    assert progress.contrast == pytest.approx(float(expected), rel=1e-4)
    assert progress.loss == pytest.approx(2 * progress.contrast, rel=1e-6)
    right = [*(gain > 0 for gain in gains["having"]), *(gain < 0 for gain in gains["without"])]
    assert progress.accuracy == pytest.approx(sum(right) / 4)


def test_a_step_costs_twice_as_much_as_without_pictures_that_have_it(network):
    trainer = trainer_of(network)
    trainer.advance()
    assert (trainer.denoiser.evaluations.forward, trainer.denoiser.evaluations.backward) == (8, 4)


def test_the_same_pictures_under_the_same_noises_are_told_apart_better_step_by_step(network):
    """One picture that has it and all that have it not in each step, each with one noise: the loss is the same one."""
    options = {"steps": 8, "batch": 5, "noises_per_image": 1, "learning_rate": 0.01, "noise_level": 0.9}
    trainer = trainer_of(network, having=HAVING[:1], **options)
    trainer.run()
    contrasts = [entry.contrast for entry in trainer.history]
    assert contrasts[0] == pytest.approx(math.log(2)), "the neutral start is the empty prompt"
    assert contrasts[-1] < contrasts[0] - 1e-3


def test_what_is_kept_is_the_mean_of_the_vectors(network):
    trainer, seen = trainer_of(network, **STATE), []
    assert torch.equal(trainer.settled["clip_l"], trainer.vectors["clip_l"].detach())
    trainer.run(lambda progress: seen.append(trainer.vectors["clip_l"].detach().clone()))
    weights = torch.tensor([0.8 ** (len(seen) - 1 - step) for step in range(len(seen))])
    expected = (torch.stack(seen) * weights.view(-1, 1, 1, 1)).sum(0) / weights.sum()
    torch.testing.assert_close(trainer.settled["clip_l"], expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(trainer.settled["clip_l"], seen[-1])


@pytest.mark.parametrize("stop", [1, 3])
def test_gone_on_with_ends_as_if_it_never_stopped(network, tmp_path, stop):
    whole = trainer_of(network, **STATE)
    (expected,) = whole.run()
    first = trainer_of(network, **STATE)
    for _ in range(stop):
        first.advance()
    path = save_training(first, tmp_path / "state.safetensors")
    second = trainer_of(network, **STATE)
    resume_training(second, path)
    (got,) = second.run()
    assert torch.equal(got.vectors["clip_l"], expected.vectors["clip_l"])
    figures = [[(entry.loss, entry.contrast) for entry in run.history] for run in (second, whole)]
    assert figures[0] == figures[1]
    settings, read = second.settings, SemanticEmbedding.load(got.save(tmp_path / "made.safetensors"))
    assert made_by(read, settings, None) and not made_by(read, settings, tiny_classifier())


def test_a_state_of_other_pictures_or_of_the_paper_s_loss_is_refused(network, tmp_path):
    trainer = trainer_of(network, **STATE)
    trainer.advance()
    path = save_training(trainer, tmp_path / "state.safetensors")
    with pytest.raises(EditingError, match="another pictures"):
        resume_training(trainer_of(network, having=HAVING + 1, **STATE), path)
    with pytest.raises(EditingError, match="another contrast"):
        resume_training(trainer_of(network, **STATE | {"contrast": 2.0}), path)
    paper = tiny_trainer(WITHOUT, network=network, noises_per_image=0, **STATE)
    with pytest.raises(EditingError, match="belongs to a training with another"):
        resume_training(paper, path)


def test_a_state_is_refused_where_another_look_would_decide_what_is_kept(network, tmp_path):
    path = tmp_path / "state.safetensors"
    trainer = trainer_of(network, look=look_of(network), **STATE)
    trainer.advance()
    save_training(trainer, path)
    others = {
        "strength": 3.0,
        "steps": 6,
        "kind": Kind(0.5, 0.0, 0.005, 0.75, 1.0, 2.0),
        "judge": tiny_classifier(seed=9),
    }
    for name, value in others.items():
        with pytest.raises(EditingError, match="another look"):
            resume_training(trainer_of(network, look=look_of(network, **{name: value}), **STATE), path)
    with pytest.raises(EditingError, match="another look"):
        resume_training(trainer_of(network, **STATE), path)
    again = trainer_of(network, look=look_of(network), **STATE)
    resume_training(again, path)
    assert again.step == 1
    tensors, metadata = load_tensors(path)
    run = json.loads(metadata["run"])
    run.pop("look")  # as older files are
    save_tensors(path, tensors, metadata | {"run": json.dumps(run)}, overwrite=True)
    resume_training(trainer_of(network, look=look_of(network, strength=3.0), **STATE), path)


def test_what_is_missing_is_refused(network):
    with pytest.raises(EditingError, match="no pictures that have it"):
        trainer_of(network, having=None)
    with pytest.raises(EditingError, match="no classifier to learn from"):
        trainer_of(network, classification=1.0, contrast=0.0)
    for change, said in (
        ({"classification": 0.0}, "Either a classifier teaches or pictures do"),
        ({"contrast": 1.0}, "Either a classifier teaches or pictures do"),
        ({"classification": 0.0, "contrast": 1.0, "targets": ("yes", "no")}, "one class is learned at a time"),
        ({"contrast_scale": 0.0}, "contrast_scale is 0; use a positive number"),
        ({"averaging": 1.0}, "averaging is 1"),
        ({"contrast": -1.0}, "contrast is -1"),
    ):
        with pytest.raises(EditingError, match=said):
            TrainingSettings(**{"attribute": "glasses", "targets": ("yes",), **change})


def test_files_name_the_newer_settings_only_where_they_say_something():
    paper = KINDS["large"].paper("glasses", ("yes",))
    assert not {"classification", "contrast", "contrast_scale", "averaging"} & set(paper.stored())
    folders = KINDS["colour"].settings("hair", "red", steps=7)
    stored = folders.stored()
    assert (stored["classification"], stored["contrast"], stored["contrast_scale"]) == (0, 1, 0.02)
    assert folders.steps == 7 and folders.noise_level_jitter == 0.2
