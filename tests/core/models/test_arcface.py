"""IR-SE50: the network written out with torch's functions, its size, and weights that do not fit."""

import functools

import pytest
import torch
import torch.nn.functional as functional

from semantic_editing.core.errors import EditingError
from semantic_editing.core.models.arcface import IdentityNetwork

#: Input and output channels and stride of the 24 units, in the order of the file.
UNITS = [
    *[(64, 64, 2), *[(64, 64, 1)] * 2],
    *[(64, 128, 2), *[(128, 128, 1)] * 3],
    *[(128, 256, 2), *[(256, 256, 1)] * 13],
    *[(256, 512, 2), *[(512, 512, 1)] * 2],
]


def norm_shapes(name, width):
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}


def shapes():
    """Names and shapes in ``model_ir_se50.pth``."""
    found = {"input_layer.0.weight": (64, 3, 3, 3), **norm_shapes("input_layer.1", 64), "input_layer.2.weight": (64,)}
    for number, (channels, width, _) in enumerate(UNITS):
        unit = f"body.{number}."
        if channels != width:
            found[f"{unit}shortcut_layer.0.weight"] = (width, channels, 1, 1)
            found |= norm_shapes(f"{unit}shortcut_layer.1", width)
        layer = f"{unit}res_layer."
        found |= norm_shapes(f"{layer}0", channels) | norm_shapes(f"{layer}4", width)
        found |= {f"{layer}1.weight": (width, channels, 3, 3), f"{layer}2.weight": (width,)}
        found |= {f"{layer}3.weight": (width, width, 3, 3)}
        found |= {
            f"{layer}5.fc1.weight": (width // 16, width, 1, 1),
            f"{layer}5.fc2.weight": (width, width // 16, 1, 1),
        }
    found |= norm_shapes("output_layer.0", 512) | norm_shapes("output_layer.4", 512)
    return found | {"output_layer.3.weight": (512, 512 * 7 * 7), "output_layer.3.bias": (512,)}


@functools.cache
def random_weights(seed=0):
    """Random everywhere, scaled so that the signal neither dies nor explodes on its way."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes().items():
        values = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            values *= (2 / values[0].numel()) ** 0.5
        elif name.endswith("running_var"):
            values = values.abs() + 0.5
        elif name.endswith("weight"):
            values = 0.25 + 0.1 * values if ".2." in name else 1 + 0.2 * values
        else:
            values *= 0.2
        weights[name] = values
    return weights


def written_out(weights, x):
    def norm(x, name):
        mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        shape = (1, -1) + (1,) * (x.ndim - 2)
        x = (x - mean.reshape(shape)) / (var.reshape(shape) + 1e-5).sqrt()
        return x * weights[f"{name}.weight"].reshape(shape) + weights[f"{name}.bias"].reshape(shape)

    def prelu(x, name):
        return torch.where(x > 0, x, weights[f"{name}.weight"].reshape(1, -1, 1, 1) * x)

    x = functional.conv2d(x, weights["input_layer.0.weight"], padding=1)
    x = prelu(norm(x, "input_layer.1"), "input_layer.2")
    for number, (channels, width, stride) in enumerate(UNITS):
        layer = f"body.{number}.res_layer."
        y = functional.conv2d(norm(x, f"{layer}0"), weights[f"{layer}1.weight"], padding=1)
        y = functional.conv2d(prelu(y, f"{layer}2"), weights[f"{layer}3.weight"], padding=1, stride=stride)
        y = norm(y, f"{layer}4")
        squeezed = y.mean((2, 3)) @ weights[f"{layer}5.fc1.weight"][:, :, 0, 0].T
        gates = torch.sigmoid(squeezed.clamp_min(0) @ weights[f"{layer}5.fc2.weight"][:, :, 0, 0].T)
        y = y * gates[:, :, None, None]
        beside = x[:, :, ::stride, ::stride]
        if channels != width:
            kernel = weights[f"body.{number}.shortcut_layer.0.weight"][:, :, 0, 0]
            beside = norm(torch.einsum("oc,bchw->bohw", kernel, beside), f"body.{number}.shortcut_layer.1")
        x = y + beside
    x = norm(x, "output_layer.0").flatten(1) @ weights["output_layer.3.weight"].T + weights["output_layer.3.bias"]
    x = norm(x, "output_layer.4")
    return x / x.norm(dim=1, keepdim=True)


def test_it_is_the_network_written_out():
    weights = random_weights()
    faces = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = IdentityNetwork(weights).double()(faces.double())
    assert found.shape == (2, 512)
    expected = written_out({name: tensor.double() for name, tensor in weights.items()}, faces.double())
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    assert float(found[0] @ found[1]) < 0.9999


def test_size_and_names_are_the_published_ones():
    network = IdentityNetwork(random_weights())
    assert {n: tuple(t.shape) for n, t in network.state_dict().items() if "num_batches" not in n} == shapes()
    assert not any(parameter.requires_grad for parameter in network.parameters()) and not network.training
    assert not any(tensor.is_meta for tensor in network.state_dict().values())


def test_counters_and_half_precision_do_not_matter():
    weights = random_weights()
    counted = weights | {"input_layer.1.num_batches_tracked": torch.tensor(7)}
    network = IdentityNetwork({name: tensor.half() for name, tensor in counted.items()})
    assert next(network.parameters()).dtype == torch.float32


@pytest.mark.parametrize("fault", ["missing", "left over", "shape"])
def test_weights_that_do_not_fit_are_refused(fault):
    weights = dict(random_weights())
    if fault == "missing":
        del weights["body.20.res_layer.5.fc2.weight"]
    elif fault == "left over":
        weights["body.24.res_layer.0.weight"] = torch.ones(512)
    else:
        weights["output_layer.3.weight"] = torch.ones(512, 100)
    with pytest.raises(EditingError, match="IR-SE50"):
        IdentityNetwork(weights)
