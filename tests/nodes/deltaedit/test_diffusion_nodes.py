"""The style diffusion nodes with a stand-in for the host: what they do with their inputs, and what the trainer may
replace."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from semantic_editing.tests.nodes.stand_ins import Cancelled, EditingError, Held, on_settings, stand_in
from semantic_editing.tools import host_stand_in

nodes, training = (host_stand_in.module(f"nodes.deltaedit.{name}") for name in ("diffusion", "diffusion_trainer"))
style_diffusion = host_stand_in.module("core.deltaedit.style_diffusion")
style_code = host_stand_in.module("core.deltaedit.style_code")
UNetShape = host_stand_in.module("core.deltaedit.style_unet").UNetShape
DiffusionSettings = host_stand_in.module("core.deltaedit.style_diffusion_training").DiffusionSettings
StyleGAN2 = host_stand_in.module("core.deltaedit.stylegan2").StyleGAN2

LAYOUT = style_code.StyleLayout(((4, 3), (8, 2), (16, 4), (32, 1), (64, 2)), ((4, 3), (8, 2)))
SHAPE = UNetShape(
    size=8, width=8, multipliers=(1, 2), blocks=1, attention=(), dropout=0.0, embedding=8, coarse=4, medium=4,
    prediction="v",
)  # fmt: skip


@pytest.fixture
def host(tmp_path):
    """Where the host's models and pictures are."""
    return tmp_path


