"""The host seam: everything of the pack that touches ComfyUI. No other module imports ``comfy``.

========================  =====================================================================================
``schema``                V3 node API with the compatibility shim
``sampling``              :func:`run` an algorithm on a MODEL; :class:`DenoiserGuider` for SamplerCustomAdvanced
``denoiser``              the MODEL as ``core.denoiser.Denoiser``, with attention control; :func:`identity`
``gradients``             the one context manager that makes gradients possible under ``inference_mode``
``latents``               LATENT and NOISE in and out of model space
``conditioning``          CONDITIONING as plain tensors; batched text encoding
``classifiers``           classifiers as models of the host; room and a stoppable bar for trainings
``tokens``                token vectors into the host's text encoders, as CONDITIONING and differentiable
``vae``                   pictures into latents, and latents into pictures with gradients
``folders``               the pack's model folders, folders under input
``demo``                  the bundled demo model as MODEL, CLIP, VAE
``regions``               the region search's box editors, rendering with the host; ``region_pictures``: MODEL and VAE for them
``vision``                vision transformers and CLIP as models of the host
========================  =====================================================================================

Only what every node needs (``schema``, ``folders``) is imported here. The other parts load when one of their names is first
asked for, so that a part that does not import costs only the nodes that need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .folders import input_folder, list_files, list_models, output_path, register_folders, resolve_file, resolve_model
from .schema import (
    AttributeClassifierType,
    ClipScorerType,
    ComfyExtension,
    EditDirectionType,
    InversionType,
    RegionEditorType,
    RegionNetworkType,
    SemanticEmbeddingType,
    VisionFeaturesType,
    blocked,
    io,
    schema,
    ui,
    widget,
)

if TYPE_CHECKING:
    from .classifiers import HeldClassifier, StoppableBar, classifier_scope, hold_classifier, training_scope
    from .conditioning import (
        apply_to_conditioning,
        conditioning_from_tensors,
        conditioning_tensors,
        counting_bar,
        encode_sentences,
        text_encoder_name,
    )
    from .demo import load_demo_model
    from .denoiser import ComfyDenoiser, identity
    from .latents import latent_from_model, latent_to_model, noise_object, sigmas_out
    from .regions import inpaint_opener, inversion_opener, token_opener
    from .sampling import DenoiserGuider, run
    from .session import Session
    from .tokens import SessionInjector, TokenEncoder
    from .vae import SessionDecoder, decode_images, encode_images
    from .vision import hold_scorer, hold_vision

__all__ = [
    "AttributeClassifierType",
    "ClipScorerType",
    "ComfyDenoiser",
    "ComfyExtension",
    "DenoiserGuider",
    "EditDirectionType",
    "HeldClassifier",
    "InversionType",
    "RegionEditorType",
    "RegionNetworkType",
    "SemanticEmbeddingType",
    "Session",
    "SessionDecoder",
    "SessionInjector",
    "StoppableBar",
    "TokenEncoder",
    "VisionFeaturesType",
    "apply_to_conditioning",
    "blocked",
    "classifier_scope",
    "conditioning_from_tensors",
    "conditioning_tensors",
    "counting_bar",
    "decode_images",
    "encode_images",
    "encode_sentences",
    "hold_classifier",
    "hold_scorer",
    "hold_vision",
    "identity",
    "inpaint_opener",
    "input_folder",
    "inversion_opener",
    "io",
    "latent_from_model",
    "latent_to_model",
    "list_files",
    "list_models",
    "load_demo_model",
    "noise_object",
    "output_path",
    "register_folders",
    "resolve_file",
    "resolve_model",
    "run",
    "schema",
    "sigmas_out",
    "text_encoder_name",
    "token_opener",
    "training_scope",
    "ui",
    "widget",
]

#: Which part each of the names above is in that loads on first use.
_PARTS = {
    "classifiers": ("HeldClassifier", "StoppableBar", "classifier_scope", "hold_classifier", "training_scope"),
    "conditioning": (
        "apply_to_conditioning",
        "conditioning_from_tensors",
        "conditioning_tensors",
        "counting_bar",
        "encode_sentences",
        "text_encoder_name",
    ),
    "demo": ("load_demo_model",),
    "denoiser": ("ComfyDenoiser", "identity"),
    "latents": ("latent_from_model", "latent_to_model", "noise_object", "sigmas_out"),
    "regions": ("inpaint_opener", "inversion_opener", "token_opener"),
    "sampling": ("DenoiserGuider", "run"),
    "session": ("Session",),
    "tokens": ("SessionInjector", "TokenEncoder"),
    "vae": ("SessionDecoder", "decode_images", "encode_images"),
    "vision": ("hold_scorer", "hold_vision"),
}
_PART_OF = {name: part for part, names in _PARTS.items() for name in names}


def __getattr__(name: str) -> Any:
    """The public name ``name`` of a part not loaded yet.

    Raises:
        AttributeError: there is no such name.
        ImportError: its part does not import.
    """
    if name not in _PART_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    part = f"{__name__}.{_PART_OF[name]}"
    try:
        value = getattr(importlib.import_module(part), name)
    except AttributeError as error:  # ``from .host import name`` would make an unexplained "cannot import name" of it
        raise ImportError(f"{part} is broken: {error}") from error
    globals()[name] = value
    return value
