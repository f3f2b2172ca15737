"""The demo model in the shapes that the techniques take: their scorer, vision model, editor, encoder and decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..content_hash import content_hash
from ..diffusers.token_vectors import TextTower, TransformersVectorEncoder, decoder_checkpointing, token_ids_by
from ..models.clip import TowerScorer, transformers_tower
from ..models.transformers_files import NORMALISATIONS
from ..models.vision_features import VisionFeatures, load_vision_folder

if TYPE_CHECKING:
    from .model import DemoModel


def demo_scorer(demo: DemoModel) -> TowerScorer:
    """The demo model's own CLIP."""
    side = demo.clip.config.vision_config.image_size

    def texts(strings: list[str]) -> Tensor:
        return demo.text_features(strings)

    identity = content_hash("demo", demo.clip.visual_projection.weight, demo.clip.text_projection.weight)
    scale = float(demo.clip.logit_scale.exp())
    return TowerScorer(identity, transformers_tower(demo.clip), texts, side, (0.5,) * 3, (0.5,) * 3, demo.clip, scale)


def demo_vision_features(demo: DemoModel) -> VisionFeatures:
    """The image side of the demo model's own CLIP, on the demo model's device.

    Raises:
        EditingError: its files are damaged.
    """
    return load_vision_folder(demo.folder / "clip", NORMALISATIONS["-1..1"]).to(demo.device)


def demo_vector_encoder(demo: DemoModel) -> TransformersVectorEncoder:
    """The token vector encoder of the demo model, whose one text tower is read as Stable Diffusion 1 reads its own."""
    start, *_, end = demo.tokenize([""])[0].tolist()
    return TransformersVectorEncoder(
        [TextTower("clip_l", demo.clip.text_model, start, end, end, token_ids_by(demo.tokenizer))]
    )


class DemoDecoder:
    """:class:`~..token_vectors.ImageDecoder` of the demo model; ``gradient_checkpointing`` as in
    :class:`~..diffusers.token_vectors.DiffusersDecoder`."""

    def __init__(self, demo: DemoModel, gradient_checkpointing: bool = False):
        self.demo, self.gradient_checkpointing = demo, gradient_checkpointing

    def __call__(self, latent: Tensor) -> Tensor:
        """See :class:`~..token_vectors.ImageDecoder`."""
        with decoder_checkpointing(self.demo.vae, self.gradient_checkpointing):
            return self.demo.decode_unclipped(latent)
