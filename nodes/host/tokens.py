"""The host's CLIP reading token vectors in place of words, as CONDITIONING or with gradients.

The tokens of the empty prompt are handed to the host with vectors among them, as its own ``embedding:name`` does it;
what comes back is therefore what stock CLIP Text Encode would give for an embedding file of those vectors.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...core.errors import EditingError
from ...core.token_vectors import TokenVectors, check_vectors, encoder_title
from .conditioning import BLOCK_ENCODERS, POOLED, PREFIX, caught_pooled
from .gradients import out_of_place, static_patcher
from .session import Session


class HostVectorEncoder:
    """Token vectors to CONDITIONING: the text encoder of an SD1, SD2 or SDXL model, for nodes that only apply vectors.

    Vectors stand at positions 1..n of the empty prompt. The CONDITIONING has one row and no gradients, and is the very
    one that stock CLIP Text Encode would make.

    Args:
        clip: a CLIP; its *CLIP Set Last Layer* and LoRA are respected.

    Raises:
        EditingError: a text encoder of another kind.
    """

    def __init__(self, clip: Any):
        self.clip, self.blocks = clip, clip.tokenize("")
        if set(self.blocks) not in BLOCK_ENCODERS:
            raise EditingError(
                "Token vectors cannot be put into this text encoder; use the CLIP of an SD 1.x, SD 2.x or SDXL model."
            )
        #: Names as in embedding files, in the order in which their states are joined.
        self.names = sorted((PREFIX + key for key in self.blocks), reverse=True)
        tables = {name: self._encoder(clip.cond_stage_model, name) for name in self.names}
        self.widths: Mapping[str, int] = {name: table.shape[1] for name, (table, _) in tables.items()}
        self.encoder_name = encoder_title(self.widths)
        self.end_vectors: TokenVectors = {
            name: table[end].detach().float().cpu().clone() for name, (table, end) in tables.items()
        }

    @property
    def token_scale(self) -> Mapping[str, float]:
        """See :class:`~...core.token_vectors.TokenVectorEncoder`."""
        tables = {name: self._encoder(self.clip.cond_stage_model, name)[0] for name in self.names}
        return {name: float(table.detach().float().square().mean().sqrt()) for name, table in tables.items()}

    @staticmethod
    def _encoder(network: Any, name: str) -> tuple[Tensor, int]:
        """``(token table [V, D], id of the end token)`` of an encoder."""
        module = getattr(network, name)
        return module.transformer.get_input_embeddings().weight, module.special_tokens["end"]

    def word_vectors(self, text: str) -> TokenVectors:
        """See :class:`~...core.token_vectors.TokenVectorEncoder`. As anywhere in the host, ``embedding:name`` stands
        for a file's vectors; emphasis, as in (hair:1.2), says nothing."""
        blocks = self.clip.tokenize(text)
        found: dict[str, Tensor] = {}
        for name in self.names:
            table, end = self._encoder(self.clip.cond_stage_model, name)
            rows: list[Tensor] = []
            for block in blocks[name.removeprefix(PREFIX)]:
                for token, *_ in block[1:]:
                    if not isinstance(token, Tensor) and token == end:
                        break
                    rows.append(
                        torch.as_tensor(token if isinstance(token, Tensor) else table[token]).detach().float().cpu()
                    )
            found[name] = torch.stack(rows).clone() if rows else torch.zeros(0, self.widths[name])
        return found

    def tokens(self, vectors: TokenVectors) -> dict[str, list[list[tuple[Any, float]]]]:
        """The host's tokens of ``vectors``, each ``[B, n, D]``: B blocks of 77 for each encoder; n may differ.

        Raises:
            EditingError: vectors of another text encoder, or too many.
        """
        rows = check_vectors(vectors, self.widths)
        made = {}
        for key, (empty,) in self.blocks.items():
            given = vectors[PREFIX + key]
            start, rest = empty[:1], empty[1 : len(empty) - given.shape[1]]
            made[key] = [[*start, *((vector, 1.0) for vector in given[row]), *rest] for row in range(rows)]
        return made

    def __call__(self, vectors: TokenVectors) -> Any:
        """CONDITIONING of ``vectors``, each ``[1, n, D]``."""
        return self.clip.encode_from_tokens_scheduled(self.tokens(vectors))


def vectors_read(clip: Any, text: str) -> TokenVectors:
    """Encoder -> the vectors ``[n, D]`` that the host reads from embedding files where a prompt says ``text``; n may be
    0, and vectors of another width are left out, as the host does."""
    encoder = HostVectorEncoder(clip)
    blocks = clip.tokenize(f"a picture, {text}")
    found = {}
    for name, width in encoder.widths.items():
        tokens = [token for block in blocks[name.removeprefix(PREFIX)] for token, *_ in block]
        rows = [token.float().cpu() for token in tokens if isinstance(token, Tensor) and token.shape[-1] == width]
        found[name] = torch.stack(rows) if rows else torch.zeros(0, width)
    return found


class SessionVectorEncoder(HostVectorEncoder):
    """The same with gradients, for learning vectors inside a run (``core.token_vectors.TokenVectorEncoder``).

    Called with vectors it gives a conditioning of the session's Denoiser. Make one before the run, load :attr:`patcher`
    together with the MODEL (``additional_models`` of ``run``), and :meth:`bind` it inside.
    """

    def __init__(self, clip: Any):
        super().__init__(clip)
        self.patcher = static_patcher(clip.patcher)
        self.session: Session | None = None

    def bind(self, session: Session) -> SessionVectorEncoder:
        """From now on make conditionings for ``session``; returns itself."""
        self.session = session
        return self

    def encode(self, vectors: TokenVectors) -> tuple[Tensor, Tensor | None]:
        """``(states [B, 77, D], pooled [B, P] or None where the model has no use for it)`` of ``vectors``, each
        ``[B, n, D]``.
        """
        tokens = self.tokens(vectors)
        network = self.patcher.model
        network.reset_clip_options()
        if self.clip.layer_idx is not None:
            network.set_clip_options({"layer": self.clip.layer_idx})
        network.set_clip_options({"execution_device": self.patcher.load_device})
        rows = len(next(iter(tokens.values())))
        with out_of_place(network), caught_pooled(network) as caught:
            joined, _ = network.encode_token_weights(tokens)[:2]
        return joined.reshape(rows, -1, joined.shape[-1]), caught[0][:rows] if caught else None

    def __call__(self, vectors: TokenVectors) -> Any:
        """See :class:`~...core.token_vectors.TokenVectorEncoder`; an entry like those of :attr:`Session.conds`."""
        assert self.session is not None, "bind a session first"
        states, pooled = self.encode(vectors)
        base, latent = self.session.denoiser.base, self.session.latent
        entry = {"cross_attn": states, "model_conds": {}, "uuid": uuid.uuid4()} | (
            {} if pooled is None else {POOLED: pooled}
        )
        made: Any = comfy.samplers.encode_model_conds(base.extra_conds, [entry], latent, latent.device, "positive")
        return made
