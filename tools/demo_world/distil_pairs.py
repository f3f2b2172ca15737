"""Pairs for a distilled edit, made by the pack's own word edit from the demo world's training pictures.

    python tools/demo_world/distil_pairs.py "glasses: none to glasses" --data DIR --count 300 OUT.npz

Sources are pictures of ``train`` in ``--data``, as ``render.mjs`` left them, that show what the edit starts from; the
edit is that of the workflow demo_word_edit (SPDInv Inversion `auto`, a direction of 256 sentences a side, Cross-Attn
Guided Sampler) in ``--steps`` steps. What ``OUT.npz`` holds already stays, so that a run may be stopped at any time.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
from build_assets import looks, pair_captions
from world import load, visible

from core.demo.model import load_demo_model
from core.pix2pix_zero.edit_direction import sentence_direction
from core.pix2pix_zero.guided_edit import cross_attention_guided_edit
from core.pix2pix_zero.sentences import expand_words
from core.spdinv.invert import invert

SENTENCES, CFG, GUIDANCE, PRESET = 256, 2.0, 0.3, "carried"
BATCH = 8


def main() -> None:
    """Make the pairs that ``OUT.npz`` lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("edit", help='"attribute: label to label"')
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    name, _, change = options.edit.partition(": ")
    attribute, (before, after) = name.replace(" ", "_"), change.split(" to ")
    pictures, labels = load(options.data, "train")
    rows = [at for at, row in enumerate(labels) if row[attribute] == before and visible(attribute, row)]
    random.Random(0).shuffle(rows)
    rows = rows[: options.count]
    captions = [
        pair_captions({"edit": (attribute, before, after), "src": looks(labels[at])}, random.Random(at)) for at in rows
    ]
    demo = load_demo_model()
    words = demo.pairs_of(options.edit)[0].words
    made = [np.load(options.out)["images"]] if options.out.exists() else []
    done = sum(map(len, made))
    with torch.no_grad():
        source, target = expand_words(words, SENTENCES, bank="portrait")
        direction = sentence_direction(
            demo.encode_text, source, target, tokenize=demo.token_ids, source=words[0], target=words[1]
        )
        while done < len(rows):
            part, started = slice(done, done + BATCH), time.perf_counter()
            taken = np.stack([pictures[at] for at in rows[part]])
            images = torch.from_numpy(taken).movedim(-1, 1).float() / 255
            cond = demo.encode_text([texts[0] for texts in captions[part]])
            denoiser = demo.denoiser()
            inversion = invert(denoiser, demo.encode_image(images), cond, steps=options.steps)
            edited = demo.decode(
                cross_attention_guided_edit(
                    denoiser, inversion, cond, direction.apply(cond)[0], cfg=CFG, guidance=GUIDANCE, preset=PRESET
                )
            )
            after_edit = (edited.movedim(1, -1) * 255).round().byte().numpy()
            made.append(np.stack([taken, after_edit], 1))
            done += len(taken)
            np.savez_compressed(options.out, images=np.concatenate(made))
            spent = time.perf_counter() - started
            print(f"{done} of {len(rows)} pairs, {spent / len(taken):.2f} s a pair", flush=True)


if __name__ == "__main__":
    main()
