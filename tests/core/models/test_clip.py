"""CLIP's features of pictures and texts: both preprocessings against their definitions, chunks against the whole."""

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

from semantic_editing.core.errors import EditingError
from semantic_editing.core.models.clip import (
    TowerScorer,
    deltaedit_pixels,
    embed_pictures,
    embed_texts,
)

SIDE = 8


class Scorer(TowerScorer):
    """Remembers the batches that its towers are given; features are the picture's own pixels, and a text's letters."""

    def __init__(self):
        self.seen, self.told = [], []
        super().__init__("pixels", self.look, self.listen, SIDE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))

    def look(self, pixels):
        self.seen.append(pixels)
        return pixels.flatten(1), pixels.flatten(2).transpose(1, 2)

    def listen(self, texts):
        self.told.append(len(texts))
        return torch.tensor([[float(len(text)), 1.0] for text in texts])


def picture(seed=0, height=12, width=20):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [32, 64, 96])
def test_deltaedits_pixels_are_seven_repetitions_and_an_average(size):
    """As published for 1,024 pixels: each pixel repeated 7 x 7, then averaged in squares of a 32nd of the side."""
    image = picture(1, size, size).double()
    repeated = np.repeat(np.repeat((image * 2 - 1).numpy()[0], 7, 1), 7, 2)
    pool = size // 32
    expected = repeated.reshape(3, 224, pool, 224, pool).mean((2, 4))
    np.testing.assert_allclose(deltaedit_pixels(image, 224)[0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(3, 5), (8, 8), (11, 6), (30, 17)])
def test_deltaedits_pixels_at_any_size(height, width):
    """Repeated as often as the wanted side is long, then averaged in blocks as long as the picture's side."""
    image = picture(2, height, width)
    repeated = (image * 2 - 1)[0].numpy().repeat(SIDE, 1).repeat(SIDE, 2)
    expected = repeated.reshape(3, SIDE, height, SIDE, width).mean((2, 4))
    np.testing.assert_allclose(deltaedit_pixels(image, SIDE)[0].numpy(), expected, atol=1e-6)


def test_deltaedits_features_leave_clips_normalisation_out():
    scorer, image = Scorer(), picture(3, SIDE, SIDE)
    found = scorer.image_features(image, "deltaedit")
    torch.testing.assert_close(scorer.seen[-1], image * 2 - 1)
    torch.testing.assert_close(found, functional.normalize((image * 2 - 1).flatten(1), dim=1))
    own = scorer.image_features(image)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    torch.testing.assert_close(own, functional.normalize(((image - mean) / std).flatten(1), dim=1))
    assert torch.equal(own, scorer.embed_images(image).features)
    assert float(functional.cosine_similarity(own, found)) < 0.95


@pytest.mark.parametrize("preprocessing", ["own", "deltaedit"])
def test_features_have_gradients(preprocessing):
    image = picture(4).requires_grad_()
    (gradient,) = torch.autograd.grad(Scorer().image_features(image, preprocessing)[0, 0], image)
    assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize("preprocessing", ["own", "deltaedit"])
def test_pictures_that_cannot_be_looked_at(preprocessing):
    scorer = Scorer()
    for image in (torch.zeros(3, 8, 8), torch.zeros(1, 1, 8, 8)):
        with pytest.raises(EditingError, match="batch, 3"):
            scorer.image_features(image, preprocessing)
    with pytest.raises(EditingError, match=r"not a number|NaN|finite"):
        scorer.image_features(torch.full((1, 3, 8, 8), float("nan")), preprocessing)
    with pytest.raises(EditingError, match="use own or deltaedit"):
        scorer.image_features(picture(), "clip")


def test_many_pictures_of_any_sizes_equal_single_ones():
    scorer, told = Scorer(), []
    pictures = [picture(n, 12, 20 if n in (3, 4) else 16) for n in range(8)]
    found = embed_pictures(scorer, iter(pictures), batch=2, callback=told.append)
    assert [len(batch) for batch in scorer.seen] == [2, 1, 2, 2, 1] and told == [2, 3, 5, 7, 8]
    torch.testing.assert_close(found, torch.cat([scorer.image_features(image) for image in pictures]))

    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_pictures(scorer, iter(pictures), callback=stop)
    with pytest.raises(EditingError, match="no pictures"):
        embed_pictures(scorer, [])


def test_many_texts_equal_single_ones():
    scorer, texts = Scorer(), [f"a{'b' * n}" for n in range(5)]
    found = embed_texts(scorer, texts, batch=2)
    assert scorer.told == [2, 2, 1]
    torch.testing.assert_close(found, torch.cat([scorer.text_features([text]) for text in texts]))
    with pytest.raises(EditingError, match="no texts"):
        embed_texts(scorer, [])
    with pytest.raises(EditingError, match="A text is empty"):
        embed_texts(scorer, ["a", " "])
