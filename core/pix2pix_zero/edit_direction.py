"""An edit direction in memory and as a file: the pack's own, and the embeddings published with pix2pix-zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..denoiser import check_finite
from ..errors import EditingError
from ..files import load_legacy_tensor, load_tensors, save_tensors
from ..token_vectors import ENCODER_OF_WIDTH

FILE_FORMAT = "semantic_editing.edit_direction"
FILE_VERSION = "1"
MAX_STRENGTH = 3.0
LEGACY_SUFFIXES = (".pt", ".pth", ".bin")
TOKENS = 77
#: Whose states prompts of a width usually are, for messages.
STATES_OF_WIDTH = ENCODER_OF_WIDTH | {2048: "clip_l 768 + clip_g 1280"}


@dataclass(frozen=True, eq=False)
class EditDirection:
    """A shift of text embeddings from one meaning to another.

    Attributes:
        embeds: ``[1, L, D]`` fp32, difference of mean states at each token position.
        pooled: ``[1, P]`` fp32 likewise for the pooled embedding (SDXL), or None.
        text_encoder: name of the encoder it belongs to, e.g. "clip_l 768"; "" is unknown and fits any of its width.
        source, target: what the edit leads from and to, for people.
        sentences: how many sentences the means run over on both sides together.
    """

    embeds: Tensor
    pooled: Tensor | None
    text_encoder: str
    source: str
    target: str
    sentences: int

    def __post_init__(self) -> None:
        if self.embeds.ndim != 3 or len(self.embeds) != 1 or not self.embeds.numel():
            raise EditingError(
                f"An edit direction has shape [1, tokens, width], not {list(self.embeds.shape)}; make it again."
            )
        if self.pooled is not None and (self.pooled.ndim != 2 or len(self.pooled) != 1 or not self.pooled.numel()):
            raise EditingError(
                f"The pooled part of an edit direction has shape [1, width], not {list(self.pooled.shape)}; make it "
                "again."
            )
        check_finite(self.embeds, "The edit direction")
        if self.pooled is not None:
            check_finite(self.pooled, "The pooled part of the edit direction")

    @property
    def is_mean_embedding(self) -> bool:
        """Whether this is one word's mean embedding, as pix2pix-zero publishes them, rather than a difference.

        The state of the start token is the same for every text (attention is causal), so in a difference it is zero.
        """
        norms = self.embeds[0].norm(dim=-1)
        return bool(norms[0] > 0.5 * norms.mean() > 0)

    def describe(self) -> str:
        """One line for people: what it does, of which encoder, how large."""
        size = f"{self.embeds.shape[1]} tokens x {self.embeds.shape[2]}, norm {float(self.embeds.norm()):.4g}"
        encoder = self.text_encoder or "unknown text encoder"
        if self.is_mean_embedding:
            return f"mean embedding of {self.target!r} ({encoder}, {size}); apply it at +1 and the source word's at -1"
        return f"{self.source!r} to {self.target!r} ({encoder}, {self.sentences} sentences, {size})"

    def require_encoder(self, name: str) -> None:
        """Raise :class:`EditingError` if the direction is known to belong to another text encoder than ``name``."""
        if name and self.text_encoder and name != self.text_encoder:
            raise EditingError(
                f"This edit direction belongs to the text encoder {self.text_encoder}, but the model uses {name}; "
                "make the direction with this model's text encoder."
            )

    def apply(
        self, embeds: Tensor, pooled: Tensor | None = None, strength: float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        """Shift a prompt, in its own dtype: ``(embeds + strength * direction, pooled + strength * pooled direction)``.

        Args:
            embeds: ``[B, L, D]``; a long prompt of several blocks of the direction's length is shifted in each block.
            pooled: ``[B, P]`` or None; shifted when the direction has a pooled part too.
            strength: -3..3; 0 returns the prompt unchanged, negative values lead the other way.

        Raises:
            EditingError: strength out of range, or another width or number of tokens.
        """
        if not -MAX_STRENGTH <= strength <= MAX_STRENGTH:
            raise EditingError(f"The direction's strength is {strength:g}; use a value from -3 to 3.")
        length, width = self.embeds.shape[1:]
        if embeds.ndim != 3:
            raise EditingError(f"The prompt has shape {list(embeds.shape)}; use [batch, tokens, width].")
        if embeds.shape[2] != width:
            theirs = STATES_OF_WIDTH.get(embeds.shape[2], "another text encoder")
            own = self.text_encoder or STATES_OF_WIDTH.get(width, "another text encoder")
            raise EditingError(
                f"The prompt comes from {theirs} ({embeds.shape[2]} wide) and the edit direction from {own} ({width} "
                "wide); make the direction with this model's text encoder."
            )
        if embeds.shape[1] % length:
            raise EditingError(
                f"The prompt has {embeds.shape[1]} tokens and the edit direction {length}; "
                "make the direction with this model's text encoder."
            )
        if strength == 0:
            return embeds, pooled
        shift = self.embeds.repeat(1, embeds.shape[1] // length, 1)
        shifted = embeds + (strength * shift).to(embeds.device, embeds.dtype)
        if pooled is None or self.pooled is None:
            return shifted, pooled
        if pooled.shape[-1] != self.pooled.shape[-1]:
            raise EditingError(
                f"The prompt's pooled embedding is {pooled.shape[-1]} wide and the edit direction's "
                f"{self.pooled.shape[-1]}; make the direction with this model's text encoder."
            )
        return shifted, pooled + (strength * self.pooled).to(pooled.device, pooled.dtype)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a safetensors file (metadata: format, version, base model, method, source, target, sentences).

        Raises:
            EditingError: the file exists and ``overwrite`` is False, or it cannot be written.
        """
        tensors = {"embeds": self.embeds} | ({} if self.pooled is None else {"pooled": self.pooled})
        metadata = {
            "format": FILE_FORMAT,
            "version": FILE_VERSION,
            "base_model": self.text_encoder,
            "method": "mean sentence difference",
            "source": self.source,
            "target": self.target,
            "sentences": str(self.sentences),
        }
        return save_tensors(path, tensors, metadata, overwrite=overwrite)

    @staticmethod
    def load(path: str | Path, source_path: str | Path | None = None) -> EditDirection:
        """Read a direction saved by :meth:`save`, or a published ``.pt`` file.

        A published file is ``[1, L, D]``, or ``[N, L, D]`` of which the mean over N is taken.

        Args:
            path: the file; of two mean embeddings, the target's.
            source_path: the source's mean embedding; the direction is then the difference of the two files.

        Raises:
            EditingError: missing, damaged, foreign or hostile file, wrong shape, or two files that do not fit.
        """
        direction = _load_legacy(path) if Path(path).suffix.lower() in LEGACY_SUFFIXES else _load_safetensors(path)
        if source_path is None:
            return direction
        source = EditDirection.load(source_path)
        source.require_encoder(direction.text_encoder)
        if source.embeds.shape != direction.embeds.shape:
            raise EditingError(
                f"{Path(source_path).name} has shape {list(source.embeds.shape)} and {Path(path).name} "
                f"{list(direction.embeds.shape)}; use two embeddings of the same text encoder."
            )
        embeds, pooled = direction.apply(-source.embeds, None if source.pooled is None else -source.pooled)
        return replace(
            direction,
            embeds=embeds,
            pooled=pooled,
            source=source.target,
            sentences=source.sentences + direction.sentences,
        )


