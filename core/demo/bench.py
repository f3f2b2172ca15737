"""What a workflow does to pictures whose true edit is known: the parts of the demo bench that need no ComfyUI.

A workflow (API format) that begins at Load Demo Image is aimed at a pair of the demo world (:func:`aimed_at`), somebody
runs it, and :class:`Judgement` says what came out: did the edit happen, did the rest stay, beside the rows without
which such figures mean nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import EditingError
from ..metrics.image import attributes_kept, psnr, ssim, success
from .data import PHRASES, DemoPair
from .model import DemoModel

LOADER, UNEDITED = "SemEdit_LoadDemoImage", "portraits"
#: Socket of DeltaEdit Mapper for the picture before an edit that is shown by example.
EXAMPLE = "condition_from"
#: Bundled embedding that turns each label up.
EMBEDDINGS = {
    ("glasses", "glasses"): "demo: glasses",
    ("mouth", "smile"): "demo: smile",
    ("facial_hair", "beard"): "demo: beard",
    ("hair_color", "red"): "demo: red hair",
}
RESAMPLES = 2000  # of the pictures, for the interval of a mean
COVERAGE = 0.95
Z = 1.959964  # normal quantile of that coverage
#: The row of pictures left as they are, and those that only went through the autoencoder.
NOTHING, NOTHING_DECODED, TRUE_DECODED = (
    "nothing done",
    "nothing done, through the VAE",
    "true picture through the VAE",
)

Workflow = dict[str, dict[str, Any]]


def edit_of(workflow: Workflow) -> str | None:
    """The edit that a workflow's Load Demo Image is set to; None where it rebuilds a portrait.

    Raises:
        EditingError: no Load Demo Image.
    """
    chosen = [node["inputs"]["pictures"] for node in workflow.values() if node["class_type"] == LOADER]
    if not chosen:
        raise EditingError("The workflow has no Load Demo Image node; start it there, so that the true edit is known.")
    return None if chosen[0] == UNEDITED else str(chosen[0])


def with_settings(workflow: Workflow, settings: Mapping[str, Any]) -> Workflow:
    """A copy with widgets changed.

    Args:
        settings: "SemEdit_SPDInvInversion.solver" -> value, for every node of that class.

    Raises:
        EditingError: no node of that class, or no such widget on it.
    """
    changed = copy.deepcopy(workflow)
    for name, value in settings.items():
        kind, _, widget = name.rpartition(".")
        nodes = [node for node in changed.values() if node["class_type"] == kind]
        if not nodes or any(widget not in node["inputs"] for node in nodes):
            known = sorted({f"{node['class_type']}.{key}" for node in changed.values() for key in node["inputs"]})
            raise EditingError(f"The workflow has no widget {name!r}; use one of {', '.join(known)}.")
        for node in nodes:
            node["inputs"][widget] = value
    return changed


def aimed_at(workflow: Workflow, pair: DemoPair, source_file: str, truth_file: str) -> Workflow:
    """A copy that edits ``pair`` as a person would: their picture loaded, their captions typed, their words filled in.

    Load Demo Image becomes two stock Load Image nodes and the captions as texts; one that shows a DeltaEdit Mapper an
    edit by example stays, at a bundled pair of the same edit. Where the workflow was made for another edit, that edit's
    words and bundled embeddings in its widgets become those of the pair's; an embedding of what is to go gets the
    negative strength.

    Args:
        source_file, truth_file: names in ComfyUI's input folder.

    Raises:
        EditingError: no Load Demo Image, or no bundled embedding for the edit.
    """
    own = edit_of(workflow)
    aimed = copy.deepcopy(workflow)
    truth = str(max((int(key) for key in aimed if key.isdigit()), default=0) + 1)
    aimed[truth] = {"class_type": "LoadImage", "inputs": {"image": truth_file}}
    examples = [value[0] for node in workflow.values() if (value := node["inputs"].get(EXAMPLE))]
    for key, node in workflow.items():
        if key in examples:
            aimed[key]["inputs"]["pictures"] = pair.edit
        elif node["class_type"] == LOADER:
            aimed[key] = {"class_type": "LoadImage", "inputs": {"image": source_file}}
            outputs = ([key, 0], pair.source_caption, [truth, 0], pair.target_caption)
            for other in aimed.values():
                for name, value in other["inputs"].items():
                    if isinstance(value, list) and value[0] == key:
                        other["inputs"][name] = outputs[value[1]]
    if own is not None and own != pair.edit:
        _reword(aimed, own, pair)
    return aimed


def _reword(workflow: Workflow, own: str, pair: DemoPair) -> None:
    """Put the pair's words and embedding where those of the workflow's own edit stand."""
    name, _, change = own.partition(": ")
    labels = change.partition(" to ")[::2]
    phrases = PHRASES[name.replace(" ", "_")]
    words = dict(zip((phrases[label] for label in labels), pair.words, strict=True))
    for node in workflow.values():
        for key, value in node["inputs"].items():
            if not isinstance(value, str):
                continue
            if value in EMBEDDINGS.values():
                node["inputs"][key], turned = _embedding(pair)
                if turned:
                    _turn_round(workflow)
            else:
                for before, after in words.items():
                    if before in value:
                        node["inputs"][key] = value.replace(before, after)
                        break


def _embedding(pair: DemoPair) -> tuple[str, bool]:
    """The bundled embedding of a pair's edit, and whether it is to be turned down rather than up."""
    for label, down in ((pair.after, False), (pair.before, True)):
        if (pair.attribute, label) in EMBEDDINGS:
            return EMBEDDINGS[pair.attribute, label], down
    raise EditingError(f"No embedding of the demo turns {pair.edit!r}; choose one of its four edits.")


