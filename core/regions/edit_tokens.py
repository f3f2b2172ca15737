"""Repainting a box with a masked token transformer (MaskGIT, Chang et al. 2022, arXiv 2202.04200; aMUSEd, arXiv
2401.01808).

The paper's second engine: the picture becomes a grid of codebook tokens, those the box touches are forgotten and
predicted again in a few parallel rounds. Such models know boxes only, no finer masks. diffusers and transformers are
imported on first use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..content_hash import fingerprint
from ..denoiser import Callback, Evaluations, Progress, check_finite
from ..errors import EditingError
from ..models.model_folder import (
    load_clip_tokenizer,
    load_diffusers,
    load_scheduler,
    load_text_encoder,
    read_index,
)
from ..prints.weights import WeightPrint, weight_print
from ..token_vectors import warn_of_cut
from .paste import Framing, paste, repainted_cells

PIPELINES = ("AmusedPipeline", "AmusedInpaintPipeline", "AmusedImg2ImgPipeline")
AESTHETIC_SCORE = 6  # aMUSEd's size conditioning ends with it; its pipelines' default


@dataclass(eq=False)
class TokenModel:
    """The parts of an aMUSEd model: diffusers' ``VQModel``, ``UVit2DModel`` and ``AmusedScheduler``, and CLIP's text
    side.

    The scheduler gives the id of the mask token; its schedule is replaced by the linear one that diffusers inpaints
    with.
    """

    vqvae: Any
    transformer: Any
    scheduler: Any
    text_encoder: Any
    tokenizer: Any
    evaluations: Evaluations = field(default_factory=Evaluations)

    def __post_init__(self) -> None:
        for network in (self.vqvae, self.transformer, self.text_encoder):
            network.eval().requires_grad_(False)
        if not self.vqvae.config.lookup_from_codebook:
            raise EditingError("This VQ model does not decode from its codebook; use the vqvae of an aMUSEd model.")

    @property
    def patch(self) -> int:
        """Pixels per token."""
        return int(2 ** (len(self.vqvae.config.block_out_channels) - 1))

    @property
    def multiple(self) -> int:
        """What the sides of a picture must be multiples of: the transformer may halve the grid of tokens."""
        return self.patch * (2 if self.transformer.config.downsample else 1)

    @property
    def native_size(self) -> int:
        """Side in pixels of the pictures it was trained on."""
        return int(self.transformer.config.sample_size) * self.patch

    def weights(self) -> WeightPrint:
        """Tells these networks from others of the same shapes."""
        networks = (self.vqvae, self.transformer, self.text_encoder)
        return weight_print(parameter for network in networks for parameter in network.parameters())

    def encode_text(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts -> pooled ``[B, P]`` and the last but one layer's states ``[B, L, D]``; warns of texts that it cuts."""
        length = self.tokenizer.model_max_length
        read = self.tokenizer(
            list(texts), return_tensors="pt", padding="max_length", truncation=True, max_length=length
        )
        warn_of_cut(texts, read.attention_mask.sum(1).tolist(), length)
        output = self.text_encoder(read.input_ids.to(self.text_encoder.device), output_hidden_states=True)
        return output.text_embeds, output.hidden_states[-2]

    def encode(self, image: Tensor) -> Tensor:
        """``image [1, 3, h, w]`` in 0..1 -> tokens ``[1, h / patch, w / patch]``."""
        latent = self.vqvae.encode(image.to(self.vqvae.device, self.vqvae.dtype)).latents
        tokens: Tensor = self.vqvae.quantize(latent)[2][2]
        return tokens.reshape(1, *latent.shape[-2:])

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens ``[1, h, w]`` -> image ``[1, 3, h * patch, w * patch]`` in 0..1."""
        shape = (1, *tokens.shape[-2:], self.vqvae.config.latent_channels)
        image: Tensor = self.vqvae.decode(tokens, force_not_quantize=True, shape=shape).sample
        return image.float().clamp(0, 1)

    def repaint(
        self,
        tokens: Tensor,
        cells: Tensor,
        text: tuple[Tensor, Tensor],
        *,
        cfg: float = 10.0,
        steps: int = 12,
        temperature: tuple[float, float] = (2.0, 0.0),
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Predict the tokens of ``cells`` anew from all others and the text, in ``steps`` rounds: ``[1, h, w]``.

        Each round samples every forgotten token and forgets the least certain again (MaskGIT, section 3.2), fewer every
        time; diffusers' ``AmusedScheduler`` decides. Tokens outside ``cells`` stay as they are.

        Args:
            tokens: ``[1, h, w]``, long.
            cells: ``[1, h, w]``, bool, True where to predict.
            text: of :meth:`encode_text`, two rows (negative, target), or the target alone when cfg is 1.
            cfg: guidance scale on the logits; 1 is off.
            temperature: of the noise on the certainty, first and last round.
            callback: told after each round, with the tokens as the current result; an exception it raises ends the run.

        Raises:
            EditingError: a grid of one token, a prediction that is not a number.
        """
        if tokens.numel() < 2:
            raise EditingError(
                "The crop is one token, which leaves nothing to predict it from; use more context or a larger "
                "working_size."
            )
        # A new scheduler each time: it keeps the schedule of a run, and renders must not share it.
        scheduler = type(self.scheduler)(mask_token_id=self.scheduler.config.mask_token_id, masking_schedule="linear")
        scheduler.set_timesteps(steps, temperature, tokens.device)
        pooled, states = text
        height, width = (side * self.patch for side in tokens.shape[-2:])
        micro = torch.tensor([[width, height, 0, 0, AESTHETIC_SCORE]], device=states.device, dtype=states.dtype).expand(
            len(states), -1
        )
        known, tokens = tokens, tokens.masked_fill(cells, scheduler.config.mask_token_id)
        share = cells.sum() / cells.numel()
        for number, timestep in enumerate(scheduler.timesteps):
            rows = tokens.expand(len(states), -1, -1)
            logits = self.transformer(rows, micro_conds=micro, pooled_text_emb=pooled, encoder_hidden_states=states)
            self.evaluations.forward += len(rows)
            check_finite(logits, f"The prediction at step {number + 1}")
            if len(states) == 2:
                negative, positive = logits.chunk(2)
                logits = negative + cfg * (positive - negative)
            tokens = scheduler.step(
                logits, timestep, tokens, starting_mask_ratio=share, generator=generator
            ).prev_sample
            if callback is not None:
                callback(Progress(number, steps, 0, 1, tokens))
        return torch.where(cells, tokens, known)


