"""The one sampling loop, against Euler steps written out here."""

from itertools import pairwise

import pytest
import torch

from semantic_editing.core.denoiser import check_finite
from semantic_editing.core.errors import EditingError
from semantic_editing.core.sampling import require_negative, sample

LEVELS = [4.0, 2.0, 0.5, 0.1]


def shrunk(x, sigma, step):
    return x / (1 + sigma**2)


def test_steps_go_down_the_levels_and_are_reported():
    x = expected = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    heard = []
    for sigma, below in pairwise(LEVELS):
        expected = expected + (expected - shrunk(expected, sigma, 0)) / sigma * (below - sigma)
    assert torch.equal(sample(shrunk, x, LEVELS, heard.append), expected)
    assert [(p.step, p.steps, p.iteration, p.max_iterations) for p in heard] == [(n, 3, 0, 1) for n in range(3)]
    torch.testing.assert_close(heard[0].denoised, x / 17)


def test_after_step_has_the_last_word_on_each_latent():
    seen = []

    def predict(x, sigma, step):
        seen.append(float(x.mean()))
        return x

    x = sample(predict, torch.zeros(1, 1, 1, 1), LEVELS, after_step=lambda x, step: x + 10**step)
    assert seen == [0, 1, 11] and float(x) == 111


def test_predictions_run_without_gradients():
    x = sample(shrunk, torch.ones(1, 1, 1, 1, requires_grad=True), LEVELS)
    assert not x.requires_grad and torch.is_grad_enabled()


def test_a_prediction_that_is_not_a_number_names_its_step():
    with pytest.raises(EditingError, match="prediction at step 2 is not a number"):
        sample(lambda x, sigma, step: x / (0.0 if step == 1 else 1.0), torch.ones(1, 1, 1, 1), LEVELS)


def test_an_exception_from_the_callback_ends_the_run():
    def cancel(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(shrunk, torch.ones(1, 1, 1, 1), LEVELS, cancel)


def test_cfg_needs_a_negative():
    require_negative(1.0, None)
    require_negative(7.5, object())
    with pytest.raises(EditingError, match=r"cfg is 7.5 but no negative conditioning is given"):
        require_negative(7.5, None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8])
def test_only_numbers_are_finite_whatever_their_sum(dtype):
    largest = torch.finfo(dtype).max if dtype.is_floating_point else 255
    check_finite(torch.full((3, 4), largest, dtype=dtype), "The latent")  # the sum overflows
    if not dtype.is_floating_point:
        return
    for bad in ([float("nan")], [float("inf")], [float("-inf")], [float("inf"), float("-inf")]):
        with pytest.raises(EditingError, match="The latent is not a number"):
            check_finite(torch.tensor([1.0, *bad, -1.0]).to(dtype), "The latent")
