"""Plans as vectors of integers, and the row of slots that models of plans compute with."""

import numpy as np
import pytest

from autocompress.evaluation.effects import Effects
from autocompress.searchers.model_based.encoding import SMALLEST_ERROR, PlanEncoding
from autocompress_envs.testing import all_labelings, random_problem, toy_problem

KINDS = ["chain", "residual", "concat", "depthwise", "element"]


def encoding_of(kind, seed=0, prices=None):
    return PlanEncoding(random_problem(np.random.default_rng(seed), 5, kind), prices)


def random_codes(encoding, rng, count):
    """(count, 2L) of what the menus really offer."""
    sparsities, bits, activations = encoding.tables.counts.T
    size, longest = (count, len(sparsities)), encoding.tables.activation_bits.shape[1]
    return np.hstack([rng.integers(sparsities, size=size), rng.integers(bits, size=size) * longest
                      + rng.integers(activations, size=size)])  # fmt: skip


def test_codes_round_trip():
    problem, _ = toy_problem()
    encoding, every = PlanEncoding(problem), all_labelings(problem)
    back = encoding.decode(encoding.encode(every))
    for name in ("sparsity", "weight_bits", "activation_bits"):
        np.testing.assert_array_equal(getattr(back, name), getattr(every, name))
    assert len(np.unique(encoding.encode(every), axis=0)) == len(every.sparsity) == 2 * 3**3


@pytest.mark.parametrize("kind", KINDS)
def test_labelings_round_trip(kind):
    for seed in range(3):
        encoding = encoding_of(kind, seed)
        codes = random_codes(encoding, np.random.default_rng(seed), 50)
        np.testing.assert_array_equal(encoding.encode(encoding.decode(codes)), codes)
        np.testing.assert_array_equal(np.stack([encoding.encode(encoding.decode(each)) for each in codes]), codes)


def test_the_encoding_of_the_toy():
    """Two sparsities of three layers, then three bits of each; the readers' error 0.6 is the owner's."""
    encoding = PlanEncoding(toy_problem()[0])
    assert encoding.offsets.tolist() == [0, 2, 4, 6, 9, 12]
    np.testing.assert_allclose(encoding.errors[0], [[0.0, 0.6], [0.0, 0.0], [0.0, 0.0]], atol=1e-15)
    np.testing.assert_allclose(encoding.errors[1], [[0.1, 0.01, 0.0], [0.12, 0.012, 0.0], [0.4, 0.04, 0.0]], atol=1e-15)
    assert encoding.slot_errors[[1, 6, 9, 13]] == pytest.approx([0.6, 0.1, 0.12, 0.04])
    assert encoding.slots(np.array([1, 0, 0, 2, 0, 1])).tolist() == [1, 2, 4, 8, 9, 13]


@pytest.mark.parametrize("kind", KINDS)
def test_no_estimate_is_below_a_small_share_but_for_the_mildest_option(kind):
    for seed in range(3):
        for errors in encoding_of(kind, seed).errors:
            assert (errors.min(1) == 0.0).all()
            positive = np.sort(errors, axis=1)[:, 1:]
            assert (positive >= SMALLEST_ERROR * errors.max(1, keepdims=True)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_indicators_sum_what_a_plan_takes(kind):
    encoding = encoding_of(kind)
    codes = random_codes(encoding, np.random.default_rng(1), 20)
    indicators = encoding.indicators(codes)
    count = encoding.tables.layer_count
    assert (indicators.sum(1) == 2 * count).all()
    assert set(np.unique(indicators)) == {0.0, 1.0}
    rows = np.arange(count)
    by_hand = [
        encoding.errors[0][rows, sparsity].sum() + encoding.errors[1][rows, bits].sum()
        for sparsity, bits in (np.split(each, 2) for each in codes)
    ]
    np.testing.assert_allclose(indicators @ encoding.slot_errors, by_hand)
    np.testing.assert_allclose(encoding.slot_errors[encoding.slots(codes)].sum(1), by_hand)


def test_prices_multiply_the_errors_of_pruning_and_of_rounding():
    plain, prices = encoding_of("chain"), np.random.default_rng(0).normal(size=(5, 2))
    priced = encoding_of("chain", prices=prices)
    for layer in range(5):
        np.testing.assert_allclose(priced.errors[0][layer], plain.errors[0][layer] * np.exp(prices[layer, 0]))
        np.testing.assert_allclose(priced.errors[1][layer], plain.errors[1][layer] * np.exp(prices[layer, 1]))
    assert plain.slot_errors.max() > 0
    np.testing.assert_allclose(priced.slot_errors, np.concatenate([priced.errors[0].ravel(), priced.errors[1].ravel()]))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_effects_are_those_of_the_slots(kind):
    """Of slot (feature, option): what the option of the layer's sparsity, or of its bits, does."""
    encoding, rng, samples, classes = encoding_of(kind), np.random.default_rng(2), 3, 4
    effects = Effects(*(rng.normal(size=(*of.shape, samples, classes)).astype(np.float32) for of in encoding.errors))
    rows = encoding.slot_effects(effects)
    assert rows.shape == (encoding.slot_errors.size, samples * classes)
    assert rows.dtype == np.float32
    count = encoding.tables.layer_count
    for part, by_layer in enumerate((effects.pruning, effects.rounding)):
        for layer in range(count):
            for option, expected in enumerate(by_layer[layer]):
                slot = encoding.offsets[part * count + layer] + option
                np.testing.assert_array_equal(rows[slot].reshape(samples, classes), expected)
                assert encoding.slot_errors[slot] == encoding.errors[part][layer, option]


def test_what_a_plan_does_is_the_sum_over_its_labels():
    encoding, rng = encoding_of("residual"), np.random.default_rng(3)
    effects = Effects(*(rng.normal(size=(*of.shape, 2, 3)).astype(np.float32) for of in encoding.errors))
    (codes,) = random_codes(encoding, rng, 1)
    plan, longest = encoding.decode(codes), encoding.tables.activation_bits.shape[1]
    expected = sum(
        effects.pruning[layer, plan.sparsity[layer]]
        + effects.rounding[layer, plan.weight_bits[layer] * longest + plan.activation_bits[layer]]
        for layer in range(encoding.tables.layer_count)
    )
    np.testing.assert_allclose(
        encoding.indicators(codes[None])[0] @ encoding.slot_effects(effects), expected.ravel(), atol=1e-5
    )
