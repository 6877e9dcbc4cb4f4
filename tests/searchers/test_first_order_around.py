"""What is expected of plans near one that was measured: by hand, by differences, and against all plans of toys."""

import numpy as np
import pytest
from first_order_toys import KINDS, TRIPLED, UNSURE, even, likely, misses_of_moves, tight, two_layers
from output_toys import LinearNetwork, effects_of, softmax

from autocompress.searchers.model_based.encoding import PlanEncoding
from autocompress.searchers.model_based.first_order import SAMPLES, FirstOrderModel, Incumbent, predicted_best_plan
from autocompress_envs.problem.tables import is_within
from autocompress_envs.solver import Solver

HEAD_ROUNDED = [0, 0, 1, 0]
MOVED = np.array([[0.3, -0.3], [-0.5, 0.0]])  # what that does to the logits


def around_the_rounded_head():
    """The two layers, effects instead of the head's 2 bits, and what these were measured to do."""
    problem, effects = two_layers()
    encoding = PlanEncoding(problem)
    rows = encoding.slot_effects(effects).reshape(-1, 2, 2)
    head = encoding.offsets[3]
    rows[head : head + 2] -= rows[head].copy()
    shift = np.log(softmax(np.log(UNSURE) + MOVED)) - np.log(UNSURE)
    return problem, effects_of(encoding, rows), Incumbent(encoding.decode(np.array(HEAD_ROUNDED)), shift)


@pytest.mark.parametrize(
    ("codes", "divergence", "error", "priced"),
    [
        (HEAD_ROUNDED, (even(0.3) + likely(-0.5)) / 2, 0.0, 0.0),
        ([0, 0, 0, 0], (even(1.3) + likely(-0.5)) / 2, 0.1, 0.1),
        ([0, 0, 1, 1], (even(-0.2) + likely(0.5)) / 2, 0.3, 0.9),  # its error where it was rounded
        ([1, 0, 1, 0], (even(0.3) + likely(1.5)) / 2, 0.2, 0.4),
        ([1, 0, 0, 1], (even(0.8) + likely(2.5)) / 2, 0.6, 1.4),
    ],
)
def test_what_is_expected_near_a_measured_plan_by_hand(codes, divergence, error, priced):
    """KL(p0 || softmax(log p0 + d(b) + D_b)), and the larger error of every label that was changed."""
    problem, effects, incumbent = around_the_rounded_head()
    for prices, errors in ((None, error), (TRIPLED, priced)):
        expected, deviation = FirstOrderModel(problem, UNSURE, effects, prices, incumbent).predict(np.array([codes]))
        assert expected == pytest.approx([divergence + errors], abs=1e-6)
        assert deviation.tolist() == [0.0]


def moves_beside_differences(scale, prices):
    """The largest misses of `moves`, alone and of two together, with effects of the given size."""
    network, rng = LinearNetwork(6, seed=3, kind="chain", scale=scale), np.random.default_rng(0)
    plan, other = network.random(rng), network.random(rng)
    incumbent = Incumbent(plan, network.evaluate(plan, np.float64).shift)
    model = FirstOrderModel(
        network.problem, network.probabilities, network.effects(1.0, around=plan), prices, incumbent
    )
    codes = model.encoding.encode(other)
    codes[:4] = model.encoding.encode(plan)[:4]  # some features are the plan's own
    return misses_of_moves(model, codes)


@pytest.mark.parametrize("prices", [None, np.full((6, 2), np.log(2.0))], ids=["without prices", "with prices"])
def test_moves_are_the_differences_of_predictions_to_second_order(prices):
    """Errors are exact, to and from the plan's own labels; an eighth is missed where effects are half as large."""
    large, small = (moves_beside_differences(scale, prices) for scale in (0.4, 0.2))
    for coarse, fine in zip(large, small, strict=True):
        assert 1e-7 < fine < 5e-5
        assert 6 < coarse / fine < 10


class Enumerated:
    """A made-up network of 4 layers, the solver's plan, and J around it of all plans within the limits."""

    def __init__(self, seed, priced):
        rng = np.random.default_rng(seed)
        self.network = network = LinearNetwork(4, 10, 3, seed, KINDS[seed % 5], plans=300)
        self.prices = 0.5 * rng.normal(size=(4, 2)) if priced else None
        self.limits, self.codes = tight(network, seed)
        self.plan = Solver(network.problem, self.limits).solve()
        slots, own = (network.encoding.slots(codes) for codes in (self.codes, network.encoding.encode(self.plan)))
        errors = PlanEncoding(network.problem, self.prices).slot_errors
        risk = np.where(slots == own, 0.0, np.maximum(errors[slots], errors[own])).sum(1)
        moved = network.moved.reshape(-1, 10 * 3)[slots].sum(1).reshape(-1, 10, 3)  # effects are exact
        weighed = (network.probabilities * np.exp(moved)).sum(2)
        self.expectations = (np.log(weighed) - (network.probabilities * moved).sum(2)).mean(1) + risk
        self.plans = dict(zip(map(tuple, self.codes.tolist()), self.expectations, strict=True))

    def predicted_best(self):
        network = self.network
        incumbent = Incumbent(self.plan, network.evaluate(self.plan, np.float64).shift)
        effects = network.effects(1.0, around=self.plan)
        return predicted_best_plan(network.problem, self.limits, network.probabilities, effects, self.prices, incumbent)

    def least_within_two_changes(self, labeling):
        changes = (self.codes != self.network.encoding.encode(labeling)).sum(1)
        return self.expectations[changes <= 2].min()

    def expected(self, labeling):
        return self.plans[tuple(self.network.encoding.encode(labeling).tolist())]


@pytest.mark.parametrize("priced", [False, True], ids=["without prices", "with prices"])
def test_no_two_changes_improve_the_predicted_plan_and_mostly_it_is_the_best_of_all(priced):
    """Of 99 to 21,636 plans within the limits; never one that is expected to be worse than the incumbent itself."""
    over, changed = [], 0
    for seed in range(20):
        toy = Enumerated(seed, priced)
        found, least = toy.predicted_best(), min(toy.plans.values())
        assert is_within(toy.network.problem.resources(found), toy.limits)
        expected = toy.expected(found)
        assert expected <= toy.expected(toy.plan) + 1e-7
        assert expected <= toy.least_within_two_changes(found) + 1e-7
        changed += found.key() != toy.plan.key()
        over.append(expected / least)
    assert sum(each < 1.0001 for each in over) >= 18
    assert changed >= 5


def test_it_is_deterministic_and_uses_the_first_samples():
    network = LinearNetwork(5, SAMPLES + 60, 3, seed=1, kind="chain")
    limits = {"size": int(0.3 * network.problem.original()["size"])}
    plan = Solver(network.problem, limits).solve()
    shift, effects = network.evaluate(plan, np.float64).shift, network.effects(1.0, around=plan)
    few = network.probabilities[:SAMPLES], effects.first(SAMPLES), None, Incumbent(plan, shift[:SAMPLES])
    given = (network.probabilities, effects, None, Incumbent(plan, shift)), few, few
    plans = [predicted_best_plan(network.problem, limits, *each).key() for each in given]
    assert plans[0] == plans[1] == plans[2]
