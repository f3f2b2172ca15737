"""CASO training: the loss and its gradient by brute force, the cost, what is kept, and resuming to the same bits."""

import json

import pytest
import torch
from torch.nn import functional

from semantic_editing.core.caso import training_report
from semantic_editing.core.caso.schedule import NoiseLevels, Schedule, noisy
from semantic_editing.core.caso.settings import TrainingSettings, ValidationResult
from semantic_editing.core.caso.training_report import last_pictures, sample_contact_sheet, training_plot
from semantic_editing.core.caso.training_state import resume_training, save_training
from semantic_editing.core.classifiers.base import ImageClassifier
from semantic_editing.core.errors import EditingError
from semantic_editing.core.files import load_tensors, save_tensors
from semantic_editing.core.token_vectors import empty_condition
from semantic_editing.tests.core.caso.tiny_caso import TinyDecoder, tiny_classifier, tiny_trainer
from semantic_editing.tests.core.oracles import sd_sigmas
from semantic_editing.tests.core.tiny_models import tiny_latent, tiny_unet

LATENTS = tiny_latent(5, seed=3)
VALIDATION = tiny_latent(2, seed=4)
PLAIN = {"augment": 0.0, "flip": False}


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def network():
    return tiny_unet()


def stopped(trainer, after):
    """Run until a callback's exception after so many steps."""

    def callback(progress):
        if progress.step + 1 == after:
            raise Stop

    with pytest.raises(Stop):
        trainer.run(callback)
    return trainer


def test_loss_is_cross_entropy_of_the_guided_prediction_plus_gamma_times_reconstruction(network):
    trainer = tiny_trainer(LATENTS, network=network, reconstruction=0.7, cfg=4.0, targets=("yes", "maybe"), **PLAIN)
    for move in trainer.moves.values():  # away from the neutral start, where every class gives the same
        move.data.copy_(torch.randn(move.shape, generator=torch.Generator().manual_seed(5)))
    draws = trainer.schedule.draws(0)
    keys = [(0, "noise", draw.image, draw.noise) for draw in draws]
    latents = LATENTS[[draw.image for draw in draws]]
    x, sigma = noisy(latents, trainer.denoiser.identity, trainer.levels, keys)

    def loss(vectors):
        losses, reconstructions = [], []
        for row, draw in enumerate(draws):
            state, level = x[row : row + 1], float(sigma[row])
            cond = trainer.vector_encoder({"clip_l": vectors[draw.target][None]})
            eps_u, eps_c = (
                (state - trainer.denoiser(state, level, c)) / level
                for c in (empty_condition(trainer.vector_encoder), cond)
            )
            predicted = state - level * (eps_u + 4.0 * (eps_c - eps_u))
            images = TinyDecoder()(predicted).clamp(0, 1)
            logits = tiny_classifier().logits(images)["glasses"]
            losses.append(functional.cross_entropy(logits, torch.tensor([1 + draw.target])))
            reconstructions.append((predicted - latents[row]).square().mean())
        return torch.stack(losses).mean(), torch.stack(reconstructions).mean()

    start = trainer.vectors["clip_l"].detach()
    with torch.no_grad():
        classification, reconstruction = (float(part) for part in loss(start))
    before = trainer.moves["clip_l"].detach().clone()
    seen = []
    stopped_after_one = lambda progress: (seen.append(progress), (_ for _ in ()).throw(Stop()))[0]  # noqa: E731
    with pytest.raises(Stop):
        trainer.run(stopped_after_one)
    assert seen[0].classification == pytest.approx(classification, rel=1e-4)
    assert seen[0].reconstruction == pytest.approx(reconstruction, rel=1e-4)
    assert seen[0].loss == pytest.approx(classification + 0.7 * reconstruction, rel=1e-4)
    # AdamW's first step is -lr * sign(gradient), after the weight decay.
    step = trainer.moves["clip_l"].detach() - before * (1 - 0.05 * 0.01)
    met = {draw.target for draw in draws}
    for target in range(2):
        for place in range(0, 12, 5):
            delta = torch.zeros_like(start)
            delta[target, 0, place] = 1e-2
            with torch.no_grad():
                (up, up_r), (down, down_r) = loss(start + delta), loss(start - delta)
            slope = float(up + 0.7 * up_r - down - 0.7 * down_r)
            if target in met and abs(slope) > 1e-4:
                assert float(step[target, 0, place]) == pytest.approx(-0.05 * (1 if slope > 0 else -1), rel=1e-3)
    assert not any(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("noises", "forwards"), [(0, 2), (1, 2)])
