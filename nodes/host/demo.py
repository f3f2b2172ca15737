"""The bundled demo model as stock MODEL, CLIP and VAE."""

from __future__ import annotations

from typing import Any


def load_demo_model() -> tuple[Any, Any, Any]:
    """``(MODEL, CLIP, VAE)`` from ``assets/demo``; every stock node works on them.

    Raises:
        EditingError: the demo assets are missing or damaged.
    """
    raise NotImplementedError
