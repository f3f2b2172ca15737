"""Distilling: the loss by brute force, an edit that must be learned, what is held out and kept, resuming, files."""

import math

import numpy as np
import pytest
import torch

from semantic_editing.core.distillation.files import load_editor, save_editor
from semantic_editing.core.distillation.pairs import EditPairs
from semantic_editing.core.distillation.training import (
    GRADIENTS,
    SCALES,
    DistillationSettings,
    DistillationTrainer,
    edit_loss,
    region_means,
    shifted,
)
from semantic_editing.core.files import load_tensors, save_tensors
from semantic_editing.core.training import made_with, resume_training, save_training
from semantic_editing.tests.core.distillation.tiny_edit import TINY, green_to_red, seeded
from semantic_editing.tests.refusals import refusal

PAIRS = green_to_red()
SMALL = {"steps": 6, "batch": 4, "check_every": 2, "warm_up": 2}


class Stop(Exception):
    pass


def trainer_of(pairs=PAIRS, **options):
    return DistillationTrainer(pairs, TINY, DistillationSettings(**(SMALL | options)), source="green", target="red")


def stopped(trainer, after):
    def callback(seen):
        if seen.step == after:
            raise Stop

    with pytest.raises(Stop):
        trainer.run(callback)
    return trainer


def same(made, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in made.state_dict().items())


def means_by_hand(values, region):
    """Over the region and over the rest, as loops over pixels."""
    total = 0.0
    for weight in (region, 1 - region):
        inside = area = 0.0
        for b, y, x in np.ndindex(region.shape[0], *region.shape[2:]):
            inside += weight[b, 0, y, x] * values[b, :, y, x].mean()
            area += weight[b, 0, y, x]
        total += inside / max(area, 1)
    return total


def halved(values):
    b, c, h, w = values.shape
    return values.reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))


def test_the_loss_is_the_l1_of_colours_and_of_gradients_at_every_scale():
    made, wanted = (torch.rand(2, 3, 8, 8, generator=seeded(seed)).double() for seed in (0, 1))
    region = (torch.rand(2, 1, 8, 8, generator=seeded(2)) < 0.3).double()
    error, part = (made - wanted).numpy(), region.numpy()
    expected = means_by_hand(np.abs(error), part)
    for _ in range(SCALES):
        down, across = np.abs(np.diff(error, axis=2)), np.abs(np.diff(error, axis=3))
        expected += GRADIENTS / SCALES * (means_by_hand(down, part[:, :, 1:]) + means_by_hand(across, part[..., 1:]))
        error, part = halved(error), halved(part)
    assert float(edit_loss(made, wanted, region)) == pytest.approx(expected, rel=1e-9)
    assert float(edit_loss(wanted, wanted, region)) == 0
    assert float(region_means((made - wanted).abs(), torch.zeros_like(region))) == pytest.approx(
        float((made - wanted).abs().mean())
    )


def test_shifts_move_whole_pictures_by_at_most_so_much():
    images = torch.rand(6, 2, 12, 12, generator=seeded(3))
    moved = shifted(images, 2)
    for picture, other in zip(images, moved, strict=True):
        padded = torch.nn.functional.pad(picture[None], (2, 2, 2, 2), mode="replicate")[0]
        assert any(
            torch.equal(padded[:, top : top + 12, left : left + 12], other) for top in range(5) for left in range(5)
        )
    assert torch.equal(shifted(images, 0), images)


def test_a_batch_is_augmented_alike_before_and_after():
    """Flip, shift and colours keep grey ground grey ground; noise is in both outside the edit."""
    trainer = trainer_of(batch=8)
    with trainer._seeded(0):
        before, wanted, region = trainer._batch()
    outside = (region == 0).expand_as(before)
    torch.testing.assert_close(before[outside], wanted[outside])
    assert float((before - wanted).abs()[region.expand_as(before) == 1].mean()) > 0.2
    plain = trainer_of(augment=0.0, flip=False)
    with plain._seeded(0):
        before, _, _ = plain._batch()
    known = {tuple(row.flatten().tolist()) for row in PAIRS.before[plain.train]}
    assert all(tuple((picture * 255).round().byte().flatten().tolist()) in known for picture in before)


def test_an_edit_is_learned_and_the_ground_left_alone():
    trainer = trainer_of(steps=100, batch=8, check_every=50, learning_rate=8e-3, augment=0.0)
    editor = trainer.run()
    before, after = PAIRS.floats(trainer.held)
    made = editor(before)
    inside = (before != after).any(1, keepdim=True).expand_as(before)
    assert float((made - after).abs()[inside].mean()) < 0.25 * float((before - after).abs()[inside].mean())
    assert trainer.validations[-1].psnr > trainer.nothing.psnr + 3
    mean_error = float((before - after).square().mean((1, 2, 3)).log10().mul(-10).mean())
    assert trainer.nothing.psnr == pytest.approx(mean_error, abs=0.2), "nothing done is the picture before"
    assert f"nothing done: {trainer.nothing.psnr:.2f} dB" in trainer.report(editor)
    assert editor.side == 32 and (editor.source, editor.target) == ("green", "red")


def test_held_out_pairs_are_never_learned_from():
    trainer = trainer_of()
    assert sorted([*trainer.held.tolist(), *trainer.train.tolist()]) == list(range(len(PAIRS)))
    poisoned = EditPairs(PAIRS.before, PAIRS.after.clone())
    poisoned.after[trainer.held] = 7
    other = trainer_of(poisoned)
    for each in (trainer, other):
        each.advance()
    assert all(torch.equal(trainer.weights[name], other.weights[name]) for name in trainer.weights)


