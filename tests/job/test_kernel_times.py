"""Which widths pay, by the costs of kernels."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from autocompress.job import kernel_times
from autocompress.job.kernel_times import widths_that_pay
from autocompress.progress import Silent
from autocompress.targets.kernels import Fit
from autocompress.targets.timing import TimeLimit
from autocompress_envs.problem import KernelCosts, Labeling
from autocompress_envs.testing import LayerShape, Menu, build_problem

SHAPES = [
    LayerShape("conv", (), 0, 9, (27, 0), 64, owns=True),
    LayerShape("conv", (0,), 1, 9, (0, 0), 64, owns=True),
    LayerShape("linear", (1,), None, 1, (0, 10), 1),
]


def menus_with(column_step, least_rows, slower=2.0):
    """Groups of 16 and 32 channels in eighths; a kernel that wants such widths, else one `slower` times as slow."""
    menu = Menu(tuple(np.arange(8) / 8), (4, 8), (8,))
    losses = [np.zeros((8 if shape.reads else 1, 2, 1)) for shape in SHAPES]
    problem = build_problem(SHAPES, np.array([16, 32]), menu, losses)
    each, slow = np.ones((2, 3)), np.array([[1.0], [slower]])
    area = np.array([9, 9, 1])
    costs = KernelCosts(
        kernel=np.zeros((33, 33), np.int64),
        instead=np.array([1, 1]),
        column_step=np.stack([column_step * area, area]),
        row_step=np.ones((2, 3), np.int64),
        least_rows=np.array([[least_rows], [1]]).repeat(3, 1),
        per_layer=1_000 * each * slow,
        per_column=0 * each,
        per_row=0 * each,
        per_weight=each * slow,
        fixed=0,
    )
    problem = replace(problem, costs=replace(problem.costs, kernels=costs))
    groups = [SimpleNamespace(owner=str(index)) for index in range(2)]
    kept = {str(index): problem.layers[index].kept.tolist() for index in range(2)}
    return SimpleNamespace(
        problem=lambda: problem,
        network=SimpleNamespace(groups=groups),
        kept_options=lambda group: kept[group.owner],
    )


def test_where_thinner_is_always_faster_all_widths_pay():
    assert widths_that_pay(menus_with(1, 1)) == {}


def test_widths_that_leave_the_fast_kernel_are_only_offered_where_they_save_enough():
    """14 and 10 channels are slower than 16 and 12, since the next layer reads them in steps of four."""
    found = widths_that_pay(menus_with(4, 16))
    assert found["0"][0] == 16
    assert all(width % 4 == 0 for width in found["0"] if width > 8)
    assert set(found["1"]) >= {32, 28, 24, 20, 16}


def test_where_falling_back_costs_more_than_it_can_save_only_the_whole_width_pays():
    found = widths_that_pay(menus_with(1, 16, slower=100.0))
    assert found["0"] == (16,)
    assert found["1"] == (32, 28, 24, 20, 16)


@pytest.mark.parametrize(("enough", "timed"), [(1, 32), (33, 48), (64, 64), (1_000, 64)])
def test_more_variants_are_timed_where_few_do_not_predict_each_other(enough, timed, monkeypatch):
    def fit(job, timer, labelings, times):
        assert times.tolist() == [0.5 + number for number in range(len(labelings))]
        errors = np.full(len(labelings), 0.01 if len(labelings) >= enough else 0.03)
        return Fit(None, errors)

    def timing(labeling, effort):
        around = SimpleNamespace(median=0.5 + labeling.sparsity[0])
        original = SimpleNamespace(median=SimpleNamespace(median=2e-6))
        return SimpleNamespace(ratio=around, original=original, waiting=SimpleNamespace(is_busy=False))

    drawn = [Labeling(*(np.array([number]) for _ in range(3))) for number in range(64)]
    monkeypatch.setattr(kernel_times, "draw_variants", lambda problem, count: drawn[:count])
    monkeypatch.setattr(kernel_times, "_fit", fit)
    timer = SimpleNamespace(where=(None, "a runtime"), time=timing)
    found = kernel_times._measure(SimpleNamespace(problem=None), timer, TimeLimit(0.5, None, 1, 1), Silent())
    assert found["labelings"].shape == (timed, 3, 1)
    assert found["ratios"].tolist() == [0.5 + number for number in range(timed)]
    assert found["original"].tolist() == [2_000]


def test_a_fit_is_within_the_errors_of_both_shares():
    fit = Fit(None, np.array([0.01] * 8 + [0.05, 0.2]))
    assert fit.is_within({0.5: 0.01})
    assert not fit.is_within({0.5: 0.01, 1.0: 0.1})
    assert not fit.is_within({0.5: 0.009})
