"""Networks from the folders that ``save_pretrained`` writes, for transformers and diffusers alike.

The libraries never see the folder. Of its configuration only what :mod:`.model_settings` knows goes on; its weights are
compared with what it would build, before that is built; both are then laid out in a temporary folder, which is all that
a library gets. So nothing else in the folder can name code, a hub, a kernel or another file. A folder that holds code
is refused at once.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from threading import RLock
from typing import Any

import torch

from ..errors import EditingError
from ..files import load_json, tensor_shapes
from ..reading.kinds import check_size
from ..reading.libraries import broken, is_broken_library, is_out_of_memory, library
from .model_settings import (
    CONFIG,
    PARTS_OF_CLIP,
    SCHEDULERS,
    diffusers_layers_of,
    diffusers_settings,
    layers_of,
    transformers_settings,
)

#: Endings of files that Python can run or load.
CODE = (".py", ".pyc", ".pyd", ".so")
MOST_FILES = 10_000
#: What keeps the libraries from the network, whatever happens.
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")


def refuse_code(folder: Path) -> None:
    """Raise :class:`EditingError` when a model's folder holds files that Python could run, or no end of files."""
    count = 0
    for _, _, files in os.walk(folder):
        count += len(files)
        code = sorted(file for file in files if file.lower().endswith(CODE))
        if code:
            raise EditingError(
                f"{folder.name} holds program code ({code[0]}) and was refused; a model needs none, so delete it or "
                "download the model from a source that you trust."
            )
        if count > MOST_FILES:
            raise EditingError(f"{folder.name} holds more than {MOST_FILES} files; choose the folder of one model.")


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """``config.json`` of a folder as it is; what goes on to a library is chosen by :func:`transformers_settings`.

    Raises:
        EditingError: the folder holds code, or no readable configuration.
    """
    if not (folder / CONFIG).is_file():
        raise EditingError(f"{name} has no readable {CONFIG}; choose the folder of a whole transformers model.")
    refuse_code(folder)
    found: dict[str, Any] = load_json(folder / CONFIG, "configuration", name, "choose the folder of a whole model")
    return found


def load_transformers(
    folder: Path, class_name: str, settings: Mapping[str, Any], name: str, *, eager: bool = False, **options: Any
) -> Any:
    """A network of the transformers library, on the CPU.

    Args:
        folder: holds its weights; or a single safetensors file of them.
        settings: of :func:`transformers_settings`.
        eager: attention that can tell its weights; torch's fused one by default, where the network has it.

    Raises:
        EditingError: transformers is missing or broken, weights are missing, damaged, pickled or of another network.
    """
    transformers = library("transformers", name, class_name)
    cls = getattr(transformers, class_name)
    layers = sum(layers_of(part) for part in (settings, *(settings.get(key, {}) for key in PARTS_OF_CLIP)))
    attention = "sdpa" if not eager and getattr(cls, "_supports_sdpa", False) else "eager"

    def empty() -> Any:
        config = cls.config_class(**settings)
        config._attn_implementation = attention
        return cls(config, **options)

    # A network that writes would look beside its weights for how
    writes = {"generation_config": transformers.GenerationConfig()} if cls.can_generate() else {}

    def load(place: Path) -> Any:
        config = cls.config_class(**settings)
        return cls.from_pretrained(
            place,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation=attention,
            output_loading_info=True,
            **writes,
            **options,
        )

    return _load(folder, "model", layers, empty, load, {}, name, "transformers")


def load_diffusers(folder: Path, class_name: str, name: str) -> Any:
    """A network of the diffusers library, on the CPU.

    Raises:
        EditingError: diffusers is missing or broken, the configuration or the weights are missing or damaged.
    """
    cls = getattr(library("diffusers", name, class_name), class_name)
    given = load_json(folder / CONFIG, "configuration", name, "download the model again")
    settings = diffusers_settings(given, cls, CONFIG, name)
    layers = diffusers_layers_of(settings)

    def load(place: Path) -> Any:
        return cls.from_pretrained(place, local_files_only=True, use_safetensors=True, output_loading_info=True)

    return _load(
        folder, "diffusion_pytorch_model", layers, lambda: cls.from_config(settings), load, settings, name, "diffusers"
    )


