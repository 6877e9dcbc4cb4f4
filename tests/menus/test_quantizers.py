"""One contract for every quantizer; what each does besides, in numbers."""

from dataclasses import replace

import pytest
import torch
from menu_toys import moment, randn
from torch import Tensor

from autocompress.menus.quantizers import QUANTIZERS
from autocompress.menus.rounding import Rounded, Rounding, code_range

CASES = [(name, bits) for name in QUANTIZERS for bits in range(1, 9) if name != "binary" or bits == 1]


def rounding(columns: int = 100, masked: bool = False, zero_row: bool = False) -> Rounding:
    """Two groups of three rows on correlated inputs."""
    weight = randn(2, 3, columns + 1, seed=7)
    mask = randn(2, 3, columns, seed=8) > 0 if masked else None
    if mask is not None:
        weight[..., :-1] *= mask
    if zero_row:
        weight[0, 1] = 0
    return Rounding(weight, torch.stack([moment(columns, seed=1), moment(columns, seed=2)]), mask)


def change(given: Rounding, rounded: Rounded) -> Tensor:
    """(g, r, d + 1)"""
    weight = torch.cat([rounded.codes * rounded.scale[..., None], rounded.bias[..., None]], -1)
    return weight - given.weight


def output_error(given: Rounding, rounded: Rounded) -> Tensor:
    """(g, r)"""
    difference = change(given, rounded)
    return (difference @ given.second_moment * difference).sum(-1)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("name", "bits"), CASES)
def test_contract(name: str, bits: int, masked: bool) -> None:
    given = rounding(columns=100, masked=masked, zero_row=True)
    before = replace(given, weight=given.weight.clone(), second_moment=given.second_moment.clone())
    (found,) = QUANTIZERS[name](given, [bits])
    assert found.codes.dtype == torch.int8
    assert (found.codes.shape, found.scale.shape, found.bias.shape) == ((2, 3, 100), (2, 3), (2, 3))
    low, high = code_range(bits)
    assert low <= int(found.codes.min())
    assert int(found.codes.max()) <= high
    assert found.scale.min() > 0
    assert torch.isfinite(found.bias).all()
    if given.mask is not None:
        assert (found.codes[~given.mask] == 0).all()
    elif bits == 1:
        assert found.codes.abs().min() == 1  # without pruned weights, 0 is no third level
    for row in found.codes.flatten(0, 1):
        assert len(row.unique()) <= 2**bits + (masked and bits == 1)
    assert (found.codes * found.scale[..., None])[0, 1].abs().max() < 1e-9  # the row that is all 0
    assert torch.equal(given.weight, before.weight)
    assert torch.equal(given.second_moment, before.second_moment)
    (again,) = QUANTIZERS[name](given, [bits])
    assert torch.equal(found.codes, again.codes)
    assert torch.equal(found.scale, again.scale)


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if name != "binary"])
def test_widths_do_not_depend_on_each_other(name: str) -> None:
    given = rounding()
    together = QUANTIZERS[name](given, [2, 4, 8])
    for bits, found in zip([2, 4, 8], together, strict=True):
        assert torch.equal(found.codes, QUANTIZERS[name](given, [bits])[0].codes)


@pytest.mark.parametrize("name", ["gptq", "nearest", "mse", "fixed-point"])
def test_more_bits_are_better(name: str) -> None:
    given = rounding()
    errors = [float(output_error(given, found).sum()) for found in QUANTIZERS[name](given, range(2, 9))]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 500


def test_nearest_by_hand() -> None:
    weight = torch.tensor([[[-0.8, 0.3, 0.7, 0.1]]], dtype=torch.float64)
    (found,) = QUANTIZERS["nearest"](Rounding(weight, torch.eye(4, dtype=torch.float64)[None]), [2])
    assert found.scale.item() == 0.7  # 0.7 / 1 > 0.8 / 2
    assert found.codes.flatten().tolist() == [-1, 0, 1]
    assert found.bias.item() == 0.1


def test_mse_scale_by_hand() -> None:
    """Of the scales 0.30, 0.35 … 1 of min-max's, the one of least squared error: computed here one by one."""
    given = rounding()
    (found,) = QUANTIZERS["mse"](given, [3])
    (widest,) = QUANTIZERS["nearest"](given, [3])
    error, widest_error = ((change(given, each) ** 2).sum(-1) for each in (found, widest))
    assert (error <= widest_error).all()
    assert float(error.sum()) < 0.7 * float(widest_error.sum())
    for factor in torch.linspace(0.4, 1.0, 14, dtype=torch.float64):
        scale = widest.scale * factor
        codes = (given.weight[..., :-1] / scale[..., None]).round().clamp(-4, 3)
        other = (given.weight[..., :-1] - codes * scale[..., None]).square().sum(-1)
        assert (error <= other + 1e-12).all()


