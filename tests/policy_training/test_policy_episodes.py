"""Episodes: budgets in range, the solver first, distinct plans, hopeless budgets left out; files bit for bit."""

import math

import numpy as np
import pytest

from autocompress.errors import InputError
from autocompress.policies.network import observations_of
from autocompress.policy_training.episode_files import load_episodes, save_episodes
from autocompress.policy_training.episodes import MOST_LOSS, BudgetRange, episodes
from autocompress_envs.problem import Labeling, Outcome
from autocompress_envs.problem.loss_parts import LossParts
from autocompress_envs.solver import Solver
from autocompress_envs.testing import additive_error, random_problem, toy_problem

RESOURCES = ["size", "macs", "bitops", "memory"]


class Counting:
    """The layer errors' sum, times `scale`; keeps what it was asked for."""

    def __init__(self, problem, scale=1.0):
        self.problem, self.scale, self.asked = problem, scale, []

    def __call__(self, labeling):
        self.asked.append(labeling)
        kl = self.scale * additive_error(self.problem, labeling)
        return Outcome(kl, math.exp(-kl), math.exp(-kl), self.problem.resources(labeling))


@pytest.fixture(scope="module")
def problem():
    return random_problem(np.random.default_rng(5), 8, "residual")


@pytest.fixture(scope="module")
def explored(problem):
    """(episodes, everything that was evaluated)."""
    evaluate = Counting(problem)
    return list(episodes(problem, evaluate, BudgetRange("size", 0.3, 0.8), 6, 5, seed=2)), evaluate.asked


@pytest.mark.parametrize("resource", RESOURCES)
def test_budgets_stay_in_range_and_can_be_met(resource):
    rng, wanted = np.random.default_rng(0), BudgetRange(resource, 0.2, 0.7)
    for seed in range(12):
        problem = random_problem(np.random.default_rng(seed), 6)
        count = len(problem.layers)
        first = np.zeros(count, dtype=np.int64)
        most = [[len(menu) - 1 for menu in menus] for menus in zip(*map(menus_of, problem.layers), strict=True)]
        sparsity, weight_bits, activation_bits = map(np.array, most)
        low = problem.resources(Labeling(sparsity, first, first))[resource]
        high = problem.resources(Labeling(first, weight_bits, activation_bits))[resource]
        for _ in range(4):
            limits = wanted.draw(problem, rng)
            assert list(limits) == [resource]
            assert math.floor(low**0.8 * high**0.2 - 1e-6) <= limits[resource] <= low**0.3 * high**0.7 + 1e-6
            plan = Solver(problem, limits).solve()
            assert problem.resources(plan)[resource] <= limits[resource]


def menus_of(layer):
    return layer.sparsities, layer.weight_bits, layer.activation_bits


def test_draws_are_spread_over_the_range(problem):
    """100 draws in logs over [0, 1] of the toy's way from 128 to 1,536 bit operations: 2 bits to 8, half to none."""
    toy, _ = toy_problem()
    rng = np.random.default_rng(1)
    drawn = np.array([BudgetRange("bitops", 0.0, 1.0).draw(toy, rng)["bitops"] for _ in range(100)])
    shares = (np.log(drawn) - math.log(256)) / math.log(1536 / 256)
    assert (drawn.min(), drawn.max()) >= (256, 1400)
    assert abs(np.median(shares) - 0.5) < 0.12


def test_the_solver_comes_first_under_every_budget(problem, explored):
    found, _ = explored
    parts = LossParts(problem)
    assert len(found) == 6
    for one_budget in found:
        solver = Solver(problem, one_budget.limits)
        reference = solver.solve()
        assert np.array_equal(one_budget.parts[0], parts(reference))
        assert one_budget.losses[0] == pytest.approx(additive_error(problem, reference), rel=1e-12)
        assert np.array_equal(one_budget.observations, observations_of(solver, reference))
        assert one_budget.observations.shape == (8, 46)


def test_every_plan_counts_once_and_meets_its_budget(problem, explored):
    found, asked = explored
    assert len(asked) == sum(len(one_budget.losses) for one_budget in found)
    start = 0
    for one_budget in found:
        plans = asked[start : start + len(one_budget.losses)]
        start += len(plans)
        assert len({plan.key() for plan in plans}) == len(plans)
        assert 1 < len(plans) <= 5
        assert all(problem.resources(plan)["size"] <= one_budget.limits["size"] for plan in plans)
        assert np.array_equal(one_budget.parts, np.stack([LossParts(problem)(plan) for plan in plans]))
        assert one_budget.losses.tolist() == [additive_error(problem, plan) for plan in plans]
        np.testing.assert_allclose(
            one_budget.parts.sum((1, 2)), one_budget.losses, rtol=1e-9
        )  # the parts' sum is the error


def test_a_repeated_plan_is_not_evaluated_again():
    """Within 256 bit operations the toy has one plan: half the group, 2 bits everywhere."""
    toy, _ = toy_problem()
    evaluate = Counting(toy)
    found = list(episodes(toy, evaluate, BudgetRange("bitops", 0.0, 1e-9), 2, 6, seed=0))
    assert [one_budget.limits for one_budget in found] == [{"bitops": 256}] * 2
    assert [len(one_budget.losses) for one_budget in found] == [1, 1]
    assert [(plan.sparsity.tolist(), plan.weight_bits.tolist()) for plan in evaluate.asked] == [
        ([1, 0, 0], [0, 0, 0])
    ] * 2


