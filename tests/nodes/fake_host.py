"""A stand-in for ``nodes/host`` where no ComfyUI is present: enough of its V3 API to read schemas and call ``execute``."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

PACK = "semantic_editing_under_a_fake_host"
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Slot:
    """An input or output of a schema."""

    id: str
    type: str
    options: dict[str, Any] = field(default_factory=dict)


class Kind:
    """A socket type: ``Kind("INT").Input("steps", default=1)``."""

    def __init__(self, name: str):
        self.name = name

    def Input(self, id: str, **options: Any) -> Slot:
        return Slot(id, self.name, options)

    def Output(self, id: str, **options: Any) -> Slot:
        return Slot(id, self.name, options)


class NodeOutput:
    """What ``execute`` returns."""

    def __init__(self, *args: Any, ui: Any = None):
        self.args, self.ui = args, ui


class Registered(Exception):
    """Raised when a fake function is reached that the test did not replace."""


def _not_replaced(name: str) -> Any:
    def function(*args: Any, **kwargs: Any) -> Any:
        raise Registered(f"host.{name} was called but the test did not replace it")

    return function


def make_host() -> ModuleType:
    """A module with the names that ``nodes/*.py`` import from ``nodes.host``."""
    names = ("BBOX", "Boolean", "Clip", "Combo", "Conditioning", "Float", "Guider", "Image", "Int", "Latent", "Mask", "Model", "Noise")
    types = {name: Kind(name.upper()) for name in (*names, "Sigmas", "String", "Vae")}
    host = ModuleType(f"{PACK}.nodes.host")
    host.io = SimpleNamespace(**types, ComfyNode=object, NodeOutput=NodeOutput)
    host.InversionType, host.EditDirectionType = Kind("INVERSION"), Kind("EDIT_DIRECTION")
    host.AttributeClassifierType = Kind("ATTRIBUTE_CLASSIFIER")
    host.SemanticEmbeddingType = Kind("SEMANTIC_EMBEDDING")
    host.VisionFeaturesType, host.ClipScorerType = Kind("VISION_FEATURES"), Kind("CLIP_SCORER")
    host.RegionNetworkType, host.RegionEditorType = Kind("REGION_NETWORK"), Kind("REGION_EDITOR")
    host.HeldClassifier = SimpleNamespace
    host.ComfyExtension = object
    host.Session = SimpleNamespace
    host.schema = lambda **fields: SimpleNamespace(**fields)
    host.widget = lambda kind, name, **options: kind.Input(name, **options)
    host.ui = SimpleNamespace(
        PreviewText=lambda text: SimpleNamespace(as_dict=lambda: {"text": (text,)}),
        PreviewImage=lambda image, cls=None: SimpleNamespace(as_dict=lambda: {"images": []}),
    )
    host.list_files = lambda kind: []
    host.list_models = lambda kind, mark="": []
    host.register_folders = lambda: None
    for name in (
        "DenoiserGuider", "SessionDecoder", "SessionInjector", "StoppableBar", "TokenEncoder", "encode_images", "latent_to_model",
        "apply_to_conditioning", "classifier_scope", "hold_classifier", "input_folder", "training_scope",
        "conditioning_from_tensors", "conditioning_tensors", "counting_bar",
        "encode_sentences", "identity", "latent_from_model", "load_demo_model", "noise_object", "output_path", "resolve_file",
        "blocked", "decode_images", "hold_scorer", "hold_vision", "inpaint_opener", "inversion_opener", "resolve_model", "token_opener",
        "run", "sigmas_out", "text_encoder_name",
    ):  # fmt: skip
        setattr(host, name, _not_replaced(name))
    return host


def load_pack() -> ModuleType:
    """The pack's ``nodes.registry`` under another name than ``semantic_editing``, with the fake host in place."""
    if PACK not in sys.modules:
        for name, folder in ((PACK, ROOT), (f"{PACK}.nodes", ROOT / "nodes")):
            package = ModuleType(name)
            package.__path__ = [str(folder)]
            sys.modules[name] = package
        sys.modules[f"{PACK}.nodes.host"] = make_host()
    return importlib.import_module(f"{PACK}.nodes.registry")


def module(name: str) -> ModuleType:
    """A module of the pack by its path from the root, e.g. ``module("core.errors")``."""
    load_pack()
    return importlib.import_module(f"{PACK}.{name}")
