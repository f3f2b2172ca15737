"""Finding a relevance matrix: by moving each channel and looking at what CLIP sees (the paper's way, after StyleCLIP's
global directions), or from the latents themselves, without drawing a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..errors import EditingError
from ..files import FORMAT_KEY, load_tensors, metadata_json, save_tensors
from ..models.clip import ClipScorer
from .latents import CHUNK, Latents, described
from .relevance import COVARIANCE, PERTURBATION, Relevance
from .stylegan2 import StyleGAN2

FILE_FORMAT = "semantic_editing.relevance_probing"
#: A shorter difference of unit features is rounding, and is not made a direction.
LEAST_DIFFERENCE = 1e-5


@dataclass(frozen=True)
class ProbeSettings:
    """How channels are moved.

    Attributes:
        faces: on how many each is moved.
        amount: how far to either side, in deviations of the channel.
        seed: which faces.
        batch: pictures drawn together.
    """

    faces: int = 8
    amount: float = 3.0
    seed: int = 0
    batch: int = 32

    def check(self) -> None:
        """Raise :class:`EditingError` for what cannot be computed with."""
        if self.faces < 1 or self.batch < 1:
            raise EditingError(f"faces is {self.faces} and batch {self.batch}; use 1 or more.")
        if not 0 < self.amount < float("inf"):
            raise EditingError(f"The amount is {self.amount}; use more than 0 deviations.")


class RelevanceProbe:
    """Relevance by perturbation, channel by channel; an exception from the callback stops it after any batch.

    Row c is the mean over some faces of the unit difference that CLIP sees between the channel moved up and moved down,
    made unit; zero where CLIP sees none. It costs two drawn pictures and two looks of CLIP for each face and channel.

    Args:
        generator: gives the network where it computes; asked before each batch.
        clip: looks at the pictures.
        latents: made with both; their faces are moved, by their deviations.

    Attributes:
        done: channels that are known.
        matrix: ``[S, P]`` fp32, its first ``done`` rows filled.
    """

    def __init__(self, generator: Callable[[], StyleGAN2], clip: ClipScorer, latents: Latents, settings: ProbeSettings):
        settings.check()
        network = generator()
        latents.check(network.identity if network.layout == latents.layout else "", clip.identity)
        self.generator, self.clip, self.latents, self.settings = generator, clip, latents, settings
        _, self.deviation = latents.moments()
        seeded = torch.Generator().manual_seed(settings.seed % 2**63)
        self.rows = torch.randperm(len(latents), generator=seeded)[: settings.faces]
        self.code = latents.code(self.rows)
        self.done = 0
        self.matrix = torch.zeros(latents.layout.width, latents.image_features.shape[1])

    @property
    def evaluations(self) -> int:
        """Pictures drawn so far, each of which CLIP looked at once."""
        return self.done * 2 * len(self.rows)

    def run(self, callback: Callable[[int, int], None] | None = None) -> Relevance:
        """Look at the channels that are left.

        Args:
            callback: told ``(channels known, channels)`` after each batch.
        """
        together = max(1, self.settings.batch // (2 * len(self.rows)))
        while self.done < len(self.matrix):
            channels = range(self.done, min(self.done + together, len(self.matrix)))
            self.matrix[channels.start : channels.stop] = self._seen(channels)
            self.done = channels.stop
            if callback is not None:
                callback(self.done, len(self.matrix))
        origin = self.latents.origin
        return Relevance(self.matrix.clone(), PERTURBATION, origin.generator, origin.clip)

    @torch.no_grad()
    def _seen(self, channels: range) -> Tensor:
        """Unit rows of some channels ``[C, P]``."""
        generator = self.generator()
        faces, count = self.code.convs, len(self.rows)
        moved = faces.repeat(len(channels), 2, 1, 1)  # channel, down or up, face, style
        for place, channel in enumerate(channels):
            step = self.settings.amount * self.deviation[channel]
            moved[place, 0, :, channel] -= step
            moved[place, 1, :, channel] += step
        flat = moved.flatten(0, 2)
        features = []
        for part in flat.split(self.settings.batch):
            rgbs = self.latents.rgbs.expand(len(part), -1)
            code = replace(self.code, convs=part, rgbs=rgbs).to(generator.w_mean.device)
            pictures = (generator.synthesize(code) / 2 + 0.5).clamp(0, 1)
            features.append(self.clip.embed_images(pictures).features.float().cpu())
            if features[-1].shape[1] != self.matrix.shape[1]:
                raise EditingError(
                    f"The latents were made with another CLIP ({self.matrix.shape[1]} features; the wired one gives "
                    f"{features[-1].shape[1]}); wire the one that made them."
                )
        down, up = torch.cat(features).unflatten(0, (len(channels), 2, count)).unbind(1)
        difference = up - down
        difference = torch.where(difference.norm(dim=2, keepdim=True) > LEAST_DIFFERENCE, difference, 0.0)
        return functional.normalize(functional.normalize(difference, dim=2).mean(1), dim=1)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Keep what is known, to go on with :meth:`resume`.

        Raises:
            EditingError: the file exists and ``overwrite`` is False, or it cannot be written.
        """
        metadata = {FORMAT_KEY: FILE_FORMAT, "run": json.dumps(self._run()), "done": json.dumps(self.done)}
        return save_tensors(path, {"matrix": self.matrix[: self.done]}, metadata, overwrite=overwrite)

    def resume(self, path: str | Path) -> None:
        """Take over what :meth:`save` kept.

        Raises:
            EditingError: missing, damaged or foreign file, or one of other latents or settings.
        """
        tensors, metadata = load_tensors(path, FILE_FORMAT, kind="relevance probing")
        name = Path(path).name
        run, done = (metadata_json(metadata, key, name, "relevance probing") for key in ("run", "done"))
        different = [key for key, value in self._run().items() if run.get(key) != value]
        if different:
            raise EditingError(
                f"{name} belongs to a relevance matrix of another {different[0]}; use the same or allow overwriting to "
                "start anew."
            )
        matrix = tensors.get("matrix")
        if matrix is None or done > len(self.matrix) or matrix.shape != (done, self.matrix.shape[1]):
            raise EditingError(f"{name} has parts that do not fit together; start anew.")
        if not (matrix.is_floating_point() and matrix.isfinite().all()):
            raise EditingError(f"{name} holds values that are not numbers; start anew.")
        self.matrix[:done], self.done = matrix.float(), done

    def _run(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "latents": described(self.latents),
            "faces": settings.faces,
            "amount": settings.amount,
            "seed": settings.seed,
        }


