"""The paper's method on a tiny world: every box rendered once, a network that learns the table, the largest box beside
it."""

import pytest
import torch

from semantic_editing.core.errors import EditingError
from semantic_editing.core.regions.cache import RenderCache
from semantic_editing.core.regions.network import RegionNetwork
from semantic_editing.core.regions.paper import (
    Example,
    PaperSettings,
    best,
    choices,
    comparison,
    new_network,
    study,
    train,
)
from semantic_editing.tests.core.regions.tiny_regions import (
    SIZES,
    SPOTS,
    Painter,
    WantsArea,
    box_at,
    looking,
    tiny_image,
)

WANTED = box_at(SPOTS[0], SIZES[1])
SETTINGS = PaperSettings(anchors=1, sizes=SIZES, epochs=60, learning_rate=3e-2)


def studied(editor=None, settings=SETTINGS, **more):
    scorer = WantsArea(WANTED.width * WANTED.height)
    example = Example(tiny_image(), "the source", "the target")
    return study(example, looking(), scorer, editor or Painter(), settings, **more)


def test_every_box_is_rendered_once_and_never_again():
    editor, kept = Painter(), RenderCache()
    first = studied(editor, kept=kept)
    assert first.units == 20 * len(editor.calls) == 20 * len(first.verdicts)
    again = studied(editor, kept=kept)
    assert again.units == 0 and len(editor.calls) == len(first.verdicts)
    torch.testing.assert_close(again.losses, first.losses, equal_nan=True)


@pytest.mark.parametrize("signal", ["expected loss", "gumbel"])
def test_the_network_learns_the_box_of_lowest_loss(signal):
    one = studied()
    settings = PaperSettings(anchors=1, sizes=SIZES, epochs=60, learning_rate=3e-2, signal=signal)
    network = new_network(one, looking())
    history = train(network, [one], settings)
    assert len(history) == 60 and int(choices(network, one)[0]) == int(one.losses.nan_to_num(9.0).argmin(1)[0]) == 1
    assert best(network, one) == WANTED
    told = [float(part.split()[0]) for part in comparison(network, [one]).split(": ")[1].split(", ")]
    assert told[0] == told[3] < told[1]  # the best box, which is not the largest


def test_the_gradient_of_the_expected_loss_is_the_formulas():
    logits = torch.randn(1, 4, requires_grad=True, generator=torch.Generator().manual_seed(0))
    losses, chances = torch.tensor([[0.3, 0.9, 0.1, 0.5]]), logits.softmax(1)
    (chances * losses).sum(1).mean().backward()
    mean = (chances * losses).sum(1, keepdim=True)
    torch.testing.assert_close(logits.grad, (chances * (losses - mean)).detach())


def test_refusals():
    with pytest.raises(EditingError, match="use expected loss or gumbel"):
        PaperSettings(signal="soft mask")
    with pytest.raises(EditingError, match="no image"):
        train(RegionNetwork(5, 3), [], SETTINGS)
    with pytest.raises(EditingError, match="it was trained with"):
        train(RegionNetwork(5, 3), [studied()], SETTINGS)
