"""Does the order of joined embeddings matter? The paper says it does not. Measured with the demo's own embeddings.

For every two of them: how far the edits by "first + second" and "second + first" are apart, as a share of the edit's
size.

    python benchmarks/caso_order.py
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import torch

from semantic_editing.core.caso.analysis import order_effect
from semantic_editing.core.caso.editing import Window, invert_to_window
from semantic_editing.core.caso.embedding import SemanticEmbedding
from semantic_editing.core.demo.builders import demo_vector_encoder
from semantic_editing.core.demo.data import embedding_files
from semantic_editing.core.demo.model import load_demo_model
from semantic_editing.core.token_vectors import empty_condition


def main() -> None:
    """Edit the same pictures in both orders and print a line for each two embeddings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strength", type=float, default=3.0)
    parser.add_argument("--start", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--assets", type=Path, help="another folder with the demo model's files")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    demo = load_demo_model(options.assets)
    denoiser, vector_encoder = demo.denoiser(), demo_vector_encoder(demo)
    plain = [
        pair.source
        for pair in demo.pairs_of("glasses: none to glasses")
        if pair.source_attributes["facial_hair"] == "none"
    ]
    with torch.no_grad():
        latents = demo.encode_image(torch.stack(plain[: options.pictures]))
    inversion, window = invert_to_window(
        denoiser, latents, empty_condition(vector_encoder), options.steps, Window(options.start)
    )
    embeddings = {name: SemanticEmbedding.load(path) for name, path in embedding_files(demo.folder).items()}
    for first, second in combinations(embeddings, 2):
        effect = order_effect(
            denoiser, inversion, vector_encoder, [embeddings[first], embeddings[second]], options.strength, window
        )
        print(f"{first} + {second}: edits in the two orders differ by {100 * float(effect.mean()):.0f} % of their size")


if __name__ == "__main__":
    main()