def test_a_budget_under_which_the_network_only_guesses_is_left_after_one_evaluation():
    """All at 2 bits and half the group: 0.10 + 0.72 + 0.40 = 1.22 nats, times 2.45 below 3 nats, times 2.47 above."""
    toy, _ = toy_problem()
    wanted = BudgetRange("bitops", 0.0, 1e-9)
    below, above = Counting(toy, 2.45), Counting(toy, 2.47)
    kept = list(episodes(toy, below, wanted, 3, 4, seed=0))
    assert [one_budget.losses.tolist() for one_budget in kept] == [[pytest.approx(2.989)]] * 3
    assert (len(below.asked), MOST_LOSS) == (3, 3.0)
    assert list(episodes(toy, above, wanted, 3, 4, seed=0)) == []
    assert len(above.asked) == 3


def test_same_seed_same_episodes(problem, explored):
    again = list(episodes(problem, Counting(problem), BudgetRange("size", 0.3, 0.8), 6, 5, seed=2))
    other = list(episodes(problem, Counting(problem), BudgetRange("size", 0.3, 0.8), 6, 5, seed=3))
    assert_same(again, explored[0])
    assert [one_budget.limits for one_budget in other] != [one_budget.limits for one_budget in again]


def assert_same(found, expected):
    assert [dict(one_budget.limits) for one_budget in found] == [dict(one_budget.limits) for one_budget in expected]
    for one_budget, wanted in zip(found, expected, strict=True):
        for name in ("observations", "parts", "losses"):
            ours, theirs = getattr(one_budget, name), getattr(wanted, name)
            assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())


def test_files_hold_episodes_bit_for_bit(tmp_path, explored):
    file = tmp_path / "a.npz"
    save_episodes(file, "this", explored[0])
    assert len({len(one_budget.losses) for one_budget in explored[0]}) > 1  # counts differ, so the split is tested
    assert_same(load_episodes(file, "this"), explored[0])
    assert load_episodes(file, "that") is None
    assert load_episodes(tmp_path / "b.npz", "this") is None
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_no_episodes_are_kept_as_well(tmp_path):
    """A task whose budgets no plan of a network meets is not explored again."""
    save_episodes(tmp_path / "a.npz", "this", [])
    assert load_episodes(tmp_path / "a.npz", "this") == []
    assert load_episodes(tmp_path / "a.npz", "that") is None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda raw: b"", "No data left in file"),
        (lambda raw: raw[: len(raw) // 2], "File is not a zip file"),
        (lambda raw: b"x" + raw[1:], "This file contains pickled (object) data. If you trust the file you can load "
         "it unsafely using the `allow_pickle=` keyword argument or `pickle.load()`"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(tmp_path, explored, damage, reason):
    file = tmp_path / "a.npz"
    save_episodes(file, "this", explored[0])
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError) as caught:
        load_episodes(file, "this")
    assert str(caught.value) == f"{file} must hold episodes, got a damaged file: {reason}; remove it."


def test_an_array_too_few_is_refused(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, made_for=np.array("this"))
    with pytest.raises(InputError) as caught:
        load_episodes(file, "this")
    assert str(caught.value) == (
        f"{file} must hold episodes, got a damaged file: resource is not a file in the archive; remove it."
    )


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    """Every 7th byte of a small file: refused in one line, or what was saved (dates and the like are no content)."""
    toy, _ = toy_problem()
    saved = list(episodes(toy, Counting(toy), BudgetRange("bitops", 0.3, 0.8), 2, 3, seed=0))
    file, refused = tmp_path / "a.npz", 0
    save_episodes(file, "this", saved)
    raw = file.read_bytes()
    for position in range(0, len(raw), 7):
        file.write_bytes(raw[:position] + bytes([raw[position] ^ 0x55]) + raw[position + 1 :])
        found, message = tried(file)
        if message:
            assert message.startswith(f"{file} must hold episodes, got a damaged file: ")
            assert "\n" not in message
            refused += 1
        else:
            assert_same(found, saved)
    assert refused > len(raw) / 7 / 2


def tried(file):
    """What is loaded, and what is told if nothing is."""
    try:
        return load_episodes(file, "this"), ""
    except InputError as error:
        return None, str(error)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("losses", lambda array: array[:-1]),
        ("losses", lambda array: np.array(3.0)),
        ("losses", lambda array: array * np.nan),
        ("parts", lambda array: array.transpose(1, 0, 2)),
        ("counts", lambda array: array * -1),
        ("counts", lambda array: array.astype(float)),
        ("limits", lambda array: array[:1]),
        ("observations", lambda array: array[0]),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(tmp_path, explored, name, change):
    file = tmp_path / "a.npz"
    save_episodes(file, "this", explored[0])
    arrays = dict(np.load(file))
    np.savez(file, **{**arrays, name: change(arrays[name])})
    with pytest.raises(InputError) as caught:
        load_episodes(file, "this")
    assert str(caught.value) == f"{file} must hold episodes, got arrays that do not fit each other; remove it."
