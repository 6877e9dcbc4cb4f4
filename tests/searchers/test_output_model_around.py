"""The model of the network's outputs after it has moved on to effects around a measured plan."""

import numpy as np
import pytest
from output_toys import LinearNetwork, Taught, predicted_by_hand, softmax

from autocompress.searchers.model_based.output_model import REFIT, OutputModel


def moved(missed=0.5, plans=12, more=0):
    """A model that has moved to the best of some plans, and has then learned of more; and that plan."""
    taught = Taught((0.8, missed), plans)
    network, model, rng = taught.network, taught.model, np.random.default_rng(5)
    anchor = model.encoding.decode(model.codes[model.losses.argmin()])
    effects = network.effects(1.0, missed, around=anchor)
    model.recentre(effects, anchor)
    for labeling in [network.random(rng) for _ in range(more)]:
        model.add(labeling, network.evaluate(labeling))
    return taught, anchor, effects


def test_the_plan_itself_is_predicted_as_it_was_measured():
    taught, anchor, _ = moved()
    model = taught.model
    expected = model.predict(model.encoding.encode(anchor)[None])[0]
    np.testing.assert_allclose(expected, [model.losses.min()], rtol=2e-2)  # the kernel takes measurements for noisy


def test_exact_effects_predict_every_plan_after_one():
    """To second order around it, which is all there is where disturbances are small."""
    network, rng = LinearNetwork(scale=0.3), np.random.default_rng(1)
    anchor, plans = network.random(rng), [network.random(rng) for _ in range(30)]
    model = OutputModel(network.problem, network.probabilities, effects=network.effects(0.8))
    model.add(anchor, network.evaluate(anchor, np.float32))
    model.recentre(network.effects(1.0, around=anchor), anchor)
    codes = np.stack([network.encoding.encode(plan) for plan in [anchor, *plans]])
    at_anchor = network.logits + network.moved[network.encoding.slots(codes[0])].sum(0)
    now, expansion = softmax(at_anchor), []
    for plan in codes:
        change = network.logits + network.moved[network.encoding.slots(plan)].sum(0) - at_anchor
        variance = (now * change**2).sum(1) - (now * change).sum(1) ** 2
        expansion.append(((now - network.probabilities) * change).sum(1).mean() + 0.5 * variance.mean())
    expected, truth = model.predict(codes)[0], np.array([network.evaluate(plan).kl for plan in [anchor, *plans]])
    np.testing.assert_allclose(expected, model.losses[0] + np.array(expansion), rtol=1e-4, atol=1e-6)
    assert expected[0] == pytest.approx(truth[0], abs=1e-9)
    assert np.abs(expected - truth).max() < 0.1 * truth.std()
    assert model.slope == 1.0


@pytest.mark.parametrize("more", [0, 1, 9, REFIT])
def test_predictions_are_those_of_the_formulas(more):
    """r(p) = d(p) - d(b) - D_b(p), with the slope at 1 at all times; kernel settings are still chosen anew."""
    taught, anchor, effects = moved(more=more)
    model, network = taught.model, taught.network
    assert (len(model), model.slope) == (12 + more, 1.0)
    offset = network.evaluate(anchor).shift.astype(float)
    expected = predicted_by_hand(model, network, effects, taught.fresh, offset)
    np.testing.assert_allclose(model.predict(taught.fresh)[0], expected, rtol=5e-4, atol=1e-5)


def test_a_second_move_forgets_the_first():
    taught, anchor, effects = moved(more=9)
    model, network = taught.model, taught.network
    second = model.encoding.decode(model.codes[3])
    model.recentre(network.effects(1.0, 0.5, around=second), second)
    model.recentre(effects, anchor)
    fresh, _, _ = moved(more=9)
    for ours, plain in zip(model.predict(taught.fresh), fresh.model.predict(taught.fresh), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("more", [1, 9])
def test_rows_added_one_by_one_are_those_computed_at_once(more):
    """The same plans in another order: the best of all comes last, and everything is computed anew for it."""
    taught, anchor, effects = moved(more=more)
    model, network = taught.model, taught.network
    best = int(model.losses.argmin())
    plans = [network.encoding.decode(codes) for codes in model.codes]
    again = OutputModel(network.problem, network.probabilities, effects=network.effects(0.8, 0.5))
    for labeling in [anchor, *(plan for plan in plans if plan.key() not in (anchor.key(), plans[best].key()))]:
        again.add(labeling, network.evaluate(labeling))
    again.recentre(effects, anchor)
    if best != int((model.codes == network.encoding.encode(anchor)).all(1).argmax()):
        again.add(plans[best], network.evaluate(plans[best]))
    assert sorted(again.losses) == sorted(model.losses)
    for caution in (0.0, 1.0):
        expected = again.predict(taught.fresh, caution)[0]
        np.testing.assert_allclose(model.predict(taught.fresh, caution)[0], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("caution", [0.0, 1.0])
def test_moves_are_the_differences_of_predictions(caution):
    model = moved(more=5)[0].model
    codes, counts = model.codes[int(model.losses.argmin())], model.encoding.tables.counts
    feature = np.array([layer for layer in range(len(counts)) if counts[layer, 0] > 1])
    option = np.array([(codes[f] + 1) % counts[f, 0] for f in feature])
    alone = model.moves(codes, feature, option, caution)[0]
    before = model.predict(codes[None], caution)[0][0]
    for index in range(len(feature)):
        changed = codes.copy()
        changed[feature[index]] = option[index]
        assert alone[index] == pytest.approx(model.predict(changed[None], caution)[0][0] - before, rel=1e-5, abs=1e-8)


def test_effects_around_the_best_plan_predict_its_neighbours_better():
    """Where those around the original are half wrong and those around the plan are a twentieth off."""
    plain = Taught((0.8, 0.5), 12)
    network, best = plain.network, plain.model.codes[plain.model.losses.argmin()]
    anchor, near, rng = network.encoding.decode(best), [], np.random.default_rng(3)
    for _ in range(40):
        codes, other = best.copy(), network.encoding.encode(network.random(rng))
        features = rng.choice(len(codes), 2, replace=False)
        codes[features] = other[features]
        near.append(codes)
    near = np.unique(near, axis=0)
    truth = np.array([network.evaluate(network.encoding.decode(codes)).kl for codes in near])
    before = plain.model.predict(near)[0]
    plain.model.recentre(network.effects(1.0, 0.05, around=anchor), anchor)
    after = plain.model.predict(near)[0]
    assert np.median(np.abs(after - truth)) < 0.25 * np.median(np.abs(before - truth))
