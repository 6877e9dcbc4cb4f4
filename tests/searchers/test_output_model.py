"""The model of the network's outputs, on made-up networks whose outputs are known."""

import itertools

import numpy as np
import pytest
from output_toys import LinearNetwork, Taught, predicted_by_hand, softmax

from autocompress.searchers.model_based.output_model import REFIT, TRUST, OutputModel
from autocompress.searchers.model_based.planning import Planner
from autocompress_envs.problem import Labeling
from autocompress_envs.problem.tables import is_within
from autocompress_envs.solver import Solver
from autocompress_envs.testing import TOY_LIMITS, fair_coins, toy_problem

WRONG_EFFECTS = (0.8, 0.5)  # a slope to be found, and misses that are left for the process to learn


@pytest.fixture(scope="module")
def taught():
    return Taught()


@pytest.fixture(scope="module", params=[None, WRONG_EFFECTS], ids=["without effects", "with effects"])
def either(request):
    return Taught(request.param)


def test_predicts_plans_it_never_saw(taught):
    truth = taught.truth
    expected, deviation = taught.model.predict(taught.fresh)
    near = truth < np.median(truth)  # the expansion is around the best plan
    assert np.corrcoef(expected, truth)[0, 1] > 0.97
    assert np.abs(expected - truth)[near].mean() < 0.25 * truth[near].std()
    assert (deviation > 0).all()


def test_what_was_measured_is_predicted_closely(taught):
    model = taught.model
    expected, deviation = model.predict(model.codes)
    near = model.losses < np.median(model.losses)  # the expansion is around the best plan
    assert np.abs(expected - model.losses)[near].mean() < 0.2 * model.losses[near].std()
    unseen = model.predict(taught.fresh)[1]
    assert deviation.mean() < 0.7 * unseen.mean()


def test_caution_adds_the_harm_of_what_is_unknown(taught):
    """E[d'F d] = mean'F mean + variance * tr F: with few plans known, ignoring the second part promises too much."""
    learner, truth = Taught(plans=10).model, taught.truth
    curious, deviation = learner.predict(taught.fresh)
    cautious, same = learner.predict(taught.fresh, caution=1.0)
    np.testing.assert_array_equal(deviation, same)
    variance = (deviation / learner._calibration()) ** 2
    np.testing.assert_allclose(cautious - curious, 0.5 * learner._harm * variance)
    assert learner._harm > 0
    near = truth < np.quantile(truth, 0.3)  # the expansion is around the best plan
    assert (curious - truth)[near].mean() < 0  # it promises too much
    assert abs((cautious - truth)[near].mean()) < 0.8 * abs((curious - truth)[near].mean())
    known = learner.predict(learner.codes, caution=1.0)[0] - learner.predict(learner.codes)[0]
    assert known.mean() < 0.2 * (cautious - curious).mean()


@pytest.mark.parametrize("wrong", [None, WRONG_EFFECTS], ids=["without effects", "with effects"])
def test_predictions_are_those_of_the_formulas(wrong):
    """Second order around the best plan of s D(p) + sum over measured plans of alpha_n(p) (d_n - s D_n)."""
    taught = Taught(wrong, plans=30)
    effects = None if wrong is None else taught.network.effects(*wrong)
    expected = predicted_by_hand(taught.model, taught.network, effects, taught.fresh)
    np.testing.assert_allclose(taught.model.predict(taught.fresh)[0], expected, rtol=2e-4, atol=1e-5)


def test_effects_that_say_nothing_change_nothing(taught):
    network = taught.network
    model = OutputModel(network.problem, network.probabilities, effects=network.effects(np.inf))
    for plan in map(network.cells.decode, taught.model.codes):
        model.add(plan, network.evaluate(plan))
    for caution in (0.0, 1.0):
        for ours, plain in zip(
            model.predict(taught.fresh, caution), taught.model.predict(taught.fresh, caution), strict=True
        ):
            np.testing.assert_allclose(ours, plain, rtol=1e-6)


@pytest.mark.parametrize("plans", [2, 3])
def test_the_slope_of_the_effects_is_found_from_few_plans(plans):
    """Then plans never seen are predicted as well as the second order around the best one can tell."""
    taught = Taught((0.8,), plans, scale=0.5)
    model, network = taught.model, taught.network
    assert model._slope == pytest.approx(0.8, abs=1e-3)
    best = network.cells.decode(model.codes[model.losses.argmin()])
    at_best = network.logits + network.moved[network.cells.of(network.cells.encode(best))].sum(0)
    now, expansion = softmax(at_best), []
    for plan in taught.fresh:
        moved = network.logits + network.moved[network.cells.of(plan)].sum(0) - at_best
        variance = (now * moved**2).sum(1) - (now * moved).sum(1) ** 2
        expansion.append(((now - network.probabilities) * moved).sum(1).mean() + 0.5 * variance.mean())
    expected = model.predict(taught.fresh)[0]
    np.testing.assert_allclose(expected, model.losses.min() + np.array(expansion), rtol=5e-3, atol=2e-4)
    plain = Taught(plans=plans, scale=0.5)
    near = taught.truth < np.median(taught.truth)
    misses = [np.abs(found - taught.truth)[near].mean() for found in (expected, plain.model.predict(plain.fresh)[0])]
    assert misses[0] < 0.1 * misses[1]


