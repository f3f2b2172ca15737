"""Tiny seeded random parts for CASO: a text tower, a decoder, a classifier, next to ``tiny_models``'s U-Net."""

from __future__ import annotations

import torch
from torch import nn

from semantic_editing.core.caso.settings import TrainingSettings
from semantic_editing.core.caso.training import EmbeddingTrainer
from semantic_editing.core.classifiers.base import ImageClassifier
from semantic_editing.core.diffusers.denoiser import DiffusersDenoiser
from semantic_editing.core.diffusers.token_vectors import TextTower, TransformersVectorEncoder
from semantic_editing.tests.core.tiny_models import TEXT_WIDTH, TOKENS, tiny_scheduler, tiny_unet

START, END, PAD, WORDS = 20, 21, 21, 22
CLASSES = ["no", "yes", "maybe"]


def seeded_module(make, seed: int = 0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def text_network(width: int = TEXT_WIDTH, seed: int = 0, projection: int | None = None):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=WORDS,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
        projection_dim=projection or width,
    )
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    network = seeded_module(lambda: kind(config), seed).eval().requires_grad_(False)
    table = next(module for name, module in network.named_modules() if name.endswith("token_embedding"))
    table.weight.copy_(torch.randn(table.weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.3)
    return network


def tiny_vector_encoder(seed: int = 0) -> TransformersVectorEncoder:
    return TransformersVectorEncoder([tiny_tower(text_network(seed=seed))])


def tiny_tower(network) -> TextTower:
    """Reads numbers as words."""
    return TextTower("clip_l", network, START, END, PAD, lambda text: [int(word) for word in text.split()], TOKENS)


class TinyDecoder(nn.Module):
    """``[B, 4, h, w]`` -> ``[B, 3, 2h, 2w]``, around mid-grey."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.layer = seeded_module(lambda: nn.ConvTranspose2d(4, 3, 2, 2), seed).requires_grad_(False)

    def forward(self, latent):
        return 0.5 + 0.1 * self.layer(latent.to(self.layer.weight.dtype))


def tiny_classifier(seed: int = 0, size: int = 16) -> ImageClassifier:
    trunk = seeded_module(
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(3), nn.Flatten()), seed
    )
    last = seeded_module(lambda: nn.Linear(54, len(CLASSES)), seed + 1)
    last.weight.data *= 8  # decided enough that the loss has something to learn
    return ImageClassifier(trunk, [last], {"glasses": CLASSES}, (size, size), (0.5,) * 3, (0.5,) * 3, "tiny")


def tiny_trainer(latents, validation=None, draft=None, network=None, classifier=None, **settings) -> EmbeddingTrainer:
    values = {"attribute": "glasses", "targets": ("yes",), "steps": 6, "batch": 2, "check_every": 2, **settings}
    unet = network if network is not None else tiny_unet()
    denoiser = DiffusersDenoiser(unet, tiny_scheduler())
    judge = tiny_classifier() if classifier is None else classifier
    return EmbeddingTrainer(
        denoiser, tiny_vector_encoder(), TinyDecoder(), judge, latents, TrainingSettings(**values), validation, draft
    )
