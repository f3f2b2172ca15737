"""Inversion on a generator so small that its inverse is known."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from semantic_editing.core.deltaedit.invert import decibels, invert
from semantic_editing.core.deltaedit.stylegan2 import StyleGAN2
from semantic_editing.core.errors import EditingError

SIZE, WIDTH, ROWS = 8, 4, 4  # W+ of 16 numbers for a picture of 192


@pytest.fixture(scope="module")
def generator():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = StyleGAN2(SIZE, {4: 8, 8: 8}, WIDTH, 2).eval().requires_grad_(False)
    made.identity = "tiny"
    return made


@dataclass
class Guess:
    """An encoder that does not look: a code for each picture of the batch."""

    codes: torch.Tensor
    side: int = 4
    calls: int = 0

    def __call__(self, pictures):
        assert pictures.shape[1:] == (3, self.side, self.side)
        self.calls += 1
        return self.codes[: len(pictures)]


def codes(count, seed=0):
    return torch.randn(count, ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))


def pictures_of(generator, w_plus):
    return (generator(w_plus) + 1) / 2


def errors(generator, code, pictures):
    """The squared error of 0..1 in numpy, 64 bits."""
    rebuilt = (generator.synthesize(code).double().numpy() + 1) / 2
    return ((rebuilt - pictures.double().numpy()) ** 2).mean((1, 2, 3))


def test_an_encoder_that_knows_the_code_gives_it(generator):
    true = codes(2)
    code = invert(generator, Guess(true), pictures_of(generator, true))
    assert torch.equal(code.w_plus, true) and code.generator == "tiny" and code.layout == generator.layout
    expected = generator.styles(true)
    assert torch.equal(code.convs, expected.convs) and torch.equal(code.rgbs, expected.rgbs)
    assert len(code.facts) == 2 and code.facts[0].endswith("dB by the encoder")


def test_refinement_lowers_the_error_of_a_code_known_by_construction(generator):
    true = codes(2)
    pictures, start = pictures_of(generator, true), true + 0.3 * codes(2, seed=1)
    before = errors(generator, invert(generator, Guess(start), pictures), pictures)
    refined = invert(generator, Guess(start), pictures, steps=80, prior=0, row_prior=0)
    assert (errors(generator, refined, pictures) < before / 20).all()
    told = [f"rebuilt at {-10 * math.log10(error):.1f} dB by the encoder" for error in before]
    assert [fact.split(",")[0] for fact in refined.facts] == told
    after = -10 * math.log10(errors(generator, refined, pictures)[0])
    assert refined.facts[0].endswith(f"{after:.1f} dB after 80 steps of refinement")


def test_the_priors_hold_the_code_and_its_rows(generator):
    true = codes(1)
    pictures, start = pictures_of(generator, true), true + 0.5 * codes(1, seed=1)

    def change(prior, row_prior):
        """Lengths of the rows' common change and of the rest."""
        options = {"steps": 60, "rate": 0.02, "prior": prior, "row_prior": row_prior}
        moved = invert(generator, Guess(start), pictures, **options).w_plus - start
        common = moved.mean(1, keepdim=True)
        return float(common.norm()), float((moved - common).norm())

    free, both, common_alone, rows_alone = change(0, 0), change(10, 10), change(10, 0), change(0, 10)
    assert both[0] < free[0] / 5 and both[1] < free[1] / 5
    assert common_alone[0] < free[0] / 5 and common_alone[1] > free[1] / 2
    assert rows_alone[1] < free[1] / 5 and rows_alone[0] > free[0] / 2


@pytest.mark.parametrize("rate", [1e4, 1e30])
def test_a_refinement_that_makes_it_worse_is_not_taken(generator, rate):
    """Steps without measure, the second into what is no number."""
    true = codes(2)
    start = true + 1e-3 * codes(2, seed=1)
    code = invert(generator, Guess(start), pictures_of(generator, true), steps=5, rate=rate)
    assert torch.equal(code.w_plus, start)


