"""What a MODEL is by content: its own weights, what is put on them, and its file's name where the host knows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import comfy.model_sampling
import torch
from torch import Tensor

from ...core.denoiser import ModelIdentity, Prediction, weight_signature
from ...core.errors import EditingError
from ...core.prints.content import content_print
from ...core.prints.weights import WeightPrint, weight_print

#: Options that every run fills in for itself, and those that change no value.
PASSING = {"sample_sigmas", "sigmas", "cond_or_uncond", "uuids", "callbacks", "multigpu_clones", "registered_hooks"}
COMPILED = "_orig_mod."  # torch.compile's addition to the names of weights
MOST_NAMES = 6
#: What step caches of the host and of other packs call themselves.
STEP_CACHES = (
    "easycache",
    "lazycache",
    "teacache",
    "magcache",
    "fbcache",
    "firstblockcache",
    "first_block_cache",
    "dbcache",
    "taylorseer",
    "toca_",
    "wavespeed",
    "cachedit",
    "cache_dit",
    "fora_cache",
)


def prediction_of(model_sampling: Any) -> Prediction:
    """What the network predicts.

    Raises:
        EditingError: a parameterisation in which the sigma-space equation does not hold.
    """
    host = comfy.model_sampling
    unusable = tuple(getattr(host, name) for name in ("X0", "IMG_TO_IMG", "IMG_TO_IMG_FLOW") if hasattr(host, name))
    kinds: tuple[tuple[type, Prediction], ...] = ((host.CONST, "flow"), (host.V_PREDICTION, "v"), (host.EPS, "eps"))
    if not isinstance(model_sampling, unusable):
        for kind, prediction in kinds:
            if isinstance(model_sampling, kind):
                return prediction
    raise EditingError("This kind of model cannot be inverted; use an eps, v-prediction or rectified-flow image model.")


def identity(model: Any) -> ModelIdentity:
    """The identity of a MODEL, equal to that of the same weights in diffusers; LoRA and other patches do not make it
    another model, but are in :attr:`ModelIdentity.patches`.

    Raises:
        EditingError: a kind of model that no algorithm of the pack can use.
    """
    base = model.model
    network = base.diffusion_model
    prediction = prediction_of(model.get_model_object("model_sampling"))
    named = {name.removeprefix(COMPILED): p for name, p in network.named_parameters() if p.ndim >= 2}
    if "input_blocks.0.0.weight" in named:
        first, last = "input_blocks.0.0.weight", "out.2.weight"
        family = unet_family(base.model_config.unet_config)
    else:
        first, last = next(iter(named)), next(reversed(named))
        family = type(base).__name__.lower()
    signature = weight_signature(*(_unpatched(model, f"diffusion_model.{name}", named[name]) for name in (first, last)))
    channels = base.latent_format.latent_channels
    names = patch_names(model)
    return ModelIdentity(
        family,
        channels,
        prediction,
        signature,
        network_print(model),
        patches_print(model) if names else "",
        names,
        latent_format_name(model.get_model_object("latent_format")),
        file_name(model),
    )


def unet_family(config: dict[str, Any]) -> str:
    """Family of a Stable Diffusion U-Net by what its cross-attention reads."""
    if config.get("adm_in_channels"):
        return "sdxl"
    return {768: "sd1", 1024: "sd2"}.get(config.get("context_dim") or 0, f"sd{config.get('context_dim')}")


def network_print(model: Any) -> WeightPrint:
    """Print of the network's weights as the checkpoint had them."""
    return weight_print(
        _unpatched(model, f"diffusion_model.{name.removeprefix(COMPILED)}", parameter)
        for name, parameter in model.model.diffusion_model.named_parameters()
    )


def _unpatched(model: Any, key: str, weight: Tensor) -> Tensor:
    """The weight as the checkpoint had it: while a LoRA is applied the host keeps that in its backup."""
    backup = model.backup.get(key)
    if backup is None:
        backup = getattr(model, "hook_backup", {}).get(key)
        return weight if backup is None else backup[0]
    return getattr(backup, "weight", backup)


def patches_print(model: Any) -> str:
    """Content hash of all that is put on a MODEL: weight patches and their strengths, options, other objects."""
    return content_print(*_put_on(model))


