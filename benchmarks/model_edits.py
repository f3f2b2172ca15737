"""What ``dataset.py`` and ``real_models.py`` share: a model by its name, and an engine's edit over its inversion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semantic_editing.core.diffusers.checkpoint import Checkpoint, load_checkpoint
from semantic_editing.core.engines.engine import Engine
from semantic_editing.core.engines.masactrl import MasaCtrl, MasaCtrlSettings
from semantic_editing.core.engines.plug_and_play import PlugAndPlay, PlugAndPlaySettings
from semantic_editing.core.engines.prompt_to_prompt import PromptToPrompt, PromptToPromptSettings, word_map
from semantic_editing.core.engines.semantic_guidance import (
    SemanticEdit,
    SemanticGuidance,
    SemanticSettings,
    edit_words,
    in_context,
)
from semantic_editing.core.engines.words import Prompt, ReadPrompt, changed_words, read_prompt
from semantic_editing.core.errors import EditingError
from semantic_editing.core.inversion import Inversion
from semantic_editing.core.pix2pix_zero.guided_edit import CrossAttentionGuidance, CrossAttentionSettings
from semantic_editing.core.sampling import TrajectoryEdit
from semantic_editing.core.spdinv.invert import spdinv
from semantic_editing.core.spdinv.solvers import SPDInvSettings

#: Inversion -> its solver, and whether engines add back what it left over of a step.
INVERSIONS: dict[str, tuple[str, bool]] = {
    "ddim": ("ddim", False),
    "direct": ("ddim", True),
    "aidi": ("fixed_point", True),
    "gradient": ("gradient", True),
    "auto": ("auto", True),
}
ENGINES = ("word_swap", "guidance", "prompt_to_prompt", "masactrl", "plug_and_play", "semantic_guidance")
#: Engines that have no stored shift to switch off: over "direct" they are what they are over DDIM.
UNSHIFTED = ("word_swap", "guidance")
#: A model that needs no file.
DEMO = "demo"
#: Others: networks of full size with random weights, for a look whether all runs. Each part by diffusers' class and
#: what is not that class's own default; the autoencoder of both is :data:`VAE`'s.
RANDOM: dict[str, dict[str, dict[str, Any]]] = {
    "random-sd15": {
        "unet": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        "text_encoder": {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "projection_dim": 768,
        },
        "vae": {"scaling_factor": 0.18215},
    },
    "random-sdxl": {
        "unet": {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": [1, 2, 10],
            "cross_attention_dim": 2048,
            "attention_head_dim": [5, 10, 20],
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "text_encoder": {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "projection_dim": 768,
        },
        "text_encoder_2": {
            "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
            "projection_dim": 1280, "hidden_act": "gelu",
        },
        "vae": {"scaling_factor": 0.13025},
    },
}  # fmt: skip
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
CLIP_TOKENS = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}


@dataclass(frozen=True)
class Method:
    """An engine over an inversion, "auto+prompt_to_prompt"."""

    inversion: str
    engine: str

    @property
    def name(self) -> str:
        """As it is written."""
        return f"{self.inversion}+{self.engine}"


def method(text: str) -> Method:
    """``INVERSION+ENGINE``.

    Raises:
        EditingError: no such inversion or engine.
    """
    inversion, _, engine = text.partition("+")
    if inversion not in INVERSIONS or engine not in ENGINES:
        raise EditingError(
            f"There is no method {text!r}; write INVERSION+ENGINE, an inversion out of {', '.join(INVERSIONS)} and an "
            f"engine out of {', '.join(ENGINES)}, e.g. auto+prompt_to_prompt."
        )
    return Method(inversion, engine)


class EditModel:
    """A text-to-image model and how it reads words.

    Args:
        model: a :class:`Checkpoint`, or what has its parts.
        tokenizer: of CLIP's byte pairs.
    """

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model, tokenizer
        self.native_size: int = model.native_size
        self._pieces = {number: piece for piece, number in tokenizer.get_vocab().items()}

    def read(self, text: str) -> Prompt:
        """A text's words at the positions of its conditioning."""
        ids = self.tokenizer(text, padding="max_length", truncation=True, max_length=77).input_ids
        return read_prompt(text, [ids], lambda number: self._pieces.get(number, ""), self.tokenizer.eos_token_id)

    @torch.no_grad()
    def cond(self, text: str) -> Any:
        """The denoiser's conditioning of a text."""
        return self.model.cond(*self.model.encode_text([text]))


class _DemoCheckpoint:
    """The demo model with a checkpoint's methods."""

    def __init__(self, device: torch.device):
        from semantic_editing.core.demo.model import load_demo_model

        self.demo = demo = load_demo_model(device=device)
        self.denoiser, self.native_size = demo.denoiser, demo.unet.config.sample_size * 8

    def encode_text(self, texts: Sequence[str]) -> tuple[Tensor, None]:
        return self.demo.encode_text(texts), None

    def cond(self, embeds: Tensor, pooled: None) -> Tensor:
        return embeds

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        return self.demo.encode_image(images)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        return self.demo.decode(latent)


def load_model(name: str, device: torch.device, dtype: torch.dtype) -> EditModel:
    """A diffusers folder or single file, or :data:`DEMO` or one of :data:`RANDOM`.

    Raises:
        EditingError: it cannot be read.
    """
    if name == DEMO:
        demo = _DemoCheckpoint(device)
        return EditModel(demo, demo.demo.tokenizer)
    checkpoint = (
        Checkpoint(random_pipeline(name, dtype), device, dtype)
        if name in RANDOM
        else load_checkpoint(name, device, dtype)
    )
    return EditModel(checkpoint, checkpoint.pipeline.tokenizer)


