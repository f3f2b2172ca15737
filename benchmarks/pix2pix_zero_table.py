"""pix2pix-zero's ablation on the demo world: inversion, word swap or direction, with and without cross-attention
guidance, through the shipped nodes.

    semantic-editing bench pix2pix_zero_table --pairs 3
    semantic-editing bench pix2pix_zero_table --alone --edits "background: blue to green"

The rows are the paper's configurations A to E (DDIM + word swap, L_auto + word swap, DDIM + direction, L_auto +
direction, and with L_xa), DDIM with L_xa, the same edits of SPDInv's noise, and demo_word_edit as it ships.
Every row is that workflow with another inversion or target, guidance 0.13 for L_xa and 0 without, and local_fraction
0, which the paper has not; what is not named is at its default. Beside what the demo's second classifier judges stand
the paper's figures by the demo's own CLIP: CLIP accuracy (the picture fits the edited caption better than its own) and
the structure distance of its keys to the source (figures of other networks do not compare).
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from semantic_editing.benchmarks.demo import (
    KEEPING,
    Method,
    Store,
    as_json,
    chosen_host,
    running,
    together,
    workflow_called,
)
from semantic_editing.core.demo.bench import (
    NOTHING,
    NOTHING_DECODED,
    TRUE_DECODED,
    Judgement,
    Row,
    Workflow,
    decibels,
    number,
    share,
)
from semantic_editing.core.demo.builders import demo_scorer, demo_vision_features
from semantic_editing.core.demo.data import FOLDER, DemoData, DemoPair
from semantic_editing.core.demo.model import DemoModel, load_demo_model
from semantic_editing.core.errors import EditingError
from semantic_editing.core.metrics.clip import clip_accuracy
from semantic_editing.core.metrics.structure import structure_distance
from semantic_editing.core.pix2pix_zero.autocorr_inversion import AutocorrSettings

EDITS = (
    "glasses: none to glasses",
    "hair color: black to red",
    "hair color: blond to black",
    "facial hair: beard to none",
    "background: blue to green",
    "clothes: hoodie to suit",
)
INVERTS, SAMPLES, LOADS = "SemEdit_SPDInvInversion", "SemEdit_CrossAttnGuidedSampler", "SemEdit_LoadDemoImage"
INVERSIONS = ("DDIM", "L_auto", "SPDInv")
#: Every other inversion backwards, so that a host that keeps only the last results finds the direction there.
WAYS = ("word swap", "direction", "direction + L_xa")
#: The paper's algorithm alone, at the guidance that kept most of what was tried.
PAPERS = {"guidance": 0.13, "local_fraction": 0.0}
SHIPPED = "demo_word_edit as it ships"


def arms(autocorr: dict[str, float]) -> list[Method]:
    """The rows as workflows.

    Args:
        autocorr: widgets of Autocorr DDIM Inversion set otherwise.
    """
    made = []
    for index, inversion in enumerate(INVERSIONS):
        for way in WAYS if index % 2 == 0 else WAYS[::-1]:
            workflow = copy.deepcopy(workflow_called("demo_word_edit"))
            (inverting,) = (node for node in workflow.values() if node["class_type"] == INVERTS)
            (sampling,) = (node["inputs"] for node in workflow.values() if node["class_type"] == SAMPLES)
            if inversion == "L_auto":
                kept = {key: inverting["inputs"][key] for key in ("model", "positive", "latent", "steps")}
                defaults = {key: value for key, value in vars(AutocorrSettings()).items() if key != "steps"}
                inverting["class_type"] = "SemEdit_AutocorrDDIMInversion"
                inverting["inputs"] = kept | defaults | autocorr
            elif inversion == "DDIM":
                inverting["inputs"]["solver"] = "ddim"
            if way == "word swap":
                swap_words(workflow)
            sampling |= PAPERS | ({} if way == WAYS[-1] else {"guidance": 0.0})
            made.append(Method(f"{inversion} + {way}", only_the_picture(workflow), {}))
    return [*made, Method(SHIPPED, only_the_picture(workflow_called("demo_word_edit")), {})]


def swap_words(workflow: Workflow) -> None:
    """Let demo_word_edit aim at the target caption itself in place of its direction."""
    (loader,) = (key for key, node in workflow.items() if node["class_type"] == LOADS)
    (encoder,) = (
        node
        for node in workflow.values()
        if node["class_type"] == "CLIPTextEncode" and node["inputs"]["text"] == [loader, 1]
    )
    workflow["target"] = copy.deepcopy(encoder)
    workflow["target"]["inputs"]["text"] = [loader, 3]
    (sampling,) = (node["inputs"] for node in workflow.values() if node["class_type"] == SAMPLES)
    sampling["target"] = ["target", 0]


def only_the_picture(workflow: dict) -> dict:
    """Without the nodes that show or report: nothing but what Save Image needs."""
    left_out = ("PreviewImage", "PreviewAny", "SemEdit_EditReport")
    return {key: node for key, node in workflow.items() if node["class_type"] not in left_out}


class Paper:
    """The paper's figures by the demo's own CLIP."""

    def __init__(self, demo: DemoModel):
        self.scorer, self.vision = demo_scorer(demo), demo_vision_features(demo)

    def measure(self, images: Tensor, pairs: Sequence[DemoPair]) -> dict[str, Tensor]:
        """``[N]`` each, of ``images [N, 3, H, W]`` in 0..1."""
        sources = torch.stack([pair.source for pair in pairs])
        captions = ([pair.source_caption for pair in pairs], [pair.target_caption for pair in pairs])
        with torch.no_grad():
            return {
                "clip_accuracy": clip_accuracy(self.scorer, images, *captions),
                "structure": structure_distance(self.vision, images, sources).double(),
            }


def through_vae(demo: DemoModel, images: Tensor) -> Tensor:
    """What the autoencoder alone makes of them."""
    with torch.no_grad():
        return demo.decode(demo.encode_image(images))


def joined(parts: Sequence[tuple[str, dict[str, Tensor]]]) -> list[Row]:
    """Rows over all edits, of the figures of each."""
    names = list(dict.fromkeys(name for name, _ in parts))
    rows = []
    for name in names:
        figures = [part for other, part in parts if other == name]
        rows.append(Row(name, {key: torch.cat([part[key] for part in figures]) for key in figures[0]}))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown; means with their 95 % intervals, the worst picture beside them, n."""
    lines = [
        "| method | success | others kept | CLIP accuracy | structure distance | worst | PSNR to true, dB | worst, dB "
        "| outside the edit, dB | n |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        figures = row.figures
        cells = [
            row.name,
            *(share(figures[key]) for key in ("success", "kept", "clip_accuracy")),
            f"{float(figures['structure'].mean()):.4f}",
            f"{float(figures['structure'].max()):.4f}",
            decibels(figures["psnr"], True),
            number(float(figures["psnr"].min())),
            decibels(figures["outside"], False),
            str(len(figures["kept"])),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure(settings: argparse.Namespace) -> None:
    """Run, print the table, leave the pictures and results.json."""
    data, demo = DemoData(settings.data), load_demo_model()
    store, paper = Store(settings.out, settings.resume), Paper(demo)
    host = None if settings.alone else chosen_host(settings.comfyui)
    methods = arms({"weight_kl": settings.weight_kl} if settings.weight_kl is not None else {})
    parts: list[tuple[str, dict[str, Tensor]]] = []
    with running(host, KEEPING) as runner:
        for edit in settings.edits:
            pairs = data.pairs_of(edit)[: settings.pairs]
            judgement = Judgement(demo, pairs)
            pictures = {
                NOTHING: judgement.sources,
                NOTHING_DECODED: through_vae(demo, judgement.sources),
                TRUE_DECODED: through_vae(demo, judgement.truths),
            }
            for method, made in zip(methods, together(methods, pairs, runner, store), strict=True):
                pictures[method.name] = torch.stack([outcome.picture for outcome in made])
            for name, images in pictures.items():
                parts.append((name, judgement.measure(images) | paper.measure(images, pairs)))
            found = joined(parts)
            rows = found[:3] + [row for name in ordered() for row in found if row.name == name]
            print(f"\n{len(rows[0].figures['kept'])} pictures, up to {edit}\n\n{table(rows)}\n", flush=True)
            text = json.dumps([as_json(row) for row in rows], indent=1)
            (settings.out / "results.json").write_text(text + "\n", encoding="utf-8")


def ordered() -> list[str]:
    """Names of the rows as they are told: by the edit, then by the inversion."""
    return [*(f"{inversion} + {way}" for way in WAYS for inversion in INVERSIONS), SHIPPED]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", nargs="+", default=list(EDITS))
    parser.add_argument("--pairs", type=int, default=2, help="of each edit")
    parser.add_argument("--weight-kl", type=float, help="of Autocorr DDIM Inversion, in place of its default")
    parser.add_argument("--data", type=Path, default=FOLDER / "unseen", help="folder of pairs")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--comfyui", type=Path, help="the ComfyUI to use (default: the first that is found)")
    where.add_argument("--alone", action="store_true", help="use none: the same nodes over diffusers, in this process")
    parser.add_argument("--resume", action="store_true", help="keep what an earlier run into the same folder made")
    parser.add_argument("--out", type=Path, default=Path("bench_out/pix2pix_zero"))
    return parser.parse_args()


def main() -> int:
    """Run; 2 after a sentence on stderr."""
    try:
        measure(options())
    except EditingError as error:
        print(f"semantic-editing bench: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