def _load_safetensors(path: str | Path) -> EditDirection:
    tensors, metadata = load_tensors(path, FILE_FORMAT, kind="edit direction")
    name = Path(path).name
    if "embeds" not in tensors or "sentences" not in metadata:
        raise EditingError(f"{name} is incomplete; save the edit direction again.")
    pooled = tensors.get("pooled")
    return EditDirection(
        tensors["embeds"].float(),
        None if pooled is None else pooled.float(),
        metadata.get("base_model", ""),
        metadata.get("source", ""),
        metadata.get("target", ""),
        int(metadata["sentences"]),
    )


def _load_legacy(path: str | Path) -> EditDirection:
    value = load_legacy_tensor(path)
    name = Path(path).name
    if value.ndim != 3 or value.shape[1] != TOKENS or not value.is_floating_point() or not value.numel():
        raise EditingError(
            f"{name} has shape {list(value.shape)}; a published embedding has [N, {TOKENS}, width]. Choose another "
            "file."
        )
    mean = value.float().mean(0, keepdim=True)
    return EditDirection(mean, None, ENCODER_OF_WIDTH.get(value.shape[2], ""), "", Path(path).stem, len(value))


#: Sentences -> ``embeds [N, L, D]``, or ``(embeds, pooled [N, P] or None)``.
Encode = Callable[[list[str]], Tensor | tuple[Tensor, Tensor | None]]


