"""An edit direction in memory and as a file: the pack's own, and the embeddings published with pix2pix-zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from ..denoiser import check_finite
from ..errors import EditingError
from ..files import load_legacy_tensor, load_tensors, save_tensors
from ..token_vectors import ENCODER_OF_WIDTH
from .shift_field import FieldBuilder, ShiftField, Tokenize, why_unpaired

FILE_FORMAT = "semantic_editing.edit_direction"
FILE_VERSION = "1"
MAX_STRENGTH = 3.0
LEGACY_SUFFIXES = (".pt", ".pth", ".bin")
TOKENS = 77
#: Relative distance of a prompt's start token from a direction's own beyond which the two are of different encodings.
#: The start token's state is one for all texts: two of one encoder differ by their precision (bfloat16: .004).
SAME_START = 0.02
#: Whose states prompts of a width usually are, for messages.
STATES_OF_WIDTH = ENCODER_OF_WIDTH | {2048: "clip_l 768 + clip_g 1280"}


@dataclass(frozen=True, eq=False)
class EditDirection:
    """A shift of text embeddings from one meaning to another.

    Attributes:
        embeds: ``[1, L, D]`` fp32, difference of mean states at each token position.
        pooled: ``[1, P]`` fp32 likewise for the pooled embedding (SDXL), or None.
        text_encoder: name of the encoder it belongs to, e.g. "clip_l 768"; "" is unknown and fits any of its width.
            A layer other than the model's own stands in it too, "clip_l 768, layer -2".
        source, target: what the edit leads from and to, for people.
        sentences: how many sentences the means run over on both sides together.
        field: the shift at each token by its own state, where the sentences came in pairs; it takes the place of
            ``embeds``. None: the means.
        start: ``[D]`` fp32, state of the start token in the sentences, which tells their encoding; None is unknown.
    """

    embeds: Tensor
    pooled: Tensor | None
    text_encoder: str
    source: str
    target: str
    sentences: int
    field: ShiftField | None = None
    start: Tensor | None = None

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
        width = self.embeds.shape[2]
        if self.field is not None and self.field.keys.shape[1] != width:
            raise EditingError(
                f"The field of the edit direction is {self.field.keys.shape[1]} wide and its mean {width}; make it "
                "again."
            )
        if self.start is not None and self.start.shape != (width,):
            raise EditingError(
                f"The start token of the edit direction has shape {list(self.start.shape)}, not [{width}]; make it "
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

    def sentence(self) -> str:
        """What it does, in a sentence."""
        if self.is_mean_embedding:
            return f"It is the mean of {self.target!r} alone, one half of a direction."
        return f"It leads from {self.source!r} to {self.target!r}."

    def describe(self) -> str:
        """One line for people: what it does, of which encoder, how large."""
        size = f"{self.embeds.shape[1]} tokens x {self.embeds.shape[2]}, norm {float(self.embeds.norm()):.4g}"
        encoder = self.text_encoder or "unknown text encoder"
        if self.is_mean_embedding:
            return f"mean embedding of {self.target!r} ({encoder}, {size}); apply it at +1 and the source word's at -1"
        reach = "one mean for each position" if self.field is None else f"word by word, {len(self.field.keys)} states"
        return f"{self.source!r} to {self.target!r} ({encoder}, {self.sentences} sentences, {reach}, {size})"

    def require_encoder(self, name: str) -> None:
        """Raise :class:`EditingError` if the direction is known to belong to another text encoder than ``name``."""
        if name and self.text_encoder and name != self.text_encoder:
            raise EditingError(
                f"This edit direction belongs to the text encoder {self.text_encoder}, but the model uses {name}; "
                "make the direction with this model's text encoder."
            )

    def encoding_warning(self, embeds: Tensor) -> str:
        """A sentence where the prompt ``[B, L, D]`` was not encoded as the direction's sentences were; else ""."""
        if self.start is None or embeds.ndim != 3 or embeds.shape[2] != len(self.start):
            return ""
        first = embeds[:, 0].detach().float().cpu()
        apart = float(((first - self.start).norm(dim=-1) / self.start.norm().clamp_min(1e-12)).max())
        if apart <= SAME_START:
            return ""
        return (
            f"The prompt was encoded otherwise than this direction's sentences (its start token lies {apart:.0%} off): "
            "by another text encoder, layer or way of weighting; encode both with the same CLIP."
        )

    def apply(
        self, embeds: Tensor, pooled: Tensor | None = None, strength: float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        """Shift a prompt, in its own dtype: ``(embeds + strength * direction, pooled + strength * pooled direction)``.

        A :attr:`field` shifts every token but the start by what it says there; a negative strength follows the field
        that leads back.

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
        shifted = embeds + self._shift(embeds, strength).to(embeds.device, embeds.dtype)
        if pooled is None or self.pooled is None:
            return shifted, pooled
        if pooled.shape[-1] != self.pooled.shape[-1]:
            raise EditingError(
                f"The prompt's pooled embedding is {pooled.shape[-1]} wide and the edit direction's "
                f"{self.pooled.shape[-1]}; make the direction with this model's text encoder."
            )
        return shifted, pooled + (strength * self.pooled).to(pooled.device, pooled.dtype)

    def _shift(self, embeds: Tensor, strength: float) -> Tensor:
        """What is added to ``embeds [B, n * L, D]``, in fp32."""
        length, width = self.embeds.shape[1:]
        if self.field is None:
            return strength * self.embeds.repeat(1, embeds.shape[1] // length, 1)
        field, sign = (self.field, 1) if strength > 0 else (self.field.reversed(), -1)
        blocks = embeds.reshape(-1, length, width)
        shift = torch.zeros(blocks.shape, dtype=torch.float32)
        shift[:, 1:] = sign * strength * field.at(blocks[:, 1:])
        return shift.reshape(embeds.shape)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a safetensors file (metadata: format, version, base model, method, source, target, sentences).

        Raises:
            EditingError: the file exists and ``overwrite`` is False, or it cannot be written.
        """
        tensors = {"embeds": self.embeds} | ({} if self.pooled is None else {"pooled": self.pooled})
        tensors |= {} if self.start is None else {"start": self.start}
        if self.field is not None:
            tensors |= {"field_keys": self.field.keys, "field_shifts": self.field.shifts}
        metadata = {
            "format": FILE_FORMAT,
            "version": FILE_VERSION,
            "base_model": self.text_encoder,
            "method": "mean sentence difference" if self.field is None else "shift field of paired sentences",
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
        means = replace(direction, field=None, start=None)
        embeds, pooled = means.apply(-source.embeds, None if source.pooled is None else -source.pooled)
        return replace(
            means,
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
    if ("field_keys" in tensors) != ("field_shifts" in tensors):
        raise EditingError(f"{name} is incomplete; save the edit direction again.")
    optional = {key: tensors[key].float() if key in tensors else None for key in ("pooled", "start")}
    field = None
    if "field_keys" in tensors:  # computed with 16 bits whatever a foreign file holds
        field = ShiftField(tensors["field_keys"].half(), tensors["field_shifts"].half())
    return EditDirection(
        tensors["embeds"].float(),
        optional["pooled"],
        metadata.get("base_model", ""),
        metadata.get("source", ""),
        metadata.get("target", ""),
        int(metadata["sentences"]),
        field,
        optional["start"],
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
    tokenize: Tokenize | None = None,
    batch_size: int = 32,
    encoder_name: str = "",
    source: str = "",
    target: str = "",
    callback: Callable[[int, int], None] | None = None,
) -> EditDirection:
    """From the source sentences to the target sentences: token by token where they come in pairs, and on the mean.

    The mean is that of the target's states minus that of the source's, at every token position.

    Args:
        encode: a list of N sentences -> ``[N, L, D]`` states padded to one length, or
            ``(states, pooled [N, P] | None)``.
        source_sentences, target_sentences: at least one each; blank ones are left out. Hundreds that differ only in the
            word make the steadiest direction (:func:`~.sentences.expand_words`); the numbers need not be equal.
        tokenize: the token ids of the sentences, by which pairs are aligned; None, or sentences that do not come in
            pairs (:func:`unpaired_reason` says why), leave the mean alone.
        batch_size: sentences for each call of ``encode``.
        encoder_name: stored as :attr:`EditDirection.text_encoder`.
        source, target: names for people; the first sentences when empty.
        callback: told ``(sentences done, sentences in all)`` after each batch; an exception it raises ends the run.

    Raises:
        EditingError: a side without sentences, one that holds no words for the tokenizer, or none but what the other
            says too; states that are not numbers or differ in shape between batches.
    """
    sides = _sides(source_sentences, target_sentences)
    if batch_size < 1:
        raise EditingError(f"batch_size is {batch_size}; use 1 or more.")
    ids = [token_ids(tokenize, texts) for texts in sides] if tokenize is not None else []
    paired = bool(ids) and not why_unpaired(*ids)
    if ids and ids[0] == ids[1]:
        raise EditingError(
            "Source and target are the same to the text encoder; write what the image shows and what it shall show "
            "instead."
        )
    total, done = sum(map(len, sides)), 0
    means, builder = (_Mean(), _Mean()), FieldBuilder()
    start_state = None
    with torch.no_grad():
        for side, start in _order(sides, batch_size, paired):
            batch = sides[side][start : start + batch_size]
            states = means[side].add(encode, batch)
            if start_state is None:
                start_state = states[0, 0].float().clone()
            if paired and side == 0:
                sources = states
            elif paired:
                _check_lengths(sources, states)
                own, theirs = (lists[start : start + batch_size] for lists in ids)
                for pair in zip(sources, states, own, theirs, strict=True):
                    builder.add(*pair)
            done += len(batch)
            if callback is not None:
                callback(done, total)
    (source_embeds, source_pooled), (target_embeds, target_pooled) = (mean.value() for mean in means)
    _check_lengths(source_embeds, target_embeds)
    pooled = None if source_pooled is None or target_pooled is None else (target_pooled - source_pooled).float()[None]
    return EditDirection(
        (target_embeds - source_embeds).float()[None],
        pooled,
        encoder_name,
        source or sides[0][0],
        target or sides[1][0],
        total,
        builder.build() if paired else None,
        start_state,
    )


def unpaired_reason(tokenize: Tokenize | None, source_sentences: Sequence[str], target_sentences: Sequence[str]) -> str:
    """Why :func:`sentence_direction` takes the mean of these sentences, for people; "" where it goes word by word."""
    if tokenize is None:
        return "this text encoder has no fixed length"
    return why_unpaired(*(tokenize(texts) for texts in _sides(source_sentences, target_sentences)))


def _sides(*lists: Sequence[str]) -> list[list[str]]:
    """Source and target sentences without blank ones."""
    sides = [[text.strip() for text in texts if text.strip()] for texts in lists]
    for texts, side in zip(sides, ("source", "target"), strict=True):
        if not texts:
            raise EditingError(f"The {side} sentence list is empty; write at least one sentence or word.")
    return sides


def token_ids(tokenize: Tokenize, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts from start to end.

    Raises:
        EditingError: a text of which the tokenizer leaves nothing.
    """
    ids = tokenize(texts)
    for text, tokens in zip(texts, ids, strict=True):
        if len(tokens) < 3:
            raise EditingError(f"The text {text[:40]!r} holds no words for the text encoder; write it in letters.")
    return ids


def _order(sides: list[list[str]], batch_size: int, paired: bool) -> Iterator[tuple[int, int]]:
    """``(side, start)`` of the batches: those of a pair after each other, or all of one side first."""
    starts = [[(side, start) for start in range(0, len(texts), batch_size)] for side, texts in enumerate(sides)]
    if paired:
        for batches in zip(*starts, strict=True):
            yield from batches
    else:
        yield from chain(*starts)


def _check_lengths(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape:
        raise EditingError(
            "The text encoder makes sentences of different lengths; use one that pads them to a fixed length."
        )


class _Mean:
    """Means over sentences in fp64 on the CPU."""

    def __init__(self) -> None:
        self.embeds: Tensor | None = None
        self.pooled: Tensor | None = None
        self.count = 0

    def add(self, encode: Encode, batch: list[str]) -> Tensor:
        """Encode and count a batch in; its states ``[N, L, D]`` on the CPU."""
        encoded = encode(batch)
        embeds, pooled = (encoded, None) if isinstance(encoded, Tensor) else encoded
        if embeds.ndim != 3 or len(embeds) != len(batch):
            raise EditingError(
                f"The text encoder returned shape {list(embeds.shape)} for {len(batch)} sentences; it cannot be "
                "used here."
            )
        check_finite(embeds, "The text encoder's output")
        states = embeds.cpu()
        part = states.double().sum(0)
        if self.embeds is not None:
            _check_lengths(self.embeds, part)
        self.embeds = part if self.embeds is None else self.embeds + part
        if pooled is not None:
            check_finite(pooled, "The text encoder's pooled output")
            pooled_part = pooled.double().cpu().sum(0)
            self.pooled = pooled_part if self.pooled is None else self.pooled + pooled_part
        self.count += len(batch)
        return states

    def value(self) -> tuple[Tensor, Tensor | None]:
        """``([L, D], [P] or None)``."""
        assert self.embeds is not None  # there is at least one batch
        return self.embeds / self.count, None if self.pooled is None else self.pooled / self.count
