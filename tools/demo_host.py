"""The pack's own nodes run without a ComfyUI, over the demo model's diffusers backend: for a quick look with the bench.

The node classes are the pack's, loaded by :mod:`.host_stand_in`, and so is nearly all of ``nodes/host``; ComfyUI's
packages, empty there, get the few members here that computing with the demo model takes. Stock nodes that the demo
workflows use are written anew, by what they mean.

What it is not: it knows the demo model only, on the CPU in fp32; no LoRA, ControlNet, area, hook or model patch; the
sampler euler and, in KSampler, the schedule ddim_uniform; texts of up to 75 tokens without emphasis or embedding:name;
opaque pictures. Other stock nodes, samplers, texts and conditionings are refused; widgets out of their range are not.
Times are diffusers', not ComfyUI's; u is the same but for solvers that stop at a tolerance, which rounding can move by
an iteration.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import math
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from semantic_editing.core.demo.builders import demo_vector_encoder
from semantic_editing.core.demo.model import END_OF_TEXT, PATCH, TEXT_LENGTH, DemoModel, load_demo_model
from semantic_editing.core.denoiser import PerLevel
from semantic_editing.core.diffusers.denoiser import DiffusersDenoiser
from semantic_editing.core.errors import EditingError
from semantic_editing.core.sampling import guided, sample
from semantic_editing.tools.host_stand_in import Blocked, EmptyComfyUI, NodeOutput, loading

CPU = torch.device("cpu")
REAL = "use a real ComfyUI"
#: u since the start, in rows of a batch, counted at the demo U-Net whoever calls it.
COUNTS = {"forward": 0, "backward": 0}
_PLACE = SimpleNamespace(base=Path())  # of the one host in this process


def _nothing(*_: Any, **__: Any) -> None:
    """For what needs no doing here."""


def count_rows(network: nn.Module) -> None:
    """Count what ``network`` evaluates from now on, by the rule of ``benchmarks/probe``: a backward pass once, when a
    gradient arrives at the latent or the conditioning."""

    def before(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        rows, arrived = len(inputs[0]), []
        COUNTS["forward"] += rows

        def went_back(_: Tensor) -> None:
            COUNTS["backward"] += 0 if arrived else rows
            arrived.append(True)

        def watched(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.requires_grad:
                return value
            alias = value.view_as(value)  # of this call alone
            alias.register_hook(went_back)
            return alias

        return tuple(map(watched, inputs)), named

    network.register_forward_pre_hook(before, with_kwargs=True)


# MODEL, CLIP, VAE -----------------------------------------------------------------------------------------------------


class _Patcher:
    """The host's handle of a network, which is always loaded."""

    def __init__(self, model: Any, load_device: Any = CPU, offload_device: Any = CPU):
        self.model, self.load_device, self.additional = model, load_device, {}
        self.model_options, self.patches, self.object_patches, self.wrappers = {}, {}, {}, {}

    def clone(self) -> _Patcher:
        return copy.copy(self)

    def set_additional_models(self, key: str, models: list[Any]) -> None:
        self.additional = {**self.additional, key: models}

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)

    def model_size(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.model.state_dict().values())


class _Base(nn.Module):
    """The demo U-Net as what a MODEL holds."""

    model_config, extra_conds, concat_cond = SimpleNamespace(unet_config={}), None, _nothing

    def __init__(self, demo: DemoModel):
        super().__init__()
        self.diffusion_model, self.scheduler, self.denoiser = demo.unet, demo.scheduler, demo.denoiser()
        self.scale, sigmas = demo.vae.config.scaling_factor, self.denoiser.sigmas
        self.latent_format = SimpleNamespace(latent_channels=demo.unet.config.in_channels, latent_dimensions=2)
        self.model_sampling = SimpleNamespace(sigmas=sigmas, sigma_max=sigmas[-1])

    def process_latent_in(self, samples: Tensor) -> Tensor:
        return samples * self.scale

    def process_latent_out(self, latent: Tensor) -> Tensor:
        return latent / self.scale

    def memory_required(self, shape: list[int]) -> int:
        return 4 * math.prod(shape)  # the latent alone: nothing is planned by it here


class _Denoiser(DiffusersDenoiser):
    """What stands in for ``nodes.host.denoiser.ComfyDenoiser``."""

    def __init__(self, base: _Base, model_options: dict[str, Any], model_identity: Any):
        super().__init__(base.diffusion_model, base.scheduler)
        self.base, self.model_options = base, model_options


