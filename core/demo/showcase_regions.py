"""Edits that find their own place in portraits: Learnable Regions' part of ``semantic-editing demo``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ..metrics.image import attributes_kept, psnr
from ..regions.edit_invert import InversionEditor, InversionEditSettings
from ..regions.picture import region_picture
from ..regions.words import edit_by_words
from .builders import demo_scorer, demo_vision_features
from .data import DemoPair
from .model import DemoModel
from .showcase_result import Showcase

#: Edit -> how many pairs after the one asked for: there it succeeds, chosen by eye.
EDITS = {"glasses: none to glasses": 5, "facial hair: none to beard": 4}
#: Found on the demo model; the model is small and follows its text strongly, so a low cfg and no guidance do.
STEPS, CFG = 12, 1.5
DRAWN = 256  # pixels of the drawn boxes on the sheet
SENTENCE = "a portrait of a person, {}"  # what CLIP reads, around the words of the edit


def demo_region_editor(demo: DemoModel, pair: DemoPair, steps: int = STEPS) -> InversionEditor:
    """The pack's own sampler along the picture's inversion, prompted by the captions of a demo pair."""
    with torch.no_grad():
        source, target = (demo.encode_text([caption]) for caption in (pair.source_caption, pair.target_caption))
    return InversionEditor(
        demo.denoiser(), demo.encode_image, demo.decode, source, target, settings=InversionEditSettings(CFG, 0.0, steps)
    )


def show_regions(demo: DemoModel, steps: int, number: int, result: Showcase) -> None:
    """In a portrait find the box of each of :data:`EDITS` and edit inside it.

    Args:
        steps: of a full render, at most :data:`STEPS`.
        number: which pair of each edit, as many further as :data:`EDITS` says.
    """
    features, scorer = demo_vision_features(demo), demo_scorer(demo)
    figures = result.measures["regions"] = {}
    for edit, further in EDITS.items():
        pairs = demo.pairs_of(edit)
        pair = pairs[(number + further) % len(pairs)]
        before, after = (SENTENCE.format(words) for words in pair.words)
        editor, image = demo_region_editor(demo, pair, min(steps, STEPS)), pair.source[None]
        found = edit_by_words(editor, image, scorer=scorer, texts=(before, after))
        if not found.painted:
            continue
        edited = found.painted[0].edited
        entry = _judged(demo, pair, edited)
        best = found.painted[0]
        figures[edit] = {"box": list(best.box), "score": best.whole, "u": found.units, **entry}
        stem = "region_" + edit.replace(": ", "_").replace(" ", "_")
        attention = features(image).attention[0]
        drawn = region_picture(image, attention, [one.box for one in found.painted]).movedim(-1, 0)
        drawn = avg_pool2d(drawn, drawn.shape[-1] // DRAWN)
        cells = [
            result.show(f"{stem}_source", pair.source, f"source\n{pair.source_caption}"),
            result.show(f"{stem}_true", pair.target, "the true edited picture"),
            result.show(f"{stem}_boxes", drawn, "what was looked at (red)\nand the best boxes"),
            result.judged(f"{stem}_edited", edited[0], f"edited inside the best box\n{found.units:.0f} u", entry),
        ]
        result.rows.append((f"{edit}: the edit finds its own place (Edit by Words)", cells))


def _judged(demo: DemoModel, pair: DemoPair, edited: Tensor) -> dict[str, float]:
    """Labels are the judge's, which has no part in the search."""
    labels, true = demo.judge.labels(edited), demo.judge.labels(pair.target[None])
    return {
        "success": float(labels[0][pair.attribute] == pair.after),
        "others_kept": float(attributes_kept(labels, true, pair.attribute)),
        "psnr_to_true": float(psnr(edited, pair.target[None])),
    }
