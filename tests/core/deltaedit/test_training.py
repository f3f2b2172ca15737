"""Training a mapper: loss and pairs by brute force, what is held out and kept, a world it must learn, and resuming."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from semantic_editing.core.deltaedit.mapper import condition
from semantic_editing.core.deltaedit.training import PRESETS, MapperSettings, MapperTrainer, delta_loss
from semantic_editing.core.training import made_with, resume_training, save_training
from semantic_editing.tests.core.deltaedit.tiny_latents import linear_world, seeded
from semantic_editing.tests.refusals import refusal

LATENTS, STYLES = linear_world()
SMALL = {"hidden": 16, "batch": 8, "steps": 12, "check_every": 4, "warm_up": 3}


class Stop(Exception):
    pass


def settings_of(preset="fast", **options):
    from dataclasses import replace

    return replace(PRESETS[preset], **(SMALL | options))


def trainer_of(preset="fast", latents=LATENTS, **options):
    return MapperTrainer(latents, settings_of(preset, **options))


def stopped(trainer, after):
    def callback(seen):
        if seen.step == after:
            raise Stop

    with pytest.raises(Stop):
        trainer.run(callback)
    return trainer


def test_loss_is_the_mean_square_over_channels_plus_one_minus_cosine():
    made, true = torch.randn(5, 7, generator=seeded(0)), torch.randn(5, 7, generator=seeded(1))
    total = 0.0
    for a, b in zip(made.double().numpy(), true.double().numpy(), strict=True):
        total += sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / 7 / 5
        total += (1 - a @ b / math.sqrt(a @ a) / math.sqrt(b @ b)) / 5
    assert float(delta_loss(made, true)) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("conditioning", ["delta", "plain"])
def test_a_pair_is_standardised_by_the_training_faces_and_its_condition_is_as_asked(standardise, conditioning):
    trainer = trainer_of(standardise=standardise, conditioning=conditioning)
    styles = LATENTS.convs.double().numpy()
    train = styles[trainer.train.numpy()]
    mean, deviation = (train.mean(0), train.std(0, ddof=1)) if standardise else (0.0, 1.0)
    first, second = torch.tensor([3, 4]), torch.tensor([9, 0])
    own, given, change = trainer._pair(first, second)
    np.testing.assert_allclose(own.numpy(), (styles[[3, 4]] - mean) / deviation, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(change.numpy(), (styles[[9, 0]] - styles[[3, 4]]) / deviation, rtol=1e-3, atol=1e-3)
    a, b = (LATENTS.image_features[rows].float() for rows in (first, second))
    unit = (b - a) / (b - a).norm(dim=1, keepdim=True)
    torch.testing.assert_close(given, torch.cat([a, unit if conditioning == "delta" else b], 1))


def test_a_step_descends_the_loss_of_its_pairs():
    """One step by hand: AdamW's first update is its rate times the gradient's sign, where nothing decays."""
    trainer = trainer_of(weight_decay=0.0, warm_up=0, cosine=False, averaging=0.0, dropout=0.0, longest_gradient=0.0)
    before = {name: weight.detach().clone() for name, weight in trainer.weights.items()}
    value = trainer._gradients()
    gradients = {name: weight.grad.clone() for name, weight in trainer.weights.items()}
    trainer.advance()
    assert trainer.losses == [float(value)]
    for name, weight in trainer.weights.items():
        sure = gradients[name].abs() > 1e-5  # where epsilon does not matter
        moved = (weight.detach() - before[name])[sure] / trainer.settings.learning_rate
        torch.testing.assert_close(moved, -gradients[name][sure].sign(), rtol=1e-2, atol=1e-2)


def test_faces_held_out_are_a_seeded_share_and_never_learned_from():
    trainer, again, other = trainer_of(), trainer_of(), trainer_of(seed=1)
    assert len(trainer.held) == 30  # 5 % of 600
    assert sorted([*trainer.held.tolist(), *trainer.train.tolist()]) == list(range(600))
    assert torch.equal(trainer.held, again.held) and not torch.equal(trainer.held, other.held)
    assert len(trainer_of(latents=linear_world(100)[0]).held) == 16
    first, second = trainer.pairs
    assert set(first.tolist()) == set(second.tolist()) == set(trainer.held.tolist())
    assert (first != second).all() and len({*zip(first.tolist(), second.tolist(), strict=True)}) == len(first)
    seen = []
    trainer._pair = lambda a, b, pair=trainer._pair: (seen.append((a, b)), pair(a, b))[1]
    for _ in range(3):
        trainer._gradients()
        trainer.step += 1
    used = torch.cat([rows for pair in seen for rows in pair])
    assert not set(used.tolist()) & set(trainer.held.tolist())
    assert all((a != b).all() for a, b in seen) and not torch.equal(seen[0][0], seen[1][0])


def test_rate_rises_and_falls_along_a_cosine_or_stays():
    trainer = trainer_of(steps=100, warm_up=4, learning_rate=1.0)
    assert [trainer.rate(step) for step in (0, 1)] == pytest.approx([0.25, 0.5], rel=1e-3)
    assert trainer.rate(50) == pytest.approx((1 + 0.02) / 2) and trainer.rate(100) == pytest.approx(0.02)
    released = trainer_of("released", learning_rate=0.5, warm_up=0)
    assert {released.rate(step) for step in (0, 7, 11)} == {0.5}


def test_validation_is_the_loss_of_all_held_out_pairs_with_the_mean_weights():
    trainer = trainer_of(averaging=0.9, latents=linear_world(100)[0])
    stopped(trainer, 4)
    (found,) = trainer.validations
    trainer.mapper.load_state_dict(trainer.mapper.state_dict() | trainer.averages)
    trainer.mapper.eval()
    styles, given, true = trainer._pair(*trainer.pairs)
    assert len(true) == 16 * 15  # each held-out face with each other
    made = trainer.mapper(styles, given).detach()
    assert found.step == 4 and found.loss == pytest.approx(float(delta_loss(made, true)), rel=1e-4)
    assert found.ratio == pytest.approx(float((made - true).square().sum() / true.square().sum()), rel=1e-4)
    assert found.cosine == pytest.approx(float(functional.cosine_similarity(made, true).mean()), rel=1e-4)


def test_averages_are_a_running_mean_of_the_weights():
    trainer = trainer_of(averaging=0.75)
    name = "fm_fine.0.weight"
    mean = trainer.averages[name].double().clone()
    for _ in range(3):
        trainer.advance()
        mean = 0.75 * mean + 0.25 * trainer.weights[name].detach().double()
    torch.testing.assert_close(trainer.averages[name].double(), mean)


def test_a_linear_world_is_learned_to_a_tenth_of_no_change():
    trainer = trainer_of(
        hidden=48, batch=96, steps=250, warm_up=20, check_every=50, dropout=0.0, averaging=0.9, learning_rate=6e-3,
        alike=1,
    )  # fmt: skip
    mapper = trainer.run()
    assert trainer.validations[0].ratio > trainer.validations[-1].ratio and trainer.validations[-1].ratio < 0.1
    assert mapper.facts["steps"].endswith("of 250") and mapper.generator == "a generator" and mapper.clip == "a CLIP"
    assert mapper.layout == LATENTS.layout and not any(weight.requires_grad for weight in mapper.parameters())
    fresh, truth = linear_world(seed=0)  # faces of the same world: held-out ones of this training
    a, b = trainer.held[:8], trainer.held[8:16]
    seen, others = (fresh.image_features[rows].float() for rows in (a, b))
    made, true = mapper.change(truth[a], seen, others - seen), truth[b] - truth[a]
    assert float((made - true).square().sum() / true.square().sum()) < 0.2


def test_the_best_is_kept_and_a_stop_never_changes_the_end():
    whole = trainer_of()
    result = whole.run()
    scores = {at.step: at.loss for at in whole.validations}
    assert list(scores) == [4, 8, 12] and whole.best_found.step == min(scores, key=scores.get)
    part = stopped(trainer_of(), 6)
    part.validate()  # as on Cancel
    assert part.extra.step == 6 and [at.step for at in part.validations] == [4]
    part.best()
    assert_equal_mappers(part.run(), result)
    assert part.losses == whole.losses and part.scheduled.score == whole.scheduled.score


def assert_equal_mappers(one, other):
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_resumed_training_ends_with_the_same_bits(tmp_path, preset):
    whole = trainer_of(preset)
    result = whole.run()
    part = stopped(trainer_of(preset), 6)
    part.validate()
    path = save_training(part, tmp_path / "state.safetensors")
    gone_on = trainer_of(preset)
    resume_training(gone_on, path)
    assert gone_on.step == 6 and gone_on.losses == part.losses and gone_on.validations == part.validations
    made = gone_on.run()
    assert gone_on.losses == whole.losses and gone_on.validations == whole.validations
    for name, weight in whole.weights.items():
        assert torch.equal(weight, gone_on.weights[name])
    assert_equal_mappers(made, result)
    assert made.facts == result.facts and made_with(made.facts, whole)


def test_a_state_before_the_first_step_and_after_the_last_go_on(tmp_path):
    start = trainer_of()
    save_training(start, tmp_path / "start.safetensors")
    other = trainer_of()
    resume_training(other, tmp_path / "start.safetensors")
    result = other.run()
    save_training(other, tmp_path / "end.safetensors")
    last = trainer_of()
    resume_training(last, tmp_path / "end.safetensors")
    assert_equal_mappers(last.run(), result)
    assert last.step == 12


def test_a_constant_rate_may_train_on_and_a_cosine_may_not(tmp_path):
    short = trainer_of("released", steps=6)
    short.run()
    save_training(short, tmp_path / "a.safetensors")
    longer = trainer_of("released", steps=12)
    resume_training(longer, tmp_path / "a.safetensors")
    whole = trainer_of("released", steps=12)
    whole.run()
    longer.run()
    assert longer.losses == whole.losses
    short = trainer_of(steps=6)
    short.run()
    save_training(short, tmp_path / "b.safetensors")
    assert "another steps" in refusal(resume_training, trainer_of(steps=12), tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("change", "word"), [({"seed": 2}, "seed"), ({"hidden": 24}, "hidden"), ({"learning_rate": 1.0}, "learning rate")]
)
def test_another_training_is_refused_by_what_differs(tmp_path, change, word):
    save_training(stopped(trainer_of(), 4), tmp_path / "a.safetensors")
    other = trainer_of(**change)
    assert f"another {word}" in refusal(resume_training, other, tmp_path / "a.safetensors")
    assert not made_with({"training": trainer_of().fingerprint()}, other)


def test_other_faces_are_refused(tmp_path):
    save_training(stopped(trainer_of(), 4), tmp_path / "a.safetensors")
    for latents in (linear_world(599)[0], linear_world(seed=9)[0]):
        refusal(resume_training, trainer_of(latents=latents), tmp_path / "a.safetensors")


def test_a_loss_that_is_no_number_ends_the_training_and_keeps_the_best(tmp_path):
    trainer = trainer_of()

    def spoil(seen):
        if seen.step == 6:
            next(iter(seen.weights.values())).data.fill_(math.nan)

    mapper = trainer.run(spoil)
    assert trainer.step == 6 and "step 7" in trainer.broken and trainer.best_found.step == 4
    assert all(weight.isfinite().all() for weight in mapper.parameters())
    assert trainer.broken in trainer.report(mapper)
    assert (
        "broke" in refusal(save_training, trainer, tmp_path / "a.safetensors")
        or not (tmp_path / "a.safetensors").exists()
    )
    early = trainer_of()
    next(iter(early.weights.values())).data.fill_(math.nan)
    assert "lower the learning rate" in refusal(early.run)


def test_what_cannot_be_trained_is_refused():
    assert "32" in refusal(MapperTrainer, linear_world(31)[0], MapperSettings())
    for change in ({"steps": 0}, {"batch": 0}, {"learning_rate": math.nan}, {"held_out": 1.0}, {"check_every": 0}):
        refusal(trainer_of, **change)
    uneven, _ = linear_world(widths=(6, 6, 6))
    trainer_of("released", latents=uneven)  # one layer a level, so that no two share a module
    assert "no trained mapper" in refusal(trainer_of().best)


def test_the_global_generator_stays_as_it_was():
    torch.manual_seed(4)
    wanted = torch.rand(3)
    torch.manual_seed(4)
    trainer = trainer_of()
    trainer.run()
    assert torch.equal(torch.rand(3), wanted)


def test_under_inference_mode_the_same_is_learned():
    with torch.inference_mode():
        latents, _ = linear_world()
        inside = MapperTrainer(latents, settings_of()).run()
    assert_equal_mappers(inside, trainer_of().run())


def test_it_tells_where_it_is():
    trainer = trainer_of()
    trainer.run()
    assert "step 12 of 12" in trainer.line() and "cosine" in trainer.line()
    plot = trainer.plot()
    assert plot.ndim == 3 and plot.shape[-1] == 3 and 0 <= plot.min() < plot.max() <= 1
    assert "cosine" in trainer.report(trainer.best())


def test_condition_of_no_difference_is_zero():
    given = condition(torch.ones(1, 2), torch.zeros(1, 2))
    assert given.tolist() == [[1, 1, 0, 0]]
