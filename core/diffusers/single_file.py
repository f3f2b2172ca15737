"""Single-file Stable Diffusion checkpoints, offline: what diffusers must know of a model, read off its tensors.

diffusers can take such a file apart, but asks the hub for the configurations of its parts; here they come
from the file itself.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from ..errors import EditingError
from ..files import tensor_shapes
from ..models.model_folder import CLIP_TOKENIZER, load_clip_tokenizer, offline, refusing
from ..models.model_settings import SETTINGS
from ..reading.libraries import library
from .checkpoint_shapes import TOWERS, UNET, VAE, Family, Prediction, configurations, count_modules, family_of

SPREAD_OF_V = 0.09
#: Noise schedules by what their files carry; sigma space as used here does not describe them.
OTHER_SCHEDULES = ("edm_mean", "edm_vpred.sigma_max")


@dataclass(frozen=True)
class SingleFile:
    """What a checkpoint is, and the configurations of its parts as diffusers and transformers write them.

    Attributes:
        family: by its text encoders.
        prediction: what the network predicts.
        zero_terminal_snr: whether its noise table was rescaled to end in pure noise.
        parts: folder name -> config.json, for ``unet``, ``vae``, ``text_encoder`` and SDXL's ``text_encoder_2``.
        sizes: folder name -> how many numbers the file holds for that part.
    """

    family: Family
    prediction: Prediction
    zero_terminal_snr: bool
    parts: Mapping[str, Mapping[str, Any]]
    sizes: Mapping[str, int]


def load_single_file(file: Path, prediction: Prediction | None = None) -> Any:
    """A ``.safetensors`` checkpoint as diffusers' pipeline; nothing is downloaded.

    Args:
        prediction: what the network predicts; None finds out, see :func:`describe`.

    Raises:
        EditingError: damaged, a pickle, another kind of model, or parts missing.
    """
    if file.suffix.lower() != ".safetensors":
        raise EditingError(f"{file.name} is a pickle, which can run code; use the .safetensors version of the model.")
    found = describe(file, prediction)
    diffusers = library("diffusers", "Editing", "StableDiffusionPipeline", "StableDiffusionXLPipeline")
    _check_sizes(found, diffusers, file)
    with tempfile.TemporaryDirectory() as folder, offline():
        for part, config in found.parts.items():
            (Path(folder) / part).mkdir()
            (Path(folder) / part / "config.json").write_text(json.dumps(config), encoding="utf-8")
        kind, index, given = _pipeline(found, diffusers)
        (Path(folder) / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
        with refusing(str(_incomplete(file))), torch.random.fork_rng(devices=[]):  # constructors fill in random weights
            pipeline = kind.from_single_file(str(file), config=folder, local_files_only=True, **given)
    for part, stored in found.sizes.items():  # diffusers leaves random what it does not find
        if stored < sum(parameter.numel() for parameter in getattr(pipeline, part).parameters()):
            raise _incomplete(file)
    return pipeline


def describe(file: Path, prediction: Prediction | None = None) -> SingleFile:
    """Tell what the checkpoint is by its tensors, without loading them.

    What the network predicts is taken from the file where it says so (ModelSpec metadata, a ``v_pred`` tensor). SD 2
    files do not; the spread of one normalisation's bias tells them apart, the rule ComfyUI goes by.

    Raises:
        EditingError: unreadable, or no SD 1.x, SD 2.x or SDXL checkpoint.
    """
    shapes, metadata = tensor_shapes(file, "checkpoint")
    family = family_of(shapes, file.name)
    said = metadata.get("modelspec.prediction_type", "")
    try:
        last = count_modules(shapes, f"{UNET}output_blocks.") - 1
        bias = f"{UNET}output_blocks.{last}.1.transformer_blocks.0.norm1.bias"
        spread = _spread(file, bias) if family == "sd2" and bias in shapes else 0.0
    except ValueError as error:
        raise _incomplete(file) from error
    if any(key in shapes for key in OTHER_SCHEDULES):
        raise EditingError(
            f"{file.name} uses the EDM noise schedule; use an SD 1.x, SD 2.x or SDXL model of the usual kind."
        )
    if prediction is None:
        is_v = said.lower().startswith("v") if said else "v_pred" in shapes or spread > SPREAD_OF_V
        prediction = "v_prediction" if is_v else "epsilon"
    try:
        parts = configurations(shapes, family, prediction)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise _incomplete(file) from error
    prefixes = dict(zip(parts, (UNET, VAE, *TOWERS[family]), strict=True))
    sizes = {
        part: sum(prod(shape) for key, shape in shapes.items() if key.startswith(prefix))
        for part, prefix in prefixes.items()
    }
    return SingleFile(family, prediction, "ztsnr" in shapes, parts, sizes)


def _spread(file: Path, name: str) -> float:
    """Standard deviation of a tensor."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stream:
        return float(stream.get_tensor(name).float().std(unbiased=False))


def _check_sizes(found: SingleFile, diffusers: Any, file: Path) -> None:
    """Raise :class:`EditingError` where a part would have more weights than the file holds for it; nothing is built."""
    transformers = library("transformers", "Editing", "CLIPTextModel")
    for part, config in found.parts.items():
        with refusing(str(_incomplete(file))), torch.device("meta"), offline():
            if part.startswith("text_encoder"):
                kind = getattr(transformers, config["architectures"][0])
                network = kind(kind.config_class(**{k: v for k, v in config.items() if k in SETTINGS}))
            else:
                network = getattr(diffusers, config["_class_name"]).from_config(dict(config))
        if found.sizes[part] < sum(parameter.numel() for parameter in network.parameters()):
            raise _incomplete(file)


def _pipeline(found: SingleFile, diffusers: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """``(pipeline class, model_index.json, parts given to it as objects)``."""
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=found.prediction,
        rescale_betas_zero_snr=found.zero_terminal_snr,
    )
    # OpenCLIP's texts are padded with token 0 ("!"), OpenAI's with the end of text.
    padded_with_end = load_clip_tokenizer(CLIP_TOKENIZER, CLIP_TOKENIZER.name)
    padded_with_zero = load_clip_tokenizer(CLIP_TOKENIZER, CLIP_TOKENIZER.name, padding="!")
    index: dict[str, Any] = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    if found.family == "sdxl":
        index |= {
            "_class_name": "StableDiffusionXLPipeline",
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "force_zeros_for_empty_prompt": True,
        }
        given = {"scheduler": scheduler, "tokenizer": padded_with_end, "tokenizer_2": padded_with_zero}
        return diffusers.StableDiffusionXLPipeline, index, given
    index |= {
        "_class_name": "StableDiffusionPipeline",
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    given = {"scheduler": scheduler, "tokenizer": padded_with_end if found.family == "sd1" else padded_with_zero}
    nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return diffusers.StableDiffusionPipeline, index, given | nothing


def _incomplete(file: Path) -> EditingError:
    return EditingError(
        f"{file.name} lacks parts of the model or holds others than SD 1.x, SD 2.x and SDXL have; download it again."
    )
