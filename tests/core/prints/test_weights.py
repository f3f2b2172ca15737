"""The print of a network's weights: the same through formats and precisions, another one for other weights."""

import pytest
import torch

from semantic_editing.core.prints.weights import PICKED, sliced, weight_print


def network(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(32, 4, 3, 3), (32,), (32, 32), (32, 32), (32, 32), (64, 32), (1,), (4, 32, 3, 3)]
    return [torch.randn(shape, generator=generator) * 0.1 for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_names_order_and_precision_do_not_matter(dtype):
    tensors = network()
    shuffled = [tensors[index].to(dtype) for index in (3, 0, 7, 6, 5, 1, 4, 2)]
    assert weight_print(tensors).mismatch(weight_print(shuffled)) is None


def test_memory_layout_does_not_matter():
    tensors = network()
    turned = [t.to(memory_format=torch.channels_last) if t.ndim == 4 else t.t().contiguous().t() for t in tensors]
    assert weight_print(tensors).hash == weight_print(turned).hash


@pytest.mark.parametrize("changed", range(8))
def test_a_change_of_any_one_tensor_is_seen(changed):
    """A low-rank addition of a tenth of the weights' size, as a merged LoRA makes it, in one layer alone."""
    tensors = network()
    generator = torch.Generator().manual_seed(9)
    flat = tensors[changed].flatten(1) if tensors[changed].ndim > 1 else tensors[changed][None]
    low = torch.randn(flat.shape[0], 1, generator=generator) @ torch.randn(1, flat.shape[1], generator=generator)
    merged = [*tensors]
    merged[changed] = tensors[changed] + (0.02 * low).reshape(tensors[changed].shape)
    assert weight_print(tensors).mismatch(weight_print(merged)) == "other weights"
    assert weight_print(tensors).code != weight_print(merged).code


def test_other_shapes_are_said_to_be_other_shapes():
    tensors = network()
    assert weight_print(tensors).mismatch(weight_print(tensors[:-1])) == "differently shaped networks"


def test_eight_bit_weights_are_others():
    """They predict something else: 3 bits of mantissa round by up to 6 %."""
    tensors = network()
    rough = [t.to(torch.float8_e4m3fn) for t in tensors]
    assert weight_print(rough).mismatch(weight_print(tensors)) == "other weights"
    assert weight_print(rough).mismatch(weight_print([t.clone() for t in rough])) is None


def test_a_slice_is_evenly_spaced_and_stays_inside():
    values = torch.arange(100.0).reshape(10, 10)
    stride = (100 - 1) // (PICKED - 1)
    assert sliced(values).tolist() == [float(stride * number) for number in range(PICKED)]
    assert sliced(torch.tensor([3.0, 5.0])).tolist() == [3.0] + [5.0] * (PICKED - 1)
    assert len(sliced(torch.zeros(0))) == PICKED


def test_nothing_and_packed_weights_have_prints():
    class Packed(torch.Tensor):
        """As GGUF loaders make it: a shape that is not the stored one."""

        @property
        def shape(self):
            return torch.Size([1000, 1000])

    stored = torch.arange(50, dtype=torch.uint8)
    packed = stored.as_subclass(Packed)
    assert weight_print([packed]).hash == weight_print([stored]).hash
    assert weight_print([]).mismatch(weight_print([])) is None
