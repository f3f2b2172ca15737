"""A local text model that goes on with a prompt: GPT-2 and T5 through transformers, from a folder.

pix2pix-zero has GPT-3 or FLAN-T5 write the sentences of a direction. Only the network is transformers'; the words are
drawn here, from a generator on the CPU, so that a seed means the same on every device.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..denoiser import check_finite
from ..errors import EditingError
from ..files import load_json
from ..reading.libraries import library
from .model_folder import load_transformers, read_config, refusing
from .model_settings import transformers_settings

#: transformers' text models by model type: class, whether an encoder reads the prompt, and the token that ends a text.
WRITERS = {"gpt2": ("GPT2LMHeadModel", False, 50256), "t5": ("T5ForConditionalGeneration", True, 1)}
LONGEST_PROMPT = 400  # tokens
#: How words are drawn: among so many of the likeliest, and with how little daring.
LIKELIEST, TEMPERATURE = 50, 0.9


REMEDY = "download the model again with its tokenizer files"


class TextGenerator(nn.Module):
    """A frozen text model with its tokenizer.

    Args:
        network: transformers' ``...LMHeadModel`` or ``...ForConditionalGeneration``.
        tokenizer: a ``tokenizers.Tokenizer``.
        reads: an encoder reads the prompt; else the text goes on behind it.
        end: token id that ends a text.
        name: for people.
    """

    def __init__(self, network: Any, tokenizer: Any, reads: bool, end: int, name: str):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.tokenizer, self.reads, self.end, self.name = tokenizer, reads, end, name

    @torch.no_grad()
    def write(
        self,
        prompt: str,
        count: int,
        seed: int = 0,
        longest: int = 30,
        batch_size: int = 16,
        callback: Callable[[], None] | None = None,
    ) -> list[str]:
        """``count`` continuations of ``prompt``; the same for the same seed and batch size.

        Args:
            longest: tokens of each at most.
            callback: called before each token; an exception it raises ends the run.

        Raises:
            EditingError: a prompt without words or too long, or a network that fails on it.
        """
        with tokenizing(self.name):
            ids = list(self.tokenizer.encode(prompt).ids)
        if not ids or not prompt.strip():
            raise EditingError("The prompt of the text model holds no words; write what it shall write about.")
        if len(ids) > LONGEST_PROMPT:
            raise EditingError(
                f"The prompt of the text model has {len(ids)} tokens; use at most {LONGEST_PROMPT}, about as many "
                "words."
            )
        generator = torch.Generator().manual_seed(seed)
        texts: list[str] = []
        while len(texts) < count:
            rows = min(batch_size, count - len(texts))
            for row in self._tokens(ids, rows, longest, generator, callback):
                kept = row[: row.index(self.end)] if self.end in row else row
                with tokenizing(self.name):
                    texts.append(str(self.tokenizer.decode(kept, skip_special_tokens=True)))
        return texts

    def _tokens(
        self,
        prompt: list[int],
        rows: int,
        longest: int,
        generator: torch.Generator,
        callback: Callable[[], None] | None,
    ) -> list[list[int]]:
        """What is written behind the prompt, ``rows`` times at once."""
        device = next(self.network.parameters()).device
        given = torch.tensor([prompt] * rows, device=device)
        read: dict[str, Any] = {}
        key, step = "input_ids", given
        if self.reads:
            with self._failing():
                read["encoder_outputs"] = self.network.get_encoder()(input_ids=given)
            key = "decoder_input_ids"
            step = given.new_full((rows, 1), self.network.config.decoder_start_token_id or 0)
        past, drawn = None, torch.zeros(rows, 0, dtype=torch.long)
        while drawn.shape[1] < longest and not bool((drawn == self.end).any(1).all()):
            if callback is not None:
                callback()
            with self._failing():
                out = self.network(**{key: step}, **read, past_key_values=past, use_cache=True)
            past, scores = out.past_key_values, out.logits[:, -1].float().cpu()
            check_finite(scores, f"What {self.name} predicts")
            drawn = torch.cat([drawn, drawn_from(scores, generator)], 1)
            step = drawn[:, -1:].to(device)
        return drawn.tolist()

    def _failing(self) -> Any:
        return refusing(f"{self.name} cannot write; download the whole model again.", "transformers")


def drawn_from(scores: Tensor, generator: torch.Generator) -> Tensor:
    """One token ``[B, 1]`` of each row of ``scores [B, V]``, by its probability among the likeliest."""
    best, tokens = scores.topk(min(LIKELIEST, scores.shape[1]))
    return tokens.gather(1, torch.multinomial((best / TEMPERATURE).softmax(1), 1, generator=generator))


def load_text_generator(folder: str | Path) -> TextGenerator:
    """Load a GPT-2 or T5 folder that ``save_pretrained`` wrote, on the CPU in fp32; weights in safetensors only.

    Raises:
        EditingError: no such folder, another kind of network, weights missing or pickled, no ``tokenizer.json``, or no
            transformers.
    """
    source = Path(folder)
    config = read_config(source, source.name)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in WRITERS:
        raise EditingError(
            f"{source.name} holds a {str(kind)[:80]} network; use a text model of kind {' or '.join(WRITERS)}."
        )
    class_name, reads, end = WRITERS[kind]
    settings = transformers_settings(config, source.name, ())
    tokenizer = _tokenizer(source)
    network = load_transformers(source, class_name, settings, source.name).float()
    own = settings.get("eos_token_id")
    return TextGenerator(network, tokenizer, reads, end if own is None else own, source.name)


@contextmanager
def tokenizing(name: str) -> Iterator[None]:
    """Whatever the tokenizer's library raises inside becomes a sentence; its panics are no ``Exception``."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise EditingError(f"{name} has a damaged tokenizer.json; {REMEDY}.") from error


def _tokenizer(folder: Path) -> Any:
    if not (folder / "tokenizer.json").is_file():
        raise EditingError(f"{folder.name} has no tokenizer.json; {REMEDY}.")
    listed = load_json(folder / "tokenizer.json", "tokenizer", folder.name, REMEDY)
    tokenizers = library("tokenizers", folder.name, "Tokenizer")
    with tokenizing(folder.name):
        return tokenizers.Tokenizer.from_str(json.dumps(listed))