def random_networks(name: str) -> dict[str, Any]:
    """The networks of one of :data:`RANDOM` by diffusers' names, of torch's default type."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    sizes = RANDOM[name]
    encoders = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    texts = {
        part: network(CLIPTextConfig(**sizes[part], **CLIP_TOKENS))
        for part, network in encoders.items()
        if part in sizes
    }
    return {
        "unet": UNet2DConditionModel(**sizes["unet"]),
        "vae": AutoencoderKL(**VAE, **sizes["vae"]),
        **texts,
    }


def random_pipeline(name: str, dtype: torch.dtype) -> Any:
    """One of :data:`RANDOM` with weights of a fixed seed, made in ``dtype``; its noise table is the demo's."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    from semantic_editing.core.demo.data import FOLDER, TOKENIZER
    from semantic_editing.core.models.model_folder import load_clip_tokenizer, load_scheduler

    usual = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)  # so that SDXL is never in memory at twice its size
        try:
            networks = random_networks(name)
        finally:
            torch.set_default_dtype(usual)
    scheduler = DDIMScheduler.from_config(load_scheduler(FOLDER / "scheduler", "DDIMScheduler", "demo").config)
    tokenizers = {
        part.replace("text_encoder", "tokenizer"): load_clip_tokenizer(TOKENIZER, "clip_tokenizer")
        for part in networks
        if part.startswith("text_encoder")
    }
    parts = networks | tokenizers | {"scheduler": scheduler}
    if "text_encoder_2" in parts:
        return StableDiffusionXLPipeline(**parts, add_watermarker=False)
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def inverted(model: EditModel, latent: Tensor, source: str, inversion: str, steps: int) -> tuple[Inversion, float]:
    """The inversion of ``latent [1, C, h, w]`` under the source prompt, and its u."""
    denoiser = model.model.denoiser()
    made = spdinv(denoiser, latent, model.cond(source), steps, SPDInvSettings(INVERSIONS[inversion][0]))  # type: ignore[arg-type]
    return made, float(denoiser.evaluations.forward + denoiser.evaluations.backward)


def edited(
    model: EditModel, inversion: Inversion, source: str, target: str, chosen: Method, cfg: float | None = None
) -> tuple[Tensor, float]:
    """The edited latent ``[1, C, h, w]`` and the engine's own u (forward and backward), engines at their defaults.

    Args:
        cfg: in place of the engine's default; semantic guidance has none.

    Raises:
        EditingError: prompts or a model that the engine cannot use.
    """
    denoiser = model.model.denoiser()
    made = _engine(model, denoiser, inversion, source, target, chosen, cfg).run(inversion.steps)
    return made, float(denoiser.evaluations.forward + denoiser.evaluations.backward)


def _engine(
    model: EditModel,
    denoiser: Any,
    inversion: Inversion,
    source: str,
    target: str,
    chosen: Method,
    cfg: float | None,
) -> TrajectoryEdit:
    conds = model.cond(source), model.cond(target)
    shifted: dict[str, Any] = {"stored_shift": INVERSIONS[chosen.inversion][1]}
    shared = shifted | ({} if cfg is None else {"cfg": cfg})
    if chosen.engine == "guidance":
        return CrossAttentionGuidance(
            denoiser, inversion, *conds, settings=CrossAttentionSettings(**({} if cfg is None else {"cfg": cfg}))
        )
    if chosen.engine == "semantic_guidance":
        edits = semantic_edits(source, target, model.read)
        texts = in_context(edits, source)
        return SemanticGuidance(
            denoiser,
            inversion,
            conds[0],
            None,
            conds[0],
            SemanticSettings(**shifted),
            None,
            edits,
            [model.cond(text) for text in texts],
            edit_words(edits, model.read, source),
        )
    plain = shared | {"stored_shift": False}
    make: Callable[..., Engine] = {
        "word_swap": lambda *given: MasaCtrl(*given, MasaCtrlSettings(**plain, start_step=1.0)),
        "masactrl": lambda *given: MasaCtrl(*given, MasaCtrlSettings(**shared)),
        "plug_and_play": lambda *given: PlugAndPlay(*given, PlugAndPlaySettings(**shared)),
        "prompt_to_prompt": lambda *given: PromptToPrompt(
            *given, PromptToPromptSettings(**shared), None, word_map(source, target, model.read)
        ),
    }[chosen.engine]
    return make(denoiser, inversion, *conds, None)


def semantic_edits(source: str, target: str, read: ReadPrompt) -> list[SemanticEdit]:
    """The words that the target has and the source has not; where there are none, those that it lacks, taken away.

    Raises:
        EditingError: two prompts of the same words.
    """
    removed, added = changed_words(read(source), read(target))
    if added:
        return [SemanticEdit(" ".join(added))]
    if removed:
        return [SemanticEdit(" ".join(removed), -SemanticEdit.scale)]
    raise EditingError("Both prompts have the same words; write what shall change into the target prompt.")


def size_for(model: EditModel, wanted: int | None) -> int:
    """Side in pixels that pictures are edited at.

    Raises:
        EditingError: no multiple of 8.
    """
    size = wanted or model.native_size
    if size <= 0 or size % 8:
        raise EditingError(f"--size is {size}; use a multiple of 8.")
    return size


def peak_megabytes() -> float:
    """The most memory that this process had, in MB."""
    import resource
    import sys

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1024**2 if sys.platform == "darwin" else 1024)
