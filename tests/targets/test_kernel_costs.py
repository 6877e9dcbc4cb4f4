"""Kernel costs: planted ones are found from whole networks, and what is not within the model is told as an error."""

import numpy as np
import pytest

from autocompress.targets.kernels import LayerShapes, Measured, draw_variants, fit_kernels
from autocompress_envs.problem.tables import Tables
from autocompress_envs.testing import LayerShape, Menu, build_problem

SHAPES = LayerShapes(
    ("conv",) * 6 + ("linear",), np.array([9, 9, 9, 9, 1, 1, 1]), np.array([256, 256, 64, 64, 64, 64, 1])
)
WIDTHS = np.array([8, 12, 16, 18, 20, 24, 28, 32])


def networks(count, seed=0):
    """Random widths and formats: (fan_in, out, weight bits, activation bits), each (count, 7)."""
    rng = np.random.default_rng(seed)
    channels = rng.choice(WIDTHS, (count, 7)) + rng.integers(0, 2, (count, 7)) * (rng.random((count, 1)) < 0.5)
    out = rng.choice(WIDTHS, (count, 7))
    bits = rng.choice([4, 8, 32], (count, 7), p=[0.4, 0.4, 0.2])
    return channels * SHAPES.areas, out, bits, np.full((count, 7), 8)


def planted(fan_in, out, weight_bits, activation_bits, noise=0.0, seed=1):
    """A call of 1,000 ns, 2 a position, 0.05 a gathered input and 0.01 a multiply-accumulate; floats take 3 times that.

    Integer convolutions whose input channels are no multiple of four, or which have fewer than 16 rows, take twice as
    long. The network takes 20,000 ns besides.
    """
    conv = np.array([kind == "conv" for kind in SHAPES.kinds])
    time = 1_000 + SHAPES.positions * (2 + 0.05 * fan_in + 0.01 * fan_in * out)
    is_float = weight_bits > 8
    unsuited = conv & ~is_float & ((fan_in % (4 * SHAPES.areas) != 0) | (out < 16))
    total = (time * np.where(is_float, 3, 1) * np.where(unsuited, 2, 1)).sum(1) + 20_000
    rng = np.random.default_rng(seed)
    return total * np.exp(noise * rng.standard_normal(len(total)))


def predicted(costs, fan_in, out, weight_bits, activation_bits):
    at = np.arange(7)[None].repeat(len(fan_in), 0)
    return costs.of_layers(at, fan_in, out, weight_bits, activation_bits).sum(1) + costs.fixed


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_planted_costs_are_recovered(noise):
    given, unseen = networks(60), networks(50, seed=7)
    fit = fit_kernels(SHAPES, Measured(*given, planted(*given, noise=noise)))
    assert (fit.costs.column_step[0, 0], fit.costs.least_rows[0, 0]) == (36, 16)
    assert fit.costs.column_step[0, 4] == 4  # the same condition, on columns of a 1 x 1 convolution
    errors = np.abs(predicted(fit.costs, *unseen) / planted(*unseen) - 1)
    assert np.median(errors) <= 0.005 + noise
    assert np.quantile(errors, 0.9) <= 0.02 + 2 * noise
    assert abs(np.median(fit.errors) - np.median(errors)) <= 0.005 + noise  # held-out errors are honest


def test_costs_are_never_negative():
    given = networks(30)
    time = planted(*given) * np.random.default_rng(3).uniform(0.7, 1.3, 30)
    costs = fit_kernels(SHAPES, Measured(*given, time)).costs
    for name in ("per_layer", "per_column", "per_row", "per_weight"):
        assert (getattr(costs, name) >= 0).all()
    assert costs.fixed >= 0


def test_conditions_are_only_taken_where_they_help():
    given = networks(60)
    fan_in, out = given[:2]
    linear = 5_000 + (SHAPES.positions * (0.05 * fan_in + 0.01 * fan_in * out)).sum(1)
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(60))
    costs = fit_kernels(SHAPES, Measured(*given, linear * noise)).costs
    assert (costs.least_rows == 1).all()
    assert (costs.row_step == 1).all()


def test_noise_is_told_as_an_error():
    given = networks(60)
    fit = fit_kernels(SHAPES, Measured(*given, planted(*given, noise=0.2)))
    assert np.median(fit.errors) >= 0.08
    half, most = (100 * np.quantile(fit.errors, [0.5, 0.9])).round(1)
    assert str(fit) == (
        f"60 networks, each predicted from the others: half within {half} %, nine in ten within {most} %"
    )


def test_a_removed_branch_takes_nothing():
    given = networks(40)
    costs = fit_kernels(SHAPES, Measured(*given, planted(*given))).costs
    eight = np.array(8)
    assert costs.of_layers(np.array(1), np.array(0), np.array(16), eight, eight) == 0
    assert costs.of_layers(np.array(1), np.array(72), np.array(0), eight, eight) == 0


def test_variants_are_different_and_cover_the_menus():
    inner = LayerShape("conv", (0,), 1, 9, (0, 0), 64, owns=True)
    shapes = [
        LayerShape("conv", (), 0, 9, (27, 0), 64, owns=True),
        inner,
        LayerShape("linear", (1,), None, 1, (0, 10), 1),
    ]
    menu = Menu((0.0, 0.25, 0.5, 0.75), (2, 4, 8), (8, 32))
    losses = [np.zeros((1 if not shape.reads else 4, 3, 2)) for shape in shapes]
    problem = build_problem(shapes, np.array([16, 32]), menu, losses)
    drawn = draw_variants(problem, 30)
    assert len({each.key() for each in drawn}) == len(drawn) == 30
    assert drawn[0].sparsity.sum() == drawn[0].weight_bits.sum() == 0
    counts = Tables(problem).counts
    for axis, name in enumerate(("sparsity", "weight_bits", "activation_bits")):
        seen = np.stack([getattr(each, name) for each in drawn])
        assert (seen < counts[:, axis]).all()
        assert (seen.max(0) == counts[:, axis] - 1).all()
    assert [each.key() for each in draw_variants(problem, 30)] == [each.key() for each in drawn]
