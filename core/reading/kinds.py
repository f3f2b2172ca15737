"""How large each kind of file may be and what its texts must say: the one table that every loader looks into.

Bounds are far above any file that a person has and far below what fills a machine. What is declared *inside* a file is
never believed: it is compared with the file's own length before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import EditingError
from ..file_names import shown_name
from .forms import Form, digits, either, facts, flag, listed, mapped, maybe, number, one_of, table, text, whole

MIB, GIB = 2**20, 2**30
#: The part of a file that describes its tensors.
LARGEST_HEADER = 16 * MIB
#: Of a picture's side, for whatever network.
LARGEST_SIDE = 4096
#: Characters of a prompt that is kept with its tokens.
LONGEST_PROMPT = 100_000


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        title: what people call it.
        largest: bytes.
        tensors: how many it may hold.
        json: what the JSON texts in its metadata, or the JSON file itself (under ""), must look like.
        texts: what the plain texts in its metadata must look like, where they are there.
    """

    title: str
    largest: int
    tensors: int = 10_000
    json: Mapping[str, Form] = field(default_factory=dict)
    texts: Mapping[str, Form] = field(default_factory=dict)


_names = listed(text(), 1, 100_000)
_colours = listed(number(-1e6, 1e6), 3, 3)
_positive = listed(number(1e-6, 1e6), 3, 3)
_side = whole(1, LARGEST_SIDE)
_identity = table(
    {
        "family": text(),
        "latent_channels": whole(1, 4096),
        "prediction": one_of(("eps", "v", "flow")),
        "signature": listed(number(), 0, 1024),
    },
    {
        "patches": text(),
        "patch_names": listed(text(), 0, 64),
        "latent_format": text(),
        "file": text(),
    },
)
_made_from = table(
    {
        "cfg": number(),
        "sampler": text(),
        "prompt": text(),
        "negative": text(),
        "batch_index": listed(whole(0, 2**31), 0, 65_536),
    }
)
_blocks = listed(listed(whole(-(2**48), 2**31), 1, 1024), 1, 2048)
_words = table({"text": text(LONGEST_PROMPT), "tokens": mapped(_blocks, 1, 4)})
_progress = table(
    {
        "step": whole(0, 10_000_000),
        "smoothed": number(),
        "best_step": whole(-1, 10_000_000),
        "best_score": maybe(number()),
    }
)
_region_shape = table({"channels": whole(1, 65_536), "slots": whole(1, 4096), "bins": whole(1, 64), "vision": text()})
_stylegan2_shape = table(
    {
        "size": whole(8, LARGEST_SIDE),
        "channels": mapped(whole(1, 65_536), 2, 16, digits(4, LARGEST_SIDE)),
        "style_dim": whole(1, 65_536),
        "mapping_layers": whole(0, 64),
        "clamp": maybe(number(0, 1e6)),
    },
)
_width = whole(1, 65_536)
_encoder_shape = table(
    {
        "kind": one_of(("compact", "e4e", "psp")),
        "rows": whole(1, 64),
        "style_dim": _width,
        "side": whole(16, LARGEST_SIDE),
    },
    {
        "widths": listed(_width, 1, 8),
        "hidden": _width,
        "differing": flag,
        "stages": listed(listed(_width, 2, 2), 4, 4),
    },
)
#: ``(resolution, channels)`` of each layer of a StyleGAN2.
_style_layers = listed(listed(whole(1, 65_536), 2, 2), 1, 64)
_style_layout = table({"convs": _style_layers, "rgbs": _style_layers})
_unet_shape = table(
    {
        "size": _side,
        "fold": whole(1, 64),
        "width": whole(1, 4096),
        "multipliers": listed(whole(1, 64), 1, 10),
        "blocks": whole(1, 8),
        "attention": listed(whole(1, 128), 0, 10),  # every place of such a map is compared with every other
        "dropout": number(0, 0.99),
        "embedding": whole(1, 8192),
        "coarse": whole(0, LARGEST_SIDE),
        "medium": whole(0, LARGEST_SIDE),
        "places": flag,
        "prediction": one_of(("eps", "v")),
    }
)
_mapper_shape = table(
    {
        "levels": listed(listed(whole(1, 65_536), 1, 64), 3, 3),
        "clip_width": whole(1, 65_536),
        "architecture": one_of(("flat", "released")),
        "hidden": whole(1, 65_536),
        "across_channels": flag,
    },
    {"preprocessing": one_of(("own", "deltaedit"))},
)
_relevance_kind = one_of(("perturbation", "covariance", "both", "released"))
_rows = listed(text(), 0, 1_000_000)
_mapper_progress = table(
    {
        "step": whole(0, 10_000_000),
        "best_step": whole(-1, 10_000_000),
        "best_score": maybe(number()),
        "validations": listed(listed(number(), 4, 4), 0, 1_000_000),
    }
)
_editor_shape = table({"fold": whole(1, 16), "widths": listed(whole(8, 1024), 1, 6), "blocks": whole(1, 4)})
_distillation_progress = table(
    {
        "step": whole(0, 10_000_000),
        "best_step": whole(-1, 10_000_000),
        "best_score": maybe(number()),
        "validations": listed(listed(number(), 3, 3), 0, 1_000_000),
    }
)
_caption = either(text(), listed(text(), 1, 100))
_pieces = listed(listed(either(text(), number()), 2, 2), 1, 1_000_000)  # of a Unigram tokenizer, with their scores
_tokenizer = table(
    {"model": table({"vocab": either(mapped(whole(0, 1_000_000), 1, 1_000_000), _pieces)})},
)

