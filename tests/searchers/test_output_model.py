"""The model of the network's outputs, on made-up networks whose outputs are known."""

import itertools

import numpy as np
import pytest

from autocompress.searchers.output_model import REFIT, TRUST, OutputModel
from autocompress.searchers.planning import Planner
from autocompress_envs.numbers import Labeling, Outcome
from autocompress_envs.pricing import Pricer
from autocompress_envs.tables import is_within
from autocompress_envs.toy import TOY_LIMITS, all_labelings, fair_coins, random_problem, toy_problem


class LinearNetwork:
    """Every option of every layer adds a fixed random change to the logits: what the model assumes, with no noise."""

    def __init__(self, layers=8, samples=20, classes=4, seed=0, kind="residual"):
        rng = np.random.default_rng(seed)
        while True:  # until the random menus offer something to choose
            self.problem = random_problem(rng, layers, kind)
            self.model = OutputModel(self.problem, np.full((samples, classes), 1 / classes))
            if (np.log(self.model.tables.counts).sum()) > np.log(1000):
                break
        tables = self.model.tables
        self.logits = rng.normal(0.0, 1.0, (samples, classes))
        self.probabilities = softmax(self.logits)
        self.model = OutputModel(self.problem, self.probabilities)
        pruning, rounding = (np.sqrt(errors) for errors in self.model._errors)
        directions = rng.normal(0.0, 1.0, (2 * tables.layer_count, samples, classes))
        self.size = np.concatenate([pruning.ravel(), rounding.ravel()])
        self.direction = np.repeat(
            directions, [*[pruning.shape[1]] * len(pruning), *[rounding.shape[1]] * len(rounding)], 0
        )

    def evaluate(self, labeling):
        cells = self.model.offsets + self.model.encode(labeling)
        logits = self.logits + 2 * np.tensordot(self.size[cells], self.direction[cells], 1)
        shift = np.log(softmax(logits)) - np.log(self.probabilities)
        kl = float(-(self.probabilities * shift).sum(1).mean())
        return Outcome(kl, 0.5, 0.5, self.problem.resources(labeling), shift.astype(np.float16))

    def random(self, rng):
        counts = self.model.tables.counts
        return Labeling(*(rng.integers(counts[:, axis]) for axis in range(3)))


def softmax(logits):
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def taught():
    """A network, its model after 60 random plans, and 40 further plans with their true divergences."""
    network, rng = LinearNetwork(), np.random.default_rng(1)
    seen = set()
    while len(network.model) < 60:
        labeling = network.random(rng)
        if labeling.key() not in seen:
            seen.add(labeling.key())
            network.model.add(labeling, network.evaluate(labeling))
    fresh = [labeling for labeling in (network.random(rng) for _ in range(40)) if labeling.key() not in seen]
    return network, fresh, np.array([network.evaluate(labeling).kl for labeling in fresh])


def test_predicts_plans_it_never_saw(taught):
    network, fresh, truth = taught
    codes = np.stack([network.model.encode(labeling) for labeling in fresh])
    expected, deviation = network.model.predict(codes)
    near = truth < np.median(truth)  # the expansion is around the best plan
    assert np.corrcoef(expected, truth)[0, 1] > 0.97
    assert np.abs(expected - truth)[near].mean() < 0.25 * truth[near].std()
    assert (deviation > 0).all()


def test_what_was_measured_is_predicted_closely(taught):
    network, fresh, _ = taught
    model = network.model
    expected, deviation = model.predict(model.codes)
    near = model.losses < np.median(model.losses)  # the expansion is around the best plan
    assert np.abs(expected - model.losses)[near].mean() < 0.2 * model.losses[near].std()
    unseen = model.predict(np.stack([model.encode(labeling) for labeling in fresh]))[1]
    assert deviation.mean() < 0.7 * unseen.mean()


