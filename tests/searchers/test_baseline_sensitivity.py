"""Layer errors measured one change at a time, against truths that are known."""

from dataclasses import replace

import numpy as np
import pytest

from autocompress.searchers.base import SearchSettings, Task
from autocompress.searchers.search import run_search
from autocompress.searchers.solvers.greedy import mildest
from autocompress.searchers.solvers.sensitivity import measured_problem
from autocompress_envs.problem import Outcome
from autocompress_envs.testing import LayerShape, Menu, additive_error, build_problem, random_problem, toy_problem

KINDS = ["chain", "residual", "concat", "depthwise", "element"]
BASELINE = 0.05


class Truth:
    """Measures the layer errors of another problem, summed, plus `BASELINE`, and counts."""

    def __init__(self, problem):
        self.problem, self.seen = problem, []

    def __call__(self, labeling):
        self.seen.append(labeling.key())
        kl = additive_error(self.problem, labeling) + BASELINE
        return Outcome(kl, float(np.exp(-kl)), float(np.exp(-kl)), self.problem.resources(labeling))


def one_layer(errors):
    """A linear layer with these errors (B,) at 2, 3, … bits."""
    menu = Menu((0.0,), tuple(range(2, 2 + len(errors))), (8,))
    shape = LayerShape("linear", (), None, 1, (10, 10), 1)
    return build_problem([shape], np.zeros(0, dtype=np.int64), menu, [np.array(errors)[None, :, None]])


def layers_of(*errors):
    problems = [one_layer(each) for each in errors]
    menu = Menu((0.0,), tuple(range(2, 2 + len(errors[0]))), (8,))
    shapes = [LayerShape("linear", (), None, 1, (10, 10), 1)] * len(errors)
    tables = [problem.layers[0].errors for problem in problems]
    return build_problem(shapes, np.zeros(0, dtype=np.int64), menu, tables)


def bits_errors(problem, layer=0):
    return problem.layers[layer].errors[0, :, 0]