def load_text_encoder(folder: Path, class_name: str, name: str) -> Any:
    """CLIP's text side in a folder of its own.

    Raises:
        EditingError: see :func:`load_transformers`, or another kind of text encoder.
    """
    config = load_json(folder / CONFIG, "configuration", name, "download the model again")
    if config.get("model_type") not in ("clip_text_model", "clip"):
        raise EditingError(
            f"{name} has a text encoder of another kind ({str(config.get('model_type'))[:80]}); use one with CLIP's."
        )
    return load_transformers(folder, class_name, transformers_settings(config, name), name)


def read_index(folder: Path) -> dict[str, Any]:
    """``model_index.json`` of a diffusers folder, which names the pipeline under "_class_name".

    Raises:
        EditingError: none, or a folder that holds code.
    """
    if not (folder / "model_index.json").is_file():
        raise EditingError(
            f"{folder.name} is no diffusers model (no readable model_index.json); choose the folder that has one."
        )
    refuse_code(folder)
    found: dict[str, Any] = load_json(folder / "model_index.json", "pipeline", folder.name, "download the model again")
    return found


def load_scheduler(folder: Path, class_name: str, name: str) -> Any:
    """A noise schedule of the diffusers library.

    Raises:
        EditingError: an unknown one, or its settings are missing or damaged.
    """
    if class_name not in SCHEDULERS:
        raise EditingError(f"{name} has an unknown scheduler ({class_name[:60]}); use one with {SCHEDULERS[0]}.")
    cls = getattr(library("diffusers", name, class_name), class_name)
    file = folder / "scheduler_config.json"
    settings = diffusers_settings(
        load_json(file, "configuration", name, "download the model again"), cls, file.name, name
    )
    with refusing(f"{name} has a damaged {file.name}; download the model again."), offline():
        return cls.from_config(settings)


