"""Token vectors and image decoding with gradients, through diffusers and transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..gradient_checkpointing import blocks_of, checkpointed
from ..token_vectors import TokenVectors, check_vectors, encoder_title
from .denoiser import TextCond

if TYPE_CHECKING:
    from .checkpoint import Checkpoint


#: Which states condition the U-Net: after the final LayerNorm (SD1, SD2), or those before the last block (SDXL).
Layer = Literal["last", "penultimate"]


@dataclass(frozen=True)
class TextTower:
    """One CLIP text encoder of a model.

    Attributes:
        name: "clip_l", "clip_g" or "clip_h".
        network: transformers' ``CLIPTextModel`` or ``CLIPTextModelWithProjection``.
        start, end, pad: token ids; ``pad`` follows the first ``end`` up to ``length`` tokens.
        tokenize: token ids of a text, without start and end.
    """

    name: str
    network: Any
    start: int
    end: int
    pad: int
    tokenize: Callable[[str], list[int]]
    length: int = 77

    @property
    def table(self) -> nn.Embedding:
        """The token table."""
        found = [module for name, module in self.network.named_modules() if name.endswith("token_embedding")]
        return found[0]

    def encode(self, vectors: Tensor, layer: Layer) -> Any:
        """Run the encoder on [start, ``vectors [B, n, D]``, end, padding]; transformers' output object."""
        rows, tokens = vectors.shape[:2]
        table = self.table
        filler = [0] * tokens  # any id will do: its row is replaced before anything reads it
        ids = torch.tensor(
            [[self.start, *filler, self.end, *[self.pad] * (self.length - tokens - 2)]], device=table.weight.device
        )

        def insert(module: nn.Module, inputs: Any, looked_up: Tensor) -> Tensor:
            given = vectors.to(looked_up.device, looked_up.dtype)
            return torch.cat([looked_up[:, :1], given, looked_up[:, 1 + tokens :]], 1)

        handle = table.register_forward_hook(insert)
        try:
            return self.network(input_ids=ids.expand(rows, -1), output_hidden_states=layer == "penultimate")
        finally:
            handle.remove()


class TransformersVectorEncoder:
    """:class:`~..token_vectors.TokenVectorEncoder` over one text tower (SD1, SD2, the demo model) or two (SDXL).

    Args:
        towers: in the order in which their states are joined.
        layer: see :data:`Layer`.
        pooled: whether the last tower's projected end-token state is part of the conditioning (SDXL).
    """

    def __init__(self, towers: Sequence[TextTower], layer: Layer = "last", pooled: bool = False):
        self.towers, self.layer, self.pooled = list(towers), layer, pooled
        tables = {tower.name: tower.table.weight.detach() for tower in self.towers}
        self.widths: Mapping[str, int] = {name: table.shape[1] for name, table in tables.items()}
        self.encoder_name = encoder_title(self.widths)
        self.end_vectors: TokenVectors = {
            tower.name: tables[tower.name][tower.end].float().cpu() for tower in self.towers
        }
        self.token_scale: Mapping[str, float] = {
            name: float(table.float().square().mean().sqrt()) for name, table in tables.items()
        }

    def __call__(self, vectors: TokenVectors) -> TextCond:
        """See :class:`~..token_vectors.TokenVectorEncoder`; states and pooled vector in at least fp32."""
        check_vectors(vectors, self.widths)
        outputs = [tower.encode(vectors[tower.name], self.layer) for tower in self.towers]
        states = [output.last_hidden_state if self.layer == "last" else output.hidden_states[-2] for output in outputs]
        pooled = at_least_fp32(outputs[-1].text_embeds) if self.pooled else None
        return TextCond(at_least_fp32(torch.cat(states, -1)), pooled)

    def word_vectors(self, text: str) -> TokenVectors:
        """See :class:`~..token_vectors.TokenVectorEncoder`; fp32, on the CPU."""
        ids = {tower.name: torch.tensor(tower.tokenize(text), dtype=torch.long) for tower in self.towers}
        return {tower.name: tower.table.weight.detach()[ids[tower.name]].float().cpu() for tower in self.towers}


def checkpoint_vector_encoder(model: Checkpoint) -> TransformersVectorEncoder:
    """The token vector encoder of an SD1, SD2 or SDXL checkpoint."""
    pipeline = model.pipeline
    parts = [(pipeline.text_encoder, pipeline.tokenizer)]
    if model.is_xl:
        parts.append((pipeline.text_encoder_2, pipeline.tokenizer_2))
    names = [part.rsplit(" ", 1)[0] for part in model.encoder_name.split(" + ")]
    towers = [
        TextTower(
            name, network, by.bos_token_id, by.eos_token_id, by.pad_token_id, token_ids_by(by), by.model_max_length
        )
        for name, (network, by) in zip(names, parts, strict=True)
    ]
    return TransformersVectorEncoder(towers, "penultimate" if model.is_xl else "last", model.is_xl)


def token_ids_by(tokenizer: Any) -> Callable[[str], list[int]]:
    """The function that gives a text's token ids without start and end."""
    return lambda text: list(tokenizer(text, add_special_tokens=False).input_ids)


class DiffusersDecoder:
    """:class:`~..token_vectors.ImageDecoder` over an ``AutoencoderKL`` (or ``AutoencoderTiny``, a cheap one).

    Args:
        vae: in any dtype; SDXL's needs fp32.
        gradient_checkpointing: the decoder's blocks keep no activations but run again in the backward pass: much less
            memory, about a third more time in the decoder.
    """

    def __init__(self, vae: Any, gradient_checkpointing: bool = False):
        self.vae, self.gradient_checkpointing = vae.eval(), gradient_checkpointing

    def __call__(self, latent: Tensor) -> Tensor:
        """See :class:`~..token_vectors.ImageDecoder`; at least fp32."""
        parameter = next(self.vae.parameters())
        scaled = (latent / self.vae.config.scaling_factor).to(parameter)
        with decoder_checkpointing(self.vae, self.gradient_checkpointing):
            return at_least_fp32(self.vae.decode(scaled).sample) / 2 + 0.5


def at_least_fp32(tensor: Tensor) -> Tensor:
    """``tensor`` in fp32, or in fp64 if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def decoder_checkpointing(vae: Any, active: bool) -> AbstractContextManager[None]:
    """Within the ``with`` block the blocks of the VAE's decoder keep no activations when ``active``."""
    return checkpointed(blocks_of(vae.decoder) if active else [])
