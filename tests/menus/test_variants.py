"""Variants: their weights, their zeros, and their errors against the definition and against measured divergences."""

import copy

import numpy as np
import pytest
import torch
from menu_toys import seeded, statistics
from torch import Tensor, nn

from autocompress.data import load_data
from autocompress.menus import MenuSettings
from autocompress.menus.calibration import calibrate
from autocompress.menus.quantizers import QUANTIZERS
from autocompress.menus.variants import LayerSource, Variant, channel_variants, sparse_variants
from autocompress.models import load_model
from autocompress.network import fold_batch_norms, trace
from autocompress_envs.problem import removed_weights

ALL_BITS = (*range(1, 9), 16, 32)


def source(module: nn.Module, samples: int = 20) -> LayerSource:
    """Of a layer that another one follows, so that its gradients are no multiples of each other."""
    torch.manual_seed(1)
    model = nn.Sequential(module, nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    x = torch.randn(samples, module.in_channels, 5, 5, generator=seeded(2))
    x = x + 2 * x.mean(1, keepdim=True) + 0.5  # channels that have much in common
    model(x)
    return LayerSource.of(trace(model, x).layers[0], module, statistics(model, x)["0"])


def conv(bias: bool = True) -> LayerSource:
    torch.manual_seed(0)
    return source(nn.Conv2d(4, 6, 3, padding=1, bias=bias))


def depthwise() -> LayerSource:
    torch.manual_seed(0)
    return source(nn.Conv2d(4, 4, 3, padding=1, groups=4))


def columns_without(source: LayerSource, channels: set[int]) -> Tensor:
    return torch.tensor([c for c in range(source.layer.fan_in) if c // 9 not in channels])


def change(source: LayerSource, variant: Variant) -> Tensor:
    """(rows, d + 1)"""
    difference = -source.weight.clone()
    difference[:, variant.columns] += variant.weight()
    difference[:, -1] += variant.bias
    return difference


def loss(source: LayerSource, variant: Variant) -> float:
    """½ Σ_ij G_ij ΔW_i H ΔW_j, over the pairs of rows in the same group."""
    difference, groups = change(source, variant), source.layer.groups
    per_group = len(difference) // groups
    total = 0.0
    for i, first in enumerate(difference):
        for j, second in enumerate(difference):
            if i // per_group == j // per_group:
                moment = source.second_moment[i // per_group].double()
                total += 0.5 * float(source.gradient_moment[i, j] * (first @ moment @ second))
    return total


def settings(quantizer: str = "gptq", **options: object) -> MenuSettings:
    bits = (1, 16, 32) if quantizer == "binary" else ALL_BITS
    return MenuSettings(quantizer=quantizer, weight_bits=bits, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("removed", [set(), {1}, {0, 2, 3}], ids=len)
def test_errors_are_as_defined_and_columns_are_gone(quantizer: str, removed: set[int]) -> None:
    given, chosen = conv(), settings(quantizer)
    columns = columns_without(given, removed)
    for variant in channel_variants(given, columns, chosen.weight_bits, chosen):
        assert torch.equal(variant.columns, columns)
        assert variant.weight().shape == (6, len(columns))
        assert variant.error == pytest.approx(loss(given, variant), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_depthwise_errors_are_as_defined(quantizer: str) -> None:
    given, chosen = depthwise(), settings(quantizer)
    for variant in channel_variants(given, torch.arange(9), chosen.weight_bits, chosen):
        assert variant.weight().shape == (4, 9)
        assert variant.error == pytest.approx(loss(given, variant), rel=1e-4, abs=1e-9)


def test_all_bits_and_channels_change_nothing() -> None:
    given = conv()
    (variant,) = channel_variants(given, torch.arange(36), (32,), settings())
    assert variant.error < 1e-12
    assert torch.equal(variant.weight().double(), given.weight[:, :-1])
    assert torch.equal(variant.bias.double(), given.weight[:, -1])


@pytest.mark.parametrize("refit", [True, False])
def test_pruning_without_rounding(refit: bool) -> None:
    given, columns = conv(), columns_without(conv(), {2})
    (variant,) = channel_variants(given, columns, (32,), settings(refit=refit))
    if refit:
        plain = channel_variants(given, columns, (32,), settings(refit=False))[0]
        assert variant.error < 0.9 * plain.error
        assert not torch.allclose(variant.bias.double(), given.weight[:, -1], atol=1e-3)
    else:
        assert torch.equal(variant.weight(), given.weight[:, columns].float())
        assert torch.equal(variant.bias, given.weight[:, -1].float())


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_layers_without_bias_get_none(quantizer: str) -> None:
    given, chosen = conv(bias=False), settings(quantizer)
    assert (given.weight[:, -1] == 0).all()
    for variant in channel_variants(given, columns_without(given, {1}), chosen.weight_bits, chosen):
        assert (variant.bias == 0).all()
    for variant in sparse_variants(given, 0.5, chosen.weight_bits, settings(quantizer, granularity="element")):
        assert (variant.bias == 0).all()


def test_sixteen_bits_fit_in_half_precision() -> None:
    given = conv()
    for columns in (torch.arange(36), columns_without(given, {1})):
        half, full = channel_variants(given, columns, (16, 32), settings())
        assert half.scale is None
        assert torch.equal(half.values.half().float(), half.values)
        assert not torch.equal(full.values.half().float(), full.values)
        assert (half.values - full.values).abs().max() < 2**-11 * full.values.abs().max()


def test_integer_variants_are_codes_and_scales() -> None:
    given = conv()
    for bits, variant in zip(
        range(1, 9), channel_variants(given, torch.arange(36), range(1, 9), settings()), strict=True
    ):
        assert variant.values.dtype == torch.int8
        assert variant.scale is not None
        assert variant.scale.dtype == torch.float32
        assert max(len(row.unique()) for row in variant.weight()) <= 2**bits


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize(
    ("granularity", "sparsity"), [("element", 0.3), ("element", 0.875), ("2:4", 0.5), ("1:4", 0.75)]
)
def test_pruned_weights_stay_zero_at_every_width(quantizer: str, granularity: str, sparsity: float) -> None:
    given, chosen = conv(), settings(quantizer, granularity=granularity)
    masks = []
    for bits, variant in zip(
        chosen.weight_bits, sparse_variants(given, sparsity, chosen.weight_bits, chosen), strict=True
    ):
        weight = variant.weight()
        assert int((weight == 0).sum()) >= removed_weights(216, sparsity)
        if bits in (1, 32):
            masks.append(weight != 0)
        assert variant.error == pytest.approx(loss(given, variant), rel=1e-4)
    assert int((~masks[0]).sum()) == removed_weights(216, sparsity)
    assert torch.equal(masks[0], masks[1])  # 1 bit: the sign of every weight that stays, and nothing else
    if ":" in granularity:
        assert set(masks[0].view(-1, 4).sum(1).tolist()) == {int(granularity[0])}


def test_masked_refit_is_least_squares_on_every_rows_support() -> None:
    given, chosen = conv(), settings(granularity="element", damping=1e-9)
    (variant,) = sparse_variants(given, 0.5, (32,), chosen)
    plain = sparse_variants(given, 0.5, (32,), settings(granularity="element", damping=1e-9, refit=False))[0]
    assert variant.error < 0.8 * plain.error
    slope = change(given, variant) @ given.second_moment[0].double()  # of the output error; 0 where a weight may change
    stays = torch.cat([variant.weight() != 0, torch.ones(6, 1, dtype=torch.bool)], 1)
    assert slope[stays].abs().max() < 1e-5 * slope[~stays].abs().max()


def test_dead_layer() -> None:
    """A layer that never sees an input keeps its weights as they are, whatever is asked."""
    given = conv()
    dead = LayerSource(given.layer, given.weight, torch.zeros_like(given.second_moment), given.gradient_moment)
    for variant in channel_variants(dead, columns_without(given, {1}), (8, 32), settings()):
        assert variant.error == 0
        assert torch.isfinite(variant.weight()).all()
        torch.testing.assert_close(variant.weight().double(), given.weight[:, variant.columns], rtol=0.1, atol=0.01)
    for variant in sparse_variants(dead, 0.5, (8, 32), settings(granularity="element")):
        assert torch.isfinite(variant.weight()).all()


def test_sources_are_not_changed() -> None:
    given = conv()
    before = [given.weight.clone(), given.second_moment.clone(), given.gradient_moment.clone()]
    channel_variants(given, columns_without(given, {1}), ALL_BITS, settings())
    sparse_variants(given, 0.5, ALL_BITS, settings(granularity="element"))
    after = [given.weight, given.second_moment, given.gradient_moment]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def divergence(model: nn.Module, changed: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        p, q = (each(x).double().log_softmax(1) for each in (model, changed))
    return float((p.exp() * (p - q)).sum(1).mean())


def test_errors_predict_the_divergence_of_single_changes() -> None:
    """Every layer of the digits network alone at 8 and at 4 bits: within a factor of 3 of the measured divergence."""
    data, model = load_data("digits"), load_model("digits")
    x, _ = data.calibration()
    network = trace(model, x[:1])
    folded = fold_batch_norms(model, network).requires_grad_(False)
    found, chosen = calibrate(folded, network, x, draws=8), MenuSettings()
    ratios = {}
    for layer in network.layers:
        given = LayerSource.of(layer, folded.get_submodule(layer.name), found[layer.name])
        for bits, variant in zip(
            (4, 8), channel_variants(given, torch.arange(layer.fan_in), (4, 8), chosen), strict=True
        ):
            changed = copy.deepcopy(folded)
            module = changed.get_submodule(layer.name)
            module.weight.copy_(variant.weight().view_as(module.weight))
            module.bias.copy_(variant.bias)
            ratios[layer.name, bits] = variant.error / divergence(folded, changed, x)
    assert len(ratios) == 18
    assert {key: ratio for key, ratio in ratios.items() if not 0.7 < ratio < 3} == {}
    assert 0.75 < np.exp(np.mean(np.log(list(ratios.values())))) < 1.33
