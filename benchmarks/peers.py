"""Ours against diffusers' pix2pix-zero pipeline, and solver against solver, on the same weights, in one run: u, wall
and memory ratios.

Each contender runs in a process of its own (so that peaks do not mix), several rounds in turn; the table gives
medians and ratios to the first, of wall time and of processor time (which other work on the machine hardly changes).
Peak memory is read from /proc, so this benchmark runs on Linux. The task "edit" is the whole edit of one latent:
inversion with the regularised DDIM of the paper (ours also with SPDInv), then the cross-attention-guided edit at cfg 5,
guidance 0.1. The task "inversion" is our inversion alone, by every solver, against plain DDIM.

    python benchmarks/peers.py --size demo --steps 50
    python benchmarks/peers.py --size sd15 --steps 2     # real SD1.5 U-Net size, random weights
    python benchmarks/peers.py --task inversion --size demo --steps 50
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

PIPELINE, AUTOCORR, SPDINV = "diffusers pix2pix-zero", "ours autocorr + guided", "ours SPDInv auto + guided"
#: By task; the first is what the others are compared to. Those of "inversion" are names of solvers.
CONTENDERS = {
    "edit": (PIPELINE, AUTOCORR, SPDINV),
    "inversion": ("ddim", "fixed_point", "anderson", "auto", "gradient"),
}
CFG, GUIDANCE = 5.0, 0.1


def build(size: str, seed: int, side: int):
    """The U-Net, VAE, scheduler, a clean latent [1,4,H,W] and source / target embeddings [1,77,D] of a size;
    ``side`` is that of sd15's latent."""
    import torch
    from diffusers import DDIMScheduler, UNet2DConditionModel

    from semantic_editing.core.demo.model import load_demo_model

    demo = load_demo_model()
    if size == "demo":
        pair = demo.pairs[0]
        latent = demo.encode_image(pair.source[None])
        source, target = demo.encode_text([pair.source_caption, pair.target_caption]).split(1)
        return demo.unet, demo.vae, demo.scheduler, latent, source, target
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # random weights of a fresh process; nothing else draws from it
    unet = (
        UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).eval().requires_grad_(False)
    )
    scheduler = DDIMScheduler.from_config(demo.scheduler.config)
    latent = torch.randn(1, 4, side, side, generator=generator)
    source, target = torch.randn(2, 77, 768, generator=generator).split(1)
    return unet, demo.vae, scheduler, latent, source, target


def count_rows(unet, tally: dict[str, int]) -> None:
    """Count u for any contender alike, at the U-Net's door."""
    import torch

    def forward_hook(_module, arguments, named, _output):
        latent = arguments[0] if arguments else named["sample"]
        rows = latent.shape[0]
        tally["forward"] += rows
        if latent.requires_grad:  # map losses leave the network before its output, so the count is made at its input
            latent.register_hook(lambda _: tally.__setitem__("backward", tally["backward"] + rows))

    assert isinstance(unet, torch.nn.Module)
    unet.register_forward_hook(forward_hook, with_kwargs=True)


def run_diffusers(unet, vae, scheduler, latent, source, target, steps: int):
    """Inversion and edit as diffusers' own pipeline does them; the direction is handed over as embeddings."""
    import torch
    from diffusers import DDIMInverseScheduler
    from diffusers.pipelines.deprecated.stable_diffusion_variants.pipeline_stable_diffusion_pix2pix_zero import (
        StableDiffusionPix2PixZeroPipeline,
    )

    pipe = StableDiffusionPix2PixZeroPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=scheduler,
        feature_extractor=None,
        safety_checker=None,
        inverse_scheduler=DDIMInverseScheduler.from_config(scheduler.config),
        caption_generator=None,
        caption_processor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    inverted = pipe.invert(
        image=latent,
        prompt_embeds=source,
        num_inference_steps=steps,
        generator=generator,
        output_type="latent",
        return_dict=False,
    )[0]
    return pipe(
        prompt_embeds=source,
        negative_prompt_embeds=source,
        source_embeds=source,
        target_embeds=target,
        latents=inverted,
        num_inference_steps=steps,
        guidance_scale=CFG,
        cross_attention_guidance_amount=GUIDANCE,
        output_type="latent",
        return_dict=False,
    )[0]


def run_ours(unet, scheduler, latent, source, target, steps: int, spdinv: bool):
    """The same edit through this pack."""
    from semantic_editing.core.diffusers.denoiser import DiffusersDenoiser
    from semantic_editing.core.pix2pix_zero.autocorr_inversion import autocorr_invert
    from semantic_editing.core.pix2pix_zero.guided_edit import cross_attention_guided_edit
    from semantic_editing.core.spdinv.invert import invert

    denoiser = DiffusersDenoiser(unet, scheduler)
    invert_with = invert if spdinv else autocorr_invert
    inversion = invert_with(denoiser, latent, source, steps=steps)
    return cross_attention_guided_edit(
        denoiser, inversion, source, target, cfg=CFG, guidance=GUIDANCE, preset="lockstep", local_fraction=0.0
    )


