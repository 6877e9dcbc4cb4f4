"""Every observation field on the toy problem, by hand."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from autocompress_envs.environment import LayerLabelingEnv
from autocompress_envs.observation import HIGH, LOW, OBSERVATION_VERSION, Observation, Observer
from autocompress_envs.problem import Labeling, Outcome
from autocompress_envs.solver import Solver
from autocompress_envs.testing import TOY_LIMITS, random_problem, toy_problem


def toy_observer() -> tuple[Observer, Labeling]:
    solver = Solver(toy_problem()[0], TOY_LIMITS)
    reference = solver.solve()
    return Observer(solver, reference), reference


def test_documented_indices_are_the_real_ones() -> None:
    observer, reference = toy_observer()
    seen = observer.observe(0, reference, np.zeros(3))
    rows = re.findall(r"\| (\d+)(?:-(\d+))? +\| (\w+) ", Observation.__doc__ or "")
    documented = {name: (int(first), int(last or first)) for first, last, name in rows}
    start, real = 0, {}
    for name, field in seen._asdict().items():
        real[name] = (start, start + len(field) - 1)
        start += len(field)
    assert documented == real
    assert (OBSERVATION_VERSION, start, LOW.shape, HIGH.shape) == (2, 46, (46,), (46,))


def test_fields_of_the_first_layer() -> None:
    observer, reference = toy_observer()
    seen = observer.observe(0, reference, np.array([0.5, -0.5, 0.0]))
    # Sizes at the reference bits 2, 2, 4: weights 2 + 2 + 4 bytes, rows 4 + 2 + 4 scales of 4, a range of 8 each.
    bytes_of = np.array([2 + 16 + 8, 2 + 8 + 8, 4 + 16 + 8])
    assert seen.kind.tolist() == [1, 0, 0]
    assert seen.shares.tolist() == pytest.approx(
        [math.log10(1 / 3) / 6, math.log10(1 / 3) / 6, math.log10(26 / bytes_of.sum()) / 6, math.log10(1 / 4) / 6]
    )
    assert seen.position.tolist() == [0]
    assert seen.widths.tolist() == [1 / 16, 2 / 16]  # 2 columns, 4 rows
    total = 0.26
    # Errors 0.1, 0.01 and 1e-12 (for 0) at 2, 4, 8 bits, straight in logs between.
    logs = [-1, -1.5, -2, -4.5, -7, -12]
    assert seen.bits_errors.tolist() == pytest.approx([(log - math.log10(total)) / 6 for log in logs])
    # Removing half costs 0.6; a quarter lies half way between 1e-12 and that; 0.75 is beyond the menu.
    half = (math.log10(0.6) - math.log10(total)) / 6
    quarter = ((math.log10(0.6) - 12) / 2 - math.log10(total)) / 6
    assert seen.sparsity_errors.tolist() == pytest.approx([quarter, half, half])
    assert seen.chooses_sparsity.tolist() == [1]
    assert seen.previous_action.tolist() == [0.5, -0.5, 0.0]
    original_bitops = 24 * 32 * 32
    assert seen.budget.tolist() == pytest.approx([1, 1, 512 / original_bitops, 1])
    assert seen.reference_label.tolist() == pytest.approx([0, 1 / 5, 3 / 5])
    assert seen.reference_errors.tolist() == pytest.approx([(-12 - math.log10(total)) / 6, math.log10(0.1 / total) / 6])
    assert seen.reference_loss.tolist() == pytest.approx([math.log10(total) / 6])
    assert seen.depth.tolist() == pytest.approx([math.log2(3) / 16])


def test_spent_and_rest() -> None:
    observer, _ = toy_observer()
    chosen = Labeling(np.array([1, 0, 0]), np.array([2, 0, 0]), np.array([0, 0, 0]))  # half the group, 8 bits
    seen = observer.observe(1, chosen, np.zeros(3))
    # conv1 keeps 2 x 2 weights: 4 x 8 x 8 = 256 bitops of 512; conv2 then needs 4 x 2 x 8 = 64, fc 8 x 2 x 8 = 128.
    assert seen.spent[2] == pytest.approx(256 / 512)
    assert seen.remaining[2] == pytest.approx(256 / 512)
    assert seen.cheapest_rest[2] == pytest.approx(192 / 512)
    # macs have no limit: of the original's 24 spent 4, rest 4 + 8.
    assert seen.spent[1] == pytest.approx(4 / 24)
    assert seen.cheapest_rest[1] == pytest.approx(12 / 24)
    # size: 100 fixed + 8 x 2 of the group + conv1's 4 bytes, 2 scales, a range; original 100 + 32 + 96.
    assert seen.spent[0] == pytest.approx((100 + 16 + 4 + 8 + 8) / 228)
    # memory: tensors of 2, 2 (kept) and 2 elements at 8 bits, 4 at 32 (nobody reads it); only the first is spent.
    # Original: 2 + 4 + ... at 32 bits: the peak is 6 elements of 4 bytes (before or after conv2, or at fc).
    assert seen.spent[3] == pytest.approx(2 / 24)
    assert seen.cheapest_rest[3] == pytest.approx((18 - 2) / 24)
    assert seen.position.tolist() == [pytest.approx(1 / 3)]


def test_layer_without_sparsity() -> None:
    observer, reference = toy_observer()
    seen = observer.observe(2, reference, np.zeros(3))
    assert seen.kind.tolist() == [0, 0, 1]
    assert seen.chooses_sparsity.tolist() == [0]
    assert seen.sparsity_errors.tolist() == [0, 0, 0]
    assert seen.reference_label.tolist() == pytest.approx([0, 2 / 5, 3 / 5])


def test_previous_action_is_the_executed_one() -> None:
    problem, evaluate = toy_problem()
    env = LayerLabelingEnv(problem, evaluate, TOY_LIMITS, "label")
    first, _ = env.reset()
    assert first[32:35].tolist() == [0, 0, 0]
    second, *_ = env.step(np.array([-1.0, 1.0, 0.25], dtype=np.float32))  # clipped to 4 bits
    assert second[32:35].tolist() == pytest.approx([-1, -1 / 3, 0])


def test_finite_and_in_bounds_everywhere() -> None:
    rng = np.random.default_rng(0)
    for kind in ("chain", "residual", "concat", "depthwise", "element"):
        problem = random_problem(rng, 9, kind)
        env = LayerLabelingEnv(
            problem, lambda labeling: Outcome(0.1, 0.5, 0.5, {}), {"memory": problem.original()["memory"]}
        )
        observation, _ = env.reset()
        for _ in range(9):
            assert np.isfinite(observation).all()
            assert (observation >= LOW).all()
            assert (observation <= HIGH).all()
            observation, *_ = env.step(np.zeros(2))
        assert observation[7] == 1.0  # position at the end
