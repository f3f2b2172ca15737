"""Training a style diffusion: the loss, what is drawn, the average, resuming, and what goes wrong."""

import math
from dataclasses import replace

import pytest
import torch

from semantic_editing.core.deltaedit.style_diffusion import TIMES, noise_schedule
from semantic_editing.core.deltaedit.style_diffusion_training import (
    LEAST_LEVEL,
    MOST_LEVEL,
    UNIFORM_SHARE,
    DiffusionSettings,
    DiffusionTrainer,
    StyledPictures,
    level_chances,
    noise_loss,
    noisy,
    resume_training,
    save_training,
)
from semantic_editing.core.errors import EditingError
from semantic_editing.core.files import load_tensors, save_tensors

from .tiny_diffusion import LAYOUT, TINY, network, random

SETTINGS = DiffusionSettings(steps=6, batch=2, learning_rate=1e-2, rise=2, check_every=3)


def data(count=24, size=16, generator="tiny"):
    """Pictures of one colour, which their styles tell."""
    convs = random(count, LAYOUT.width, seed=8)
    colours = (convs[:, :3].sigmoid() * 255).byte()
    return StyledPictures(colours[:, None, None].expand(-1, size, size, -1).contiguous(), convs, LAYOUT, generator)


def trainer(settings=SETTINGS, shape=TINY, **kind):
    return DiffusionTrainer(network(shape), data(**kind), settings)


def test_the_loss_is_equation_14_and_its_limit_makes_it_that_of_v():
    noise, found, sigma = random(3, 3, 4, 4), random(3, 3, 4, 4, seed=1), torch.tensor([0.2, 3.0, 90.0])
    each = [float((found[row] - noise[row]).abs().mean()) for row in range(3)]
    assert float(noise_loss(found, noise, sigma)) == pytest.approx(sum(each) / 3)
    weights = [math.sqrt(1.04), math.sqrt(10), 8.0]
    weighted = sum(a * w for a, w in zip(each, weights, strict=True)) / 3
    assert float(noise_loss(found, noise, sigma, 8.0)) == pytest.approx(weighted)
    # v = alpha noise - sigma_t picture of the same x: its error is the weighted one.
    pictures = random(3, 3, 4, 4, seed=2)
    level = sigma[:, None, None, None]
    alpha, x = (1 + level**2).rsqrt(), noisy(pictures, noise, sigma)
    implied = (x / alpha - level * found).double()
    v_error = (alpha * (found - noise) - level * alpha * (implied - pictures)).abs().mean()
    assert float(noise_loss(found, noise, sigma, 1e9)) == pytest.approx(float(v_error), rel=1e-4)


def test_noisy_pictures_are_equation_9():
    pictures, noise, sigmas = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1), noise_schedule()
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.double), 0)[[5, 700]][:, None, None, None]
    wanted = kept.sqrt() * pictures + (1 - kept).sqrt() * noise
    torch.testing.assert_close(noisy(pictures, noise, sigmas[[5, 700]]).double(), wanted, rtol=0, atol=1e-5)


def test_uniform_times_are_the_papers_and_balanced_ones_even_in_the_logarithm():
    assert level_chances("uniform").tolist() == [1 / TIMES] * TIMES
    chances, sigmas = level_chances("balanced"), noise_schedule().double()
    assert float(chances.sum()) == pytest.approx(1) and float(chances.min()) == pytest.approx(UNIFORM_SHARE / TIMES)
    middle = math.sqrt(LEAST_LEVEL * MOST_LEVEL)
    extra = chances - UNIFORM_SHARE / TIMES
    assert float(extra[sigmas < middle].sum()) == pytest.approx((1 - UNIFORM_SHARE) / 2, abs=0.01)


def test_training_lowers_the_held_out_loss():
    made = trainer(replace(SETTINGS, steps=20, check_every=20))
    before = made._held_out_loss()
    made.run()
    assert made.history[-1].held_out == made.best_score < 0.97 * before


def test_the_average_is_the_recursion_over_the_weights():
    made = trainer()
    wanted = {name: value.detach().clone() for name, value in made.weights.items()}
    for step in range(1, 5):
        next(made.steps())
        decay = min(SETTINGS.average, (1 + step) / (10 + step))
        for name, value in made.weights.items():
            wanted[name] = decay * wanted[name] + (1 - decay) * value.detach()
    for name, value in wanted.items():
        torch.testing.assert_close(made.average[name], value)


