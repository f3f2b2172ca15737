"""ELITE's global mapper: its networks against numbers worked out one by one, and what it refuses."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch

from semantic_editing.benchmarks.elite_layout import elite_tensors
from semantic_editing.core.elite.mapper import load_elite_mapper
from semantic_editing.core.errors import EditingError
from semantic_editing.core.files import save_tensors

VISION, WORD = 6, 4
NAME = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def saved(folder, tensors):
    path = folder / "global_mapper.pt"
    torch.save(OrderedDict(tensors), path)
    return path


def states(seed=0, width=VISION):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 5, width, generator=generator) for _ in range(5)]


def network(tensors, name, token):
    """One token through one network, in float64."""
    for linear, norm in ((0, 1), (3, 4), (6, None)):
        weight, bias = (tensors[f"{name}.{linear}.{part}"].double().numpy() for part in ("weight", "bias"))
        token = np.array([sum(w * x for w, x in zip(row, token, strict=True)) for row in weight]) + bias
        if norm is None:
            return token
        mean, spread = token.mean(), np.sqrt(((token - token.mean()) ** 2).mean() + 1e-5)
        scale, shift = (tensors[f"{name}.{norm}.{part}"].double().numpy() for part in ("weight", "bias"))
        token = (token - mean) / spread * scale + shift
        token = np.where(token > 0, token, 0.01 * token)
    raise AssertionError


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_words_are_those_worked_out_token_by_token(tmp_path, ending):
    tensors, given = elite_tensors(VISION, 5, WORD), states()
    if ending == "pt":
        path = saved(tmp_path, tensors)
    else:
        path = save_tensors(tmp_path / "mapper.safetensors", tensors, {})
    mapper = load_elite_mapper(path)
    words = mapper.words(given)
    assert words.shape == (2, 5, WORD) and (mapper.vision_width, mapper.word_width) == (VISION, WORD)
    for row in range(2):
        for number, part in enumerate(given):
            whole, *patches = part[row].double().numpy()
            expected = network(tensors, f"mapping_{number}", whole)
            expected = expected + np.mean([network(tensors, f"mapping_patch_{number}", p) for p in patches], 0)
            torch.testing.assert_close(words[row, number].double(), torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert set(mapper.projections) == {NAME} and torch.equal(mapper.projections[NAME], tensors[f"{NAME}.weight"])


def broken(change):
    tensors = elite_tensors(VISION, 5, WORD)
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("mapping_3.4.bias"), "no ELITE mapper"),
        (lambda t: t.pop(f"{NAME}.weight"), "no key and value projections"),
        (lambda t: t.update({"mapping_patch_1.0.weight": torch.zeros(5, 7)}), "do not fit together"),
        (lambda t: t.update({"mapping_0.3.weight": torch.zeros(5, 4)}), "do not fit together"),
        (lambda t: t.update({"mapping_0.1.bias": torch.zeros(3)}), "do not fit together"),
        (lambda t: t.update({f"{NAME}.weight": torch.zeros(8, 5)}), "do not fit together"),
        (lambda t: t.update({"mapping_0.0.bias": torch.zeros(5).long()}), "no numbers"),
        (lambda t: t.update({"mapping_0.0.bias": torch.full((5,), float("nan"))}), "not a number"),
    ],
)
def test_files_that_are_not_one_are_refused(tmp_path, change, sentence):
    with pytest.raises(EditingError, match=sentence):
        load_elite_mapper(saved(tmp_path, broken(change)))


def test_tokens_of_another_image_tower_are_refused(tmp_path):
    mapper = load_elite_mapper(saved(tmp_path, elite_tensors(VISION, 5, WORD)))
    for given in (states(width=VISION + 1), states()[:4]):
        with pytest.raises(EditingError, match="image tower"):
            mapper.words(given)