def test_toy_by_hand():
    problem, _ = toy_problem()
    scaled = [replace(x, errors=x.errors * by) for x, by in zip(problem.layers, (3.0, 2.0, 0.5), strict=True)]
    truth = Truth(replace(problem, layers=tuple(scaled)))
    measured = measured_problem(problem, truth, 100)
    assert len(truth.seen) == len(set(truth.seen)) == 8  # uncompressed, 1 sparsity, 2 bit-widths for each of 3 layers
    assert truth.seen[0] == mildest(problem).key()
    assert measured.layers[0].errors[0, :, 0] == pytest.approx([0.3, 0.03, 0.0])
    assert measured.layers[1].errors[:, :, 0].tolist() == [
        pytest.approx([0.24, 0.024, 0.0]),
        pytest.approx([1.44, 1.224, 1.2]),  # pruning loses 2 * 0.6 at conv2
    ]
    assert measured.layers[2].errors[0, :, 0] == pytest.approx([0.2, 0.02, 0.0])
    assert measured.costs is problem.costs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_additive_truth_comes_back_in_every_cell(kind, seed):
    problem = random_problem(np.random.default_rng(seed), 7, kind)
    measured = measured_problem(problem, Truth(problem), 10**6)
    for before, after in zip(problem.layers, measured.layers, strict=True):
        pruning = before.errors[:, -1:, -1:] - before.errors[:1, -1:, -1:]
        quantization = before.errors - before.errors[:, -1:, -1:]
        expected = pruning + np.maximum(quantization, 0.0)  # what measures less than 8 bits is taken for as good
        assert after.errors == pytest.approx(expected, abs=1e-12)
        assert [source for source, _ in after.extra_sources] == [source for source, _ in before.extra_sources]
        for (_, was), (_, now) in zip(before.extra_sources, after.extra_sources, strict=True):
            assert now == pytest.approx(was, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("allowance", [0, 1, 2, 3, 7, 12, 30])
def test_keeps_the_allowance_and_stays_at_least_0(kind, allowance):
    problem, other = (random_problem(np.random.default_rng(3), 7, kind) for _ in range(2))
    truth = Truth(other)
    measured = measured_problem(problem, truth, allowance)
    assert len(truth.seen) == len(set(truth.seen)) <= allowance
    assert len(truth.seen) >= min(allowance, 3) or allowance < 2
    for layer in measured.layers:
        assert np.isfinite(layer.errors).all()
        assert layer.errors.min() >= 0.0


def test_nothing_is_measured_with_one_evaluation():
    problem, _ = toy_problem()
    truth = Truth(problem)
    assert measured_problem(problem, truth, 1) is problem
    assert truth.seen == []


# Five changes are expected to lose 1 to 1e-4 nats and lose 4 times as much but at the harshest. Two are measured: the
# harshest, and the third of five; the ratio at the second is half-way in logs, 2; below the third it stays 4.
def test_ratios_are_interpolated_between_measured_levels():
    expected = np.array([1.0, 1e-1, 1e-2, 1e-3, 1e-4, 0.0])
    truth = Truth(one_layer(expected * [1, 4, 4, 4, 4, 4]))
    measured = measured_problem(one_layer(expected), truth, 3)
    assert len(truth.seen) == 3
    assert bits_errors(measured) == pytest.approx([1.0, 0.2, 4e-2, 4e-3, 4e-4, 0.0])


def test_what_is_left_over_goes_where_most_harm_is_expected():
    expected = [np.array([scale, scale / 4, 0.0]) for scale in (0.1, 0.4, 0.2)]
    truth = Truth(layers_of(*(errors * [1, 3, 1] for errors in expected)))
    measured = measured_problem(layers_of(*expected), truth, 5)  # the mildest, 3 harshest, 1 left over
    assert len(truth.seen) == 5
    assert bits_errors(measured, 0) == pytest.approx([0.1, 0.025, 0.0])
    assert bits_errors(measured, 1) == pytest.approx([0.4, 0.3, 0.0])
    assert bits_errors(measured, 2) == pytest.approx([0.2, 0.05, 0.0])


def test_layers_that_are_not_measured_take_the_median_ratio():
    expected = [np.array([scale, 0.0]) for scale in (0.1, 0.4, 0.2, 0.3)]
    factors = (9.0, 2.0, 3.0, 5.0)
    truth = Truth(layers_of(*(errors * by for errors, by in zip(expected, factors, strict=True))))
    measured = measured_problem(layers_of(*expected), truth, 4)
    assert [bits_errors(measured, layer)[0] for layer in range(4)] == pytest.approx([0.3, 0.8, 0.6, 1.5])


def test_a_loss_below_the_uncompressed_networks_is_none():
    problem = one_layer(np.array([0.4, 0.1, 0.0]))
    truth = Truth(one_layer(np.array([0.4, -0.02, 0.0])))
    assert bits_errors(measured_problem(problem, truth, 3)) == pytest.approx([0.4, 0.0, 0.0])


# At 204 bytes the sum of single losses is least at bits 2 2 4, where conv1 and conv2 together lose 0.5 more: 0.76.
# Pruning alone, measured second, is within the limits and loses 0.6.
def test_measured_plan_and_best():
    problem, evaluate = toy_problem()
    seen = []
    settings = SearchSettings(episodes=400)
    result = run_search(Task(problem, {"size": 204}, evaluate), settings, method="measured", observe=seen.append)
    assert (result.evaluations, result.stopped_because) == (9, "the measured layer errors have one exact plan")
    assert seen[-1].labeling.weight_bits.tolist() == [0, 0, 1]
    assert seen[-1].outcome.kl == pytest.approx(0.76)
    assert (result.best.index, result.best.outcome.kl) == (1, pytest.approx(0.6))


@pytest.mark.parametrize("seed", [0, 1])
def test_hill_climb_on_measured_errors_sees_what_the_expected_ones_hide(seed):
    problem, evaluate = toy_problem()
    task = Task(problem, {"size": 204}, evaluate)
    seen = []
    settings = SearchSettings(episodes=40, seed=seed)
    result = run_search(task, settings, method="local-measured", observe=seen.append)
    assert [e.outcome.kl for e in seen[:2]] == pytest.approx([0.0, 0.6])  # uncompressed, pruned
    assert result.best.outcome.kl == pytest.approx(0.512)


def test_half_of_the_allowance_measures():
    problem = random_problem(np.random.default_rng(0), 12, "chain")
    limits = {"size": problem.original()["size"] // 6}
    seen = []
    run_search(
        Task(problem, limits, Truth(problem)), SearchSettings(episodes=20), method="local-measured", observe=seen.append
    )
    within = [e.outcome.resources["size"] <= limits["size"] for e in seen]
    assert within == [False] * 10 + [True] * 10
