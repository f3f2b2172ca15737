"""What a distilled edit costs beside the edit that taught it, picture by picture in one run on the CPU.

    python benchmarks/distilled_cost.py --pictures 4

The teacher is the recipe of the workflow demo_word_edit without its nodes: VAE, SPDInv `auto` in 50 steps, Cross-Attn
guidance, VAE; the direction is made once and not counted. The student is one forward of the bundled network.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from semantic_editing.core.demo.data import FOLDER, DemoData
from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.distillation.files import load_editor
from semantic_editing.core.pix2pix_zero.edit_direction import sentence_direction
from semantic_editing.core.pix2pix_zero.guided_edit import cross_attention_guided_edit
from semantic_editing.core.pix2pix_zero.sentences import expand_words
from semantic_editing.core.spdinv.invert import invert

EDIT = "glasses: none to glasses"


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@torch.no_grad()
def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    demo = load_demo_model()
    pairs = DemoData(FOLDER / "unseen").pairs_of(EDIT)[: options.pictures]
    words = pairs[0].words
    source, target = expand_words(words, 256, bank="portrait")
    direction = sentence_direction(
        demo.encode_text, source, target, tokenize=demo.token_ids, source=words[0], target=words[1]
    )
    editor = load_editor(FOLDER / "distilled" / "glasses.safetensors")
    spent: dict[str, list[float]] = {"teacher": [], "student": []}
    evaluations = 0.0
    for pair in pairs:
        image = pair.source[None]

        def teach(image: torch.Tensor = image, caption: str = pair.source_caption) -> None:
            nonlocal evaluations
            denoiser, cond = demo.denoiser(), demo.encode_text([caption])
            inversion = invert(denoiser, demo.encode_image(image), cond, steps=options.steps)
            edited, _ = direction.apply(cond)
            demo.decode(
                cross_attention_guided_edit(denoiser, inversion, cond, edited, cfg=2.0, guidance=0.3, preset="carried")
            )
            evaluations += denoiser.evaluations.forward / len(pairs)

        spent["teacher"].append(timed(teach))
        spent["student"] += [timed(lambda image=image: editor(image)) for _ in range(6)][1:]
        teacher, student = (1000 * median(times) for times in spent.values())
        print(f"teacher {teacher:.0f} ms, student {student:.1f} ms: {teacher / student:.0f} times", flush=True)
    print(f"{len(pairs)} pictures, teacher {evaluations:.0f} u each; medians")


if __name__ == "__main__":
    main()
