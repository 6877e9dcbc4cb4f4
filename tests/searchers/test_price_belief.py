import numpy as np
import pytest

from autocompress.searchers.explorers import EXPLORERS, LocalExplorer, PosteriorExplorer, Trial
from autocompress.searchers.prices import PRICE_LIMIT, PriceBelief
from autocompress_envs.problem import Labeling
from autocompress_envs.problem.loss_parts import LossParts
from autocompress_envs.testing import additive_error, random_problem, toy_problem


def test_loss_parts_of_the_toy_by_hand():
    problem, _ = toy_problem()
    zeros = np.zeros(3, dtype=np.int64)
    parts = LossParts(problem)
    # Half of conv1's group: 0.6 nats, booked at conv1 though conv2 loses them. Bits 2, 4, 8: 0.1, 0.012, 0.
    found = parts(Labeling(np.array([1, 0, 0]), np.array([0, 1, 2]), zeros))
    np.testing.assert_allclose(found, [[0.6, 0.1], [0.0, 0.012], [0.0, 0.0]], atol=1e-12)
    assert parts.active.tolist() == [[True, True], [False, True], [False, True]]


def test_loss_parts_add_up_to_the_layer_errors():
    rng = np.random.default_rng(0)
    for kind in ("chain", "residual", "concat", "depthwise"):
        problem = random_problem(rng, 7, kind)
        labeling = Labeling(
            *(np.array([rng.integers(len(getattr(layer, name))) for layer in problem.layers])
              for name in ("sparsities", "weight_bits", "activation_bits"))
        )  # fmt: skip
        assert LossParts(problem)(labeling).sum() == pytest.approx(additive_error(problem, labeling))


def test_belief_recovers_true_prices():
    rng = np.random.default_rng(3)
    truth = rng.normal(0.0, 0.5, (10, 2))
    belief = PriceBelief(np.ones((10, 2), dtype=bool))
    for _ in range(300):
        parts = np.exp(rng.normal(0.0, 1.0, (10, 2)))
        parts /= (np.exp(truth) * parts).sum()  # equally good plans count alike
        belief.add(parts, 1.0)
    mean, deviation = belief.moments()
    np.testing.assert_allclose(mean, truth - truth.mean(), atol=0.25)
    assert deviation.max() < 0.4 < PriceBelief.SPREAD


def test_belief_without_evaluations_is_the_prior():
    belief = PriceBelief(np.array([[True, False], [False, True]]))
    mean, deviation = belief.moments()
    assert mean.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    # Two prices that scatter by 0.8 around a common mean: each deviates from it by 0.8 / sqrt(2).
    np.testing.assert_allclose(deviation, [[0.5657, 0.0], [0.0, 0.5657]], atol=1e-3)
    sample = belief.sample(np.random.default_rng(0), 1.0)
    assert sample.sum() == pytest.approx(0.0)
    assert (sample[0, 1], sample[1, 0]) == (0.0, 0.0)


@pytest.mark.parametrize("name", sorted(EXPLORERS))
def test_explorers_stay_in_range_and_leave_inactive_prices_alone(name):
    problem, evaluate = toy_problem()
    explorer = EXPLORERS[name](problem, np.random.default_rng(0))
    zeros = np.zeros(3, dtype=np.int64)
    plan = Labeling(zeros, zeros + 1, zeros)
    for step in range(60):
        proposal = explorer.propose()
        prices = proposal.prices
        assert prices[1:, 0].tolist() == [0.0, 0.0]
        assert 0.0 < np.abs(prices).max() <= PRICE_LIMIT
        assert explorer.knowledge().shape == (3, 4)
        explorer.learn(Trial(prices, proposal.origin, plan, evaluate(plan).kl, is_new=step == 0, is_best=step % 7 == 0))


def test_local_explorer_moves_its_anchor_to_the_best_and_adapts_its_step():
    problem, _ = toy_problem()
    explorer = LocalExplorer(problem, np.random.default_rng(0))
    zeros = np.zeros(3, dtype=np.int64)
    plan, prices = Labeling(zeros, zeros, zeros), np.full((3, 2), 0.25)
    explorer.learn(Trial(prices, "local", plan, 0.3, is_new=True, is_best=True))
    np.testing.assert_allclose(explorer.knowledge()[:, :2], prices)
    assert explorer.knowledge()[0, 2] == pytest.approx(0.7 * 1.5**0.8)
    for _ in range(4):
        explorer.learn(Trial(-prices, "local", plan, 0.4, is_new=True, is_best=False))
    assert explorer.knowledge()[0, 2] == pytest.approx(0.7)  # one success in five leaves the step as it was
    np.testing.assert_allclose(explorer.knowledge()[:, :2], prices)


def test_posterior_explorer_gets_bolder_when_it_repeats_itself():
    problem, _ = toy_problem()
    timid, bold = (PosteriorExplorer(problem, np.random.default_rng(0)) for _ in range(2))
    zeros = np.zeros(3, dtype=np.int64)
    for _ in range(3):
        bold.learn(
            Trial(np.zeros((3, 2)), "posterior", Labeling(zeros, zeros, zeros), 0.1, is_new=False, is_best=False)
        )
        bold.learn(Trial(np.zeros((3, 2)), "local", Labeling(zeros, zeros, zeros), 0.1, is_new=False, is_best=False))
    expected = np.clip(timid.propose().prices * 1.2**3, -PRICE_LIMIT, PRICE_LIMIT)
    np.testing.assert_allclose(bold.propose().prices, expected)