def _turn_round(workflow: Workflow) -> None:
    for node in workflow.values():
        if node["class_type"] == "SemEdit_CASOEditSampler":
            node["inputs"]["strength"] = -node["inputs"]["strength"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one run of a workflow made, and what it cost.

    Attributes:
        picture: ``[3, H, W]`` in 0..1.
        forward, backward: u, evaluations of the diffusion network; None where nobody counted.
        seconds: wall time from the start to the end of the run.
    """

    picture: Tensor
    forward: float | None = None
    backward: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """Figures of one method over all pictures.

    Attributes:
        name: of the method.
        figures: name -> ``[N]``. "success": 1 where the judge sees every label that was asked for. "kept": share of the
            other attributes that are as in the true picture; "kept_rebuilt": as in the source through the VAE, which
            leaves out what the autoencoder alone loses. "psnr", "ssim": to the true picture. "outside": PSNR to the
            source where the true edit changes nothing.
        forward, backward: u per picture, None where it was not counted or costs none.
        seconds: median of a run.
    """

    name: str
    figures: Mapping[str, Tensor]
    forward: float | None = None
    backward: float | None = None
    seconds: float | None = None

    @property
    def worst(self) -> int:
        """Which picture is farthest from the truth; where nobody knows it, from the source outside the edit."""
        return int(self.figures["psnr" if "psnr" in self.figures else "outside"].argmin())


@dataclass(eq=False)
class Judgement:
    """The judge's eyes on one set of pairs.

    Args:
        demo: its judge and its VAE.
        pairs: what is edited, all by the same edit.
        also: further labels that are asked for, attribute -> label; the pairs' true pictures do not show them, so that
            nothing is compared with those.
        rebuild: nothing is asked for; the true picture is the source.

    Raises:
        EditingError: no pairs.
    """

    demo: DemoModel
    pairs: Sequence[DemoPair]
    also: Mapping[str, str] = field(default_factory=dict)
    rebuild: bool = False

    def __post_init__(self) -> None:
        if not self.pairs:
            raise EditingError("There are no pairs to measure; choose an edit of the demo or a folder with pairs.")
        self.sources = torch.stack([pair.source for pair in self.pairs])
        self.truths = self.sources if self.rebuild else torch.stack([pair.target for pair in self.pairs])
        self._decoded = self._through_vae(self.sources)
        self._expected = [pair.source_attributes if self.rebuild else pair.target_attributes for pair in self.pairs]
        self._rebuilt = self.demo.judge.labels(self._decoded)
        self._stays = ((self.sources - self.truths).abs().amax(1, keepdim=True) == 0).float()
        #: What the edited pictures must show, attribute -> label.
        self.asked = {} if self.rebuild else {self.pairs[0].attribute: self.pairs[0].after, **self.also}

    def _through_vae(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.demo.decode(self.demo.encode_image(part)) for part in images.split(16)])

    def measure(self, images: Tensor) -> dict[str, Tensor]:
        """Figures of ``images [N, 3, H, W]`` in 0..1, one for each pair; see :class:`Row`.

        Raises:
            EditingError: another number or size of pictures.
        """
        if images.shape != self.sources.shape:
            raise EditingError(
                f"The pictures have shape {list(images.shape)}, those of the pairs {list(self.sources.shape)}; give "
                "one edited picture of the same size for each pair."
            )
        seen = self.demo.judge.labels(images)
        figures = {
            "kept": attributes_kept(seen, self._expected, *self.asked),
            "kept_rebuilt": attributes_kept(seen, self._rebuilt, *self.asked),
            "outside": psnr(images, self.sources, self._stays),
        }
        if not self.rebuild:
            figures["success"] = success(seen, self.asked)
        if not self.also:
            figures["psnr"], figures["ssim"] = psnr(images, self.truths), ssim(images, self.truths)
        return {name: values.double() for name, values in figures.items()}

    def row(self, name: str, outcomes: Sequence[Outcome]) -> Row:
        """The figures of a method that edited every pair."""
        costs = {
            key: torch.tensor([value for outcome in outcomes if (value := getattr(outcome, key)) is not None]).double()
            for key in ("forward", "backward", "seconds")
        }
        return Row(
            name,
            self.measure(torch.stack([outcome.picture for outcome in outcomes])),
            float(costs["forward"].mean()) if len(costs["forward"]) else None,
            float(costs["backward"].mean()) if len(costs["backward"]) else None,
            float(costs["seconds"].median()) if len(costs["seconds"]) else None,
        )

    def bounds(self) -> list[Row]:
        """The rows that give all others their meaning: nothing done, and what the autoencoder alone leaves of it and of
        the true picture."""
        rows = [Row(NOTHING, self.measure(self.sources)), Row(NOTHING_DECODED, self.measure(self._decoded))]
        if not self.rebuild and not self.also:
            rows.append(Row(TRUE_DECODED, self.measure(self._through_vae(self.truths))))
        return rows


def interval(values: Tensor) -> tuple[float, float]:
    """95 % confidence interval of the mean of ``values [N]``.

    Wilson's for shares of yes and no; else the bootstrap's percentiles over the pictures (fixed seed).
    """
    values = values.double()
    n, mean = len(values), float(values.mean())
    if bool(((values == 0) | (values == 1)).all()):
        centre = (mean + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z / (1 + Z**2 / n) * math.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
        return max(0.0, centre - half), min(1.0, centre + half)
    draws = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(0))
    edges = torch.tensor([(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], dtype=torch.float64)
    low, high = values[draws].mean(1).quantile(edges).tolist()
    return low, high


def table(rows: Sequence[Row], reference: Row | None = None) -> str:
    """Markdown, one row a method: mean with its 95 % interval, the worst picture beside it, n.

    Args:
        reference: wall times are told as multiples of its.
    """
    lines = [
        "| method | success | others kept | kept, of what the VAE keeps | PSNR to true, dB | worst, dB | SSIM | "
        "outside the edit, dB | u | wall | n |",
        "|---" * 11 + "|",
    ]
    for row in rows:
        figures = row.figures
        n = len(figures["kept"])
        psnrs = figures.get("psnr")
        cells = [
            row.name,
            share(figures.get("success")),
            share(figures["kept"]),
            share(figures["kept_rebuilt"]),
            decibels(psnrs, True),
            "" if psnrs is None else number(float(psnrs.min())),
            "" if "ssim" not in figures else f"{float(figures['ssim'].mean()):.3f}",
            decibels(figures["outside"], False),
            _evaluations(row),
            _ratio(row, reference),
            str(n),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def share(values: Tensor | None) -> str:
    """A mean share with its interval; "" for None."""
    if values is None:
        return ""
    low, high = interval(values)
    return f"{100 * float(values.mean()):.1f} % ({100 * low:.0f} to {100 * high:.0f})"


def number(value: float) -> str:
    """One decimal, or "equal" for infinite dB."""
    return "equal" if math.isinf(value) else f"{value:.1f}"


def decibels(values: Tensor | None, with_interval: bool) -> str:
    """A mean in dB, with its interval where that is wanted; "" for None."""
    if values is None:
        return ""
    mean = float(values.mean())
    if math.isinf(mean) or not with_interval:
        return number(mean)
    low, high = interval(values)
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def _evaluations(row: Row) -> str:
    if row.forward is None:
        return ""
    return f"{row.forward:.0f}" + (f" + {row.backward:.0f} backward" if row.backward else "")


def _ratio(row: Row, reference: Row | None) -> str:
    if row.seconds is None or reference is None or not reference.seconds:
        return ""
    return f"{row.seconds / reference.seconds:.2f}"
