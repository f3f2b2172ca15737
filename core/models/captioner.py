"""What a picture shows, in words: BLIP (Li et al., arXiv 2201.12086) and BLIP-2 with OPT or T5 (arXiv 2301.12597)
through transformers, from a local folder.

pix2pix-zero inverts a photo with BLIP's caption of it. Only the network is transformers'; its tokens are put together
to words here, from the list of pieces alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..denoiser import check_finite
from ..errors import EditingError
from ..files import load_json, load_text
from .clip import CLIP_NORMALISATION
from .model_folder import load_transformers, read_config, refusing
from .model_settings import numbers_in, transformers_settings
from .transformers_files import PREPROCESSORS, Preparation, input_of, preprocessor

#: transformers' captioners by model type: class, and the parts that its configuration has.
CAPTIONERS = {
    "blip": ("BlipForConditionalGeneration", ("text_config", "vision_config")),
    "blip-2": ("Blip2ForConditionalGeneration", ("text_config", "vision_config", "qformer_config")),
}
#: Side in pixels of the pictures that each sees, where its configuration does not say.
SIDES = {"blip": 384, "blip-2": 224}
#: Language models of BLIP-2 that are read.
LANGUAGE_MODELS = ("opt", "t5")
LONGEST = 75  # tokens of a caption, the most that a text encoder of Stable Diffusion takes
MOST_BEAMS = 16


class ImageCaptioner(nn.Module):
    """A frozen captioner for images of any size.

    Args:
        network: transformers' ``...ForConditionalGeneration``.
        size: ``(h, w)`` in pixels of what it sees.
        mean, std: normalisation of images in 0..1.
        interpolation: how images are resized.
        pieces: token id -> piece of a word, as the model's tokenizer writes it.
        in_bytes: pieces are GPT-2's (bytes as characters), else BERT's ("##" goes on with a word).
        name: for people.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: Any,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str,
        pieces: dict[int, str],
        in_bytes: bool,
        name: str,
    ):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.size, self.interpolation = size, interpolation
        self.pieces, self.in_bytes, self.name = pieces, in_bytes, name
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1), persistent=False)

    @torch.no_grad()
    def caption(
        self, images: Tensor, longest: int = 30, beams: int = 3, callback: Callable[[], None] | None = None
    ) -> list[str]:
        """What each of ``images [B, 3, H, W]`` in 0..1 shows; the same words every time.

        Args:
            longest: tokens of a caption, 1..75.
            beams: captions that are followed side by side, 1..16; more find a likelier one, slower.
            callback: called after each token; an exception it raises ends the run.

        Raises:
            EditingError: not that shape, values out of range, or a network that fails on them.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise EditingError(f"The images have shape {list(images.shape)}; use [batch, 3, height, width] in 0..1.")
        if not 1 <= longest <= LONGEST:
            raise EditingError(f"The longest caption is {longest} tokens; use 1 to {LONGEST}.")
        if not 1 <= beams <= MOST_BEAMS:
            raise EditingError(f"The number of beams is {beams}; use 1 to {MOST_BEAMS}.")
        check_finite(images, "The picture")
        weight = next(self.network.parameters())
        given = images.to(weight.device).float()
        seen = functional.interpolate(given, self.size, mode=self.interpolation, antialias=True)
        pixels = (seen.clamp(0, 1) - self.mean.to(seen)) / self.std.to(seen)
        stopped: list[BaseException] = []

        def after_token(ids: Tensor, scores: Any, **_: Any) -> Tensor:
            try:
                if callback is not None and not stopped:
                    callback()
            except BaseException as error:  # raised again outside, where nothing takes it for the network's failure
                stopped.append(error)
            return torch.full((len(ids),), bool(stopped), device=ids.device)

        with refusing(f"{self.name} cannot describe pictures; download the whole model again.", "transformers"):
            ids = self.network.generate(
                pixel_values=pixels.to(weight.dtype),
                max_new_tokens=longest,
                num_beams=beams,
                do_sample=False,
                stopping_criteria=[after_token],
            )
        if stopped:
            raise stopped[0]
        return [self.words(row) for row in ids.tolist()]

    def words(self, ids: Sequence[int]) -> str:
        """The text of token ids; those that are no pieces of words say nothing."""
        pieces = [self.pieces[index] for index in ids if index in self.pieces]
        if self.in_bytes:
            kept = "".join(piece for piece in pieces if not re.fullmatch(r"<[^<>]+>", piece))
            text = bytes(BYTES[character] for character in kept if character in BYTES).decode("utf-8", "replace")
        else:
            kept = " ".join(piece for piece in pieces if not re.fullmatch(r"\[[^\[\]]+\]", piece)).replace(" ##", "")
            kept = re.sub(r" (['’]) (?=(s|t|re|ve|ll|d|m)\b)", r"\1", kept)
            text = re.sub(r" (['’.,!?;:%)])", r"\1", re.sub(r" - ", "-", kept))
        return " ".join(text.split())


def _bytes_of_characters() -> dict[str, int]:
    """GPT-2 writes the byte of a visible character as that character, and the others as those from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


