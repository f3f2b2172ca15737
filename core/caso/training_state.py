"""Stopping a training and going on later: its state as a safetensors file, and the check that it is the same one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..classifiers.base import ImageClassifier
from ..errors import EditingError
from ..files import FORMAT_KEY, load_tensors, metadata_json, save_tensors
from ..training import MOMENTS, check_parts, check_same_run, moments, restore_moments
from .embedding import SemanticEmbedding
from .look import RealLook
from .settings import LATER, TrainingProgress, TrainingSettings, ValidationResult
from .training import BestFound, EmbeddingTrainer, fingerprint_of

FILE_FORMAT = "semantic_editing.embedding_training"
FILE_VERSION = "1"
FIGURES = ("loss", "classification", "reconstruction", "others", "accuracy")
#: What a training from pictures that have it adds to these.
SHOWN = ("contrast",)
#: Settings that may differ in a resumed run: it may train for longer, or validate more often.
FREE = {"steps", "check_every"}
#: Settings that files may lack, and the value they were trained with.
ABSENT = {"start_words": "", **LATER}
#: What older files do not tell of a training.
LATER_FACTS = ("weights", "look")
MOST_STEPS = 1_000_000
#: What an identity says of the model that a training must go on with, besides its weights.
IDENTITY = ("family", "latent_channels", "prediction", "signature")


def save_training(trainer: EmbeddingTrainer, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write everything that :func:`resume_training` needs: vectors, AdamW's moments, the best so far, the history.

    A validation that ``check_every`` did not ask for (after the last step, or at a stop) is left out: in a training
    that goes on it never took place. The file calls the validation figures "held".

    Raises:
        EditingError: the file exists and ``overwrite`` is False, or it cannot be written.
    """
    tensors = {f"move.{name}": move for name, move in trainer.moves.items()}
    tensors |= moments(trainer.optimizer, trainer.moves)
    best = trainer.scheduled
    tensors |= {f"best.{name}": vectors for name, vectors in best.vectors.items()}
    if trainer.settings.averaging:
        tensors |= {f"mean.{name}": mean for name, mean in trainer.mean.items()}
    if trainer.settings.shown:
        shown = [[getattr(entry, name) for name in SHOWN] for entry in trainer.history]
        tensors["shown"] = torch.tensor(shown, dtype=torch.float64).reshape(-1, len(SHOWN))
    figures = [[getattr(entry, name) for name in FIGURES] for entry in trainer.history]
    tensors["history"] = torch.tensor(figures, dtype=torch.float64).reshape(-1, len(FIGURES))
    results = [None if entry.step == trainer.extra.step else entry.validation for entry in trainer.history]
    rows = [(math.nan, math.nan) if result is None else (result.loss, result.accuracy) for result in results]
    tensors["held"] = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)
    progress = {
        "step": trainer.step,
        "smoothed": trainer.smoothed,
        "best_step": best.step,
        "best_score": best.score if best.vectors else None,
    }
    metadata = {
        FORMAT_KEY: FILE_FORMAT,
        "version": FILE_VERSION,
        "progress": json.dumps(progress),
        "run": json.dumps(_run(trainer)),
    }
    return save_tensors(path, tensors, metadata, overwrite=overwrite)