class _Clip(nn.Module):
    """A CLIP, and the network it holds."""

    layer_idx, set_clip_options, reset_clip_options = None, _nothing, _nothing

    def __init__(self, demo: DemoModel):
        super().__init__()
        self.demo, self.clip_l, self.patcher = demo, nn.Module(), _Patcher(self)
        self.clip_l.transformer, self.clip_l.special_tokens = demo.clip.text_model, {"end": END_OF_TEXT}
        (self.tower,) = demo_vector_encoder(demo).towers
        pieces = {number: piece for piece, number in demo.tokenizer.get_vocab().items()}
        self.tokenizer = SimpleNamespace(clip_l=SimpleNamespace(inv_vocab=pieces, end_token=END_OF_TEXT))

    @property
    def cond_stage_model(self) -> _Clip:
        return self

    def tokenize(self, text: str) -> dict[str, list[Any]]:
        if set("()") & set(text) or "embedding:" in text:
            raise EditingError(f"{text[:40]!r} has brackets or embedding:name, which are not read here; {REAL}.")
        if len(self.demo.tokenizer(text).input_ids) > TEXT_LENGTH:
            raise EditingError(f"{text[:40]!r}... is longer than 75 tokens; {REAL}.")
        return {"l": [[(token, 1.0) for token in self.demo.tokenize([text])[0].tolist()]]}

    def encode_token_weights(self, tokens: dict[str, list[Any]]) -> tuple[Tensor, None]:
        """Blocks of 77 tokens, each a number or a vector, one after another: ``[1, B * 77, D]``; nothing pooled."""
        table = self.tower.table.weight
        rows = [[token if isinstance(token, Tensor) else table[token] for token, _ in row] for row in tokens["l"]]
        inner = torch.stack([torch.stack(row[1:-1]) for row in rows])  # between the start and the last end
        return self.tower.encode(inner, "last").last_hidden_state.flatten(0, 1)[None], None

    def encode_from_tokens(self, tokens: dict[str, list[Any]]) -> Tensor:
        return self.encode_token_weights(tokens)[0]

    def encode_from_tokens_scheduled(self, tokens: dict[str, list[Any]]) -> list[Any]:
        return [[self.encode_from_tokens(tokens), {}]]


class _Autoencoder(nn.Module):
    """The demo's autoencoder as what a VAE holds."""

    def __init__(self, demo: DemoModel):
        super().__init__()
        self.demo, self.vae = demo, demo.vae

    def decode(self, samples: Tensor) -> Tensor:
        return self.demo.decode_unclipped(samples * self.vae.config.scaling_factor) * 2 - 1


class _Vae:
    """A VAE: pictures ``[B, H, W, 3]`` in 0..1 to latents and back."""

    latent_dim, vae_dtype = 2, torch.float32

    def __init__(self, demo: DemoModel):
        self.demo, self.scale = demo, demo.vae.config.scaling_factor
        self.first_stage_model, self.latent_channels = _Autoencoder(demo), demo.vae.config.latent_channels
        self.patcher = _Patcher(self.first_stage_model)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.demo.encode_image(pixels[..., :3].movedim(-1, 1)) / self.scale

    def decode(self, samples: Tensor) -> Tensor:
        return self.demo.decode(samples * self.scale).movedim(1, -1)

    def spacial_compression_encode(self) -> int:
        return PATCH


def demo_parts() -> tuple[Any, Any, Any]:
    """What Load Demo Model gives: MODEL, CLIP, VAE."""
    with torch.inference_mode(False):
        demo = load_demo_model()
    count_rows(demo.unet)
    return _Patcher(_Base(demo)), _Clip(demo), _Vae(demo)


# Sampling -------------------------------------------------------------------------------------------------------------


class CFGGuider:
    """A GUIDER of ``conds``, CONDITIONING by name; the pack's own are subclasses and have its stages, as in ComfyUI."""

    def __init__(self, model: Any, cfg: float = 1.0, **conds: Any):
        self.model_patcher, self.cfg, self.original_conds = model, cfg, conds

    def inner_set_conds(self, conds: dict[str, Any]) -> None:
        """Other CONDITIONING."""
        self.original_conds = conds

    def sample(self, *arguments: Any, disable_pbar: bool = True, **named: Any) -> Tensor:
        """The latent that a sampler makes; arguments are those of :meth:`inner_sample`."""
        self.model_options = {"transformer_options": {}}
        self.conds = {name: plain_conditioning(cond) for name, cond in self.original_conds.items()}
        return self.outer_sample(*arguments, **named)

    def outer_sample(self, *arguments: Any, **named: Any) -> Tensor:
        """The same with the models loaded."""
        self.inner_model = self.model_patcher.model
        self.loaded_models = [*chain(*self.model_patcher.additional.values())]
        return self.inner_sample(*arguments, **named)

    def inner_sample(
        self, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor, denoise_mask: Any = None, seed: int = 0
    ) -> Tensor:
        """The same with the options ready; latents come and go as the VAE has them."""
        clean, options = self.inner_model.process_latent_in(latent_image), {"model_options": self.model_options}
        made = sampler.sample(self, sigmas, options, None, noise, clean, denoise_mask)
        return self.inner_model.process_latent_out(made.float())

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: int | None = None) -> Tensor:
        """The clean latent; ``timestep [B]`` is sigma."""
        negative = self.conds.get("negative")
        return guided(self.inner_model.denoiser, x, timestep, self.conds["positive"], negative, self.cfg)