def by_covariance(
    latents: Latents, callback: Callable[[int, int], None] | None = None, device: str | torch.device = "cpu"
) -> Relevance:
    """:func:`~.relevance.from_covariance` of latents of any size, in chunks.

    Args:
        callback: told ``(faces done, faces)``; an exception it raises ends it.

    Raises:
        EditingError: fewer than two faces, or values that are not numbers.
    """
    count = len(latents)
    if count < 2:
        raise EditingError("Relevance by covariance needs at least two faces; make more with DeltaEdit Latents.")
    starts = range(0, count, CHUNK)
    means = [
        sum((part[start : start + CHUNK].double().sum(0) for start in starts), torch.zeros(part.shape[1])) / count
        for part in (latents.offsets, latents.image_features)
    ]
    styles, features = (mean.float().to(device) for mean in means)
    matrix = torch.zeros(len(styles), len(features), device=device)
    for start in starts:
        rows = slice(start, start + CHUNK)
        moved, seen = (part[rows].to(device).float() for part in (latents.offsets, latents.image_features))
        matrix += (moved - styles).T @ (seen - features)
        if callback is not None:
            callback(min(start + CHUNK, count), count)
    if not matrix.isfinite().all():
        raise EditingError("The latents hold values that are not numbers; make them anew with DeltaEdit Latents.")
    origin = latents.origin
    return Relevance(functional.normalize(matrix, dim=1).cpu(), COVARIANCE, origin.generator, origin.clip)