def test_the_kept_weights_are_those_of_the_lowest_held_out_error():
    trainer = trainer_of(steps=8, check_every=1)
    seen = []
    editor = trainer.run(lambda t: seen.append({name: value.clone() for name, value in t.averages.items()}))
    best = min(range(8), key=lambda at: trainer.validations[at].error)
    assert trainer.best_found.step == best + 1
    assert all(torch.equal(dict(editor.named_parameters())[name], value) for name, value in seen[best].items())
    assert editor.facts["steps"] == f"{best + 1} of 8"


def test_the_same_seed_gives_the_same_edit_and_leaves_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = trainer_of().run()
    assert torch.equal(torch.rand(1), expected)
    assert same(first, trainer_of().run()) and not same(first, trainer_of(seed=1).run())


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_resumed_training_ends_as_if_it_never_stopped(after, tmp_path):
    whole = trainer_of()
    editor = whole.run()
    part = stopped(trainer_of(), after)
    part.validate()  # a look at a stop never took place in what goes on
    save_training(part, tmp_path / "a.safetensors")
    again = trainer_of()
    resume_training(again, tmp_path / "a.safetensors")
    assert same(editor, again.run()) and again.losses == whole.losses and again.validations == whole.validations
    assert made_with(editor.facts, again) and not made_with(editor.facts, trainer_of(seed=3))


def test_states_of_others_are_refused(tmp_path):
    path = save_training(stopped(trainer_of(), 2), tmp_path / "a.safetensors")
    assert "another value of batch" in refusal(resume_training, trainer_of(batch=5), path)
    assert "another value of pairs" in refusal(resume_training, trainer_of(green_to_red(12)), path)
    tensors, metadata = load_tensors(path, kind="distillation training")
    first = next(name for name in tensors if name.startswith("weight."))
    for change, reason in (
        ({first: torch.zeros(1)}, "do not fit"),
        ({first: torch.full_like(tensors[first], math.nan)}, "do not fit"),
        ({"losses": torch.zeros(9)}, "do not fit"),
    ):
        save_tensors(path, {**tensors, **change}, metadata, overwrite=True)
        assert reason in refusal(resume_training, trainer_of(), path)
    save_tensors(path, {name: value for name, value in tensors.items() if name != first}, metadata, overwrite=True)
    assert "incomplete" in refusal(resume_training, trainer_of(), path)


def test_a_loss_that_is_no_number_ends_the_training_and_keeps_the_best(tmp_path):
    trainer = stopped(trainer_of(), 2)
    next(iter(trainer.weights.values())).data.fill_(math.nan)
    editor = trainer.run()
    assert "not a number" in trainer.broken and trainer.step == 2 and trainer.broken in trainer.report(editor)
    assert "nothing to go on with" in refusal(save_training, trainer, tmp_path / "a.safetensors")
    fresh = trainer_of()
    next(iter(fresh.weights.values())).data.fill_(math.nan)
    assert "lower the learning rate" in refusal(fresh.run)


def test_what_cannot_be_trained_with():
    assert "only 3 pairs" in refusal(trainer_of, PAIRS.select(torch.arange(3)))
    for options in ({"steps": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"held_out": 1.0}, {"augment": -1.0}):
        refusal(trainer_of, **options)
    assert "no trained edit yet" in refusal(trainer_of().best)


def test_the_plot_and_the_strip_show_the_course():
    trainer = stopped(trainer_of(), 4)
    assert trainer.plot().shape[-1] == 3 and "step 4 of 6" in trainer.line() and "nothing done" in trainer.line()
    before, made, wanted = trainer.pictures()
    assert before.shape == made.shape == wanted.shape
    assert torch.equal((before * 255).round().byte(), PAIRS.before[trainer.held[: len(before)]])


@pytest.mark.parametrize("half", [False, True])
def test_a_file_gives_the_same_edit(half, tmp_path):
    editor = trainer_of().run()
    path = save_editor(tmp_path / "a.safetensors", editor, half=half)
    loaded = load_editor(path)
    images = torch.rand(1, 3, 20, 20, generator=seeded(4))
    torch.testing.assert_close(loaded(images), editor(images), rtol=0, atol=5e-3 if half else 0)
    assert loaded.facts == editor.facts and loaded.side == 32 and loaded.shape == TINY
    assert (loaded.source, loaded.target) == ("green", "red")
    assert not any(value.requires_grad for value in loaded.parameters())


def test_files_that_are_none(tmp_path):
    path = save_editor(tmp_path / "a.safetensors", trainer_of().run())
    assert "exists" in refusal(save_editor, path, load_editor(path))
    tensors, metadata = load_tensors(path, kind="distilled edit")
    tensors = {name: value.clone() for name, value in tensors.items()}
    first = next(iter(tensors))
    for change, described, reason in (
        ({first: torch.zeros(1)}, {}, "does not hold the weights"),
        ({first: torch.full_like(tensors[first], math.inf)}, {}, "not numbers"),
        ({"more": torch.zeros(1)}, {}, "does not hold the weights"),
        ({}, {"version": "2"}, "another version"),
        ({}, {"shape": '{"fold": 2, "widths": [12], "blocks": 1}'}, "multiples of 8"),
        ({}, {"format": "semantic_editing.delta_mapper"}, "not a semantic_editing.distilled_edit file"),
    ):
        save_tensors(path, {**tensors, **change}, {**metadata, **described}, overwrite=True)
        assert reason in refusal(load_editor, path)
