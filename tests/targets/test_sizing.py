"""Counting `size` on the file, against files written by hand."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.execute.compressed import from_menus, uncompressed
from autocompress.menus import MenuSettings, build_menus
from autocompress.network import fold_batch_norms, trace
from autocompress.targets import counted_on_file, sizing
from autocompress.targets.graph.lowering import lower
from autocompress.targets.target import TARGETS
from autocompress_envs.problem import Labeling

SLACK = 64 + 2 * 8  # bytes, of two layers


def net():
    """Input 4: 4 x 6 and 6 x 3 weights, 6 channels in one group."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def small_menus(model, inputs, cache=None):
    network = trace(model, inputs[:1])
    settings = MenuSettings(weight_bits=(2, 4, 8), activation_bits=(8, 32), sparsity_levels=3)
    return build_menus(model, network, inputs, settings, data_fingerprint="x", cache=cache)


def fake_target(written):
    """Its file has 1,000 bytes, and one for every layer that is not in float32."""

    def write(lowered):
        written.append(lowered)
        return b"x" * (1_000 + sum(layer.bits < 32 for layer in lowered.layers.values()))

    return replace(TARGETS["packed"], name="fake", write=write)


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(1)
    return torch.randn(64, 4)


def test_the_overhead_is_that_of_the_densest_file(inputs):
    """What its 1,002 bytes hold besides its closed form belongs to every plan, and 64 + 2 * 8 of slack."""
    model, written = net(), []
    menus = small_menus(model, inputs)
    folded = fold_batch_norms(model, menus.network)
    counted, original = counted_on_file(fake_target(written), menus, folded, inputs)
    assert original == 1_000
    assert [[layer.bits for layer in each.layers.values()] for each in written] == [[32, 32], [2, 2], [2, 2]]
    assert all(layer.input_range.bits == 8 for layer in written[1].layers.values())
    lowest = Labeling(*[np.zeros(2, np.int64)] * 3)
    closed = menus.problem().resources(lowest)["size"]
    assert counted.problem().resources(lowest)["size"] == 1_002 + SLACK
    middle = Labeling(np.array([1, 0]), np.array([1, 2]), np.array([0, 1]))
    added = counted.problem().resources(middle)["size"] - menus.problem().resources(middle)["size"]
    assert added == 1_002 + SLACK - closed
    assert counted.network.costs.fixed_bytes - menus.network.costs.fixed_bytes == added


def test_only_size_changes(inputs):
    model = net()
    menus = small_menus(model, inputs)
    counted, _ = counted_on_file(fake_target([]), menus, fold_batch_norms(model, menus.network), inputs)
    labeling = Labeling(np.array([1, 0]), np.array([1, 2]), np.array([0, 1]))
    before, after = menus.problem().resources(labeling), counted.problem().resources(labeling)
    assert {name: after[name] for name in after if name != "size"} == {
        name: before[name] for name in before if name != "size"
    }


def test_files_are_written_once_for_the_same_menus(inputs, tmp_path):
    model, written = net(), []
    for _ in range(2):
        menus = small_menus(model, inputs, tmp_path)
        counted_on_file(fake_target(written), menus, fold_batch_norms(model, menus.network), inputs)
    assert len(written) == 3


