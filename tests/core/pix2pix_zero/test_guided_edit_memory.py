"""Peak memory of a guided edit does not grow with the number of steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, re
import torch
from semantic_editing.core.attention.capture import CaptureMaps
from semantic_editing.core.pix2pix_zero.guided_edit import cross_attention_guided_edit
from semantic_editing.core.sampling import reference_from_noise
from semantic_editing.tests.core.tiny_models import tiny_cond, tiny_denoiser, tiny_latent

torch.set_num_threads(1)
# The process's own high-water mark; getrusage's ru_maxrss starts from the parent's on Linux.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))
denoiser, source, target = tiny_denoiser(), tiny_cond(tokens=154), tiny_cond(tokens=154, seed=3)
peaks = {}
for steps in (2, 6, 30):
    inversion = reference_from_noise(denoiser, tiny_latent(1, 16, 16), source, 1.0, None, steps)
    cross_attention_guided_edit(denoiser, inversion, source, target, cfg=1.0)
    peaks[steps] = peak()
stored = []  # what the published code does: the maps of every step are kept
for level in range(30, 0, -1):
    capture = CaptureMaps()
    with torch.no_grad():
        denoiser(inversion.latents[level], float(inversion.sigmas[level]), source, control=capture)
    stored.append(capture.maps)
peaks["stored"] = peak()
print(json.dumps(peaks))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.slow
def test_peak_memory_of_30_steps_is_that_of_6():
    """A process of its own, because the high-water mark of this one belongs to earlier tests."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout.splitlines()[-1])
    grown, stored = peaks["30"] - peaks["6"], peaks["stored"] - peaks["30"]
    assert stored > 20_000, peaks  # kB: the measure would notice maps that are kept
    assert grown < stored / 4, peaks