def plain_conditioning(conditioning: list[Any]) -> Tensor | PerLevel:
    """The text states ``[B, 77, D]`` of CONDITIONING, or those of each level.

    Raises:
        EditingError: it has several parts, or areas, ControlNet and the like.
    """
    (embeds, options), *others = conditioning
    if others or options:
        raise EditingError(f"A conditioning holds more than one plain text; {REAL}.")
    return embeds


class Euler:
    """The SAMPLER euler, with ComfyUI's start from the noise and its inpainting inside a latent noise mask."""

    def sample(
        self, guider: Any, sigmas: Tensor, extra: Any, callback: Any, noise: Tensor, clean: Tensor, mask: Any = None
    ) -> Tensor:
        """From ``clean`` and ``noise`` down ``sigmas``."""
        first, top = float(sigmas[0]), float(guider.inner_model.model_sampling.sigma_max)
        pure = first > top or math.isclose(first, top, rel_tol=1e-5)
        free = None if mask is None else functional.interpolate(mask, noise.shape[-2:], mode="bilinear")

        def predict(x: Tensor, sigma: float, step: int) -> Tensor:
            if free is not None:
                x = x * free + (clean + sigma * noise) * (1 - free)
            denoised = guider.predict_noise(x, torch.full((len(x),), sigma), extra["model_options"])
            return denoised if free is None else denoised * free + clean * (1 - free)

        return sample(predict, clean + noise * (math.hypot(1, first) if pure else first), sigmas.tolist())


# Stock nodes: their inputs by name -> their outputs -------------------------------------------------------------------


def load_image(image: str) -> tuple[Tensor]:
    """A picture of the input folder."""
    with Image.open(_PLACE.base / "input" / image, formats=["PNG"]) as picture:
        return (torch.from_numpy(np.array(picture.convert("RGB")))[None].float() / 255,)


def save_image(images: Tensor, **_: Any) -> tuple[Tensor]:
    """The pictures as a PNG holds them; fractions are cut off."""
    return ((images * 255).clamp(0, 255).byte().float() / 255,)


def sampler_select(sampler_name: str) -> tuple[Euler]:
    """KSamplerSelect."""
    if sampler_name != "euler":
        raise EditingError(f"The sampler {sampler_name!r} is not known here; {REAL}.")
    return (Euler(),)


def sampled(guider: Any, noise: Tensor, sampler: Any, sigmas: Tensor, latent: dict[str, Any], seed: int) -> tuple[Any]:
    """LATENT."""
    mask = latent.get("noise_mask")
    made = guider.sample(noise, latent["samples"], sampler, sigmas, denoise_mask=mask, seed=seed)
    return ({**latent, "samples": made},)


def sampler_custom(noise: Any, guider: Any, sampler: Any, sigmas: Tensor, latent_image: dict[str, Any]) -> tuple[Any]:
    """SamplerCustomAdvanced, its first output."""
    return sampled(guider, noise.generate_noise(latent_image), sampler, sigmas, latent_image, noise.seed)