BYTES = _bytes_of_characters()
_CHARACTERS = {byte: character for character, byte in BYTES.items()}
SPACE = "\u2581"  # SentencePiece's, at the beginning of a word


def load_captioner(folder: str | Path) -> ImageCaptioner:
    """Load a BLIP or BLIP-2 folder that ``save_pretrained`` wrote, on the CPU; weights in safetensors only.

    Raises:
        EditingError: no such folder, another kind of network, weights missing or pickled, no list of word pieces, or
            no transformers.
    """
    source = Path(folder)
    config = read_config(source, source.name)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CAPTIONERS:
        raise EditingError(
            f"{source.name} holds a {str(kind)[:80]} network; use a captioner of kind {' or '.join(CAPTIONERS)}."
        )
    class_name, parts = CAPTIONERS[kind]
    settings = transformers_settings(config, source.name, parts)
    if kind == "blip-2":
        given = config.get("text_config")
        language = given.get("model_type") if isinstance(given, dict) else None
        if language not in LANGUAGE_MODELS:
            raise EditingError(
                f"{source.name} writes with {str(language)[:80]}; use a BLIP-2 with {' or '.join(LANGUAGE_MODELS)}."
            )
        begins = {"bos_token_id": 1} if language == "t5" else {}  # BLIP-2 asks for one, which T5 itself has not
        settings["text_config"] = begins | settings["text_config"] | {"model_type": language}
    pieces = _pieces(source)
    (side, *_) = numbers_in(settings.get("vision_config", {}).get("image_size")) or [SIDES[kind]]
    mean_of_clip, std_of_clip = CLIP_NORMALISATION
    prepared: Preparation = (side, side), list(mean_of_clip), list(std_of_clip), "bicubic"
    if any((source / name).is_file() for name in PREPROCESSORS):
        prepared = input_of(preprocessor(source), config, source.name)
    (height, width), mean, std, interpolation = prepared
    if (height, width) != (side, side):  # the network has a table of positions for one size
        height = width = side
    network = load_transformers(source, class_name, settings, source.name).float()
    return ImageCaptioner(
        network, (height, width), mean, std, interpolation, pieces, in_bytes=kind == "blip-2", name=source.name
    )


def _pieces(folder: Path) -> dict[int, str]:
    """Token id -> piece, from whichever list of the tokenizer's is there; SentencePiece's (T5) as GPT-2 would write."""
    remedy = "download the model again with its tokenizer files"
    if (folder / "tokenizer.json").is_file():
        listed = load_json(folder / "tokenizer.json", "tokenizer", folder.name, remedy)["model"]["vocab"]
    elif (folder / "vocab.json").is_file():
        listed = load_json(folder / "vocab.json", "vocabulary", folder.name, remedy)
    elif (folder / "vocab.txt").is_file():
        lines = load_text(folder / "vocab.txt", "word pieces").split("\n")
        listed = {piece.rstrip("\r"): index for index, piece in enumerate(lines)}
    else:
        raise EditingError(f"{folder.name} has no tokenizer; {remedy}.")
    if isinstance(listed, list):
        in_bytes = (
            "".join(_CHARACTERS[byte] for byte in str(piece).replace(SPACE, " ").encode()) for piece, _ in listed
        )
        return dict(enumerate(in_bytes))
    return {index: piece for piece, index in listed.items() if piece}
