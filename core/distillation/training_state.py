"""Stopping a distillation and going on later: its state as a safetensors file, compared before it is used."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from ..errors import EditingError
from ..files import FORMAT_KEY, load_tensors, metadata_json, save_tensors
from .training import Best, DistillationTrainer, Validation

FILE_FORMAT = "semantic_editing.distillation_training"
MOMENTS = ("exp_avg", "exp_avg_sq")


def save_training(trainer: DistillationTrainer, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write everything that :func:`resume_training` needs: weights, their mean, AdamW's moments, the best, the history.

    A look that ``check_every`` did not ask for (at a stop) is left out: in a training that goes on it never took place.

    Raises:
        EditingError: the training broke down, the file exists and ``overwrite`` is False, or it cannot be written.
    """
    if trainer.broken:
        raise EditingError(f"The training {trainer.broken}; there is nothing to go on with.")
    best = trainer.scheduled
    tensors: dict[str, Tensor] = {"losses": torch.tensor(trainer.losses, dtype=torch.float64)}
    for name, weight in trainer.weights.items():
        tensors |= {f"weight.{name}": weight, f"average.{name}": trainer.averages[name]}
        if best.weights:
            tensors[f"best.{name}"] = best.weights[name]
        if trainer.optimizer.state.get(weight):
            tensors |= {f"{moment}.{name}": trainer.optimizer.state[weight][moment] for moment in MOMENTS}
    progress = {
        "step": trainer.step,
        "best_step": best.step,
        "best_score": best.score if best.weights else None,
        "validations": [[at.step, at.error, at.psnr] for at in trainer.validations],
    }
    metadata = {
        FORMAT_KEY: FILE_FORMAT,
        "version": "1",
        "progress": json.dumps(progress),
        "run": json.dumps(trainer.run_facts()),
    }
    return save_tensors(path, tensors, metadata, overwrite=overwrite)


def resume_training(trainer: DistillationTrainer, path: str | Path) -> None:
    """Put a new ``trainer`` where the saved one was; it then goes on exactly as the saved one would have.

    Raises:
        EditingError: missing, damaged or foreign file, or one of a training with other pairs or settings.
    """
    tensors, metadata = load_tensors(path, FILE_FORMAT, kind="distillation training")
    name = Path(path).name
    saved, progress = (metadata_json(metadata, key, name, "distillation training") for key in ("run", "progress"))
    current = json.loads(json.dumps(trainer.run_facts()))
    different = [key for key in current if saved.get(key) != current[key]]
    if different:
        raise EditingError(
            f"{name} belongs to a training with another value of {different[0].replace('_', ' ')}; use the same one or "
            "start anew."
        )
    step, score = progress["step"], progress["best_score"]
    learned = [key for key in trainer.weights if f"{MOMENTS[0]}.{key}" in tensors]  # some may get no gradient
    wanted = {f"{kind}.{key}": trainer.weights[key].shape for kind in MOMENTS for key in learned}
    kinds = ("weight", "average", *(() if score is None else ("best",)))
    wanted |= {f"{kind}.{key}": weight.shape for kind in kinds for key, weight in trainer.weights.items()}
    if not {*wanted, "losses"} <= set(tensors) or (step and not learned):
        raise EditingError(f"{name} is incomplete; start the training anew.")
    parts, losses = {key: tensors[key] for key in wanted}, tensors["losses"]
    fits = all(parts[key].shape == shape for key, shape in wanted.items()) and losses.shape == (step,)
    if not fits or not all(part.is_floating_point() and part.isfinite().all() for part in (*parts.values(), losses)):
        raise EditingError(f"{name} has parts that do not fit together; start the training anew.")
    with torch.inference_mode(False), torch.no_grad():
        for key, weight in trainer.weights.items():
            weight.copy_(parts[f"weight.{key}"])
            trainer.averages[key].copy_(parts[f"average.{key}"])
            if step and key in learned:
                moments = {moment: torch.empty_like(weight).copy_(parts[f"{moment}.{key}"]) for moment in MOMENTS}
                trainer.optimizer.state[weight] = {"step": torch.tensor(float(step)), **moments}
        best = (
            {} if score is None else {key: parts[f"best.{key}"].clone().to(trainer.device) for key in trainer.weights}
        )
    trainer.step, trainer.losses = step, losses.tolist()
    trainer.validations = [Validation(int(at), *figures) for at, *figures in progress["validations"]]
    trainer.scheduled = Best() if score is None else Best(float(score), progress["best_step"], best)


def made_with(facts: dict[str, str], trainer: DistillationTrainer) -> bool:
    """Whether a saved edit's facts say that a training of these settings and pairs made it."""
    return facts.get("training") == trainer.fingerprint()
