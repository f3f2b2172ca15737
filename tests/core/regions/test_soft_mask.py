"""Learning through the mask: its gradient, what it finds with one render an anchor, and the one-step guess."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from semantic_editing.core.errors import EditingError
from semantic_editing.core.regions.edit_inpaint import InpaintEditor, InpaintSettings
from semantic_editing.core.regions.learning import RegionLearner, RegionTask
from semantic_editing.core.regions.network import gumbel_argmax
from semantic_editing.core.regions.paste import Framing
from semantic_editing.core.regions.rewards import ClipJudge
from semantic_editing.core.regions.settings import LearningSettings
from semantic_editing.core.regions.soft_mask import box_masks, one_step_guess, soft_mask_loss
from semantic_editing.core.regions.table import RewardTable
from semantic_editing.tests.core.regions.test_rewards import tiny_scorer
from semantic_editing.tests.core.regions.tiny_regions import (
    HiddenBox,
    Painter,
    black_image,
    tiny_features,
    tiny_network,
    tiny_proposals,
    tiny_table,
)


class SoftHiddenBox(HiddenBox):
    """The hidden box with gradients: mean square distance to the picture in which exactly it is white."""

    def terms(self, edited):
        loss = (edited - self.hidden.float()).square().mean() * 4
        return loss, loss * 0, loss * 0


def soft_table(planted, seed=0, editor=None):
    proposals = tiny_proposals(seed=seed)
    judge = SoftHiddenBox(black_image(), proposals.box(*planted))
    return RewardTable(black_image(), proposals, editor or Painter(), judge)


@pytest.mark.parametrize("planted", [(0, 0), (1, 2)])
def test_it_finds_the_planted_box_with_a_render_an_anchor(planted):
    editor, network = Painter(), tiny_network()
    table = soft_table(planted, editor=editor)
    task = RegionTask.of(table, tiny_features(), network, preview=torch.ones_like(black_image()))
    (ranked,) = RegionLearner(network, [task], LearningSettings("soft mask", epochs=80)).run()
    assert ranked[0].box == table.proposals.box(*planted) and len(editor.calls) <= 3


def test_the_gradient_is_the_straight_through_one():
    table = soft_table((0, 1))
    masks, preview = box_masks(table), torch.ones_like(black_image())
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).masked_fill(
        ~table.proposals.valid, float("-inf")
    )
    variable = logits.clone().requires_grad_()
    loss = soft_mask_loss(variable, table, preview, masks, torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(loss, variable)
    chosen = gumbel_argmax(logits, torch.Generator().manual_seed(1))
    uniform = torch.rand(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    soft = (logits.double() - (-uniform.log()).log()).softmax(1)
    hidden = table.judge.hidden.float()
    total, expected = 0.0, torch.zeros(3, 4, dtype=torch.float64)
    for anchor in range(3):
        painted = masks[anchor, chosen[anchor]]
        total += float((painted - hidden).square().mean()) * 4 / 3
        slope = (2 * (painted - hidden) * masks[anchor]).mean((1, 2)).double() * 4 / 3  # d loss / d weight of each slot
        expected[anchor] = soft[anchor] * (slope - (soft[anchor] * slope).sum())
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(gradient, expected.float(), rtol=1e-3, atol=1e-7)


def test_clip_gives_the_network_gradients_through_the_mask():
    proposals, network = tiny_proposals(), tiny_network()
    image = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    scorer = tiny_scorer()
    with torch.inference_mode():
        table = RewardTable(image, proposals, Painter(), ClipJudge(scorer, image, "a cat", "a dog"))
        task = RegionTask.of(table, tiny_features(), network, preview=1 - image)
        RegionLearner(network, [task], LearningSettings("soft mask", epochs=1)).run()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_missing_previews_and_gradients_are_refused():
    network, table = tiny_network(), tiny_table()
    with pytest.raises(EditingError, match="needs a preview"):
        RegionLearner(network, [RegionTask.of(table, tiny_features(), network)], LearningSettings("soft mask"))
    task = RegionTask.of(table, tiny_features(), network, preview=black_image())
    with pytest.raises(EditingError, match="judge with gradients"):
        RegionLearner(network, [task], LearningSettings("soft mask")).run()
    task = RegionTask.of(soft_table((0, 0)), tiny_features(), network, preview=black_image()[..., 1:])
    with pytest.raises(EditingError, match="of one size"):
        RegionLearner(network, [task], LearningSettings("soft mask")).run()


class GaussianDenoiser:
    """The posterior mean of data N(cond, 1): (x + sigma^2 cond) / (1 + sigma^2). Counts its calls."""

    identity = SimpleNamespace(prediction="eps", latent_channels=3)
    calls = 0

    def sigma_grid(self, steps):
        return torch.linspace(0.0, 5.0, steps + 1)

    def __call__(self, x, sigma, cond):
        self.calls += 1
        return (x + sigma**2 * cond) / (1 + sigma**2)

    def batch(self, x, sigma, conds):
        return [self(x, sigma, cond) for cond in conds]


def latent(height=6, width=8):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) * 0.4 - 0.2


def test_the_guess_is_one_guided_prediction_of_the_noised_image():
    denoiser = GaussianDenoiser()
    got = one_step_guess(denoiser, latent(), 0.3, -0.1, cfg=2.0, level=0.2, seed=7)
    noise = torch.randn(1, 3, 6, 8, generator=torch.Generator().manual_seed(7))
    x = latent() + 1.0 * noise  # a fifth of the grid's 5
    torch.testing.assert_close(got, (x + (-0.1 + 2 * 0.4)) / 2)
    assert denoiser.calls == 2
    with pytest.raises(EditingError, match="no negative"):
        one_step_guess(denoiser, latent(), 0.3)
    with pytest.raises(EditingError, match="level is 0"):
        one_step_guess(denoiser, latent(), 0.3, 0.0, level=0.0)


@pytest.mark.parametrize("told", [False, True], ids=["plain model", "inpainting model"])
@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_the_inpaint_editor_previews_the_whole_image(cfg, told):
    """Four pixels to a latent pixel, an image of no such size, and a model that is told that all is to be painted, or
    not."""
    heard, denoiser = [], GaussianDenoiser()

    def show_known(conds, cells, known):
        heard.append((cells, known))
        return conds

    image = torch.rand(1, 3, 21, 30, generator=torch.Generator().manual_seed(0))
    editor = InpaintEditor(
        denoiser,
        lambda x: functional.avg_pool2d(x, 4) * 2 - 1,
        lambda z: functional.interpolate(z / 2 + 0.5, scale_factor=4),
        0.3,
        -0.1,
        InpaintSettings(cfg, framing=Framing(context=0.1, multiple=4)),
        show_known=show_known if told else None,
    )
    got = editor.preview(image, seed=5)
    assert got.shape == image.shape and denoiser.calls == editor.preview_cost == (1 if cfg == 1 else 2)
    seen = functional.interpolate(image, (24, 32), mode="bicubic", antialias=True).clamp(0, 1)
    guess = one_step_guess(GaussianDenoiser(), editor.encode(seen), 0.3, -0.1, cfg=cfg, seed=5)
    expected = functional.interpolate(editor.decode(guess).clamp(0, 1), (21, 30), mode="bicubic", antialias=True).clamp(
        0, 1
    )
    torch.testing.assert_close(got, expected)
    if told:
        ((cells, known),) = heard
        assert cells.shape == (1, 1, 6, 8) and (cells == 1).all()  # all is to be painted
        assert known.shape == (1, 3, 24, 32) and (known == 0.5).all()  # grey is seen