def ksampler(
    model: Any,
    latent_image: Any,
    seed: int,
    steps: int,
    sampler_name: str,
    scheduler: str,
    denoise: float,
    **guider: Any,
) -> tuple[Any]:
    """KSampler: the last ``steps`` of a schedule of which they are the part ``denoise``; ``guider``: what guides it."""
    if scheduler != "ddim_uniform":
        raise EditingError(f"The schedule {scheduler!r} is not known here; {REAL}.")
    table = model.model.model_sampling.sigmas
    stride = max(len(table) // int(steps / denoise), 1)
    sigmas = torch.cat([torch.zeros(1), table[1::stride]]).flip(0)[-(steps + 1) :]
    noise = torch.randn(latent_image["samples"].shape, generator=torch.Generator().manual_seed(seed))
    return sampled(CFGGuider(model, **guider), noise, *sampler_select(sampler_name), sigmas, latent_image, seed)


def composite(
    destination: Tensor, source: Tensor, x: int, y: int, resize_source: bool, mask: Tensor | None = None
) -> tuple[Tensor]:
    """ImageCompositeMasked: ``source`` laid on ``destination`` at ``(x, y)``, where ``mask`` is 1."""
    made, laid = destination.clone().movedim(-1, 1), source.movedim(-1, 1)
    if resize_source:
        laid = functional.interpolate(laid, made.shape[-2:], mode="bilinear")
    share = laid.new_ones(1, *laid.shape[-2:]) if mask is None else mask
    share = functional.interpolate(share[:, None], laid.shape[-2:], mode="bilinear")
    place = made[..., y : y + laid.shape[-2], x : x + laid.shape[-1]]
    laid, share = (part[..., : place.shape[-2], : place.shape[-1]] for part in (laid, share))
    place.copy_(share * laid + (1 - share) * place)
    return (made.movedim(1, -1),)


def empty_latent(width: int, height: int, batch_size: int) -> tuple[dict[str, Tensor]]:
    """EmptyLatentImage: zeros of the demo VAE's latents."""
    return ({"samples": torch.zeros(batch_size, 4, height // 8, width // 8)},)


STOCK: dict[str, Callable[..., tuple[Any, ...]]] = {
    "EmptyLatentImage": empty_latent,
    "LoadImage": load_image,
    "SaveImage": save_image,
    "PreviewImage": save_image,
    "PreviewAny": lambda source: (str(source),),
    "CLIPTextEncode": lambda text, clip: (clip.encode_from_tokens_scheduled(clip.tokenize(text)),),
    "VAEEncode": lambda pixels, vae: ({"samples": vae.encode(pixels)},),
    "VAEDecode": lambda samples, vae: (vae.decode(samples["samples"]),),
    "KSamplerSelect": sampler_select,
    "BasicGuider": lambda model, conditioning: (CFGGuider(model, positive=conditioning),),
    "CFGGuider": lambda **inputs: (CFGGuider(**inputs),),
    "SamplerCustomAdvanced": sampler_custom,
    "KSampler": ksampler,
    "SetLatentNoiseMask": lambda samples, mask: ({**samples, "noise_mask": mask[:, None]},),
    "ImageCompositeMasked": composite,
    "MaskToImage": lambda mask: (mask[..., None].expand(-1, -1, -1, 3),),
}
STOCK_OUTPUTS = {"SaveImage", "PreviewImage", "PreviewAny"}


# The pack's nodes, and workflows of both ------------------------------------------------------------------------------


def _folder(kind: str) -> Path:
    return _PLACE.base / "models" / kind


def _files(kind: str) -> list[str]:
    return [path.relative_to(_folder(kind)).as_posix() for path in _folder(kind).rglob("*") if path.is_file()]


#: What ComfyUI's modules have here, beside empty classes.
MEMBERS: dict[str, dict[str, Any]] = {
    "comfy.model_management": {
        **dict.fromkeys(("get_torch_device", "unet_offload_device", "intermediate_device"), lambda: CPU),
        "throw_exception_if_processing_interrupted": _nothing,
        "InterruptProcessingException": type("InterruptProcessingException", (Exception,), {}),
        "load_models_gpu": _nothing,
        "soft_empty_cache": _nothing,
        "is_device_cpu": lambda device: True,
        "should_use_fp16": lambda device: False,
        # None: nothing is kept from one edit to the next, so that each row of a table is charged all that it takes.
        "get_free_memory": lambda device: 0,
        "is_oom": lambda error: isinstance(error, MemoryError),
        "OOM_EXCEPTION": MemoryError,
    },
    "comfy.model_patcher": {"ModelPatcher": _Patcher},
    "comfy.patcher_extension": {
        "WrappersMP": SimpleNamespace(PREPARE_SAMPLING=""),
        "add_wrapper_with_key": _nothing,  # the one wrapper asks for memory
    },
    "comfy.sampler_helpers": {"cleanup_models": _nothing},
    "comfy.samplers": {
        "CFGGuider": CFGGuider,
        "encode_model_conds": lambda function, entries, *rest: entries[0]["cross_attn"],
    },
    "comfy.utils": {"ProgressBar": lambda total: SimpleNamespace(update_absolute=_nothing)},
    "comfy_execution.utils": {"get_executing_context": _nothing},
    "folder_paths": {
        "models_dir": "",
        "folder_names_and_paths": {},
        "add_model_folder_path": _nothing,
        "get_folder_paths": lambda kind: [str(_folder(kind))],
        "get_filename_list": _files,
        "get_full_path": lambda kind, name: str(_folder(kind) / name),
        "get_input_directory": lambda: str(_PLACE.base / "input"),
    },
    "latent_preview": {"get_previewer": _nothing, "preview_to_image": _nothing},
}


def pack_nodes() -> dict[str, Any]:
    """The pack's nodes by id; what they reach of ComfyUI's is of this module.

    Loaded anew each time, as in a ComfyUI that starts: the region search remembers its renders as long as it runs.
    """
    pack = __package__.partition(".")[0]
    for name in [name for name in sys.modules if name.startswith(f"{pack}.nodes")]:
        del sys.modules[name]
    with loading(pack, [EmptyComfyUI(MEMBERS)]) as registry:
        importlib.reload(sys.modules[f"{pack}.nodes.host.folders"])  # the stand-in emptied it
        names = "host.identity", "host.tokens", "host.denoiser", "host.attention", "host.conditioning"
        identity, tokens, denoiser, attention, conditioning, model = (
            importlib.import_module(f"{pack}.nodes.{name}") for name in (*names, "demo.comfy_model")
        )
        identity.identity, denoiser.ComfyDenoiser = lambda model: model.model.denoiser.identity, _Denoiser
        tokens.vectors_read = lambda clip, text: {}  # prompts with embedding:name are not read here
        attention.site_table, model.load_demo_model = _nothing, demo_parts
        # A conditioning as it is processed here is its text, or one for each level.
        conditioning.with_embeds = lambda cond, embeds: embeds
        conditioning.per_level_conditioning = lambda model, texts, sigmas, pooled: [[PerLevel(sigmas, [*texts]), {}]]
        return {node.define_schema().node_id: node for node in registry.load_nodes()}


class DemoHost:
    """Runs workflows in the API format; what did not change from one to the next is not made again.

    Args:
        base: holds ``input`` and ``models``, as ComfyUI's base folder does. One host a process.
    """

    def __init__(self, base: Path):
        self.nodes = pack_nodes()
        self.made: dict[str, Any] = {}  # by what it depends on
        _PLACE.base = base
        (base / "input").mkdir(parents=True, exist_ok=True)

    def run(self, workflow: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Outputs of every node that was needed; SaveImage and PreviewImage have their pictures, PreviewAny its text.

        Raises:
            EditingError: a node that is not known here, or one failed.
        """
        strange = sorted({node["class_type"] for node in workflow.values()} - {*STOCK, *self.nodes})
        if strange:
            raise EditingError(f"Without a ComfyUI there is no {', '.join(strange)}; {REAL}.")
        done: dict[str, str] = {}

        def make(key: str) -> str:
            if key not in done:
                kind, given = workflow[key]["class_type"], workflow[key]["inputs"]
                links = {name: value for name, value in given.items() if isinstance(value, list)}
                own = {name: value for name, value in given.items() if name not in links}
                depends = {name: [make(source), number] for name, (source, number) in links.items()}
                changes = getattr(self.nodes.get(kind), "fingerprint_inputs", _nothing)
                state = json.dumps([kind, own, depends, changes(**own, **dict.fromkeys(links))], sort_keys=True)
                done[key] = hashlib.sha256(state.encode()).hexdigest()
                if done[key] not in self.made:
                    self.made[done[key]] = self._execute(kind, own, depends)
            return done[key]

        with torch.inference_mode():
            for key, node in workflow.items():
                if self._is_output(node["class_type"]):
                    make(key)
        self.made = {state: self.made[state] for state in done.values()}
        return {key: self.made[state] for key, state in done.items() if not isinstance(self.made[state], Blocked)}

    def _is_output(self, kind: str) -> bool:
        """Whether a node is run though nothing is wired to it."""
        stock = kind in STOCK
        return kind in STOCK_OUTPUTS if stock else getattr(self.nodes[kind].define_schema(), "is_output_node", False)

    def _execute(self, kind: str, inputs: dict[str, Any], depends: dict[str, Any]) -> Any:
        """A node's outputs; where an input was not made, nor are they."""
        for name, (state, number) in depends.items():
            outputs = self.made[state]
            inputs[name] = outputs if isinstance(outputs, Blocked) else outputs[number]
            if isinstance(inputs[name], Blocked):
                return inputs[name]
        try:
            made = STOCK[kind](**inputs) if kind in STOCK else self.nodes[kind].execute(**inputs)
        except EditingError:
            raise
        except Exception as error:
            raise EditingError(f"{kind}: {type(error).__name__}: {error}") from error
        return made.args if isinstance(made, NodeOutput) else made
