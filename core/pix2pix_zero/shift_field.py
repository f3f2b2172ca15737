"""An edit direction that depends on the word: how the states of paired sentences differ, token by token.

A mean over sentences (pix2pix-zero, section 3.2) averages, at each position, over whatever words stand there; it is
right for the padding and a smear at a caption's own words. Where the sentences come in pairs that differ in the edited
words only, every token of a source sentence has its counterpart in the target sentence, and the difference of the two
states is known at that state. Between those, :class:`ShiftField` interpolates (kernel regression on the nearest
states), and so it serves a prompt whose text nobody knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..denoiser import check_finite
from ..errors import EditingError

#: Sentences -> the token ids of each from its start to its end token, both included, without padding.
Tokenize = Callable[[Sequence[str]], list[list[int]]]

NEIGHBOURS = 8
PADDINGS = 2  # positions after the end token that a sentence adds to the field
#: Numbers in each of a field's two tables at most, 128 MiB in fp16; larger ones are thinned.
LARGEST_TABLE = 2**26
#: Share of their tokens that the sentences of a pair have in common at least, over all pairs.
LEAST_SHARED = 1 / 3
TINY = 1e-12  # squared distance of a state that is met exactly


@dataclass(frozen=True, eq=False)
class ShiftField:
    """What to add to a token's state, known at the states of the source sentences.

    Attributes:
        keys: ``[K, D]`` fp16, states of source tokens, no two alike.
        shifts: ``[K, D]`` fp16, the state of each one's counterpart minus its own.
    """

    keys: Tensor
    shifts: Tensor

    def __post_init__(self) -> None:
        if self.keys.ndim != 2 or self.keys.shape != self.shifts.shape or not self.keys.numel():
            raise EditingError(
                f"The field of an edit direction has shapes {list(self.keys.shape)} and {list(self.shifts.shape)}, not "
                "[states, width] twice; make the direction again."
            )
        check_finite(self.keys, "The field of the edit direction")
        check_finite(self.shifts, "The field of the edit direction")

    def reversed(self) -> ShiftField:
        """The field that leads back: known at the target's states, with the opposite shifts."""
        return ShiftField(self.keys + self.shifts, -self.shifts)

    def at(self, states: Tensor) -> Tensor:
        """The shifts at ``states [..., D]``, in fp32 on the CPU.

        The mean of the :data:`NEIGHBOURS` nearest keys' shifts, weighted by a Gaussian of their distance whose width is
        the distance of the nearest: a state that is a key gets that key's shift. States are compared in fp16.
        """
        asked = states.detach().reshape(-1, states.shape[-1]).cpu().half().float()
        keys = self.keys.float()
        # |q - k|^2 = |q|^2 - 2 q k + |k|^2 finds the nearest in one product; their distances are then taken exactly.
        order = keys.square().sum(-1) - 2 * asked @ keys.T
        nearest = order.topk(min(NEIGHBOURS, len(keys)), largest=False).indices
        squared = (asked[:, None] - keys[nearest]).square().sum(-1)
        weights = torch.softmax(-squared / (2 * squared.amin(-1, keepdim=True).clamp_min(TINY)), -1)
        return (weights[..., None] * self.shifts[nearest].float()).sum(1).reshape(states.shape)


@dataclass
class FieldBuilder:
    """Collects a :class:`ShiftField` pair by pair.

    Equal states (the common beginnings of sentences, attention being causal) are one key with their mean shift.
    """

    _rows: dict[bytes, int] = field(default_factory=dict)
    _keys: list[Tensor] = field(default_factory=list)
    _sums: list[Tensor] = field(default_factory=list)
    _counts: list[int] = field(default_factory=list)

    def add(self, source: Tensor, target: Tensor, source_ids: Sequence[int], target_ids: Sequence[int]) -> None:
        """Take in one pair.

        Args:
            source, target: ``[L, D]`` states.
            source_ids, target_ids: token ids from the start to the end token.

        Raises:
            EditingError: more tokens than states.
        """
        if max(len(source_ids), len(target_ids)) > len(source):
            raise EditingError(
                f"The tokenizer makes {max(len(source_ids), len(target_ids))} tokens of a sentence and the text "
                f"encoder {len(source)} states; use the encoder's own tokenizer, or shorter sentences."
            )
        partners = list(enumerate(counterparts(source_ids, target_ids)))[1:]  # the start is alike in every text
        padded = range(max(len(source_ids), len(target_ids)), len(source))
        spaced = {round(i * (len(padded) - 1) / (PADDINGS - 1)) for i in range(PADDINGS)} if len(padded) else set()
        partners += [(padded[i], padded[i]) for i in sorted(spaced)]
        at, to = (torch.tensor(positions) for positions in zip(*partners, strict=True))
        keys, shifts = source[at].half(), target[to].float() - source[at].float()
        for key, shift in zip(keys, shifts, strict=True):
            name = key.numpy().tobytes()
            row = self._rows.setdefault(name, len(self._keys))
            if row == len(self._keys):
                self._keys.append(key)
                self._sums.append(shift)
                self._counts.append(1)
            else:
                self._sums[row] = self._sums[row] + shift
                self._counts[row] += 1

    def build(self) -> ShiftField:
        """The field of all pairs so far.

        Raises:
            EditingError: states that 16 bits cannot hold.
        """
        keys = torch.stack(self._keys)
        shifts = (torch.stack(self._sums) / torch.tensor(self._counts)[:, None]).half()
        step = math.ceil(keys.numel() / LARGEST_TABLE)
        return ShiftField(keys[::step].clone(), shifts[::step].clone())


def counterparts(source: Sequence[int], target: Sequence[int]) -> list[int]:
    """For each position of ``source`` the position in ``target`` that says the same, or stands in its place.

    What the two have in common at the beginning and at the end is paired; of the words between, the last with the last
    and the others by their relative place. Where ``target`` has none, they go to what follows.

    Args:
        source, target: token ids, each from its start to its end token.
    """
    first, last_source, last_target = _differing(source, target)
    words, theirs = last_source - first, last_target - first
    places = []
    for position in range(len(source)):
        if position < first:
            places.append(position)
        elif position >= last_source:
            places.append(position + last_target - last_source)
        elif not theirs:
            places.append(first)
        else:
            back = (last_source - 1 - position) / max(words - 1, 1)
            places.append(last_target - 1 - round(back * (theirs - 1)))
    return places


def _differing(source: Sequence[int], target: Sequence[int]) -> tuple[int, int, int]:
    """``(first, end in source, end in target)`` of what lies between the common beginning and the common end."""
    shorter = min(len(source), len(target))
    first = next((i for i in range(shorter) if source[i] != target[i]), shorter)
    common = next((i for i in range(shorter - first) if source[-1 - i] != target[-1 - i]), shorter - first)
    return first, len(source) - common, len(target) - common


def why_unpaired(source: Sequence[Sequence[int]], target: Sequence[Sequence[int]]) -> str:
    """Why two lists of sentences (token ids, start to end) do not come in pairs; "" where they do.

    Pairs are worded alike but for what is edited: they share at least :data:`LEAST_SHARED` of the shorter one's tokens.
    """
    if len(source) != len(target):
        return f"the lists have {len(source)} and {len(target)} sentences"
    shared = total = 0
    for a, b in zip(source, target, strict=True):
        first, end, _ = _differing(a, b)
        shared += first + len(a) - end - 2  # without the start and the end token
        total += min(len(a), len(b)) - 2
    return "" if shared >= LEAST_SHARED * total else "the sentences of the two lists are not worded alike line by line"
