"""Time of an edit: DeltaEdit's mapper alone, warm, for 1 and for 16 faces, and the generator's drawing beside it.

Two sizes: the demo world's networks, and the published ones (StyleGAN2 of FFHQ at 1024 pixels, the mapper of
``net_face.pth``) with random weights, which take as long as trained ones. Told are CPU seconds of one thread, which a
busy machine changes least, and the least wall time; weights are in memory, as from the node's second run on.

    python benchmarks/deltaedit_cost.py --rounds 10
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as functional

from semantic_editing.core.deltaedit.generator_files import load_generator
from semantic_editing.core.deltaedit.mapper import RELEASED, DeltaMapper
from semantic_editing.core.deltaedit.mapper_files import load_mapper, published_layout
from semantic_editing.core.deltaedit.stylegan2 import StyleGAN2, channels_of

STYLE = Path(__file__).resolve().parents[1] / "assets" / "demo" / "style"
FACES = (1, 16)
SIZE, CLIP_WIDTH = 1024, 512


def demo() -> tuple[StyleGAN2, DeltaMapper]:
    """The demo world's networks."""
    return load_generator(STYLE / "generator.safetensors"), load_mapper(STYLE / "mapper.safetensors")


def published() -> tuple[StyleGAN2, DeltaMapper]:
    """FFHQ's generator and the authors' mapper, by their shapes."""
    sides = [2**power for power in range(2, SIZE.bit_length())]
    generator = StyleGAN2(SIZE, {side: channels_of(side) for side in sides}, 512, 8)
    generator.w_mean = torch.zeros(generator.style_dim)
    mapper = DeltaMapper(published_layout(None, "").levels, CLIP_WIDTH, RELEASED, across_channels=False)
    return generator.eval().requires_grad_(False), mapper.eval().requires_grad_(False)


def timed(work: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median CPU seconds and least wall seconds of ``work``, after one run that does not count."""
    work()
    cpu, wall = [], []
    for _ in range(rounds):
        spent, began = time.process_time(), time.perf_counter()
        work()
        cpu.append(time.process_time() - spent)
        wall.append(time.perf_counter() - began)
    return statistics.median(cpu), min(wall)


@torch.inference_mode()
def main() -> None:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cpu", help="CPU seconds mean nothing on another; look at the wall's")
    parser.add_argument("--out", type=Path, default=Path("bench_out/deltaedit_cost.json"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = []
    for name, make in (("demo, 64 pixels", demo), ("published, 1024 pixels", published)):
        generator, mapper = (network.to(arguments.device) for network in make())
        for faces in FACES:
            code = generator.styles(generator.sample_w_plus(faces, 0, 0.7))
            features, difference = (
                functional.normalize(torch.randn(faces, mapper.clip_width), dim=1).to(arguments.device)
                for _ in range(2)
            )

            def edit(idle: bool, code=code, mapper=mapper, features=features, difference=difference) -> None:
                mapper.change(code.convs, features, difference, idle)[0, 0].item()  # waits for a device

            def draw(code=code, generator=generator, faces=faces) -> None:
                for row in range(faces):
                    generator.synthesize(code.select(slice(row, row + 1)))[0, 0, 0, 0].item()

            works = {
                "mapper, as the paper": lambda edit=edit: edit(False),
                "mapper, minus the idle change": lambda edit=edit: edit(True),
                "generator": draw,
            }
            for what, work in works.items():
                heavy = what == "generator" and generator.size == SIZE
                cpu, wall = timed(work, max(1, arguments.rounds // (5 * faces)) if heavy else arguments.rounds)
                rows.append({"networks": name, "what": what, "faces": faces, "cpu_s": cpu, "wall_s": wall})
                print(f"{name:23s} {what:30s} {faces:3d} faces  {1000 * cpu:9.1f} ms CPU  {1000 * wall:9.1f} ms wall")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