def test_unfolded_norms_count_once(inputs):
    """A norm that no layer absorbs is part of the file that is measured, and must not be counted twice."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3)).eval()
    menus = small_menus(model, inputs)
    assert menus.network.costs.fixed_bytes_coef.tolist() != [0]
    folded = fold_batch_norms(model, menus.network)
    counted, _ = counted_on_file(TARGETS["packed"], menus, folded, inputs)
    lowest = Labeling(*[np.zeros(2, np.int64)] * 3)
    content = TARGETS["packed"].write(lowered(counted, lowest, folded, inputs))
    assert counted.problem().resources(lowest)["size"] == len(content) + SLACK
    fewer = Labeling(np.array([1, 0]), np.zeros(2, np.int64), np.zeros(2, np.int64))
    smaller = TARGETS["packed"].write(lowered(counted, fewer, folded, inputs))
    assert 0 <= counted.problem().resources(fewer)["size"] - len(smaller) < SLACK + 64


@pytest.mark.parametrize(("affine", "trained"), [(True, False), (False, True)])
def test_equal_vectors_of_norms_hide_no_bytes(affine, trained):
    """Norms of one width may have equal vectors, which a file could keep once; in other plans, widths differ."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 12, 3, padding=1)]
    for _ in range(4):
        parts += [nn.ReLU(), nn.BatchNorm2d(12, affine=affine), nn.Conv2d(12, 12, 3, padding=1)]
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)).eval()
    if trained:
        for norm in (part for part in model if isinstance(part, nn.BatchNorm2d)):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    images = torch.randn(48, 1, 6, 6)
    menus = small_menus(model, images)
    target, folded, layers = TARGETS["onnxruntime"], fold_batch_norms(model, menus.network), len(menus.network.layers)
    counted, _ = counted_on_file(target, menus, folded, images)
    none = np.zeros(layers, np.int64)
    for sparsities in (none, np.arange(layers) % 3, np.minimum(np.arange(layers) % 2, 1)):
        labeling = Labeling(np.where(np.arange(layers) < layers - 1, sparsities, 0), none, none)
        content = target.write(lower(from_menus(counted, labeling, folded), images, integer=True))
        assert 0 <= counted.problem().resources(labeling)["size"] - len(content) < 64 + 8 * layers + 200


def lowered(menus, labeling, folded, inputs):
    return lower(from_menus(menus, labeling, folded), inputs, integer=False)


def test_the_original_is_the_float32_file(inputs):
    model = net()
    menus = small_menus(model, inputs)
    folded = fold_batch_norms(model, menus.network)
    _, original = counted_on_file(TARGETS["packed"], menus, folded, inputs)
    whole = lower(uncompressed(folded, menus.network), inputs, integer=False)
    assert original == len(TARGETS["packed"].write(whole)) > 4 * (24 + 6 + 18 + 3)


@pytest.mark.parametrize("bits", [(8, 32), (16, 32)])
def test_floating_point_layers_have_their_own_overhead(bits, inputs):
    """The slack is for lengths and for plans that mix labels: whatever the width, uniform plans leave all of it."""
    torch.manual_seed(0)
    widths = [4, 6, 6, 6, 6, 6, 3]
    layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b, bias=False), nn.ReLU())]
    model = nn.Sequential(*layers[:-1]).eval()
    network = trace(model, inputs[:1])
    settings = MenuSettings(weight_bits=bits, activation_bits=(8, 32), sparsity_levels=1)
    menus = build_menus(model, network, inputs, settings, data_fingerprint="x", cache=None)
    target, folded = TARGETS["onnxruntime"], fold_batch_norms(model, network)
    counted, _ = counted_on_file(target, menus, folded, inputs)
    none = np.zeros(6, np.int64)
    for position, inputs_at in itertools.product(range(2), range(2)):
        labeling = Labeling(none, none + position, none + inputs_at)
        content = target.write(lower(from_menus(menus, labeling, folded), inputs, integer=True))
        assert len(content) + 64 + 6 * 8 <= counted.problem().resources(labeling)["size"]


def test_layers_that_share_tensors_are_counted_apart(inputs):
    """Equal tensors are held once. EfficientNet-B0 that never learned has zeros for biases, which a plan makes unequal:
    its file took 15,952 bytes more than the budget. Here four equal layers without anything in their biases."""
    torch.manual_seed(0)
    model = nn.Sequential(*[part for _ in range(4) for part in (nn.Linear(4, 4), nn.ReLU())][:-1]).eval()
    menus = small_menus(model, inputs)
    folded = fold_batch_norms(model, menus.network)
    none = np.zeros(4, np.int64)
    made = from_menus(menus, Labeling(none, none, none), folded)
    first = next(iter(made.layers.values()))
    equal = replace(first, values=torch.arange(-8, 8, dtype=torch.int8).view(4, 4), bias=torch.zeros(4))
    alike = replace(made, layers=dict.fromkeys(made.layers, equal))
    apart = sizing._all_different(alike)
    for field in ("values", "scale", "bias"):
        tensors = [getattr(layer, field) for layer in apart.layers.values()]
        assert not any(torch.equal(one, other) for one, other in itertools.combinations(tensors, 2)), field
    for name, layer in apart.layers.items():
        assert torch.equal(apart.model.get_parameter(f"{name}.weight"), layer.weight())
        assert torch.equal(apart.model.get_parameter(f"{name}.bias"), layer.bias)