@dataclass(frozen=True)
class TokenEditSettings:
    """How boxes are filled with tokens.

    Attributes:
        cfg: guidance scale; 1 is off and costs half.
        steps: rounds of a render.
        framing: None is the model's own size with half the box as context.

    Raises:
        EditingError: steps below 1, cfg below 1.
    """

    cfg: float = 10.0
    steps: int = 12
    framing: Framing | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise EditingError(f"steps is {self.steps}; use 1 or more.")
        if not self.cfg >= 1:
            raise EditingError(f"cfg is {self.cfg:g}; use 1 (off) or more, usually 10.")


@dataclass(eq=False)
class TokenEditor:
    """Fills a box by masked tokens: cut out with some context, predicted, pasted back (:class:`~.paste.Framing`).

    Every token that the box touches is predicted anew; of the mask only the paste takes notice.

    Attributes:
        text, negative: target text and what to steer away from.
        settings: see :class:`TokenEditSettings`.
        label, callback: see :class:`~.edit_inpaint.InpaintEditor`.
        load: called before each render, for a host that moves the model to its device.

    Raises:
        EditingError: no text, a frame that does not fit the model.
    """

    model: TokenModel
    text: str
    negative: str = ""
    settings: TokenEditSettings = field(default_factory=TokenEditSettings)
    label: str = ""
    callback: Callback | None = None
    load: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise EditingError("The target text is empty; say what the box should show.")
        self._frame = self.settings.framing or Framing(
            multiple=self.model.multiple, working_size=self.model.native_size
        )
        if self._frame.multiple % self.model.multiple:
            raise EditingError(
                f"The frame's multiple is {self._frame.multiple}; this model needs a multiple of "
                f"{self.model.multiple} pixels."
            )

    @cached_property
    def identity(self) -> str:
        """Key of everything but the image, mask, box and seed that decides the picture."""
        settings = (self.text, self.negative, self.settings, self._frame, self.label)
        return f"tokens/{fingerprint(self.model.weights(), settings)}"

    @cached_property
    def _encoded_text(self) -> tuple[Tensor, Tensor]:
        return self.model.encode_text([self.text] if self.settings.cfg == 1.0 else [self.negative, self.text])

    def cost(self) -> int:
        """Network evaluations (u) of one render: passes of the transformer."""
        return self.settings.steps * (1 if self.settings.cfg == 1.0 else 2)

    @torch.inference_mode(False)
    @torch.no_grad()
    def render(self, image: Tensor, mask: Tensor, box: Sequence[int], *, seed: int) -> Tensor:
        """The image ``[1, 3, H, W]`` with the box repainted, bit-equal outside it; a normal tensor without gradients.

        Args:
            image, mask, box: see :meth:`~.paste.Framing.cut`.
            seed: of the sampled tokens; the same seed gives the same picture.

        Raises:
            EditingError: see :meth:`~.paste.Framing.cut`, :func:`~.paste.paste` and :meth:`TokenModel.repaint`.
        """
        if self.load is not None:
            self.load()
        cut = self._frame.cut(image, mask, box)
        (x, y, width, height), (left, top, window_width, window_height) = map(int, box), cut.window
        whole = torch.zeros(1, window_height, window_width)
        whole[:, y - top : y - top + height, x - left : x - left + width] = 1
        tokens = self.model.encode(cut.pixels)
        cells = repainted_cells(whole, (tokens.shape[-2], tokens.shape[-1]))[0].bool().to(tokens.device)
        generator = torch.Generator().manual_seed(seed)
        painted = self.model.repaint(
            tokens,
            cells,
            self._encoded_text,
            cfg=self.settings.cfg,
            steps=self.settings.steps,
            generator=generator,
            callback=self.callback,
        )
        return paste(image, self.model.decode(painted), cut)


def load_token_model(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> TokenModel:
    """Load aMUSEd from a local diffusers folder; nothing is downloaded.

    Args:
        dtype: of the transformer and the text encoder; the VQ model stays in fp32, which it needs.

    Raises:
        EditingError: no such folder, another family of models, damaged parts, or diffusers or transformers not
            installed.
    """
    source = Path(folder)
    kind, name = read_index(source)["_class_name"], source.name
    if kind not in PIPELINES:
        raise EditingError(f"{name} is a {kind}; the token editor needs an aMUSEd model.")
    vqvae = load_diffusers(source / "vqvae", "VQModel", name)
    transformer = load_diffusers(source / "transformer", "UVit2DModel", name)
    scheduler = load_scheduler(source / "scheduler", "AmusedScheduler", name)
    text_encoder = load_text_encoder(source / "text_encoder", "CLIPTextModelWithProjection", name)
    tokenizer = load_clip_tokenizer(source / "tokenizer", name)
    networks: list[tuple[Any, torch.dtype]] = [(vqvae, torch.float32), (transformer, dtype), (text_encoder, dtype)]
    for network, precision in networks:
        network.to(device=device, dtype=precision)
    return TokenModel(vqvae, transformer, scheduler, text_encoder, tokenizer)