def test_a_step_costs_two_forwards_and_one_backward_a_sample_and_less_where_noises_come_again(
    network, noises, forwards
):
    trainer = tiny_trainer(LATENTS, network=network, noises_per_image=noises, steps=5, **PLAIN)
    spent = []
    trainer.run(
        lambda progress: spent.append((trainer.denoiser.evaluations.forward, trainer.denoiser.evaluations.backward))
    )
    for number in range(5):
        forward, backward = (
            now - before for now, before in zip(spent[number], spent[number - 1] if number else (0, 0), strict=True)
        )
        assert forward <= forwards * 2 and backward == 2
    # 10 samples; with one noise for each of 5 images the unconditional prediction is evaluated 5 times, not 10.
    assert spent[-1] == ((20, 10) if noises == 0 else (15, 10))


def test_remembered_predictions_change_cost_only(network):
    kept = tiny_trainer(LATENTS, network=network, noises_per_image=1, steps=4)
    fresh = tiny_trainer(LATENTS, network=network, noises_per_image=1, steps=4)
    fresh._unconditional_of = lambda keys, x, sigma: fresh._unedited(x, sigma)
    for one, other in zip(kept.run(), fresh.run(), strict=True):
        torch.testing.assert_close(one.vectors["clip_l"], other.vectors["clip_l"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("noises", [0, 2])
def test_resumed_is_the_same_as_uninterrupted_to_the_bit(network, tmp_path, noises):
    whole = tiny_trainer(LATENTS, VALIDATION, network=network, noises_per_image=noises, steps=6)
    expected = whole.run()
    first = stopped(tiny_trainer(LATENTS, VALIDATION, network=network, noises_per_image=noises, steps=6), 3)
    path = save_training(first, tmp_path / "state.safetensors")
    second = tiny_trainer(LATENTS, VALIDATION, network=network, noises_per_image=noises, steps=6)
    resume_training(second, path)
    assert second.step == 3
    got = second.run()
    torch.testing.assert_close(second.vectors["clip_l"], whole.vectors["clip_l"], rtol=0, atol=0)
    torch.testing.assert_close(got[0].vectors["clip_l"], expected[0].vectors["clip_l"], rtol=0, atol=0)
    assert [entry.loss for entry in second.history] == [entry.loss for entry in whole.history]
    assert second.best_found.step == whole.best_found.step


def judged(trainer, losses):
    """A trainer whose validations have given losses, by the number of steps taken."""
    trainer._validation_result = lambda: ValidationResult(losses[trainer.step], 0.5, torch.zeros(2, 3, 16, 16))
    return trainer


#: The validation after the last of 5 steps is the best of all but extra; of those that ``check_every`` asks for, step 4
#: is.
LOSSES = {2: 0.6, 4: 0.5, 5: 0.1, 6: 0.7, 8: 0.65, 9: 0.55}


@pytest.mark.parametrize("scripted", [True, False])
def test_steps_raised_on_resuming_end_as_the_longer_run_does(network, tmp_path, scripted):
    def trainer(steps):
        made = tiny_trainer(LATENTS, VALIDATION, network=network, steps=steps, learning_rate=0.3)
        return judged(made, LOSSES) if scripted else made

    whole, short = trainer(9), trainer(5)
    expected = whole.run()
    path = tmp_path / "state.safetensors"
    short.run(lambda progress: save_training(short, path, overwrite=True))
    if scripted:
        assert short.best_found.step == 4 and whole.best_found.step == 3, "a finished run may have its last step"
    longer = trainer(9)
    resume_training(longer, path)
    assert longer.step == 5
    got = longer.run()
    torch.testing.assert_close(got[0].vectors["clip_l"], expected[0].vectors["clip_l"], rtol=0, atol=0)
    assert (longer.best_found.step, longer.best_found.score) == (whole.best_found.step, whole.best_found.score)
    results = [
        [(entry.step, entry.validation.loss, entry.validation.accuracy) for entry in run.history if entry.validation]
        for run in (longer, whole)
    ]
    assert results[0] == results[1], "the curve of the held-out pictures goes on where it was"


@pytest.mark.parametrize("steps", [4, 5])  # the last validation is one that check_every asks for, and an extra one
def test_a_finished_training_resumed_validates_once_and_has_the_same_result(network, tmp_path, steps):
    whole = tiny_trainer(LATENTS, VALIDATION, network=network, steps=steps, learning_rate=0.3)
    expected = whole.run()
    path = save_training(whole, tmp_path / "state.safetensors")
    again = tiny_trainer(LATENTS, VALIDATION, network=network, steps=steps)
    with pytest.raises(EditingError, match="another learning rate"):
        resume_training(again, path)
    again = tiny_trainer(LATENTS, VALIDATION, network=network, steps=steps, learning_rate=0.3)
    resume_training(again, path)
    assert last_pictures(again) is None
    got = again.run(lambda progress: pytest.fail("no step is left"))
    torch.testing.assert_close(got[0].vectors["clip_l"], expected[0].vectors["clip_l"], rtol=0, atol=0)
    torch.testing.assert_close(last_pictures(again), last_pictures(whole), rtol=0, atol=0)
    assert (
        again.denoiser.evaluations.forward == 4 and again.denoiser.evaluations.backward == 0
    )  # 2 pictures, with and without
    figures = [
        [entry.validation and (entry.validation.loss, entry.validation.accuracy) for entry in run.history]
        for run in (again, whole)
    ]
    assert figures[0] == figures[1] and figures[1][-1] is not None


def test_a_state_without_validation_figures_is_still_read(network, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = save_training(stopped(tiny_trainer(LATENTS, VALIDATION, network=network), 3), tmp_path / "new.safetensors")
    with safe_open(path, framework="pt") as stream:
        kept = {key: stream.get_tensor(key) for key in stream.keys() if key != "held"}  # noqa: SIM118
        save_file(kept, tmp_path / "old.safetensors", stream.metadata())
    trainer = tiny_trainer(LATENTS, VALIDATION, network=network)
    resume_training(trainer, tmp_path / "old.safetensors")
    assert trainer.step == 3 and [entry.validation for entry in trainer.history] == [None] * 3


def test_a_stop_before_the_first_validation_has_one_and_leaves_no_trace_in_the_run(network, tmp_path):
    whole = tiny_trainer(LATENTS, VALIDATION, network=network, check_every=4)
    expected = whole.run()
    first = stopped(tiny_trainer(LATENTS, VALIDATION, network=network, check_every=4), 3)
    assert not first.best_found.vectors
    first.validate_if_never()
    assert first.best()[0].info["steps"] == 3 and sample_contact_sheet(first).width > 0
    torch.testing.assert_close(first.best()[0].vectors["clip_l"], first.vectors["clip_l"][0].detach(), rtol=0, atol=0)
    results = first.denoiser.evaluations.forward
    first.validate_if_never()
    assert first.denoiser.evaluations.forward == results, "once"
    second = tiny_trainer(LATENTS, VALIDATION, network=network, check_every=4)
    resume_training(second, save_training(first, tmp_path / "state.safetensors"))
    assert [entry.validation for entry in second.history] == [None] * 3
    torch.testing.assert_close(second.run()[0].vectors["clip_l"], expected[0].vectors["clip_l"], rtol=0, atol=0)
    assert second.best_found.step == whole.best_found.step


def test_a_stop_in_the_middle_of_a_validation_has_it_on_resuming(network, tmp_path):
    whole = tiny_trainer(LATENTS, VALIDATION, network=network)
    expected = whole.run()
    first = tiny_trainer(LATENTS, VALIDATION, network=network)
    check, calls = first._validation_result, []

    def pressed():
        calls.append(first.step)
        if first.step == 4:
            raise Stop
        return check()

    first._validation_result = pressed
    with pytest.raises(Stop):
        first.run()
    assert calls == [2, 4] and first.step == len(first.history) == 4
    second = tiny_trainer(LATENTS, VALIDATION, network=network)
    resume_training(second, save_training(first, tmp_path / "state.safetensors"))
    torch.testing.assert_close(second.run()[0].vectors["clip_l"], expected[0].vectors["clip_l"], rtol=0, atol=0)
    figures = [[entry.validation and entry.validation.loss for entry in run.history] for run in (second, whole)]
    assert figures[0] == figures[1]


def test_cancel_keeps_the_best_so_far(network):
    trainer = stopped(
        tiny_trainer(LATENTS, VALIDATION, network=network, steps=50, check_every=2, learning_rate=0.3, **PLAIN), 6
    )
    checks = [(entry.validation.loss, entry.step) for entry in trainer.history if entry.validation is not None]
    checks += [(trainer.best_found.score, trainer.best_found.step)]
    assert trainer.best_found.score == min(checks)[0] and len(checks) >= 3
    (best,) = trainer.best()
    assert best.info["steps"] == trainer.best_found.step + 1 and best.target == "yes"
    torch.testing.assert_close(best.vectors["clip_l"], trainer.best_found.vectors["clip_l"][0], rtol=0, atol=0)


def test_training_lowers_the_loss_of_validation_pictures_and_the_reconstruction_term_holds_back(network):
    # High noise, where the tiny network reacts to its text most.
    options = {"steps": 16, "check_every": 0, "learning_rate": 0.3, "noise_level": 0.9, "targets": ("no",), **PLAIN}
    free = tiny_trainer(LATENTS, VALIDATION, network=network, reconstruction=0.0, **options)
    start = free._validation_result()
    free.run()
    assert free.history[-1].validation.loss < 0.85 * start.loss
    assert free.history[-1].validation.images.shape == (2, 3, 16, 16)
    strict = tiny_trainer(LATENTS, VALIDATION, network=network, reconstruction=50.0, **options)
    strict.run()
    changes = []
    for trainer in (free, strict):
        (part,) = trainer._validation_batches
        edited = trainer._guided(
            part.unconditional, trainer._conditional(part.x, part.sigma, torch.zeros(2).long(), trainer.vectors)
        )
        changes.append(float((edited - VALIDATION).detach().square().mean()))
    assert changes[1] < changes[0]


def test_a_validation_takes_no_more_pictures_at_once_than_a_step_and_sees_the_same(network):
    validation, options = tiny_latent(5, seed=4), {"network": network, "targets": ("no", "yes"), **PLAIN}
    parted, at_once = (tiny_trainer(LATENTS, validation, batch=batch, **options) for batch in (2, 5))
    sizes = []
    decode = parted.decoder
    parted.decoder = lambda latent: sizes.append(len(latent)) or decode(latent)
    results = [trainer._validation_result() for trainer in (parted, at_once)]
    assert max(sizes) == 2 and results[0].images.shape == (10, 3, 16, 16)
    torch.testing.assert_close(results[0].images, results[1].images, rtol=1e-4, atol=1e-5)
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-4)
    assert results[0].accuracy == pytest.approx(results[1].accuracy)
    evaluations = [trainer.denoiser.evaluations.forward for trainer in (parted, at_once)]
    assert evaluations[0] == evaluations[1] == 15


def test_several_classes_are_learned_at_once_and_each_is_its_own(network):
    trainer = tiny_trainer(
        LATENTS,
        VALIDATION,
        network=network,
        targets=("no", "yes", "maybe"),
        steps=12,
        learning_rate=0.3,
        tokens=2,
        **PLAIN,
    )
    made = trainer.run()
    assert [entry.target for entry in made] == ["no", "yes", "maybe"] and all(entry.tokens == 2 for entry in made)
    assert (
        made[0].info["classes"] == ["no", "yes", "maybe"]
        and made[0].info["classifier"] == tiny_classifier().fingerprint
    )
    vectors = torch.stack([entry.vectors["clip_l"] for entry in made])
    assert float((vectors[:, None] - vectors[None]).norm(dim=(-1, -2))[~torch.eye(3, dtype=torch.bool)].min()) > 1e-2


def test_the_draft_decoder_serves_the_first_steps_only(network):
    calls = []

    class Counting(TinyDecoder):
        def forward(self, latent):
            calls.append(len(calls))
            return super().forward(latent)

    tiny_trainer(LATENTS, draft=Counting(), network=network, steps=5, draft_fraction=0.6, **PLAIN).run()
    assert len(calls) == 3


def two_headed():
    one = tiny_classifier()
    hair = torch.nn.Linear(54, 2, bias=False)
    hair.weight.data.copy_(2 * torch.randn(2, 54, generator=torch.Generator().manual_seed(2)))
    heads = {"glasses": ["no", "yes", "maybe"], "hair": ["a", "b"]}
    return ImageClassifier(one.trunk, [*one.last, hair], heads, (16, 16), (0.5,) * 3, (0.5,) * 3, "two")


@pytest.mark.parametrize("noises", [0, 2])
def test_other_attributes_are_compared_through_one_decoder(network, noises):
    """The neutral start is the empty prompt, so that nothing changes: a difference between before and after is the
    decoders'."""
    decoders, seen = (TinyDecoder(), lambda latent: TinyDecoder()(latent) - 0.4), []
    options = {
        "attribute_preservation": 1.0,
        "steps": 6,
        "draft_fraction": 0.5,
        "noises_per_image": noises,
        "learning_rate": 1e-9,
        **PLAIN,
    }
    trainer = tiny_trainer(LATENTS, draft=decoders[1], network=network, classifier=two_headed(), **options)
    trainer.run(lambda progress: seen.append((progress.others, trainer.denoiser.evaluations.forward)))
    assert max(abs(others) for others, _ in seen) < 1e-4
    results = [trainer.objective.other_attributes(decoder(LATENTS).clamp(0, 1)) for decoder in decoders]
    assert float(trainer.objective._changed(*results)) > 0.5, "the two decoders do look different to the classifier"
    plain = tiny_trainer(LATENTS, network=network, classifier=two_headed(), **options)
    plain.run()
    assert seen[-1][1] == plain.denoiser.evaluations.forward, "the change of decoder costs no evaluation of the network"


def test_runs_under_inference_mode_with_inference_tensors(network):
    with torch.inference_mode():
        latents = LATENTS.clone()
    trainer = tiny_trainer(latents, latents[:1], network=network, steps=2)
    with torch.inference_mode():
        (made,) = trainer.run()
    (expected,) = tiny_trainer(LATENTS, LATENTS[:1], network=network, steps=2).run()
    torch.testing.assert_close(made.vectors["clip_l"], expected.vectors["clip_l"], rtol=0, atol=0)


def test_training_starts_from_the_start_words_and_a_state_from_before_them_is_still_read(network, tmp_path):
    options = {"network": network, "steps": 1, "tokens": 2, "learning_rate": 1e-9}
    trainer = tiny_trainer(LATENTS, VALIDATION, start_words="5", **options)
    ((started,), vector_encoder) = trainer.run(), trainer.vector_encoder
    expected = torch.stack([vector_encoder.end_vectors["clip_l"], vector_encoder.towers[0].table.weight[5]])
    torch.testing.assert_close(started.vectors["clip_l"], expected, rtol=0, atol=1e-6)
    assert started.info["settings"]["start_words"] == "5"
    path = save_training(tiny_trainer(LATENTS, VALIDATION, **options), tmp_path / "state.safetensors")
    tensors, metadata = load_tensors(path)
    run = json.loads(metadata["run"])
    del run["start_words"]
    old = save_tensors(tmp_path / "old.safetensors", tensors, metadata | {"run": json.dumps(run)})
    resume_training(tiny_trainer(LATENTS, VALIDATION, **options), old)
    with pytest.raises(EditingError, match="another start words"):
        resume_training(tiny_trainer(LATENTS, VALIDATION, start_words="5", **options), old)


#: What version 0.1.0 wrote of a training before settings and validation had today's names.
OLD_RUN = {
    "attribute": "glasses", "targets": ["yes"], "batch": 2, "learning_rate": 0.05, "weight_decay": 0.01, "cfg": 10.0,
    "level": 0.4, "band": 0.1, "reconstruction": 1.0, "keep_others": 0.5, "tokens": 1, "bank": 3, "augment": 1.0,
    "flip": True, "draft_fraction": 0.8, "seed": 7, "start_words": "",
}  # fmt: skip


def test_files_keep_the_names_of_older_ones_and_a_state_written_under_them_is_still_read(network, tmp_path):
    options = {
        "noise_level": 0.4,
        "noise_level_jitter": 0.1,
        "attribute_preservation": 0.5,
        "noises_per_image": 3,
        "seed": 7,
    }
    trainer = stopped(tiny_trainer(LATENTS, VALIDATION, network=network, **options), 3)
    tensors, metadata = load_tensors(save_training(trainer, tmp_path / "new.safetensors"))
    run = json.loads(metadata["run"])
    assert {key: run[key] for key in OLD_RUN} == OLD_RUN
    added = ["classifier", "model", "weights", "text_encoder", "pictures", "look"]
    assert [key for key in run if key not in OLD_RUN] == added
    assert list(run)[: len(OLD_RUN)] == list(OLD_RUN)
    names = {"move.clip_l", "exp_avg.clip_l", "exp_avg_sq.clip_l", "best.clip_l", "history", "held"}
    assert set(tensors) == names and list(json.loads(metadata["progress"])) == [
        "step",
        "smoothed",
        "best_step",
        "best_score",
    ]
    history = torch.tensor([[2.0, 1.5, 0.5, 0.1, 0.5], [1.0, 0.8, 0.2, 0.0, 1.0]], dtype=torch.float64)
    vectors = torch.full((1, 1, 12), 0.25)
    old = {
        "move.clip_l": vectors,
        "exp_avg.clip_l": 2 * vectors,
        "exp_avg_sq.clip_l": 3 * vectors,
        "best.clip_l": 4 * vectors,
        "history": history,
        "held": torch.tensor([[float("nan")] * 2, [0.75, 0.5]], dtype=torch.float64),
    }
    rest = {key: run[key] for key in run if key not in OLD_RUN and key != "weights"}  # which older ones did not know
    facts = {
        "run": json.dumps({**OLD_RUN, **rest}),
        "progress": json.dumps({"step": 2, "smoothed": 0.2, "best_step": 1, "best_score": 0.75}),
    }
    path = save_tensors(tmp_path / "old.safetensors", old, {**metadata, **facts})
    resumed = tiny_trainer(LATENTS, VALIDATION, network=network, **options)
    resume_training(resumed, path)
    assert resumed.step == 2 and resumed.history[0].validation is None and resumed.history[0].loss == 2.0
    assert (resumed.history[1].validation.loss, resumed.history[1].validation.accuracy) == (0.75, 0.5)
    assert resumed.best_found.score == 0.75 and torch.equal(resumed.best_found.vectors["clip_l"], 4 * vectors)
    (made,) = resumed.best()
    assert made.info["level"] == 0.4 and list(made.info["settings"])[7:13] == [
        "level", "band", "reconstruction", "keep_others", "tokens", "bank"
    ]  # fmt: skip


def test_the_global_generator_is_left_alone(network):
    state = torch.random.get_rng_state()
    tiny_trainer(LATENTS, VALIDATION, network=network, steps=2).run()
    assert torch.equal(state, torch.random.get_rng_state())


def test_every_epoch_shows_every_image_and_every_class_meets_each_in_turn():
    schedule = Schedule(images=6, targets=3, batch=4, noises_per_image=2, seed=1)
    draws = [draw for step in range(9) for draw in schedule.draws(step)]
    for epoch in range(6):
        part = draws[6 * epoch : 6 * epoch + 6]
        assert sorted(draw.image for draw in part) == list(range(6))
        assert sorted(draw.target for draw in part) == [0, 0, 1, 1, 2, 2]
    for image in range(6):
        assert {draw.target for draw in draws[:18] if draw.image == image} == {0, 1, 2}
    assert {draw.noise for draw in draws} == {0, 1}
    assert Schedule(6, 3, 4, 2, 1).draws(7) == schedule.draws(7) and Schedule(6, 3, 4, 2, 2).draws(7) != schedule.draws(
        7
    )


def test_noise_level_is_the_fraction_of_the_models_steps_and_the_jitter_stays_around_it(network):
    trainer = tiny_trainer(LATENTS, network=network, noise_level=0.4)
    x, sigma = noisy(LATENTS[:1], trainer.denoiser.identity, trainer.levels, [(0, "a")])
    table = sd_sigmas()
    assert float(sigma) == pytest.approx(float(table[391]), rel=1e-4)  # level 40 of 100: entry 1 + 39 * 10
    assert float((x - LATENTS[:1]).std()) == pytest.approx(float(sigma), rel=0.15)
    jittered = NoiseLevels(trainer.levels.sigmas, 0.4, 0.1)
    many = noisy(
        LATENTS[:1].expand(64, -1, -1, -1), trainer.denoiser.identity, jittered, [(0, number) for number in range(64)]
    )[1]
    assert float(table[291]) * 0.999 <= float(many.min()) < float(many.max()) <= float(table[491]) * 1.001


@pytest.mark.parametrize(
    ("change", "message"),
    [({"targets": ()}, "target classes"), ({"targets": ("yes", "yes")}, "target classes"), ({"steps": 0}, "steps is 0"),
     ({"noise_level": 0.0}, "noise level"), ({"cfg": -1.0}, "cfg is -1"),
     ({"reconstruction": float("nan")}, "reconstruction is nan"),
     ({"tokens": 76}, "tokens is 76")],
)  # fmt: skip
def test_bad_settings_are_refused(change, message):
    with pytest.raises(EditingError, match=message):
        TrainingSettings(**{"attribute": "glasses", "targets": ("yes",), **change})


def test_unknown_classes_and_missing_pictures_are_refused(network):
    with pytest.raises(EditingError, match="no class 'monocle'"):
        tiny_trainer(LATENTS, network=network, targets=("monocle",))
    with pytest.raises(EditingError, match="no pictures"):
        tiny_trainer(LATENTS[:0], network=network)
    with pytest.raises(EditingError, match="VAE"):
        tiny_trainer(torch.zeros(2, 16, 8, 8), network=network)


def test_a_state_of_another_training_or_a_damaged_one_is_refused(network, tmp_path):
    trainer = stopped(tiny_trainer(LATENTS, network=network, steps=4), 2)
    path = save_training(trainer, tmp_path / "s.safetensors")
    for change, word in (({"cfg": 3.0}, "cfg"), ({"seed": 9}, "seed"), ({"targets": ("no",)}, "targets")):
        with pytest.raises(EditingError, match=f"another {word}"):
            resume_training(tiny_trainer(LATENTS, network=network, **change), path)
    with pytest.raises(EditingError, match="another pictures"):
        resume_training(tiny_trainer(LATENTS + 1, network=network), path)
    resume_training(tiny_trainer(LATENTS, network=network, steps=40), path)  # longer is allowed
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(EditingError, match="damaged"):
        resume_training(tiny_trainer(LATENTS, network=network), path)


def test_plot_and_contact_sheet_show_the_run(network, monkeypatch):
    trainer = tiny_trainer(LATENTS, VALIDATION, network=network, targets=("yes", "no"), steps=4, check_every=2)
    with pytest.raises(EditingError, match="no look"):
        sample_contact_sheet(trainer)
    trainer.run()
    plot, contact_sheet = training_plot(trainer), sample_contact_sheet(trainer, scale=2)
    titles = []
    monkeypatch.setattr(training_report, "curves_plot", lambda panels, **named: titles.extend(panels))
    training_plot(trainer)
    last, validation = trainer.history[-1], trainer.history[-1].validation
    assert titles[0] == f"loss {last.loss:.3f} (held-out {validation.loss:.3f})"
    assert titles[1] == f"classified as asked {last.accuracy:.0%} (held-out {validation.accuracy:.0%})"
    assert plot.ndim == 3 and plot.shape[-1] == 3 and float(plot.std()) > 0.01
    assert contact_sheet.width >= 2 * 2 * 16 and contact_sheet.height >= 2 * 2 * 16
