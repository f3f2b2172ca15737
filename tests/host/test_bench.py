"""The demo bench in a real ComfyUI of its own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4
METHODS = (
    f"word_swap@SemEdit_SPDInvInversion.steps={STEPS}",
    f"demo_word_edit@SemEdit_SPDInvInversion.steps={STEPS}",
)


@pytest.mark.slow
def test_a_method_is_run_counted_and_judged(host, tmp_path):
    command = [sys.executable, "-m", "semantic_editing.cli", "bench", "--demo", *METHODS, "--pairs", "2"]
    command += ["--comfyui", str(host.path), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((tmp_path / "results.json").read_text())
    rows = {row["name"].partition("@")[0]: row for row in entry["rows"]}
    assert [row["name"] for row in entry["rows"]][:3] == [
        "nothing done",
        "nothing done, through the VAE",
        "true picture through the VAE",
    ]
    # DDIM and its residual, then two conditionings a step; a guided step has four and a backward pass
    assert (rows["word_swap"]["forward"], rows["word_swap"]["backward"]) == (4 * STEPS, 0)
    assert rows["demo_word_edit"]["backward"] == STEPS and rows["demo_word_edit"]["forward"] > 5 * STEPS
    assert all(len(row["figures"]["psnr"]) == 2 for row in rows.values())
    assert all(value > 15 for row in rows.values() for value in row["figures"]["psnr"])  # the face is still there
    assert rows["word_swap"]["figures"]["psnr"] != rows["demo_word_edit"]["figures"]["psnr"]
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 5 and re.search(r"\| word_swap@\S+ \| .* \| 16 \| 1.00 \| 2 \|", done.stdout)
    assert len([*(tmp_path / "worst").glob("*.png")]) == 2
    again = subprocess.run([*command, "--resume"], cwd=tmp_path, capture_output=True, text=True)
    assert [line for line in again.stdout.splitlines() if line.startswith("|")] == table