class Linear:
    """The generator's inverse near a code, by the pseudo-inverse of its Jacobian there."""

    side = SIZE

    def __init__(self, generator, around):
        self.around, self.picture = around, generator(around[None])
        jacobian = torch.autograd.functional.jacobian(lambda w: generator(w[None]).flatten(), around)
        self.inverse = torch.linalg.pinv(jacobian.reshape(-1, ROWS * WIDTH).double()).float()

    def __call__(self, pictures):
        return self.around + ((pictures - self.picture).flatten(1) @ self.inverse.T).reshape(-1, ROWS, WIDTH)


def test_passes_come_nearer_and_the_best_is_kept(generator):
    """With the linear inverse a pass is a step of Newton's method with a fixed slope."""
    true = codes(3)
    encoder = Linear(generator, true[0] + 0.1 * codes(1, seed=2)[0])
    pictures = pictures_of(generator, true[:1] + 0.05 * codes(1, seed=3))
    found = [errors(generator, invert(generator, encoder, pictures, passes=passes), pictures) for passes in (1, 2, 4)]
    assert found[1] < found[0] / 4 and found[2] < found[1] / 4
    code = invert(generator, encoder, pictures, passes=4)
    assert f"{-10 * math.log10(found[2][0]):.1f} dB by the best of 4 passes" in code.facts[0]


def test_passes_that_lead_away_are_not_taken(generator):
    true = codes(2)
    pictures, seen = pictures_of(generator, true), []

    class Contrary:
        side = SIZE

        def __call__(self, given):
            seen.append(given)
            return true + 0.1 if len(seen) == 1 else true + 0.1 + 5 * codes(2, seed=len(seen))

    code = invert(generator, Contrary(), pictures, passes=4)
    assert len(seen) == 4 and torch.equal(code.w_plus, true + 0.1)


def test_a_batch_is_its_rows(generator):
    true = codes(3)
    pictures, start = pictures_of(generator, true), true + 0.2 * codes(3, seed=1)

    def one(row):
        return invert(generator, Guess(start[row : row + 1]), pictures[row : row + 1], steps=5, passes=2)

    together = invert(generator, Guess(start), pictures, steps=5, passes=2)
    alone = [one(row) for row in range(3)]
    torch.testing.assert_close(together.w_plus, torch.cat([code.w_plus for code in alone]), rtol=1e-4, atol=1e-5)
    assert together.facts == tuple(code.facts[0] for code in alone)


def test_progress_and_cancel(generator):
    told: list[Any] = []
    pictures = pictures_of(generator, codes(2))
    invert(generator, Guess(codes(2)), pictures, steps=3, passes=2, report=lambda *where: told.append(where))
    assert told == [(done, 5) for done in range(1, 6)]

    class Pressed(Exception):
        pass

    def press(done, total):
        if done == 4:
            raise Pressed

    with pytest.raises(Pressed):
        invert(generator, Guess(codes(2)), pictures, steps=3, passes=2, report=press)


def test_it_works_where_nothing_records_gradients(generator):
    pictures = pictures_of(generator, codes(1))
    with torch.no_grad():
        code = invert(generator, Guess(codes(1, seed=4)), pictures, steps=2)
        assert not torch.is_grad_enabled() and not code.w_plus.requires_grad
    assert not torch.equal(code.w_plus, codes(1, seed=4))


def test_decibels_are_of_a_range_of_two():
    assert decibels(4.0) == 0 and decibels(0.04) == pytest.approx(20) and decibels(0.0) == math.inf


def test_unusable_input_is_refused(generator):
    pictures, good = pictures_of(generator, codes(1)), Guess(codes(1))

    def refused(given=pictures, encoder=good, **options):
        with pytest.raises(EditingError) as caught:
            invert(generator, encoder, given, **options)
        sentence = str(caught.value)
        assert sentence.endswith(".") and "\n" not in sentence
        return sentence

    assert "[batch, 3, 8, 8]" in refused(pictures[..., :6])
    assert "[batch, 3, 8, 8]" in refused(pictures[:0])
    assert "not a number" in refused(pictures * math.nan)
    assert "no numbers" in refused(encoder=Guess(codes(1) * math.nan))
    assert "needs [batch, 4, 4]" in refused(encoder=Guess(codes(1)[:, :3]))
    assert "passes is 0" in refused(passes=0)
    assert "The rate is 0" in refused(rate=0.0)