def resume_training(trainer: EmbeddingTrainer, path: str | Path) -> None:
    """Put a new ``trainer`` where the saved one was; it then goes on exactly as the saved one would have.

    Raises:
        EditingError: missing, damaged or foreign file, or one of a training with other pictures, settings, model or
            classifier.
    """
    tensors, metadata = load_tensors(path, FILE_FORMAT, kind="training")
    name = Path(path).name
    saved = metadata_json(metadata, "run", name, "training")
    progress = metadata_json(metadata, "progress", name, "training")
    current = _run(trainer)
    for key in LATER_FACTS:
        saved.setdefault(key, json.loads(json.dumps(current[key])))
    # What a file or this training does not name is what it was before there was a choice.
    check_same_run(ABSENT | saved, dict.fromkeys(saved) | ABSENT | current, name)
    step, smoothed, best_step = progress["step"], float(progress["smoothed"]), progress["best_step"]
    if step > MOST_STEPS:
        raise EditingError(f"{name} says that it trained for {step} steps, which nobody does; start the training anew.")
    tables: dict[str, tuple[int, ...]] = {"history": (step, len(FIGURES)), "held": (step, 2)}
    wanted: dict[str, tuple[int, ...]] = {f"move.{encoder}": move.shape for encoder, move in trainer.moves.items()}
    if progress["best_score"] is not None:
        wanted |= {f"best.{encoder}": vectors.shape for encoder, vectors in trainer.vectors.items()}
    if step:
        wanted |= {f"{moment}.{encoder}": move.shape for moment in MOMENTS for encoder, move in trainer.moves.items()}
    if trainer.settings.averaging:
        wanted |= {f"mean.{encoder}": mean.shape for encoder, mean in trainer.mean.items()}
    if trainer.settings.shown:
        tables["shown"] = (step, len(SHOWN))
    tensors.setdefault("held", torch.full((step, 2), math.nan, dtype=torch.float64))  # older files lack it
    finite = {key: tensors[key] for key in tables if key in tensors}  # a table has NaN where nobody looked
    check_parts(tensors | {key: part.nan_to_num() for key, part in finite.items()}, wanted | tables, name)
    best = (
        {encoder: tensors[f"best.{encoder}"] for encoder in trainer.moves} if progress["best_score"] is not None else {}
    )
    figures = [dict(zip(FIGURES, row, strict=True)) for row in tensors["history"].tolist()]
    results = [
        None if math.isnan(loss) else ValidationResult(loss, accuracy, None)
        for loss, accuracy in tensors["held"].tolist()
    ]
    if trainer.settings.shown:
        for row, shown in zip(figures, tensors["shown"].tolist(), strict=True):
            row |= dict(zip(SHOWN, shown, strict=True))
    history = list(zip(figures, results, strict=True))
    with torch.inference_mode(False), torch.no_grad():
        for encoder, move in trainer.moves.items():
            move.copy_(tensors[f"move.{encoder}"])
        restore_moments(trainer.optimizer, trainer.moves, tensors, step)
    if trainer.settings.averaging:
        trainer.mean = {encoder: tensors[f"mean.{encoder}"] for encoder in trainer.mean}
    trainer.step, trainer.smoothed = step, smoothed
    trainer.history = [
        TrainingProgress(number, trainer.settings.steps, **row, validation=result)
        for number, (row, result) in enumerate(history)
    ]
    trainer.scheduled = BestFound(float(progress["best_score"]), best_step, best) if best else BestFound()


def made_by(embedding: SemanticEmbedding, settings: TrainingSettings, classifier: ImageClassifier | None) -> bool:
    """Whether ``embedding`` comes from a training with these settings, however long, and this classifier."""
    stored: Any = embedding.info.get("settings")
    if not isinstance(stored, dict) or embedding.info.get("classifier") != fingerprint_of(classifier):
        return False
    current = json.loads(json.dumps(settings.stored()))
    return all(_entry(stored, key) == _entry(current, key) for key in {**stored, **current} if key not in FREE)


def _entry(run: dict[str, Any], key: str) -> Any:
    return run.get(key, ABSENT.get(key))


def _run(trainer: EmbeddingTrainer) -> dict[str, Any]:
    """What must be the same for a training to go on, as the file keeps it."""
    weights = trainer.denoiser.identity.weights
    settings = {key: value for key, value in trainer.settings.stored().items() if key not in FREE}
    if trainer.draft_decoder is not None:
        settings["steps"] = trainer.settings.steps  # the switch of decoders depends on it
    return {
        **settings,
        "classifier": fingerprint_of(trainer.classifier),
        "model": {key: getattr(trainer.denoiser.identity, key) for key in IDENTITY},
        "weights": None if weights is None else weights.hash,
        "text_encoder": trainer.vector_encoder.encoder_name,
        "pictures": [
            _digest(trainer.latents),
            None if trainer.validation is None else _digest(trainer.validation),
            *([] if trainer.having is None else [_digest(trainer.having)]),
        ],
        "look": _look(trainer),
    }


def _look(trainer: EmbeddingTrainer) -> list[Any] | None:
    """What decides which step is kept: how the held-out pictures are edited, and who judges them.

    Judges that the training makes of its own pictures follow from these and the seed; one that is wired counts itself.
    """
    look = trainer.look
    if not isinstance(look, RealLook):
        return None
    opinion, kind = look.opinion, look.kind
    judges = [fingerprint_of(judge) for judge in opinion.classifiers] if len(opinion.classifiers) == 1 else []
    return [look.strength, look.steps, kind.start, kind.focus, opinion.source, opinion.attribute, *judges]


def _digest(latents: Tensor) -> list[float]:
    """Shape, mean and standard deviation of latents, which tell whether they are the same, however a device rounds."""
    values = latents.float().cpu()
    return [float(size) for size in values.shape] + [round(float(values.mean()), 4), round(float(values.std()), 4)]
