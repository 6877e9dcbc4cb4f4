"""Costs derived by hand."""

import json
import math

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_networks import Concat, OptionA, Residual, chain, depthwise
from torch import nn

from autocompress.network import Network, trace
from autocompress.network.costs import header_bytes


def resources(network: Network, kept: list[int], weight_bits: int, activation_bits: int) -> dict[str, int]:
    """Size without the fixed bytes, which have tests of their own, as energy has."""
    layers = len(network.layers)
    totals = network.costs.resources(np.array(kept), np.full(layers, weight_bits), np.full(layers, activation_bits))
    amounts = {name: int(amount) for name, amount in totals.items()}
    fixed = network.costs.fixed_bytes + int(np.array(kept) @ network.costs.fixed_bytes_coef)
    del amounts["energy"]
    return amounts | {"size": amounts["size"] - fixed}


def test_chain_in_full() -> None:
    network = trace(chain(), torch.zeros(1, 1, 4, 4))
    assert network.costs.group_width.tolist() == [2, 3]
    assert resources(network, [2, 3], 32, 32) == {
        "size": 4 * (18 + 6 + 96) + 4 * (2 + 3 + 2),  # weights, biases; the first bias is the folded norm's shift
        "macs": 18 * 16 + 6 * 16 + 96,
        "bitops": 480 * 32 * 32,
        "memory": 4 * (48 + 48),  # second ReLU: its input and its output
    }


def test_chain_pruned_and_quantized() -> None:
    network = trace(chain(), torch.zeros(1, 1, 4, 4))
    assert resources(network, [1, 2], 4, 8) == {
        # ceil(9 / 2) + 2 / 2 + 64 / 2 bytes of codes, 5 rows of scale and bias, 3 input ranges
        "size": 5 + 1 + 32 + 5 * 8 + 3 * 8,
        "macs": 9 * 16 + 2 * 16 + 64,
        "bitops": 240 * 4 * 8,
        "memory": 32 + 32,
    }


def energy(network: Network, kept: list[int], weight_bits: int, activation_bits: int) -> int:
    layers = len(network.layers)
    totals = network.costs.resources(np.array(kept), np.full(layers, weight_bits), np.full(layers, activation_bits))
    return int(totals["energy"])


def test_energy_of_a_chain() -> None:
    """Multiply-accumulates, bytes from DRAM at 160 picojoules, inputs written and read once at 1.25 a byte."""
    network = trace(chain(), torch.zeros(1, 1, 4, 4))
    floats = (
        math.ceil(288 * 4.6 + 4 * (18 + 2) * 160 + 2 * 16 * 4 * 1.25),
        math.ceil(96 * 4.6 + 4 * (6 + 3) * 160 + 2 * 32 * 4 * 1.25),
        math.ceil(96 * 4.6 + 4 * (96 + 2) * 160 + 2 * 48 * 4 * 1.25),
    )
    assert energy(network, [2, 3], 32, 32) == sum(floats)
    pruned = (  # 1 and 2 channels of 4 bits, which read 8 bits: 0.2 picojoules a multiply-accumulate
        math.ceil(144 * 0.2 + (5 + 8 + 8) * 160 + 2 * 16 * 1.25),
        math.ceil(32 * 0.2 + (1 + 16 + 8) * 160 + 2 * 16 * 1.25),
        math.ceil(64 * 0.2 + (32 + 16 + 8) * 160 + 2 * 32 * 1.25),
    )
    assert energy(network, [1, 2], 4, 8) == sum(pruned)


def test_energy_of_depthwise_layers_and_tables() -> None:
    """Inputs shrink with a depthwise layer's rows; of a table one row is moved for each index."""
    network = trace(depthwise(), torch.zeros(1, 2, 4, 4))
    costs = network.costs.energy
    assert costs is not None
    assert costs.input_elements.tolist() == [32, 64, 64, 3]
    assert costs.has_own_inputs.tolist() == [False, True, False, False]
    table = nn.Sequential(nn.Embedding(100, 8), nn.Flatten(), nn.Linear(24, 2))
    found = trace(table, torch.zeros(1, 3, dtype=torch.int64)).costs.energy
    assert found is not None
    assert (found.lookups.tolist(), found.input_elements.tolist()) == ([3, 0], [0, 24])


def test_residual() -> None:
    network = trace(Residual(), torch.zeros(1, 1, 4, 4))
    assert network.costs.group_width.tolist() == [4, 6]
    assert resources(network, [4, 6], 32, 32) == {
        "size": 4 * (36 + 216 + 216 + 12) + 4 * (4 + 6 + 4 + 3),
        "macs": 36 * 16 + 216 * 16 + 216 * 16 + 12,
        "bitops": (468 * 16 + 12) * 1024,
        "memory": 4 * (64 + 96 + 64),  # conv2: the skipped input, its own input and its output
    }
    assert resources(network, [3, 2], 8, 8) == {
        "size": (27 + 54 + 54 + 9) + 8 * (3 + 2 + 3 + 3) + 4 * 8,
        "macs": 135 * 16 + 9,
        "bitops": (135 * 16 + 9) * 64,
        "memory": 3 * 48,  # the addition: both terms and the sum, 3 channels of 16 bytes each
    }


