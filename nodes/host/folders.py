"""The pack's model folders (``models/edit_directions`` and so on), pictures under ``input``, and where a result goes
whose folder is full, through ``folder_paths``.

No sentence says where a folder lies: whoever calls the server's API reads it, too.
"""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...core.errors import EditingError
from ...core.file_names import check_name, shown_name
from ...core.images.files import picture_folders

EDIT_DIRECTIONS = "edit_directions"
INVERSIONS = "inversions"
ATTRIBUTE_CLASSIFIERS = "attribute_classifiers"
EMBEDDING_TRAININGS = "embedding_trainings"
VISION_FEATURES = "vision_features"
CLIP_SCORER = "clip_scorer"
REGION_NETWORKS = "region_networks"
STYLEGAN2 = "stylegan2"
STYLE_ENCODERS = "style_encoders"
DELTA_LATENTS = "delta_latents"
DELTA_MAPPERS = "delta_mappers"
MAPPER_TRAININGS = "mapper_trainings"
STYLE_DIFFUSION = "style_diffusion"
IMAGE_CAPTIONERS = "image_captioners"
TEXT_MODELS = "LLM"  # where other packs put theirs
STYLE_DIFFUSION_TRAININGS = "style_diffusion_trainings"
DISTILLED_EDITS = "distilled_edits"
DISTILLATION_TRAININGS = "distillation_trainings"
ELITE_MAPPERS = "elite_mappers"
#: What each folder may hold. ``.pt`` only where published files exist; they go through the restricted loader.
EXTENSIONS = {
    EDIT_DIRECTIONS: {".safetensors", ".pt"},
    INVERSIONS: {".safetensors"},
    ATTRIBUTE_CLASSIFIERS: {".safetensors", ".pt", ".pth"},
    EMBEDDING_TRAININGS: {".safetensors"},
    VISION_FEATURES: {".safetensors"},
    CLIP_SCORER: {".safetensors"},
    REGION_NETWORKS: {".safetensors"},
    STYLEGAN2: {".safetensors", ".pt", ".pth", ".pkl"},
    STYLE_ENCODERS: {".safetensors", ".pt", ".pth"},
    DELTA_LATENTS: {".safetensors"},
    DELTA_MAPPERS: {".safetensors", ".pth", ".pt", ".npy"},
    MAPPER_TRAININGS: {".safetensors"},
    STYLE_DIFFUSION: {".safetensors"},
    STYLE_DIFFUSION_TRAININGS: {".safetensors"},
    IMAGE_CAPTIONERS: {".safetensors"},
    TEXT_MODELS: {".safetensors"},
    DISTILLED_EDITS: {".safetensors"},
    DISTILLATION_TRAININGS: {".safetensors"},
    ELITE_MAPPERS: {".safetensors", ".pt"},
}
#: The host's own folder that also holds single files of a kind: its dialog for missing models fills only such folders.
CLIP_VISION = "clip_vision"
ALSO_IN = {VISION_FEATURES: CLIP_VISION, CLIP_SCORER: CLIP_VISION}


def register_folders() -> None:
    """Make the folders known to the host, keeping what the person's ``extra_model_paths.yaml`` added."""
    for kind, extensions in EXTENSIONS.items():
        folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.models_dir, kind))
        folder_paths.folder_names_and_paths[kind] = (folder_paths.get_folder_paths(kind), set(extensions))


def list_files(kind: str) -> list[str]:
    """File names in folder ``kind`` for a combo widget (sub-folders with ``/``), empty when there are none."""
    register_folders()
    return sorted(folder_paths.get_filename_list(kind))


def resolve_file(kind: str, name: str) -> Path:
    """Full path of the existing file ``name`` of folder ``kind``.

    Raises:
        EditingError: ``name`` is not one of :func:`list_files` (which leaves no room for ``..`` or absolute paths).
    """
    if name not in list_files(kind):
        raise EditingError(
            f"'{shown_name(name)}' is not in ComfyUI's models/{kind} folder; put the file there and refresh the node."
        )
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        raise EditingError(f"'{shown_name(name)}' has disappeared from ComfyUI's {kind} folder; refresh the node.")
    return Path(path)