@pytest.mark.parametrize("bits", range(1, 9))
def test_fixed_point_scales_are_powers_of_two(bits: int) -> None:
    for masked in (False, True):
        (found,) = QUANTIZERS["fixed-point"](rounding(masked=masked), [bits])
        mantissa, exponent = torch.frexp(found.scale)
        assert (mantissa == 0.5).all()
        assert torch.equal(found.scale.float().double(), torch.ldexp(torch.ones(2, 3).double(), exponent - 1))


@pytest.mark.parametrize("masked", [False, True])
def test_binary_scale_is_the_mean_magnitude(masked: bool) -> None:
    given = rounding(masked=masked)
    (found,) = QUANTIZERS["binary"](given, [1])
    weight = given.weight[..., :-1]
    kept = torch.full((2, 3), 100) if given.mask is None else given.mask.sum(-1)
    torch.testing.assert_close(found.scale, weight.abs().sum(-1) / kept)
    assert torch.equal(found.codes.double(), weight.sign())


# Output error of gptq over that of min-max rounding, as measured, and a little more.
GPTQ_SHARE = {1: 0.6, 2: 0.25, 3: 0.3, 4: 0.35, 5: 0.35, 6: 0.35, 7: 0.4, 8: 0.35}


@pytest.mark.parametrize("bits", range(1, 9))
def test_gptq_beats_nearest_on_correlated_inputs(bits: int) -> None:
    given = rounding()
    (best,) = QUANTIZERS["gptq"](given, [bits])
    for name in ("nearest", "fixed-point"):
        (plain,) = QUANTIZERS[name](given, [bits])
        assert bits == 1 or (output_error(given, best) < output_error(given, plain)).all()
    (plain,) = QUANTIZERS["nearest"](given, [bits])
    share = float(output_error(given, best).sum() / output_error(given, plain).sum())
    assert share < GPTQ_SHARE[bits]


def test_gptq_one_bit_fits_its_scale_to_what_pruning_left() -> None:
    """A tenth of the weights left: a scale near the mean of all magnitudes would be ten times too small."""
    given = rounding()
    mask = torch.zeros(2, 3, 100, dtype=torch.bool)
    mask[..., ::10] = True
    weight = given.weight.clone()
    weight[..., :-1] *= mask
    given = replace(given, weight=weight, mask=mask)
    (found,) = QUANTIZERS["gptq"](given, [1])
    mean = weight[..., :-1].abs().sum(-1) / 10
    assert ((found.scale > 0.4 * mean) & (found.scale < 1.7 * mean)).all()


def test_gptq_leaves_no_error_that_the_bias_could_take() -> None:
    """The bias is at its optimum: the derivative of the output error with respect to it, 2 (ΔW H)_bias, is 0."""
    given = rounding(masked=True)
    for found in QUANTIZERS["gptq"](given, [1, 2, 4]):
        difference = change(given, found)
        slope = (difference @ given.second_moment)[..., -1]
        size = (difference.abs() @ given.second_moment.abs())[..., -1]
        assert (slope.abs() < 1e-5 * size).all()


def test_gptq_absorbs_a_mean_shift_exactly() -> None:
    """Inputs that never change: every rounding error is a shift of the output, and the bias takes all of it."""
    mean = torch.cat([randn(20), torch.ones(1, dtype=torch.float64)])
    second_moment = torch.outer(mean, mean) + 1e-7 * torch.diag(torch.tensor([1.0] * 20 + [0.0]).double())
    given = Rounding(randn(1, 4, 21, seed=5), second_moment[None])
    (found,) = QUANTIZERS["gptq"](given, [2])
    difference = change(given, found)[0]
    assert difference[:, :-1].abs().max() > 0.1
    assert (difference @ mean).abs().max() < 1e-4
    (plain,) = QUANTIZERS["nearest"](given, [2])
    assert (change(given, plain)[0] @ mean).abs().min() > 0.01


def test_gptq_on_dead_inputs_and_without_any_signal() -> None:
    from autocompress.menus.algebra import damped

    second_moment = moment(10)
    second_moment[3], second_moment[:, 3] = 0, 0
    for moments in (second_moment, torch.zeros_like(second_moment)):
        given = Rounding(randn(1, 4, 11), damped(moments[None], 1e-3))
        (found,) = QUANTIZERS["gptq"](given, [8])
        assert change(given, found)[..., :-1].abs().max() < 0.03 * given.weight.abs().max()
