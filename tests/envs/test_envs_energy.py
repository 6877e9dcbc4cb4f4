"""Modelled energy: the closed form against sums by hand, and limits of it that are kept."""

import numpy as np
import pytest
from envs_toys import solver_excess, walk_within, with_energy

from autocompress_envs import LabelingEnv, Sketch
from autocompress_envs.labeling.observation import OPTION_NAMES
from autocompress_envs.problem import EnergyCosts, Labeling, Outcome
from autocompress_envs.problem.energy import access_energy, mac_energy
from autocompress_envs.problem.tables import Tables
from autocompress_envs.solver import InfeasibleBudgetError, Solver
from autocompress_envs.testing import all_labelings, random_problem, toy_problem

KINDS = ["chain", "residual", "concat", "depthwise", "element"]


def test_the_table_of_the_source() -> None:
    """Horowitz: 0.2 + 0.1 picojoules for 8 bits, 3.7 + 0.9 for float32; a byte from 8 kB takes 10 / 8."""
    eighths = [int(mac_energy(np.array(w), np.array(a))) for w, a in ((8, 8), (4, 4), (16, 8), (8, 32), (32, 32))]
    assert [each / 8_000 for each in eighths] == [0.3, 0.15, 4.6, 4.6, 4.6]
    assert [access_energy(each) for each in (1, 8_192, 32_768, 2**20, 2**20 + 1)] == [
        1_250,
        1_250,
        2_500,
        12_500,
        160_000,
    ]


def test_a_layer_by_hand() -> None:
    """The toy's first layer: 8 weights of 4 bits that read 8 bits, 4 scales, a range; 6 elements of input."""
    problem = with_energy(toy_problem()[0])
    none = np.zeros(3, dtype=np.int64)
    energy = problem.costs.energy
    assert energy is not None
    size = 4 + 4 * 4 + 8
    taken = 8 * 0.2 + size * 160 + 2 * (3 * 2) * 1.25
    fan_in, out = (np.array(each) for each in (2, 4))
    found = problem.costs.of_layers(np.array(0), fan_in, out, np.array(4), np.array(8), 0.0)
    assert int(found["energy"]) == int(np.ceil(taken))
    assert problem.resources(Labeling(none, none, none))["energy"] > problem.costs.energy.fixed


def test_two_factors_by_hand() -> None:
    """Rank 1 of 2 columns and 4 rows: the second factor reads float32, which is handed on."""
    problem = with_energy(toy_problem()[0])
    at, fan_in, out, bits = (np.array(each) for each in (0, 2, 4, 8))
    found = problem.costs.of_layers(at, fan_in, out, bits, bits, 0.0, np.array(1))
    size = (2 + 4) + 4 * 4 + 4 + 8
    taken = 2 * 0.3 + 4 * 4.6 + size * 160 + 2 * 6 * 1.25 + 2 * 4 * 1.25
    assert (int(found["size"]), int(found["energy"])) == (size, int(np.ceil(taken)))


def test_a_table_moves_the_rows_that_are_looked_up() -> None:
    energy = EnergyCosts(*(np.array([each]) for each in (0, 16)), np.array([False]), np.array([3]), 1_250, 0)
    numbers = [np.array(each) for each in (0, 16, 1_000, 8, 32)]
    nothing = np.array(0)
    assert int(energy.of_layers(*numbers, (nothing, nothing), np.array(20_000), nothing)) == 3 * 16 * 160


@pytest.mark.parametrize("kind", KINDS)
def test_tables_count_what_the_problem_counts(kind: str) -> None:
    rng = np.random.default_rng(3)
    problem = with_energy(random_problem(rng, 4, kind))
    tables, every = Tables(problem), all_labelings(problem)
    for index in rng.integers(len(every.sparsity), size=20):
        labeling = Labeling(every.sparsity[index], every.weight_bits[index], every.activation_bits[index])
        assert tables.resources(labeling) == problem.resources(labeling)
        assert "energy" in problem.resources(labeling)


@pytest.mark.parametrize("kind", KINDS)
def test_the_solver_meets_limits_of_energy_and_comes_close_to_the_best(kind: str) -> None:
    rng = np.random.default_rng(0)
    excess = []
    for _ in range(6):
        problem = with_energy(random_problem(rng, 4, kind))
        if np.prod(Tables(problem).counts) > 40_000:
            continue
        excess.append(solver_excess(problem, "energy", rng))
    assert len(excess) >= 3
    assert float(np.median(excess)) <= 0.05


def test_every_masked_episode_meets_limits_of_energy_and_bytes() -> None:
    rng = np.random.default_rng(1)
    for kind in KINDS:
        problem = with_energy(random_problem(rng, 5, kind))
        none = np.zeros(len(problem.layers), dtype=np.int64)
        most, limits = problem.resources(Labeling(none, none, none)), {}
        for name in ("size", "energy"):
            least = Solver(problem, {name: 10**12}).reach.smallest(Labeling(none, none, none), 0)[name]
            limits[name] = max(int(1.05 * least), (least + most[name]) // 2)
        walk_within(problem, limits, rng)


def test_the_policy_sees_what_a_picojoule_is_worth() -> None:
    """Energy has no column of its own: its limit is in the price, the slack, and in which option is the cheapest."""
    rng = np.random.default_rng(4)
    problem = with_energy(random_problem(rng, 6))
    tables = Tables(problem)
    shape = (6, tables.errors.shape[1], 5), (6, tables.errors.shape[2] * tables.errors.shape[3], 5)
    sketch = Sketch(*(rng.normal(0, 0.1, each) for each in shape))
    none = np.zeros(6, dtype=np.int64)
    least = Solver(problem, {"energy": 10**12}).reach.smallest(Labeling(none, none, none), 0)["energy"]
    limit = {"energy": (least + problem.resources(Labeling(none, none, none))["energy"]) // 2}
    env = LabelingEnv(problem, lambda plan: Outcome(0.1, 0.5, 0.5, problem.resources(plan)), limit, sketch)
    seen, _ = env.reset()
    columns = {name: OPTION_NAMES.index(name) for name in ("price", "slack", "is_cheapest", "size_change")}
    assert len(OPTION_NAMES) == seen["options"].shape[1]
    options = seen["options"]
    assert np.abs(options[:, [columns["price"], columns["slack"]]]).max(0).min() > 0
    assert options[:, columns["is_cheapest"]].sum() == 1
    assert not options[:, columns["size_change"]].any()
    done = False
    while not done:
        _, _, done, _, info = env.step(int(rng.choice(np.flatnonzero(env.action_masks()))))
    assert info["outcome"].resources["energy"] <= limit["energy"]


def test_limits_below_the_least_name_it() -> None:
    problem = with_energy(toy_problem()[0])
    least = int(Tables(problem).amounts(all_labelings(problem), ["energy"])["energy"].min())
    with pytest.raises(InfeasibleBudgetError) as caught:
        Solver(problem, {"energy": least - 1})
    assert str(caught.value) == (
        f"`energy` budget must be at least {least:,} picojoules a sample, modelled (the smallest plan of this "
        f"network), got {least - 1:,}; raise it or allow fewer bits or more sparsity."
    )