def test_caution_adds_the_harm_of_what_is_unknown(taught):
    """E[d'F d] = mean'F mean + variance * tr F: with few plans known, ignoring the second part promises too much."""
    network, fresh, truth = taught
    learner = OutputModel(network.problem, network.probabilities)
    for labeling in map(network.model.decode, network.model.codes[:10]):
        learner.add(labeling, network.evaluate(labeling))
    codes = np.stack([learner.encode(labeling) for labeling in fresh])
    curious, deviation = learner.predict(codes)
    cautious, same = learner.predict(codes, caution=1.0)
    np.testing.assert_array_equal(deviation, same)
    variance = (deviation / learner._calibration()) ** 2
    np.testing.assert_allclose(cautious - curious, 0.5 * learner._harm * variance)
    assert learner._harm > 0
    near = truth < np.quantile(truth, 0.3)  # the expansion is around the best plan
    assert (curious - truth)[near].mean() < 0  # it promises too much
    assert abs((cautious - truth)[near].mean()) < 0.8 * abs((curious - truth)[near].mean())
    known = learner.predict(learner.codes, caution=1.0)[0] - learner.predict(learner.codes)[0]
    assert known.mean() < 0.2 * (cautious - curious).mean()


def test_prices_say_which_layers_disturb_most():
    network = LinearNetwork()
    layers = len(network.problem.layers)
    prices = np.zeros((layers, 2))
    prices[:, 1] = np.log(4.0)
    priced = OutputModel(network.problem, network.probabilities, prices)
    np.testing.assert_allclose(priced._errors[0], network.model._errors[0])
    np.testing.assert_allclose(priced._errors[1], network.model._errors[1] * 4.0**TRUST)


@pytest.mark.parametrize("caution", [0.0, 1.0])
def test_moves_are_the_differences_of_predictions(taught, caution):
    """First order in the square of the kernel; exact where the moves do not overlap in it."""
    network = taught[0]
    model, codes = network.model, network.model.codes[int(network.model.losses.argmin())]
    counts = model.tables.counts
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


def test_codes_round_trip():
    problem, _ = toy_problem()
    model = OutputModel(problem, fair_coins(4))
    every = all_labelings(problem)
    back = model.decode(model.encode(every))
    for name in ("sparsity", "weight_bits", "activation_bits"):
        np.testing.assert_array_equal(getattr(back, name), getattr(every, name))
    assert len(np.unique(model.encode(every), axis=0)) == len(every.sparsity)


def test_rows_added_one_by_one_are_those_computed_at_once(taught):
    """A new best plan rebuilds the metric; others add a row to it. Both ways give the same."""
    model = taught[0].model
    metric, gradient = model._metric.copy(), model._gradient.copy()
    best, model._best = model._best, -1
    model._look_from(best)
    np.testing.assert_allclose(model._metric, metric, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(model._gradient, gradient, rtol=1e-6)


def test_kernel_settings_are_chosen_by_leave_one_out(taught):
    model = taught[0].model
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
    solved = Pricer(problem, TOY_LIMITS).solve()
    none = np.zeros(3, dtype=np.int64)
    taught = [
        solved,
        *(Labeling(none, np.array(bits), none) for bits in ([2, 2, 2], [0, 2, 2], [2, 0, 2], [2, 2, 0], [1, 1, 1])),
    ]
    for labeling in taught:
        model.add(labeling, evaluate(labeling))
    met = Planner(problem, TOY_LIMITS, model).walk(model.encode(solved))
    assert model.encode(Labeling(none, np.array([0, 1, 0]), none)).tolist() in met.tolist()


@pytest.mark.parametrize("kind", ["chain", "residual", "concat", "depthwise", "element"])
def test_every_plan_met_is_within_the_limits(kind):
    for seed, resource in itertools.product(range(2), ("size", "bitops", "memory")):
        network, rng = LinearNetwork(6, seed=seed, kind=kind), np.random.default_rng(seed)
        limits = {resource: int(0.6 * network.problem.original()[resource])}
        try:
            solved = Pricer(network.problem, limits).solve()
        except ValueError:
            continue  # this random menu can't go so low
        for labeling in [solved, *(network.random(rng) for _ in range(10))]:
            network.model.add(labeling, network.evaluate(labeling))
        met = Planner(network.problem, limits, network.model).walk(network.model.encode(solved))
        for labeling in map(network.model.decode, met):
            assert is_within(network.problem.resources(labeling), limits)
