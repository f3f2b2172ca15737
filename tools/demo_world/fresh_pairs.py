"""Render new counterfactual pairs at a seed of your own, for `semantic-editing bench --demo --data OUT`.

    npm install --prefix tools/demo_world
    python tools/demo_world/fresh_pairs.py --seed 2026 --count 16 OUT

The seeds 7, 11, 23 and 99 made the shipped pictures and those that the demo model learned from; they are refused.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
from pathlib import Path

from build_assets import write_pairs

HERE = Path(__file__).parent
USED = (7, 11, 23, 99)  # see render_all.sh


def main() -> None:
    """Render and write ``demo.json`` and ``pairs.npz``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder, made if need be")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=16, help="pairs of each edit")
    options = parser.parse_args()
    if options.seed in USED:
        parser.error(f"the seed {options.seed} is one of the shipped pictures'; choose another")
    with tempfile.TemporaryDirectory() as folder:
        rendered = Path(folder) / "fresh"
        command = ["node", str(HERE / "render.mjs"), str(options.count), str(options.seed), str(rendered), "pairs"]
        subprocess.run(command, check=True)
        write_pairs(Path(folder), "fresh", options.out, random.Random(options.seed), [], lambda edit: options.count)


if __name__ == "__main__":
    main()
