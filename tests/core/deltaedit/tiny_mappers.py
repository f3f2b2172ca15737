"""Small generators, mappers and CLIPs of random weights, and the released mapper as its paper's program defines it."""

import numpy as np
import torch

from semantic_editing.core.deltaedit.mapper import DeltaMapper
from semantic_editing.core.deltaedit.relevance import COVARIANCE, Relevance
from semantic_editing.core.deltaedit.stylegan2 import StyleGAN2
from semantic_editing.core.models.clip import TowerScorer

CHANNELS = {4: 4, 8: 4, 16: 4, 32: 4, 64: 3}
WIDTH = 6  # of the CLIP


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval().requires_grad_(False)


def generator(seed=0, channels=CHANNELS):
    made = build(lambda: StyleGAN2(64, channels, style_dim=8, mapping_layers=2), seed)
    made.identity = f"tiny {seed}"
    return made


def mapper(architecture="flat", across_channels=True, gen=None, clip="", standardised=True):
    gen = gen or generator()
    levels = gen.layout.levels
    made = build(lambda: DeltaMapper(levels, WIDTH, architecture, hidden=5, across_channels=across_channels))
    if standardised:
        made.mean.copy_(1 + 0.2 * seeded(gen.layout.width, seed=1))
        made.deviation.copy_(0.3 + seeded(gen.layout.width, seed=2).abs())
    made.generator, made.clip, made.layout = gen.identity, clip, gen.layout
    return made


def relevance(gen, seed=3, clip=""):
    rows = torch.nn.functional.normalize(seeded(gen.layout.width, WIDTH, seed=seed), dim=1)
    return Relevance(rows, COVARIANCE, gen.identity, clip)


def unit(count, seed=4):
    return torch.nn.functional.normalize(seeded(count, WIDTH, seed=seed), dim=1)


def scorer(identity="tiny clip", width=WIDTH):
    """Images by a linear layer on 4 x 4 means, texts by their letters."""
    look = seeded(48, width, seed=5)

    def images(pixels):
        small = torch.nn.functional.adaptive_avg_pool2d(pixels, 4).flatten(1)
        return small @ look, pixels.flatten(2).transpose(1, 2)[:, :4]

    def texts(strings):
        return torch.stack(
            [sum(seeded(width, seed=ord(letter) + 7 * place) for place, letter in enumerate(text)) for text in strings]
        )

    return TowerScorer(identity, images, texts, 8, (0.5,) * 3, (0.5,) * 3)


def naive_released(weights, levels, styles, given, across_channels):
    """methods of DeltaEdit's program in float64 and loops over faces: four equalised layers a module (lr_mul .01, leaky
    ReLU of .2 times the root of 2 after each), pixel norm before the style and condition modules, over dimension 1 of
    [B, layers, channels] or [B, channels]; coarse and medium layers share a module."""

    def norm(x, axis):
        return x / np.sqrt((x**2).mean(axis, keepdims=True) + 1e-8)

    def module(name, x, first):
        for layer in range(first, first + 4):
            weight, bias = (weights[f"{name}.mapping.{layer}.{part}"].double().numpy() for part in ("weight", "bias"))
            x = x @ (weight * (0.01 / np.sqrt(weight.shape[1]))).T + bias * 0.01
            x = np.where(x > 0, x, 0.2 * x) * np.sqrt(2)
        return x

    answers = []
    for face, condition in zip(styles.double().numpy(), given.double().numpy(), strict=True):
        parts, start = [], 0
        for level, channels in zip(("coarse", "medium", "fine"), levels, strict=True):
            part, start = face[start : start + sum(channels)], start + sum(channels)
            seen = module(f"cm_{level}", norm(condition, 0), 1)
            if level == "fine":
                mixed = np.concatenate([module("sm_fine", norm(part, 0), 1), seen])
                parts.append(module("fm_fine", mixed, 0))
                continue
            layers = part.reshape(len(channels), channels[0])
            style = module(f"sm_{level}", norm(layers, 1 if across_channels else 0), 1)
            parts += [module(f"fm_{level}", np.concatenate([row, seen]), 0) for row in style]
        answers.append(np.concatenate(parts))
    return torch.from_numpy(np.stack(answers))