def test_concat_and_unfolded_norm() -> None:
    network = trace(Concat(), torch.zeros(1, 2, 3, 3))
    costs = network.costs
    assert costs.group_width.tolist() == [3, 4, 5]
    assert resources(network, [3, 4, 5], 32, 32) == {
        "size": 4 * (6 + 8 + 35 + 10) + 4 * (3 + 4 + 5 + 2),
        "macs": 9 * (6 + 8 + 35) + 10,
        "bitops": (9 * 49 + 10) * 1024,
        "memory": 4 * 9 * (7 + 7),  # concatenation: both parts and the whole
    }
    assert resources(network, [2, 1, 5], 32, 32)["macs"] == 9 * (4 + 2 + 15) + 10
    assert resources(network, [2, 1, 5], 32, 32)["memory"] == 4 * 9 * (3 + 5)  # join: its input and its output
    # weight, bias, mean and variance in float32 of every channel of the norm
    assert costs.fixed_bytes_coef.tolist() == [16, 16, 0]


def test_depthwise() -> None:
    network = trace(depthwise(), torch.zeros(1, 2, 4, 4))
    assert network.costs.group_width.tolist() == [4, 3]
    assert resources(network, [4, 3], 32, 32) == {
        "size": 4 * (8 + 36 + 12 + 6) + 4 * (4 + 4 + 0 + 2),
        "macs": 16 * (8 + 36 + 12) + 6,
        "bitops": (16 * 56 + 6) * 1024,
        "memory": 4 * 16 * (4 + 4),
    }
    assert resources(network, [1, 2], 8, 8) == {
        "size": (2 + 9 + 2 + 4) + 8 * (1 + 1 + 2) + 4 * 2 + 4 * 8,
        "macs": 16 * (2 + 9 + 2) + 4,
        "bitops": (16 * 13 + 4) * 64,
        "memory": 16 * (2 + 1),  # the first layer: its input, that no label shrinks, and its output
    }


def test_memory_holds_unread_tensors_in_float32() -> None:
    network = trace(nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU()), torch.zeros(1, 1, 2, 2))
    assert resources(network, [], 8, 8)["memory"] == 4 * (12 + 12)


def test_option_a_block_is_costed() -> None:
    network = trace(OptionA(), torch.zeros(1, 3, 8, 8))
    assert resources(network, [8], 32, 32)["macs"] == 108 * 64 + 288 * 16 + 576 * 16 + 80
    assert resources(network, [5], 32, 32)["macs"] == 108 * 64 + 180 * 16 + 360 * 16 + 80


def test_shared_layer_counts_every_run() -> None:
    conv = nn.Conv2d(2, 2, 1)
    network = trace(nn.Sequential(conv, nn.ReLU(), conv), torch.zeros(1, 2, 3, 3))
    assert [layer.macs for layer in network.layers] == [4 * 9 * 2]
    assert resources(network, [], 32, 32)["size"] == 4 * (4 + 2)


def test_fixed_bytes_of_one_layer() -> None:
    network = trace(nn.Sequential(nn.Linear(3, 2, bias=False)), torch.zeros(1, 3))
    header = (
        '{"0.weight":{"dtype":"BF16","shape":[2,3],"data_offsets":[40,40]},'
        '"0.weight_scale":{"dtype":"BF16","shape":[2],"data_offsets":[40,40]},'
        '"0.input_range":{"dtype":"BF16","shape":[2],"data_offsets":[40,40]}}'
    )
    assert network.costs.fixed_bytes == 16 + len(header)


def test_fixed_bytes_count_every_other_tensor() -> None:
    """A LayerNorm, a buffer and a layer that never runs: 4 bytes an element."""

    class Hidden(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.LayerNorm(2))
    model.register_module("unused", Hidden(5, 7))
    model.register_buffer("table", torch.zeros(11))
    others = {"1.weight": (2,), "1.bias": (2,), "unused.weight": (7, 5), "unused.bias": (7,), "table": (11,)}
    layer = {"0.weight": (2, 3), "0.weight_scale": (2,), "0.input_range": (2,)}
    network = trace(model, torch.zeros(1, 3))
    assert [each.name for each in network.layers] == ["0"]
    assert network.costs.fixed_bytes == header_bytes(layer | others) + 4 * (2 + 2 + 35 + 7 + 11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_header_bytes_bound_a_real_file(dtype: torch.dtype) -> None:
    shapes = {"layer1.0.conv1.weight": (64, 32, 3, 3), "layer1.0.conv1.bias": (64,), "linear.weight": (10, 64)}
    file = safetensors.torch.save({name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()})
    payload = sum(torch.zeros(shape, dtype=dtype).nbytes for shape in shapes.values())
    real = len(file) - payload
    assert real <= header_bytes(shapes) <= real + 16 * len(shapes) + 16
    assert json.loads(file[8:real].decode())["linear.weight"]["shape"] == [10, 64]


def test_resources_take_batches_of_labellings() -> None:
    network = trace(chain(), torch.zeros(1, 1, 4, 4))
    kept = np.array([[2, 3], [1, 2]])
    bits = np.array([[32] * 3, [8] * 3])
    totals = network.costs.resources(kept, bits, bits)
    assert totals["macs"].tolist() == [480, 240]
    assert totals["memory"].tolist() == [384, 64]
