"""What keeps the model and its planner within memory on networks of hundreds of layers."""

import numpy as np
import pytest
from output_toys import LinearNetwork

from autocompress.searchers.model_based import basis, planning
from autocompress.searchers.model_based.basis import Basis, affordable_samples
from autocompress.searchers.model_based.output_model import OutputModel
from autocompress.searchers.model_based.planning import Planner
from autocompress_envs.problem import Outcome
from autocompress_envs.solver import Solver


class Counting:
    """A model that remembers how many changes it was asked to pair, and of how many it was asked."""

    def __init__(self, model):
        self.encoding, self._model = model.encoding, model
        self.predict, self.asked = model.predict, []

    def moves(self, codes, feature, option, caution=0.0):
        self.asked.append(len(feature))
        return self._model.moves(codes, feature, option, caution)


def world(seed):
    """A network of 20 layers, a model that knows its effects by 0.8 and three plans, and a limit."""
    network, rng = LinearNetwork(20, seed=seed, kind="chain"), np.random.default_rng(0)
    model = OutputModel(network.problem, network.probabilities, effects=network.effects(0.8))
    plans = [network.random(rng) for _ in range(200)]
    limits = {"size": int(np.quantile([network.problem.resources(plan)["size"] for plan in plans], 0.2))}
    solved = Solver(network.problem, limits).solve()
    for plan in [solved, *plans[:2]]:
        model.add(plan, network.evaluate(plan))
    return network, Counting(model), limits, model.encoding.encode(solved)


def descended(seed):
    """The least divergence that a descent predicts, and the counting model."""
    network, model, limits, start = world(seed)
    met = Planner(network.problem, limits, model).descend(start)
    return float(model.predict(met)[0].min()), float(model.predict(start[None])[0][0]), model


def test_no_more_changes_are_paired_than_the_bound(monkeypatch):
    everything = descended(0)[2].asked[0]
    assert everything > 90
    monkeypatch.setattr(planning, "MOST_SINGLES", 40)
    asked = descended(0)[2].asked
    assert max(asked) == 40
    assert sum(asked[: -(-everything // 40)]) == everything  # all are ranked, in parts


def test_small_networks_are_planned_as_without_a_bound(monkeypatch):
    """The bound is above the number of changes; then all are paired at once."""
    monkeypatch.setattr(planning, "MOST_SINGLES", 10**9)
    without = [descended(seed)[:2] for seed in range(3)]
    monkeypatch.undo()
    assert [descended(seed)[:2] for seed in range(3)] == without


def test_the_most_promising_third_of_the_changes_is_nearly_as_good_as_all(monkeypatch):
    """Of what a descent gains from the solver's plan, 80 % or more, on eight networks; the median 99 %."""
    whole = [descended(seed) for seed in range(8)]
    most = min(each[2].asked[0] for each in whole) // 3
    monkeypatch.setattr(planning, "MOST_SINGLES", most)
    shares = [
        (start - descended(seed)[0]) / (start - least) for seed, (least, start, _) in enumerate(whole) if start > least
    ]
    assert len(shares) >= 6
    assert min(shares) > 0.8
    assert np.median(shares) > 0.99


def test_both_ends_of_a_trade_are_kept(monkeypatch):
    """The change that gains most, the one that gains most per byte, and the one that loses least per byte freed."""
    network, model, limits, start = world(1)
    planner = Planner(network.problem, limits, model)
    monkeypatch.setattr(planning, "MOST_SINGLES", 12)
    is_change = planner._option != start[planner._feature]
    feature, option = planner._feature[is_change], planner._option[is_change]
    kept = planner._promising(start, feature, option, 0.0)
    alone = np.array([model.moves(start, feature[i : i + 1], option[i : i + 1])[0][0] for i in range(len(feature))])
    plans = np.repeat(start[None], len(feature), axis=0)
    plans[np.arange(len(feature)), feature] = option
    size = planner._costs(plans)[:, 0] - planner._costs(start[None])[0, 0]
    fits = size + size.min() <= limits["size"] - planner._costs(start[None])[0, 0]
    freeing, gaining = size < 0, fits & (alone < 0) & (size > 0)
    assert len(kept) == 12
    assert np.where(fits, alone, np.inf).argmin() in kept
    assert np.where(gaining, alone / np.maximum(size, 1), np.inf).argmin() in kept
    assert np.where(freeing, np.maximum(alone, 0) / np.maximum(-size, 1), np.inf).argmin() in kept


@pytest.mark.parametrize(("slots", "classes"), [(0, 10), (500, 10), (5500, 10), (7500, 10), (7500, 2)])
def test_samples_are_as_many_as_fit_into_memory(slots, classes):
    """Counted by hand from the arrays that the model holds with 500 plans."""

    def held(samples):
        rows, width = slots + 500, samples * classes
        return 4 * slots * width + 4 * rows * width + 2 * 4 * 500 * width + 8 * rows**2

    chosen = affordable_samples(5000, slots, classes)
    assert held(len(chosen)) <= 800e6
    assert len(chosen) == 5000 or held(len(chosen) + 1) > 800e6
    assert (np.diff(chosen) > 0).all()
    assert chosen[-1] < 5000


def test_a_model_of_some_samples_is_that_of_these_samples_alone(monkeypatch):
    network, rng = LinearNetwork(samples=40), np.random.default_rng(1)
    monkeypatch.setattr(basis, "MOST_BYTES", 0)
    monkeypatch.setattr(basis, "LEAST_SAMPLES", 12)
    rows = affordable_samples(40, 99, 4)
    assert len(rows) == 12
    effects = network.effects(0.8)
    bounded = OutputModel(network.problem, network.probabilities, effects=effects)
    monkeypatch.undo()
    fewer = type(effects)(effects.pruning[:, :, rows], effects.rounding[:, :, rows])
    alone = OutputModel(network.problem, network.probabilities[rows], effects=fewer)
    for plan in [network.random(rng) for _ in range(20)]:
        outcome = network.evaluate(plan)
        bounded.add(plan, outcome)
        few = Outcome(outcome.kl, 0.5, 0.5, outcome.resources, outcome.shift[rows])
        alone.add(plan, few)
    fresh = np.stack([network.encoding.encode(network.random(rng)) for _ in range(10)])
    np.testing.assert_allclose(bounded.predict(fresh)[0], alone.predict(fresh)[0], rtol=1e-6)


def test_a_basis_grows_row_by_row_into_the_one_built_at_once(monkeypatch):
    """Also where it was built in chunks, and where its arrays had to grow twice."""
    monkeypatch.setattr(basis, "CHUNK", 4)
    monkeypatch.setattr(basis, "SPARE", 3)
    rng = np.random.default_rng(0)
    original, probabilities = (rng.dirichlet(np.ones(3), 5) for _ in range(2))
    shifts = rng.normal(size=(18, 15)).astype(np.float32)
    whole, grown = (
        Basis((shifts[:7], shifts[7:]), probabilities, original),
        Basis((shifts[:9],), probabilities, original),
    )
    for row in shifts[9:]:
        grown.append(row[None])
    centred = shifts.reshape(18, 5, 3) - (shifts.reshape(18, 5, 3) * probabilities).sum(2, keepdims=True)
    expected = np.einsum("ank,bnk,nk->ab", centred, centred, probabilities / 5)
    for each in (whole, grown):
        np.testing.assert_allclose(each.metric, expected, rtol=1e-4, atol=1e-5)
        gradient = (shifts.reshape(18, 5, 3) * (probabilities - original)).sum((1, 2)) / 5
        np.testing.assert_allclose(each.gradient, gradient, rtol=1e-4, atol=1e-5)