@pytest.fixture(autouse=True)
def bar(tmp_path, monkeypatch):
    """The host's folders and functions, over a temporary folder; ``bar.press_at`` presses Cancel."""
    for name in ("style_diffusion", "style_diffusion_trainings", "faces", "output"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(nodes, "PreviewBar", lambda *_: None)
    bar = stand_in(monkeypatch, tmp_path, nodes, training)
    monkeypatch.setitem(training.PRESETS, training.SMALL, (SHAPE, DiffusionSettings(rise=2)))
    return bar


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = style_diffusion.StyleDiffusion(SHAPE, LAYOUT, "tiny")
        for value in made.parameters():
            if not value.any():
                torch.nn.init.normal_(value, std=0.02)
    return made.eval().requires_grad_(False)


def code(count=1, seed=0, generator="tiny"):
    rgbs = torch.ones(count, sum(LAYOUT.rgb_widths))
    return style_code.StyleCode(LAYOUT, random(count, LAYOUT.width, seed=seed), rgbs, generator)


@torch.inference_mode()
def encoded(image, codes, steps=6, exact=True):
    return nodes.StyleDiffusionEncode.execute(Held(network()), image, codes, steps, exact).args


@torch.inference_mode()
def decoded(codes, steps=0, seed=0, frames=6, **sockets):
    return nodes.StyleDiffusionDecode.execute(Held(network()), codes, steps, seed, frames, **sockets).args


IMAGE = torch.rand(2, 8, 8, 3, generator=torch.Generator().manual_seed(1)) * 0.4 + 0.3


# Encode and Decode


def test_a_picture_comes_back():
    noise, report = encoded(IMAGE, code(2))
    assert "2 picture(s), 6 steps" in report and "worst residual" in report
    images, report = decoded(code(2), style_noise=noise)
    torch.testing.assert_close(images, IMAGE, rtol=0, atol=0.01)
    assert "6 steps, 6 network evaluations for each" in report and "closest" not in report


def test_a_larger_picture_is_brought_to_the_models_size_and_it_is_said():
    large = IMAGE.repeat_interleave(3, 1).repeat_interleave(3, 2)
    noise, report = encoded(torch.cat([large, large[..., :1]], -1), code(2))  # an alpha channel is left out
    torch.testing.assert_close(noise.noise, encoded(IMAGE, code(2))[0].noise, rtol=0, atol=1e-3)
    assert "brought from 24 to 8 pixels" in report
    assert encoded(torch.rand(1, 13, 13, 3), code())[0].noise.shape == (1, 3, 8, 8)


def test_a_picture_that_is_not_square_is_refused():
    with pytest.raises(EditingError, match="The picture is 6 x 8 and a style diffusion takes squares"):
        encoded(IMAGE[:, :, :6], code(2))


def test_a_code_of_another_generator_is_refused_by_both():
    for attempt in (lambda: encoded(IMAGE, code(2, generator="x")), lambda: decoded(code(generator="x"))):
        with pytest.raises(EditingError, match="made by another generator"):
            attempt()


def test_random_noise_comes_from_the_seed_one_for_each_code():
    first, report = decoded(code(2), 4, 7)
    again, other = decoded(code(2), 4, 7)[0], decoded(code(2), 4, 8)[0]
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert "random noise of seed 7" in report and first.shape == (2, 8, 8, 3)
    assert f"{nodes.STEPS} steps" in decoded(code())[1]


def test_other_steps_than_the_noises_are_said():
    noise, _ = encoded(IMAGE[:1], code())
    assert "encoded in 6 steps; in as many it comes back closest" in decoded(code(), 3, style_noise=noise)[1]


def test_the_way_from_one_picture_to_another_has_both_as_its_ends():
    first, second = (encoded(IMAGE[row : row + 1], code(seed=row))[0] for row in range(2))
    images, report = decoded(
        code(seed=0), frames=4, style_noise=first, to_style_code=code(seed=1), to_style_noise=second
    )
    torch.testing.assert_close(images[[0, 3]], IMAGE, rtol=0, atol=0.01)
    assert len(images) == 4 and "4 pictures from one to the other" in report
    middle = replace(code(), convs=code(seed=0).convs.lerp(code(seed=1).convs, 1 / 3))
    arc = replace(first, noise=style_diffusion.spherical(first.noise, second.noise, 1 / 3))
    torch.testing.assert_close(images[1:2], decoded(middle, style_noise=arc)[0], rtol=0, atol=1e-4)


def test_on_the_way_between_codes_alone_the_noise_stays():
    images, _ = decoded(code(seed=0), 4, 5, frames=3, to_style_code=code(seed=1))
    for row, seed in ((0, 0), (2, 1)):
        torch.testing.assert_close(images[row : row + 1], decoded(code(seed=seed), 4, 5)[0], rtol=0, atol=1e-4)


def test_a_way_that_cannot_be_gone_is_refused():
    noise = encoded(IMAGE[:1], code())[0]
    with pytest.raises(EditingError, match="style_code holds 2 faces"):
        decoded(code(2), to_style_code=code())
    with pytest.raises(EditingError, match="to_style_code holds 2 faces"):
        decoded(code(), style_noise=noise, to_style_code=code(2))
    with pytest.raises(EditingError, match="to_style_noise is wired and style_noise is not"):
        decoded(code(), to_style_noise=noise)
    with pytest.raises(EditingError, match="different generators"):
        decoded(code(), to_style_code=code(generator="x"))
    with pytest.raises(EditingError, match="there are 1 and 2"):
        decoded(code(), style_noise=noise, to_style_noise=encoded(IMAGE, code(2))[0])


# The trainer


class Latents:
    """What the trainer needs of ``core.deltaedit.latents.Latents``."""

    def __init__(self, names, layout=LAYOUT, generator="tiny"):
        self.names, self.layout = tuple(names), layout
        self.origin = SimpleNamespace(generator=generator, truncation=0.7)
        self.convs = random(len(names), layout.width, seed=3)

    def styles(self, rows):
        return self.convs[rows]


def faces(folder, count=6):
    names = [f"{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        Image.new("RGB", (10, 12), (40 * number, 100, 200 - 30 * number)).save(folder / "faces" / name)
    return Latents(names)


def train(latents, **changed):
    node = training.StyleDiffusionTrainer
    given = {slot.id: slot.options["default"] for slot in node.define_schema().inputs if "default" in slot.options}
    given |= {"folder": "faces", "filename": "a", "steps": 4, "batch_size": 2, "check_every": 2} | changed
    given = on_settings(training.TrainingChoices, given)
    with torch.inference_mode():
        out = node.execute(latents, **given).args
    return dict(zip(("network", "plot", "report", "file"), out, strict=True))


def test_training_saves_a_network_that_the_loader_reads(host):
    done = train(faces(host))
    assert done["file"] == "a.safetensors" and "4 steps on 5 pictures, 1 held out" in done["report"]
    network = style_diffusion.load_style_diffusion(host / "style_diffusion" / "a.safetensors")
    assert network.generator == "tiny" and network.facts["pictures"] == 5
    torch.testing.assert_close(network.mean, faces(host).convs.mean(0))
    assert "trained" in nodes.network_report(network)


def test_cancel_saves_and_the_next_run_goes_on_to_the_same_end(host, bar):
    straight = train(faces(host), filename="b")
    bar.press_at = 3
    with pytest.raises(Cancelled):
        train(faces(host))
    assert (host / "style_diffusion" / "a.safetensors").exists()
    resumed = train(faces(host))
    for name, value in straight["network"].network.state_dict().items():
        assert torch.equal(resumed["network"].network.state_dict()[name], value), name


def test_a_limit_of_minutes_ends_a_run_which_goes_on_later(host):
    first = train(faces(host), minutes=1e-9)
    assert first["report"].startswith(
        "Learned to draw 6 faces from their codes, for 1 steps.\nSaved a.safetensors.\n1 steps"
    )
    assert "\n4 steps" in train(faces(host))["report"]


def test_nothing_of_another_training_is_replaced_unasked(host):
    train(faces(host))
    with pytest.raises(EditingError, match="switch resume on to go on with it"):
        (host / "style_diffusion" / "a.safetensors").unlink()
        train(faces(host), resume=False)
    with pytest.raises(EditingError, match="belongs to a training with another seed"):
        train(faces(host), seed=1)
    network().save(host / "style_diffusion" / "a.safetensors")
    with pytest.raises(EditingError, match="not from the training to go on with"):
        train(faces(host))
    network().save(host / "style_diffusion" / "c.safetensors")
    with pytest.raises(EditingError, match=r"c\.safetensors exists already"):
        train(faces(host), filename="c")
    assert train(faces(host), overwrite=True, resume=False)["file"] == "a.safetensors"


@pytest.mark.parametrize("press", [None, 3])
@pytest.mark.parametrize("full", [{"style_diffusion", "style_diffusion_trainings"}, {"style_diffusion_trainings"}])
def test_a_full_disk_loses_no_training(host, bar, disk, full, press):
    disk |= full
    bar.press_at = press
    done = train(faces(host))  # Cancel is not obeyed: nobody would hear of it
    assert "The progress to go on from could not be saved: a.safetensors could not be written" in done["report"]
    rescued = "style_diffusion" in full
    assert ("It is kept as a.safetensors in the output folder" in done["report"]) == rescued
    assert done["file"] == ("" if rescued else "a.safetensors")
    kept = style_diffusion.load_style_diffusion(host / ("output" if rescued else "style_diffusion") / "a.safetensors")
    for name, value in done["network"].network.state_dict().items():
        torch.testing.assert_close(kept.state_dict()[name], value, rtol=2**-10, atol=1e-6)  # stored in 16 bits
    assert not list(host.rglob("*.part")) and str(host) not in done["report"]


def test_faces_without_a_picture_are_left_out_and_counted(host):
    latents = faces(host)
    (host / "faces" / "2.png").unlink()
    (host / "faces" / "3.png").write_bytes(b"no picture")
    found, left_out = training.styled_pictures(latents, "faces", 8, None)
    assert left_out == "2 of 6 faces have no picture here and were left out"
    assert torch.equal(found.convs, latents.convs[[0, 1, 4, 5]])
    assert found.pictures[:, 0, 0, 0].tolist() == [0, 40, 160, 200] and found.pictures.dtype == torch.uint8
    with pytest.raises(EditingError, match="Of the 6 faces in the latents 0 have a picture here"):
        training.styled_pictures(latents, "", 8, None)


def test_generated_samples_are_drawn_anew(host):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = StyleGAN2(8, {4: 4, 8: 4}, 8, 1).eval().requires_grad_(False)
    generator.identity = "tiny"
    latents = Latents(["seed 3", "seed 4"], generator.layout)
    with torch.inference_mode():
        found, _ = training.styled_pictures(latents, "", 8, Held(generator))
        wanted = (generator(generator.sample_w_plus(1, 4, 0.7)) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(found.pictures[1].float() / 255, wanted[0].movedim(0, -1), rtol=0, atol=0.003)
    find = training.picture_finder({}, Held(generator), 0.7)
    assert find(f"seed {2**64 - 1}") is not None
    for name in ("seed", "seed ", "seed x", "seed -1", "seed 1.5", "seed ²", f"seed {2**64}", "seed " + "9" * 5000):
        assert find(name) is None, name
    generator.identity = "another"
    with pytest.raises(EditingError, match="made with another generator"):
        training.styled_pictures(latents, "", 8, Held(generator))


def test_names_in_the_latents_lead_nowhere_but_into_the_folder(host):
    Image.new("RGB", (8, 8)).save(host / "secret.png")
    faces(host)
    find = training.picture_finder({"0.png": host / "faces" / "0.png"}, None, 0.7)
    assert find("../secret.png") is None and find(str(host / "secret.png")) is None and find("0.png") is not None


def test_a_loss_that_is_not_a_number_is_told_and_what_was_good_is_saved(host, monkeypatch):
    trainer = host_stand_in.module("core.deltaedit.style_diffusion_training").DiffusionTrainer
    loss = trainer._loss

    def broken(self, index, times, seeded, weight_limit):
        return loss(self, index, times, seeded, weight_limit) * (math.nan if self.step == 3 else 1.0)

    monkeypatch.setattr(trainer, "_loss", broken)
    done = train(faces(host))
    assert "The loss at step 4 is not a number" in done["report"] and done["file"] == "a.safetensors"


def test_zeros_choose_the_presets_own():
    shape, settings = training.chosen(training.PAPER, 5, 0, training.TrainingChoices(3, 0.0, 7))
    assert shape == UNetShape() and settings == DiffusionSettings.paper(steps=5, check_every=7, seed=3)
    plain = training.chosen(training.SMALL, 5, 8, training.TrainingChoices())[1]
    assert plain == replace(training.PRESETS[training.SMALL][1], steps=5, batch=8)
    assert training.chosen(training.PAPER, 5, 8, training.TrainingChoices(3, 0.5, 7))[1].learning_rate == 0.5
    with pytest.raises(EditingError, match="There is no preset 'x'"):
        training.chosen("x", 5, 0, training.TrainingChoices())
