"""Files of style encoders."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import EditingError
from ..files import load_tensors, metadata_json, save_tensors
from .encoder import CompactEncoder

FORMAT = "style encoder"


def load_encoder(path: str | Path, rows: int, style_dim: int) -> CompactEncoder:
    """The encoder in a file, for a generator whose W+ has ``rows`` rows of ``style_dim`` numbers."""
    tensors, metadata = load_tensors(path, FORMAT)
    shape = metadata_json(metadata, "shape", Path(path).name)
    if (shape["rows"], shape["style_dim"]) != (rows, style_dim):
        raise EditingError(f"{Path(path).name} is of another generator; use an encoder trained for this one.")
    encoder = CompactEncoder(rows, style_dim, shape["side"], tuple(shape["widths"]), shape["hidden"])
    encoder.load_state_dict(tensors)
    return encoder.eval()


def save_encoder(path: str | Path, encoder: CompactEncoder, overwrite: bool = False) -> Path:
    """Write an encoder."""
    shape = {name: getattr(encoder, name) for name in ("rows", "style_dim", "side", "widths", "hidden")}
    return save_tensors(path, encoder.state_dict(), {"format": FORMAT, "shape": json.dumps(shape)}, overwrite=overwrite)
