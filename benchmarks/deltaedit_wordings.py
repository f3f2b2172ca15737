"""DeltaEdit on the demo world asked in other words, and with other strengths: what becomes of the same edits.

    python benchmarks/deltaedit_wordings.py

The codes, the judge and the figures are those of deltaedit_quality.py, the edit is the node's default. The mapper saw
no text at all in training; the demo's CLIP saw captions of few patterns, so that a wording can be new in three ways:
other words of its captions, its words in sentences that no caption is, and words that it never saw. Strengths go in
steps from the unedited code on; Style Code Mix between the code and its edit is the same way.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from semantic_editing.benchmarks.deltaedit_quality import EDITS, SENTENCE, STYLE, Faces, faces, figures, shown
from semantic_editing.core.deltaedit.edit import Differences, EditSettings, delta_edit
from semantic_editing.core.deltaedit.encoder_files import load_encoder
from semantic_editing.core.deltaedit.generator_files import load_generator
from semantic_editing.core.deltaedit.mapper import DeltaMapper
from semantic_editing.core.deltaedit.mapper_files import load_mapper
from semantic_editing.core.deltaedit.style_code import StyleCode
from semantic_editing.core.demo.data import FOLDER, PHRASES, DemoData
from semantic_editing.core.demo.model import DemoModel, load_demo_model

#: How an edit is worded -> source and target text of each edit.
WORDINGS: dict[str, dict[str, tuple[str, str]]] = {
    "the paper's way, nothing named in the source": {
        "glasses: none to glasses": ("face", "face with glasses"),
        "facial hair: none to beard": ("face", "face with a beard"),
        "mouth: sad to smile": ("face", "face with a smile"),
        "hair color: black to red": ("face", "face with red hair"),
        "background: blue to green": ("face", "face with green background"),
    },
    "other words of the captions": {
        "glasses: none to glasses": ("a cartoon face, no glasses", "a cartoon face, with eyeglasses"),
        "facial hair: none to beard": ("a cartoon face, no beard", "a cartoon face, bearded"),
        "mouth: sad to smile": ("a cartoon face, with a sad face", "a cartoon face, happy face"),
        "hair color: black to red": ("a cartoon face, black bob haircut", "a cartoon face, red bob haircut"),
        "background: blue to green": ("a face, in front of a blue wall", "a face, in front of a green wall"),
    },
    "sentences that no caption is": {
        "glasses: none to glasses": ("the man is not wearing glasses", "the man is wearing big glasses"),
        "facial hair: none to beard": ("the man is without a beard", "the man is very bearded"),
        "mouth: sad to smile": ("a photo of a very sad girl", "a photo of a happy girl, smiling"),
        "hair color: black to red": ("a young woman, and the hair is black", "a young woman, and the hair is red"),
        "background: blue to green": ("people at a blue wall", "people at a green wall"),
    },
    "words that the demo's CLIP never saw": {
        "glasses: none to glasses": ("somebody", "somebody with spectacles"),
        "facial hair: none to beard": ("somebody shaved", "somebody with whiskers"),
        "mouth: sad to smile": ("somebody gloomy", "somebody grinning"),
        "hair color: black to red": ("somebody raven-haired", "somebody ginger"),
        "background: blue to green": ("an azure backdrop", "an emerald backdrop"),
    },
}  # fmt: skip
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def shipped_texts(edit: str, data: DemoData) -> tuple[str, str]:
    """Source and target text as the workflows have them."""
    pair = data.pairs_of(edit)[0]
    phrases = PHRASES[pair.attribute]
    return SENTENCE.format(phrases[pair.before]), SENTENCE.format(phrases[pair.after])


def edited(mapper: DeltaMapper, of: Faces, difference: Tensor, strength: float = 1.0) -> StyleCode:
    """The faces' codes after an edit at the node's defaults."""
    wanted = Differences(["edit"], difference)
    settings = replace(EditSettings(), strength=strength)
    return delta_edit(mapper, of.code, of.features, wanted, settings, clip=mapper.clip).code


def cell(demo: DemoModel, made: Tensor, of: Faces) -> str:
    """Success / others kept, in per cent / PSNR to the truth in dB, mean and worst."""
    found = figures(demo, made, of)
    return (
        f"{100 * found['success'].nanmean():.0f} / {100 * found['kept'].mean():.0f} / {found['psnr'].mean():.1f} "
        f"({found['psnr'].min():.1f})"
    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--style", type=Path, default=STYLE, help="folder of generator, encoder and mapper")
    parser.add_argument("--data", type=Path, default=FOLDER / "unseen")
    parser.add_argument("--edits", nargs="+", default=list(EDITS), choices=EDITS)
    parser.add_argument("--pairs", type=int, default=40, help="at most so many of each edit")
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = load_generator(options.style / "generator.safetensors").eval()
    encoder = load_encoder(options.style / "encoder.safetensors", generator.layout.rows, generator.style_dim)
    mapper = load_mapper(options.style / "mapper.safetensors")
    demo, data = load_demo_model(), DemoData(options.data)
    with torch.inference_mode():
        sets = {edit: faces(demo, generator, encoder, data.pairs_of(edit)[: options.pairs]) for edit in options.edits}
        counts = [
            f"{edit} (n {len(of.pairs)}, {int(figures(demo, of.rebuilt, of)['success'].isfinite().sum())} read)"
            for edit, of in sets.items()
        ]
        head = f"{' | '.join(counts)} |\n|{'---|' * (len(sets) + 1)}"
        print(f"| wording | {head}")
        shipped = {edit: shipped_texts(edit, data) for edit in sets}
        for name, texts in {"as the workflows have them": shipped, **WORDINGS}.items():
            cells = []
            for edit, of in sets.items():
                source, target = demo.text_features(texts[edit])
                cells.append(cell(demo, shown(generator, edited(mapper, of, (target - source)[None])), of))
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
        print(f"\n| strength | {head}")
        for strength in STRENGTHS:
            made = (shown(generator, edited(mapper, of, of.texts, strength)) for of in sets.values())
            cells = [cell(demo, pictures, of) for pictures, of in zip(made, sets.values(), strict=True)]
            print(f"| {strength:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