def test_prices_say_which_layers_disturb_most():
    network = LinearNetwork()
    layers = len(network.problem.layers)
    prices = np.zeros((layers, 2))
    prices[:, 1] = np.log(4.0)
    priced = OutputModel(network.problem, network.probabilities, prices)
    np.testing.assert_allclose(priced.cells.errors[0], network.cells.errors[0])
    np.testing.assert_allclose(priced.cells.errors[1], network.cells.errors[1] * 4.0**TRUST)


@pytest.mark.parametrize("caution", [0.0, 1.0])
def test_moves_are_the_differences_of_predictions(either, caution):
    """First order in the square of the kernel; exact where the moves do not overlap in it."""
    model, codes = either.model, either.model.codes[int(either.model.losses.argmin())]
    counts = model.cells.tables.counts
    feature = np.array([layer for layer in range(len(counts)) if counts[layer, 0] > 1][:2])
    option = np.array([(codes[f] + 1) % counts[f, 0] for f in feature])
    alone, joint = model.moves(codes, feature, option, caution)
    before = model.predict(codes[None], caution)[0][0]
    for index in range(2):
        changed = codes.copy()
        changed[feature[index]] = option[index]
        assert alone[index] == pytest.approx(model.predict(changed[None], caution)[0][0] - before, rel=1e-6, abs=1e-9)
    both = codes.copy()
    both[feature] = option
    together = model.predict(both[None], caution)[0][0] - before
    assert alone.sum() + joint[0, 1] == pytest.approx(together, rel=0.2, abs=2e-3)


def test_rows_added_one_by_one_are_those_computed_at_once(either, monkeypatch):
    """A new best plan rebuilds the metric; others add a row to it. Both ways give the same, for the same slope."""
    model = either.model
    monkeypatch.setattr(model, "_fitted_slope", lambda slope=model._slope: slope)
    metric, gradient = model._metric.copy(), model._gradient.copy()
    best, model._best = model._best, -1
    model._look_from(best)
    np.testing.assert_allclose(model._metric, metric, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(model._gradient, gradient, rtol=1e-6)


def test_kernel_settings_are_chosen_by_leave_one_out(taught):
    model = taught.model
    assert len(model) >= 2 * REFIT
    chosen = model._settings
    error = model._left_out()
    model._settings = type(chosen)(pruning=0.9, rounding=0.5, pairs=10.0, noise=1e-2)
    model._rebuild()
    model._solve()
    assert error <= model._left_out()
    model._settings = chosen
    model._rebuild()
    model._solve()


def test_planner_finds_the_best_pair_of_changes():
    """The toy: with the solver's plan, its neighbours and single changes measured, planning leads to the optimum."""
    problem, evaluate = toy_problem()
    model = OutputModel(problem, fair_coins(4))
    solved = Solver(problem, TOY_LIMITS).solve()
    none = np.zeros(3, dtype=np.int64)
    taught = [
        solved,
        *(Labeling(none, np.array(bits), none) for bits in ([2, 2, 2], [0, 2, 2], [2, 0, 2], [2, 2, 0], [1, 1, 1])),
    ]
    for labeling in taught:
        model.add(labeling, evaluate(labeling))
    met = Planner(problem, TOY_LIMITS, model).walk(model.cells.encode(solved))
    assert model.cells.encode(Labeling(none, np.array([0, 1, 0]), none)).tolist() in met.tolist()


@pytest.mark.parametrize("kind", ["chain", "residual", "concat", "depthwise", "element"])
def test_every_plan_met_is_within_the_limits(kind):
    for seed, resource in itertools.product(range(2), ("size", "bitops", "memory")):
        network, rng = LinearNetwork(6, seed=seed, kind=kind), np.random.default_rng(seed)
        limits = {resource: int(0.6 * network.problem.original()[resource])}
        try:
            solved = Solver(network.problem, limits).solve()
        except ValueError:
            continue  # this random menu can't go so low
        model = OutputModel(network.problem, network.probabilities)
        for labeling in [solved, *(network.random(rng) for _ in range(10))]:
            model.add(labeling, network.evaluate(labeling))
        met = Planner(network.problem, limits, model).walk(model.cells.encode(solved))
        for labeling in map(model.cells.decode, met):
            assert is_within(network.problem.resources(labeling), limits)