def _put_on(model: Any) -> Iterator[Any]:
    """The parts of a MODEL that change what its weights predict."""
    yield {key: value for key, value in model.patches.items() if value}
    yield _settings(model.model_options)
    yield dict(model.object_patches)
    yield getattr(model, "weight_wrapper_patches", {})
    yield _settings(getattr(model, "wrappers", {}))
    yield getattr(model, "injections", {})
    yield [list(group) for group in (getattr(model, "hook_patches", None) or {}).values()]


def _settings(options: Any) -> Any:
    """Nested ``options`` without empty parts and without what belongs to a single run."""
    if not isinstance(options, Mapping):
        return options
    kept = {key: _settings(value) for key, value in options.items() if key not in PASSING}
    return {key: value for key, value in kept.items() if not (isinstance(value, (Mapping, list, tuple)) and not value)}


def patch_names(model: Any) -> tuple[str, ...]:
    """What is put on a MODEL, for people: how many weights are patched, and the nodes that the functions come from."""
    found: list[str] = []
    patched = sum(bool(value) for value in model.patches.values())
    if patched:
        found.append(f"LoRA or the like on {patched} weights")
    found += [f"its {name}" for name in model.object_patches]
    found += [
        _origin(part)
        for options in (
            model.model_options,
            getattr(model, "wrappers", {}),
            getattr(model, "weight_wrapper_patches", {}),
        )
        for part in _leaves(_settings(options))
    ]
    found += [f"injection {key}" for key, value in getattr(model, "injections", {}).items() if value]
    found += ["hooked weights"] if getattr(model, "hook_patches", None) else []
    names = tuple(dict.fromkeys(name for name in found if name))
    return names if len(names) <= MOST_NAMES else (*names[:MOST_NAMES], f"{len(names) - MOST_NAMES} more")


def _leaves(options: Any, key: Any = "") -> Iterator[tuple[Any, Any]]:
    if isinstance(options, Mapping):
        for name, value in options.items():
            yield from _leaves(value, name)
    elif isinstance(options, (list, tuple)):
        for value in options:
            yield from _leaves(value, key)
    else:
        yield key, options


def _origin(part: tuple[Any, Any]) -> str:
    """The class or module a function was made in, ``RescaleCFG`` of ``RescaleCFG.patch.<locals>.rescale_cfg``."""
    key, value = part
    value = getattr(value, "func", value)
    name = getattr(value, "__qualname__", "")
    if not callable(value) or isinstance(value, type):
        return str(key)
    return (name or type(value).__qualname__).partition(".")[0]


def require_no_cache(model: Any) -> None:
    """Raise :class:`EditingError` where a node put a step cache on the MODEL (EasyCache, TeaCache and their like).

    It answers some evaluations with old ones; what is inverted or guided with it is not what the model predicts.
    """
    for options in (model.model_options, getattr(model, "wrappers", {}), dict(model.object_patches)):
        for key, value in _named_leaves(options):
            names = " ".join((key, getattr(value, "__qualname__", ""), type(value).__qualname__)).lower()
            if any(cache in names for cache in STEP_CACHES):
                raise EditingError(
                    "The model has a step cache on it (EasyCache, TeaCache or the like), which leaves network "
                    "evaluations out; wire the model from before that node."
                )


def _named_leaves(options: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested ``options`` with the names they are filed under."""
    if isinstance(options, Mapping):
        for name, value in options.items():
            yield from _named_leaves(value, f"{key} {name}")
    elif isinstance(options, (list, tuple)):
        for value in options:
            yield from _named_leaves(value, key)
    else:
        yield key, options


def latent_format_name(latent_format: Any) -> str:
    """Its class and scale, e.g. "SDXL 0.13025"."""
    scale = getattr(latent_format, "scale_factor", 1.0)
    shift = getattr(latent_format, "shift_factor", 0.0)
    numbers = [f"{float(value):g}" for value in (scale, shift) if not isinstance(value, torch.Tensor) and value]
    return " ".join([type(latent_format).__name__, *numbers])


def file_name(model: Any) -> str:
    """The checkpoint a MODEL was loaded from, "" where the host does not say (before 0.4 it does not)."""
    made = getattr(model, "cached_patcher_init", None)
    arguments = made[1] if isinstance(made, tuple) and len(made) > 1 and isinstance(made[1], tuple) else ()
    paths = [PurePath(path.replace("\\", "/")).name for path in arguments if isinstance(path, str)]
    return paths[0] if paths else ""
