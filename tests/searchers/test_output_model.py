"""The model of the network's outputs, on made-up networks whose outputs are known."""

import itertools

import numpy as np
import pytest
from output_toys import LinearNetwork, Taught, leave_one_out_by_hand, predicted_by_hand, softmax

from autocompress.searchers.model_based.kernel import CHOICES
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


@pytest.fixture(scope="module")
def several():
    """Models of five networks after 60 plans each, and the same networks after 10."""
    return [(Taught(seed=seed), Taught(plans=10, seed=seed)) for seed in range(5)]


def test_predicts_plans_it_never_saw(several):
    correlations, misses = [], []
    for taught, _ in several:
        expected, deviation = taught.model.predict(taught.fresh)
        near = taught.truth < np.median(taught.truth)  # the expansion is around the best plan
        correlations.append(np.corrcoef(expected, taught.truth)[0, 1])
        misses.append(np.abs(expected - taught.truth)[near].mean() / taught.truth[near].std())
        assert (deviation > 0).all()
    assert min(correlations) > 0.97
    assert np.median(misses) < 0.1
    assert max(misses) < 0.25


def test_what_was_measured_is_predicted_closely(several):
    misses, surer = [], []
    for taught, _ in several:
        model = taught.model
        expected, deviation = model.predict(model.codes)
        near = model.losses < np.median(model.losses)  # the expansion is around the best plan
        misses.append(np.abs(expected - model.losses)[near].mean() / model.losses[near].std())
        surer.append(deviation.mean() / model.predict(taught.fresh)[1].mean())
    assert max(misses) < 0.2
    assert max(surer) < 0.7


def test_caution_adds_the_expected_harm_of_uncertainty(several):
    """E[d'F d] = mean'F mean + variance * tr F: with few plans known, ignoring the second part promises too much."""
    promised, left, of_measured = [], [], []
    for taught, novice in several:
        learner, truth = novice.model, taught.truth
        curious, deviation = learner.predict(taught.fresh)
        cautious, same = learner.predict(taught.fresh, caution=1.0)
        np.testing.assert_array_equal(deviation, same)
        variance = (deviation / learner.calibration) ** 2
        np.testing.assert_allclose(cautious - curious, 0.5 * learner.signal_variance * variance, rtol=1e-6)
        assert learner.signal_variance > 0
        near = truth < np.quantile(truth, 0.3)  # the expansion is around the best plan
        promised.append((curious - truth)[near].mean())
        left.append(abs((cautious - truth)[near].mean() / promised[-1]))
        known = learner.predict(learner.codes, caution=1.0)[0] - learner.predict(learner.codes)[0]
        of_measured.append(known.mean() / (cautious - curious).mean())
    assert max(promised) < 0
    assert np.median(left) < 0.6
    assert max(left) < 0.8
    assert max(of_measured) < 0.2


@pytest.mark.parametrize("plans", [2, 9, 23, 30])
@pytest.mark.parametrize("wrong", [None, WRONG_EFFECTS], ids=["without effects", "with effects"])
def test_predictions_are_those_of_the_formulas(wrong, plans):
    """Second order around the best plan of s D(p) + sum over measured plans of alpha_n(p) (d_n - s D_n).

    Whether the last plan was the best, and so everything was computed anew, or only its row was added.
    """
    taught = Taught(wrong, plans=plans)
    effects = None if wrong is None else taught.network.effects(*wrong)
    expected = predicted_by_hand(taught.model, taught.network, effects, taught.fresh)
    np.testing.assert_allclose(taught.model.predict(taught.fresh)[0], expected, rtol=2e-4, atol=1e-5)


def test_effects_that_say_nothing_change_nothing(taught):
    network = taught.network
    model = OutputModel(network.problem, network.probabilities, effects=network.effects(np.inf))
    for plan in map(network.encoding.decode, taught.model.codes):
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
    assert model.slope == pytest.approx(0.8, abs=1e-3)
    best = network.encoding.decode(model.codes[model.losses.argmin()])
    at_best = network.logits + network.moved[network.encoding.slots(network.encoding.encode(best))].sum(0)
    now, expansion = softmax(at_best), []
    for plan in taught.fresh:
        moved = network.logits + network.moved[network.encoding.slots(plan)].sum(0) - at_best
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
    np.testing.assert_allclose(priced.encoding.errors[0], network.encoding.errors[0])
    np.testing.assert_allclose(priced.encoding.errors[1], network.encoding.errors[1] * 4.0**TRUST)


@pytest.mark.parametrize("caution", [0.0, 1.0])
def test_moves_are_the_differences_of_predictions(either, caution):
    """First order in the square of the kernel; exact where the moves do not overlap in it."""
    model, codes = either.model, either.model.codes[int(either.model.losses.argmin())]
    counts = model.encoding.tables.counts
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


@pytest.mark.parametrize("wrong", [None, WRONG_EFFECTS], ids=["without effects", "with effects"])
def test_kernel_settings_are_those_of_least_leave_one_out_error(wrong):
    """Of all choices, with every plan of the better half left out and predicted by all others."""
    taught = Taught(wrong, plans=2 * REFIT)
    effects = None if wrong is None else taught.network.effects(*wrong)
    errors = [leave_one_out_by_hand(taught.model, taught.network, effects, choice) for choice in CHOICES]
    assert taught.model.settings == CHOICES[int(np.argmin(errors))]
    assert min(errors) < 0.9 * np.median(errors)


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
    met = Planner(problem, TOY_LIMITS, model).descend(model.encoding.encode(solved))
    assert model.encoding.encode(Labeling(none, np.array([0, 1, 0]), none)).tolist() in met.tolist()


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
        met = Planner(network.problem, limits, model).descend(model.encoding.encode(solved))
        for labeling in map(model.encoding.decode, met):
            assert is_within(network.problem.resources(labeling), limits)
