"""How long ComfyUI waits for this pack at its start, beyond what the host has imported by then.

For each host a fresh process imports what ComfyUI's start imports (its nodes, samplers and node API), then loads the
pack
from its folder and asks it for its nodes, as the host does. Printed: the host's own seconds, the pack's (also of the
processor alone, which a busy machine does not stretch), and the packages that the pack brought in.

    python benchmarks/import_time.py ~/comfy/ComfyUI --python ~/comfy/ComfyUI/.venv/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]

CHILD = """
import asyncio, importlib.util, json, sys, time
host, pack = sys.argv[1:3]
sys.path.insert(0, host)
sys.argv = sys.argv[:1]
start = time.perf_counter()
from comfy.cli_args import args
args.cpu = True
import utils.extra_config, nodes, comfy.sd, comfy.samplers, comfy_api.latest, execution, server
host_seconds = time.perf_counter() - start
before = set(sys.modules)
start, cpu = time.perf_counter(), time.process_time()
spec = importlib.util.spec_from_file_location("custom_nodes_x_pack", pack + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
async def load():
    return await (await module.comfy_entrypoint()).get_node_list()
count = len(asyncio.run(load()))
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
brought = sorted({name.split(".")[0] for name in set(sys.modules) - before} - {"custom_nodes_x_pack"})
print(json.dumps({"host": host_seconds, "pack": seconds, "cpu": cpu, "nodes": count, "brought": brought}))
"""


def measure(host: Path, python: str) -> dict:
    """One fresh process: seconds of the host and of the pack, how many nodes, which packages the pack brought in."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [python, "-c", CHILD, str(host), str(PACK)]
    done = subprocess.run(command, cwd=host, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{host.name} could not be measured:\n{done.stderr[-2000:]}")
    figures: dict = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Measure every host given, several times in turn, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hosts", type=Path, nargs="+", help="ComfyUI folders")
    parser.add_argument("--python", help="interpreter (default: each host's .venv/bin/python, else this one)")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print("| host | nodes | host, s | pack, s | pack, CPU s | brought in by the pack |\n|---|---|---|---|---|---|")
    for host in arguments.hosts:
        host = host.expanduser().resolve()
        own = host / ".venv" / "bin" / "python"
        python = arguments.python or (str(own) if own.is_file() else sys.executable)
        rounds = [measure(host, python) for _ in range(arguments.rounds)]
        own_seconds, seconds, cpu = (
            statistics.median(figures[name] for figures in rounds) for name in ("host", "pack", "cpu")
        )
        brought = ", ".join(rounds[-1]["brought"]) or "nothing"
        print(
            f"| {host.name} | {rounds[-1]['nodes']} | {own_seconds:.2f} | {seconds:.3f} | {cpu:.3f} | {brought} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