def sentence_direction(
    encode: Encode,
    source_sentences: Sequence[str],
    target_sentences: Sequence[str],
    *,
    batch_size: int = 32,
    encoder_name: str = "",
    source: str = "",
    target: str = "",
    callback: Callable[[int, int], None] | None = None,
) -> EditDirection:
    """Mean state of the target sentences minus that of the source sentences, at every token position.

    Args:
        encode: a list of N sentences -> ``[N, L, D]`` states padded to one length, or
            ``(states, pooled [N, P] | None)``.
        source_sentences, target_sentences: at least one each; blank ones are left out. Hundreds that differ only in the
            word make the steadiest direction (:func:`~.sentences.expand_words`); the numbers need not be equal.
        batch_size: sentences for each call of ``encode``.
        encoder_name: stored as :attr:`EditDirection.text_encoder`.
        source, target: names for people; the first sentences when empty.
        callback: told ``(sentences done, sentences in all)`` after each batch; an exception it raises ends the run.

    Raises:
        EditingError: a side without sentences, states that are not numbers or differ in shape between batches.
    """
    sides = [[text.strip() for text in texts if text.strip()] for texts in (source_sentences, target_sentences)]
    for texts, side in zip(sides, ("source", "target"), strict=True):
        if not texts:
            raise EditingError(f"The {side} sentence list is empty; write at least one sentence or word.")
    if batch_size < 1:
        raise EditingError(f"batch_size is {batch_size}; use 1 or more.")
    total = sum(map(len, sides))
    means: list[tuple[Tensor, Tensor | None]] = []
    for texts in sides:
        offset = total - len(texts) if means else 0

        def report(done: int, offset: int = offset) -> None:
            if callback is not None:
                callback(offset + done, total)

        means.append(_mean_states(encode, texts, batch_size, report))
    (source_embeds, source_pooled), (target_embeds, target_pooled) = means
    if source_embeds.shape != target_embeds.shape:
        raise EditingError(
            "The text encoder makes sentences of different lengths; use one that pads them to a fixed length."
        )
    pooled = None if source_pooled is None or target_pooled is None else (target_pooled - source_pooled).float()[None]
    return EditDirection(
        (target_embeds - source_embeds).float()[None],
        pooled,
        encoder_name,
        source or sides[0][0],
        target or sides[1][0],
        total,
    )


def _mean_states(
    encode: Encode, texts: list[str], batch_size: int, report: Callable[[int], None]
) -> tuple[Tensor, Tensor | None]:
    """Means over sentences in fp64 on the CPU: ``([L, D], [P] or None)``."""
    embeds_sum: Tensor | None = None
    pooled_sum: Tensor | None = None
    with torch.no_grad():
        for start in range(0, len(texts), batch_size):
            batch = texts[start : start + batch_size]
            encoded = encode(batch)
            embeds, pooled = (encoded, None) if isinstance(encoded, Tensor) else encoded
            if embeds.ndim != 3 or len(embeds) != len(batch):
                raise EditingError(
                    f"The text encoder returned shape {list(embeds.shape)} for {len(batch)} sentences; it cannot be "
                    "used here."
                )
            check_finite(embeds, "The text encoder's output")
            part = embeds.double().cpu().sum(0)
            if embeds_sum is not None and embeds_sum.shape != part.shape:
                raise EditingError(
                    "The text encoder makes sentences of different lengths; use one that pads them to a fixed length."
                )
            embeds_sum = part if embeds_sum is None else embeds_sum + part
            if pooled is not None:
                check_finite(pooled, "The text encoder's pooled output")
                pooled_part = pooled.double().cpu().sum(0)
                pooled_sum = pooled_part if pooled_sum is None else pooled_sum + pooled_part
            report(start + len(batch))
    assert embeds_sum is not None  # there is at least one batch
    return embeds_sum / len(texts), None if pooled_sum is None else pooled_sum / len(texts)