def run_solver(unet, scheduler, latent, source, steps: int, solver: str):
    """The inversion alone."""
    from semantic_editing.core.diffusers.denoiser import DiffusersDenoiser
    from semantic_editing.core.spdinv.invert import invert

    inversion = invert(DiffusersDenoiser(unet, scheduler), latent, source, steps, solver)
    worst = float("nan") if solver == "ddim" else float(inversion.residuals.max())  # DDIM measures none
    return inversion.noise, worst


def resident_megabytes(field: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (peak since the last reset) of this process in MB, from Linux's /proc."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status).group(1)) / 1024  # type: ignore[union-attr]


def reset_peak() -> None:
    """Let the peak start from what is resident now, so that loading does not hide the run."""
    Path("/proc/self/clear_refs").write_text("5")


def child(contender: str, size: str, steps: int, seed: int, side: int) -> dict[str, float]:
    """Run one contender once and return its figures."""
    import torch

    warnings.filterwarnings("ignore")
    unet, vae, scheduler, latent, source, target = build(size, seed, side)
    with torch.no_grad():  # one evaluation first: library start-up belongs to no contender
        unet(latent, 1, encoder_hidden_states=source)
    tally = {"forward": 0, "backward": 0}
    count_rows(unet, tally)
    reset_peak()
    before, start, cpu = resident_megabytes("VmRSS"), time.perf_counter(), time.process_time()
    worst = float("nan")
    if contender == PIPELINE:
        result = run_diffusers(unet, vae, scheduler, latent, source, target, steps)
    elif contender in CONTENDERS["edit"]:
        result = run_ours(unet, scheduler, latent, source, target, steps, spdinv=contender == SPDINV)
    else:
        result, worst = run_solver(unet, scheduler, latent, source, steps, contender)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    assert torch.isfinite(torch.as_tensor(result)).all(), f"{contender} produced NaN"
    peak = resident_megabytes("VmHWM")
    return {"wall": wall, "cpu": cpu, "loaded_mb": before, "peak_mb": peak, "worst_residual": worst, **tally}


def main() -> None:
    """Parse arguments, run every contender in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["demo", "sd15"], default="demo")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", type=int, default=64, help="side of sd15's latent, an eighth of the image's")
    parser.add_argument("--out", type=Path, default=Path("bench_out/peers.json"))
    parser.add_argument("--task", choices=list(CONTENDERS), default="edit")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child, arguments.size, arguments.steps, arguments.seed, arguments.side)))
        return
    contenders = CONTENDERS[arguments.task]
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name in contenders:
            command = [
                sys.executable,
                __file__,
                "--child",
                name,
                "--size",
                arguments.size,
                "--steps",
                str(arguments.steps),
            ]
            command += ["--seed", str(arguments.seed), "--side", str(arguments.side)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            figures[name].append(json.loads(output.splitlines()[-1]))
            print(f"{name}: {figures[name][-1]}", file=sys.stderr, flush=True)
    base = figures[contenders[0]]
    print(
        f"{arguments.size}, {arguments.steps} steps, {arguments.rounds} rounds (medians; ratios to {contenders[0]}, "
        f"round by round)\n"
    )
    residual = "| worst residual " if arguments.task == "inversion" else ""
    print(
        f"| contender | u forward | u backward {residual}| wall ratio | CPU time ratio | peak memory ratio | above the "
        f"loaded model, MB |"
    )
    print("|---" * (8 if residual else 7) + "|")
    for name, rounds in figures.items():
        wall, cpu, peak = (
            statistics.median(r[figure] / b[figure] for r, b in zip(rounds, base, strict=True))
            for figure in ("wall", "cpu", "peak_mb")
        )
        above = statistics.median(r["peak_mb"] - r["loaded_mb"] for r in rounds)
        worst = f"| {rounds[0]['worst_residual']:.1e} " if residual else ""
        counts = f"{rounds[0]['forward']} | {rounds[0]['backward']}"
        print(f"| {name} | {counts} {worst}| {wall:.2f} | {cpu:.2f} | {peak:.2f} | {above:.0f} |")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(
        json.dumps(
            {
                "task": arguments.task,
                "size": arguments.size,
                "side": arguments.side,
                "steps": arguments.steps,
                "rounds": figures,
            },
            indent=1,
        )
    )
    print(f"\nwrote {arguments.out}")


if __name__ == "__main__":
    main()