def list_models(kind: str, mark: str = "config.json") -> list[str]:
    """Models of folder ``kind`` for a combo widget: folders with a file called ``mark``, and single files outside.

    Names are relative, levels separated by ``/``. A model folder's own files and sub-folders are not listed. Single
    files of the host's folder of :data:`ALSO_IN` come last, unless the kind's own folder has one of that name.
    """
    folders = _model_folders(kind, mark)
    inside = tuple(f"{name}/" for name in folders)
    files = [name.replace("\\", "/") for name in list_files(kind)] if kind in EXTENSIONS else []
    own = sorted([*folders, *(name for name in files if not name.startswith(inside))])
    return [*own, *(name for name in _hosts_files(kind) if name not in own)]


def resolve_model(kind: str, name: str, mark: str = "config.json") -> Path:
    """Full path of the model ``name``, a folder or a file, of folder ``kind``.

    Raises:
        EditingError: ``name`` is not one of :func:`list_models` (which leaves no room for ``..`` or absolute paths).
    """
    folder = _model_folders(kind, mark).get(name)
    if folder is not None:
        return folder
    if kind in ALSO_IN and name not in list_files(kind):
        listed = _hosts_files(kind).get(name)
        path = None if listed is None else folder_paths.get_full_path(ALSO_IN[kind], listed)
        if path is None:
            raise EditingError(
                f"'{shown_name(name)}' is not in ComfyUI's models/{kind} folder nor, as a .safetensors file, in "
                f"models/{ALSO_IN[kind]}; put the file into one of them and refresh the node."
            )
        return Path(path)
    return resolve_file(kind, name)


def _hosts_files(kind: str) -> dict[str, str]:
    """Name with ``/`` -> the host's own name of the ``.safetensors`` files in the folder of :data:`ALSO_IN`."""
    names = folder_paths.get_filename_list(ALSO_IN[kind]) if kind in ALSO_IN else []
    return {name.replace("\\", "/"): name for name in sorted(names) if name.endswith(".safetensors")}


def _model_folders(kind: str, mark: str) -> dict[str, Path]:
    register_folders()
    found: dict[str, Path] = {}
    for home in folder_paths.get_folder_paths(kind):
        for root, below, files in os.walk(home, followlinks=True):
            if mark in files and root != home:
                found.setdefault(Path(root).relative_to(home).as_posix(), Path(root))
                below.clear()
    return found


def output_path(kind: str, name: str, ending: str = ".safetensors") -> Path:
    """Where to write a new file ``name`` of folder ``kind``; ``ending`` is added when missing.

    Raises:
        EditingError: see :func:`~...core.file_names.check_name`.
    """
    plain = check_name(name.strip().removesuffix(ending), added=ending)
    register_folders()
    return Path(folder_paths.get_folder_paths(kind)[0]) / plain


def rescue_folders() -> list[tuple[str, Path]]:
    """Where else a result may go, the best first: name for a sentence, and folder."""
    return [
        ("ComfyUI's output folder", Path(folder_paths.get_output_directory())),
        ("ComfyUI's temp folder, which is emptied when it starts", Path(folder_paths.get_temp_directory())),
    ]


def list_picture_folders() -> list[str]:
    """Folders inside ComfyUI's input folder that hold pictures, for a combo widget; ``/`` separates levels."""
    return picture_folders(folder_paths.get_input_directory())


def input_folder(name: str) -> Path:
    """The folder ``name`` inside ComfyUI's input folder; ``/`` separates levels.

    Raises:
        EditingError: there is none, or ``name`` is unusable or leads out of the input folder.
    """
    home, wanted = folder_paths.get_input_directory(), name.strip().replace("\\", "/")
    parts = [check_name(part, "folder name") for part in wanted.split("/") if part]
    found = Path(home, *parts)
    if not parts or wanted.startswith("/") or not os.path.isdir(found):
        raise EditingError(
            f"'{shown_name(wanted)}' is no folder inside ComfyUI's input folder; put the pictures into one there."
        )
    return found