def test_the_best_average_is_kept_for_use():
    made = trainer()
    made.run()
    looks = {entry.step: entry.held_out for entry in made.history if not math.isnan(entry.held_out)}
    assert set(looks) == {3, 6} and made.best_step == min(looks, key=looks.get)
    best = made.best()
    assert best.facts["steps"] == made.best_step and not any(value.requires_grad for value in best.parameters())
    for name, value in best.named_parameters():
        assert torch.equal(value, made.best_weights[name])
    mean, deviation = data().convs.mean(0), data().convs.std(0, unbiased=False)
    torch.testing.assert_close((best.mean, best.deviation), (mean, deviation))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_resumed_training_ends_where_a_straight_one_does(tmp_path, dropout):
    shape = replace(TINY, dropout=dropout)
    straight = trainer(shape=shape)
    straight.run()
    halted = trainer(shape=shape)
    for progress in halted.steps():
        if progress.step == 4:
            break
    path = save_training(halted, tmp_path / "a.safetensors")
    resumed = trainer(shape=shape)
    torch.rand(5)  # what the global generator did in between does not matter
    resume_training(resumed, path)
    resumed.run()
    assert [entry.loss for entry in resumed.history] == [entry.loss for entry in straight.history]
    assert resumed.best_step == straight.best_step and resumed.best_score == straight.best_score
    for name, value in straight.average.items():
        assert torch.equal(resumed.average[name], value)


def test_a_resumed_training_may_be_longer(tmp_path):
    made = trainer()
    made.run()
    path = save_training(made, tmp_path / "a.safetensors")
    longer = trainer(replace(SETTINGS, steps=8))
    resume_training(longer, path)
    longer.run()
    assert longer.step == 8


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (lambda: trainer(replace(SETTINGS, seed=1)), "another seed"),
        (lambda: trainer(shape=replace(TINY, prediction="eps")), "another network"),
        (lambda: trainer(count=30), "another pictures"),
    ],
)
def test_another_training_cannot_go_on(tmp_path, other, what):
    path = save_training(trainer(), tmp_path / "a.safetensors")
    with pytest.raises(EditingError, match=f"belongs to a training with {what}"):
        resume_training(other(), path)


def test_a_damaged_state_is_refused_and_changes_nothing(tmp_path):
    made = trainer()
    next(made.steps())
    path = save_training(made, tmp_path / "a.safetensors")
    tensors, metadata = load_tensors(path)
    tensors["average.unet.first.weight"][0] = math.nan
    save_tensors(path, tensors, metadata, overwrite=True)
    fresh = trainer()
    before = {name: value.detach().clone() for name, value in fresh.weights.items()}
    with pytest.raises(EditingError, match="parts that do not fit together"):
        resume_training(fresh, path)
    assert all(torch.equal(value, before[name]) for name, value in fresh.weights.items())


def test_a_loss_that_is_not_a_number_ends_the_training_and_keeps_what_was_good():
    made = trainer()
    for progress in made.steps():
        if progress.step == 4:
            break
    kept = {name: value.clone() for name, value in made.average.items()}
    with torch.no_grad():
        made.weights["unet.first.weight"][0] = math.nan
    made.run()
    assert made.step == 4 and "step 5 is not a number" in made.trouble
    assert all(torch.equal(value, kept[name]) for name, value in made.average.items())
    assert made.best_step == 3 and all(bool(value.isfinite().all()) for value in made.best().parameters())


def test_a_cancel_leaves_the_best():
    made = trainer()

    def cancel(progress):
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.run(cancel)
    assert made.step == 5 and made.best().facts["steps"] == 3


def test_the_papers_settings():
    paper = DiffusionSettings.paper(steps=5)
    assert (paper.batch, paper.learning_rate, paper.weight_decay, paper.average) == (64, 1e-4, 0.01, 0.9999)
    assert (paper.noise_levels, paper.weight_limit, paper.steps) == ("uniform", 1.0, 5)


def test_pictures_are_read_in_the_order_asked_for():
    found, styles = data().rows(torch.tensor([5, 1, 5]))
    wanted = (data().pictures[[5, 1, 5]].float() / 127.5 - 1).movedim(-1, 1)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(styles, data().convs[[5, 1, 5]])


def test_bad_input_ends_in_a_sentence():
    convs, pictures = data().convs, data().pictures
    for parts, sentence in [
        ((pictures[:, :8], convs), "training takes squares"),
        ((pictures, convs[:, :3]), "each picture needs 12"),
        ((pictures[:5], convs), "There are 5 pictures"),
        ((pictures[:1], convs[:1]), "nothing to learn from"),
    ]:
        with pytest.raises(EditingError, match=sentence):
            StyledPictures(*parts, LAYOUT, "tiny")
    with pytest.raises(EditingError, match="8 pixels wide and the network takes 16"):
        trainer(size=8)
    with pytest.raises(EditingError, match="another generator's"):
        trainer(generator="other")
    for change in ({"steps": 0}, {"batch": 0}):
        with pytest.raises(EditingError, match="must be 1 or more"):
            replace(SETTINGS, **change)
    for change in ({"learning_rate": 0.0}, {"weight_limit": 0.5}, {"average": 1.0}, {"learning_rate": math.nan}):
        with pytest.raises(EditingError, match="learning rate must be above 0"):
            replace(SETTINGS, **change)
