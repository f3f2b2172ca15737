"""Train the demo's semantic embeddings with CASO, assets/demo/embeddings, on the pairs' pictures that lack the attribute.

python tools/demo_world/train_embeddings.py             # all; some minutes each on a CPU
python tools/demo_world/train_embeddings.py glasses --steps 300
"""

from __future__ import annotations

import argparse
import time

import torch

from semantic_editing.core.backends.caso import DemoDecoder, demo_injector
from semantic_editing.core.caso.settings import TrainingSettings
from semantic_editing.core.caso.training import EmbeddingTrainer
from semantic_editing.core.classifiers.loaders import load_image_classifier
from semantic_editing.core.demo import load_demo_model

#: File -> attribute and class as the demo's classifier calls them.
ATTRIBUTES = {
    "glasses": ("glasses", "glasses"),
    "smile": ("mouth", "smile"),
    "beard": ("facial_hair", "beard"),
    "red_hair": ("hair_color", "red"),
}
HELD, BATCH = 8, 16


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="all when left out")
    parser.add_argument("--pictures", type=int, default=120)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--level", type=float, default=0.5)
    parser.add_argument("--band", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    demo = load_demo_model()
    classifier = load_image_classifier(demo.folder / "classifier.safetensors")
    for name in arguments.names or ATTRIBUTES:
        attribute, target = ATTRIBUTES[name]
        lacking = [pair.source for pair in demo.pairs if pair.attribute != attribute and pair.source_attributes[attribute] != target]
        with torch.no_grad():
            latents = torch.cat([demo.encode_image(part) for part in torch.stack(lacking[: arguments.pictures]).split(BATCH)])
        settings = TrainingSettings(
            attribute, (target,), steps=arguments.steps, level=arguments.level, band=arguments.band, seed=arguments.seed
        )
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