KINDS: dict[str, Kind] = {
    # Files of this pack
    "inversion": Kind(
        "inversion",
        4 * GIB,
        64,
        {"identity": _identity, "info": facts, "made_from": _made_from, "words": _words},
        {"method": text(), "base_model": text()},
    ),
    "edit direction": Kind(
        "edit direction",
        512 * MIB,
        16,
        texts={
            "sentences": digits(0, 100_000_000),
            "base_model": text(),
            "source": text(100_000),
            "target": text(100_000),
        },
    ),
    # Inside a LoRA there may be embeddings, too
    "embedding": Kind(
        "embedding",
        4 * GIB,
        json={"info": facts},
        texts={"base_model": text(), "attribute": text(), "target": text(), "method": text()},
    ),
    "training": Kind("state of a training", GIB, 200, {"run": facts, "progress": _progress}),
    "classifier": Kind(
        "classifier",
        4 * GIB,
        json={
            "heads": mapped(_names, 1, 10_000),
            "classes": either(_names, mapped(_names, 1, 10_000)),
            "size": listed(_side, 2, 2),
            "mean": _colours,
            "std": _positive,
            "architecture": table({"kind": text()}),
        },
        texts={"interpolation": one_of(("bilinear", "bicubic")), "size": text(40)},
    ),
    "region network": Kind("region network", 256 * MIB, 64, {"shape": _region_shape}),
    "stylegan2": Kind("StyleGAN2 generator", 4 * GIB, json={"shape": _stylegan2_shape}),
    # e4e's published file holds its generator, too: 1.2 GB; a training's with a discriminator and moments twice that
    "style encoder": Kind("style encoder", 4 * GIB, json={"shape": _encoder_shape}),
    "style diffusion": Kind(
        "style diffusion",
        4 * GIB,
        json={"shape": _unet_shape, "layout": _style_layout, "facts": facts},
        texts={"generator": text()},
    ),
    "style diffusion training": Kind(
        "state of a style diffusion's training", 32 * GIB, json={"run": facts, "progress": _progress}
    ),
    "delta mapper": Kind(
        "Delta Mapper",
        4 * GIB,
        128,
        {"shape": _mapper_shape, "layout": _style_layout, "facts": mapped(text(), 0, 100)},
        {"generator": text(), "clip": text(), "relevance_kind": _relevance_kind},
    ),
    # A mapper's file holds one, too
    "relevance matrix": Kind(
        "relevance matrix",
        4 * GIB,
        128,
        texts={"generator": text(), "clip": text(), "kind": _relevance_kind, "relevance_kind": _relevance_kind},
    ),
    "delta latents": Kind(
        "file of DeltaEdit latents",
        64 * GIB,
        8,
        {
            "layout": _style_layout,
            "names": _rows,
            "skipped": _rows,
            "truncation": number(0, 1),
        },
        {"generator": text(), "clip": text(), "encoder": text()},
    ),
    "mapper training": Kind(
        "state of a mapper's training", 8 * GIB, 2000, {"run": facts, "progress": _mapper_progress}
    ),
    "relevance probing": Kind("state of a relevance matrix", GIB, 4, {"run": facts, "done": whole(0, 1_000_000)}),
    "distilled edit": Kind(
        "distilled edit",
        GIB,
        1000,
        {"shape": _editor_shape, "facts": mapped(text(), 0, 100)},
        {"version": text(20), "side": digits(0, LARGEST_SIDE), "source": text(), "target": text()},
    ),
    "distillation training": Kind(
        "state of a distillation", 8 * GIB, 6000, {"run": facts, "progress": _distillation_progress}
    ),
    # Networks of other programs
    "network": Kind("network", 32 * GIB),
    "ELITE mapper": Kind("ELITE mapper", GIB, 1000),
    "perceptual network": Kind("network of LPIPS", GIB),
    "face network": Kind("face recognition network", GIB),
    "checkpoint": Kind("checkpoint", 64 * GIB),
    # JSON files beside networks
    "configuration": Kind("configuration", 4 * MIB, json={"": facts}),
    "pipeline": Kind("list of a model's parts", 4 * MIB, json={"": table({"_class_name": text(100)})}),
    "tokenizer": Kind("tokenizer", 64 * MIB, json={"": _tokenizer}),
    "vocabulary": Kind("vocabulary", 32 * MIB, json={"": mapped(whole(0, 1_000_000), 1, 1_000_000)}),
    "words": Kind("list of words", MIB, json={"": listed(whole(0, 1_000_000), 1, 10_000)}),
    "merges": Kind("list of byte pairs", 32 * MIB),
    "word pieces": Kind("list of word pieces", 32 * MIB),
    # Twice what the most pixels that are read (core/images/files.py) take uncompressed
    "picture": Kind("picture", 512 * MIB),
    "caption": Kind("caption", MIB),
    "captions": Kind("list of captions", 256 * MIB, json={"": mapped(_caption, 1, 1_000_000)}),
    "PIE-Bench": Kind("listing of PIE-Bench", 64 * MIB, json={"": facts}),
}


def check_size(source: Path, kind: str) -> int:
    """Bytes of a file.

    Raises:
        EditingError: there is no such file, or it is larger than any of its kind.
    """
    if not source.is_file():
        raise EditingError(f"{shown_name(source.name)} was not found; check the file name and folder.")
    size, known = source.stat().st_size, KINDS[kind]
    if size > known.largest:
        limit = f"{known.largest // GIB} GiB" if known.largest >= GIB else f"{known.largest // MIB} MiB"
        raise EditingError(
            f"{shown_name(source.name)} is larger than {limit}, which no {known.title} is; choose another file."
        )
    return size