def weight_files(folder: Path, stem: str, name: str) -> list[Path]:
    """The safetensors files that hold a network: one, or the numbered ones that an index lists; a file is its own.

    Raises:
        EditingError: there are none, or the index is damaged.
    """
    if folder.is_file():
        return [folder]
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file() and not (folder / f"{stem}.safetensors").is_file():
        listing = load_json(index, "configuration", name).get("weight_map")
        names = (
            set(listing.values())
            if isinstance(listing, dict) and all(isinstance(value, str) for value in listing.values())
            else set()
        )
        files = [folder / file for file in sorted(names)]
        if not files or any(
            Path(file).name != file or not file.endswith(".safetensors") or not (folder / file).is_file()
            for file in names
        ):
            raise EditingError(f"{name} has a damaged {index.name} or lacks a file that it lists; download it again.")
        return files
    found = sorted(folder.glob("*.safetensors"))
    exact = [file for file in found if file.name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors")]
    chosen = exact[-1:] or (found if len(found) == 1 else [])  # the plain name sorts behind "fp16"
    if not chosen:
        raise EditingError(f"{name} has no .safetensors weights; download or convert the model to safetensors.")
    return chosen


def _load(
    folder: Path, stem: str, layers: int, empty: Any, load: Any, config: Mapping[str, Any], name: str, package: str
) -> Any:
    """Compare, lay out, load."""
    files = weight_files(folder, stem, name)
    shapes = [shape for file in files for shape in tensor_shapes(file)[0].values()]
    promised = "a network of its kind has" if folder.is_file() else f"its {CONFIG} promises"
    lacking = f"{name} lacks weights that {promised}; download the whole model again."
    if layers > len(shapes):
        raise EditingError(lacking)
    damaged = f"{name} is damaged or unknown to the installed {package}; download it again."
    with refusing(damaged, package), torch.random.fork_rng(devices=[]), offline():
        with torch.device("meta"):
            wanted = sum(parameter.numel() for parameter in empty().parameters())
        if wanted > sum(map(prod, shapes)):
            raise EditingError(lacking)
        with tempfile.TemporaryDirectory() as place:
            _lay_out(files, stem, config, Path(place))
            network, report = load(Path(place))
    if report.get("missing_keys") or report.get("mismatched_keys"):
        raise EditingError(lacking)
    return network


@contextmanager
def refusing(sentence: str, package: str = "diffusers") -> Iterator[None]:
    """Whatever a library raises inside becomes ``sentence``, for they raise many types for a damaged file.

    Where the file is not at fault, that is said: a library that cannot import its own parts, a machine without memory.
    """
    try:
        yield
    except EditingError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise (broken(package, error) if is_broken_library(error) else EditingError(sentence)) from error


def _lay_out(files: list[Path], stem: str, config: Mapping[str, Any], place: Path) -> None:
    if config:
        (place / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    if len(files) == 1:
        _link(files[0], place / f"{stem}.safetensors")
        return
    listing = {key: file.name for file in files for key in tensor_shapes(file)[0]}
    for file in files:
        _link(file, place / file.name)
    index = {"metadata": {"total_size": sum(file.stat().st_size for file in files)}, "weight_map": listing}
    (place / f"{stem}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _link(file: Path, place: Path) -> None:
    """The same file under another name; copied where the system cannot link."""
    for way in (os.symlink, os.link):
        try:
            return way(file.resolve(), place)
        except OSError:
            continue
    shutil.copyfile(file, place)


_ALONE = RLock()


@contextmanager
def offline() -> Iterator[None]:
    """Everything inside keeps off the network: nothing that is loaded here may be looked up anywhere.

    That holds for the whole process, so one thread waits for another: else the first to leave would put the second back
    online, and the second would leave behind what it found.
    """
    with _ALONE:
        before = {name: os.environ.get(name) for name in OFFLINE}
        os.environ.update(dict.fromkeys(OFFLINE, "1"))
        constants: Any = sys.modules.get("huggingface_hub.constants")  # reads the variable once, when it is imported
        online = getattr(constants, OFFLINE[0], None)
        if online is not None:
            constants.HF_HUB_OFFLINE = True
        try:
            yield
        finally:
            if online is not None:
                constants.HF_HUB_OFFLINE = online
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


SPECIAL = ("<|startoftext|>", "<|endoftext|>")
#: CLIP's byte pairs, the same for every CLIP and Stable Diffusion, for single files, which bring none.
CLIP_TOKENIZER = Path(__file__).resolve().parents[2] / "assets" / "clip_tokenizer"


def load_clip_tokenizer(folder: Path, name: str, padding: str = "") -> Any:
    """CLIP's tokenizer from its byte pairs; of all else in the folder only the padding and the length are taken.

    Args:
        folder: holds ``vocab.json`` and ``merges.txt``, or ``tokenizer.json``.
        padding: the word that fills a text up, "" for the folder's own.

    Raises:
        EditingError: no byte pairs, or damaged ones.
    """
    cls = library("transformers", name, "CLIPTokenizer").CLIPTokenizer
    remedy = "download the model again with its tokenizer files"
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocabulary = load_json(folder / "vocab.json", "vocabulary", name, remedy)
        check_size(folder / "merges.txt", "merges")
        try:
            merges = (folder / "merges.txt").read_bytes().decode("utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise EditingError(f"{name}'s merges.txt cannot be read; {remedy}.") from error
        merges = [line.rstrip("\r") for line in merges if line.strip() and not line.startswith("#version")]
    elif (folder / "tokenizer.json").is_file():
        model = load_json(folder / "tokenizer.json", "tokenizer", name, remedy)["model"]
        vocabulary, pairs = model["vocab"], model.get("merges")
        if not isinstance(pairs, list):
            raise EditingError(f"{name}'s tokenizer.json has no byte pairs; {remedy}.")
        merges = [" ".join(map(str, pair)) if isinstance(pair, list) else str(pair) for pair in pairs]
    else:
        raise EditingError(f"{name} has no tokenizer; {remedy}.")
    if any(word not in vocabulary for word in SPECIAL):
        raise EditingError(f"{name}'s tokenizer is not CLIP's; {remedy}.")
    given: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            given |= load_json(folder / file, "configuration", name, remedy)
    own, length = given.get("pad_token"), given.get("model_max_length")
    own = padding or (own.get("content") if isinstance(own, dict) else own)
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "pad_token": own if isinstance(own, str) and own in vocabulary else SPECIAL[1],
        "model_max_length": length if type(length) is int and 1 <= length <= 4096 else 77,
    }
    damaged = f"{name}'s tokenizer is damaged; {remedy}."
    with refusing(damaged, "transformers"), tempfile.TemporaryDirectory() as place, offline():
        root = Path(place)
        (root / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        (root / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        (root / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return cls.from_pretrained(root, local_files_only=True)
