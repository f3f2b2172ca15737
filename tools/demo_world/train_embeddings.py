"""Train the demo's semantic embeddings with CASO, assets/demo/embeddings, on the pairs' pictures that lack the attribute.

python tools/demo_world/train_embeddings.py             # all; some minutes each on a CPU
python tools/demo_world/train_embeddings.py glasses --steps 300
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from semantic_editing.core.backends.caso import DemoDecoder, demo_injector
from semantic_editing.core.caso.settings import TrainingSettings
from semantic_editing.core.caso.training import EmbeddingTrainer
from semantic_editing.core.classifiers.loaders import load_image_classifier
from semantic_editing.core.demo import load_demo_model
from semantic_editing.core.demo_data import pictures_without

#: File -> attribute and class as the demo's classifier calls them, and what was found best for it. Red hair was not learned well.
RECIPES: dict[str, dict[str, Any]] = {
    "glasses": {"attribute": "glasses", "targets": ("glasses",), "steps": 150, "level": 0.5, "keep_others": 0.0},
    "smile": {"attribute": "mouth", "targets": ("smile",), "steps": 250, "level": 0.4, "keep_others": 0.0},
    "beard": {"attribute": "facial_hair", "targets": ("beard",), "steps": 150, "level": 0.5, "keep_others": 1.0},
}
BAND = 0.2
HELD, BATCH = 8, 16


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="all when left out")
    parser.add_argument("--pictures", type=int, default=120)
    parser.add_argument("--steps", type=int, help="in place of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    demo = load_demo_model()
    classifier = load_image_classifier(demo.folder / "classifier.safetensors")
    for name in arguments.names or RECIPES:
        recipe = RECIPES[name] | ({"steps": arguments.steps} if arguments.steps else {})
        settings = TrainingSettings(**recipe, band=BAND, seed=arguments.seed)
        attribute, (target,) = settings.attribute, settings.targets
        lacking = pictures_without(demo.pairs, attribute, target)
        with torch.no_grad():
            latents = torch.cat([demo.encode_image(part) for part in lacking[: arguments.pictures].split(BATCH)])
        trainer = EmbeddingTrainer(
            demo.denoiser(), demo_injector(demo), DemoDecoder(demo), classifier, latents[HELD:], settings, latents[:HELD]
        )  # fmt: skip
        began = time.perf_counter()
        (embedding,) = trainer.run()
        held = next(entry.held for entry in reversed(trainer.history) if entry.held is not None)
        folder = demo.folder / "embeddings"
        folder.mkdir(exist_ok=True)
        embedding.save(folder / f"{name}.safetensors", overwrite=True)
        print(f"{name}: {time.perf_counter() - began:.0f} s, held-out loss {held.loss:.3f}, as asked {held.accuracy:.0%}")


if __name__ == "__main__":
    main()
