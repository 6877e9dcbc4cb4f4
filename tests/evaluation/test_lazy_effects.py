"""Effects of menus that build few variants: close to those of eager menus, around the original and around plans."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from effects_toys import Case, case, changed, evaluator
from evaluation_toys import original_labels

from autocompress.evaluation.effects import NEAR, _weights
from autocompress.menus.store import Store

BITS = (2, 4, 8, 32)
NAMES = ["concat", "inverted residual", "sequence"]


def lazy(given: Case) -> Case:
    """The same, with an empty store that shows what is built."""
    return replace(given, menus=replace(given.menus, eager=False, store=Store(None)))


def built(given: Case) -> set[str]:
    return {path.stem for path in given.menus.store.folder.iterdir() if path.stem.startswith("layer")}


def share_missed(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", NAMES)
def test_around_the_original_they_differ_by_what_16_bits_do(name: str) -> None:
    """Pruned weights are the same, rounded to 16 bits; only what all tables hold is built."""
    eager, given = case(name, bits=BITS), lazy(case(name, bits=BITS))
    found = given.effects()
    assert np.array_equal(found.rounding, eager.far.rounding)
    assert found.pruning.shape == eager.far.pruning.shape
    assert 0 < share_missed(found.pruning, eager.far.pruning) < 0.01
    assert not found.pruning[:, 0].any()
    whole = {name for name in built(given) if not name.endswith("-pruned")}
    assert len(whole) == len(given.menus.network.layers)
    cells = {
        given.menus._file_name(layer, kept, 0.0) + "-pruned"
        for layer in given.menus.network.layers
        for position in range(len(layer.reads))
        for kept, _, full in given.menus.table_cells(layer, position)
        if not full
    }
    assert built(given) - whole == cells


def test_pruning_is_added_to_the_original_where_the_most_bits_are_few() -> None:
    """At 2 bits, eager menus prune and then round: their step from the unpruned 2 bits is another, but alike."""
    eager, given = case("concat", bits=(1, 2)), lazy(case("concat", bits=(1, 2)))
    found = given.effects()
    assert np.array_equal(found.rounding, eager.far.rounding)
    assert 0.05 < share_missed(found.pruning, eager.far.pruning) < 0.8


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_a_label_are_close_to_the_eager_ones(name: str) -> None:
    """Zeros where channels are gone; exactly the same where none is; the sum of two changes elsewhere."""
    eager, given = case(name, bits=BITS), lazy(case(name, bits=BITS))
    for layer in given.menus.network.layers:
        full = {read: given.menus.network.groups[read].width for read in layer.reads}
        half = {read: max(1, width // 2) for read, width in full.items()}
        size = eager.menus.sources[layer.name].weight.norm()
        for bits, most in enumerate([0.7, 0.2, 0.02, 1e-3]):
            assert torch.equal(*(_weights(each.menus, layer, full, 0.0, bits) for each in (eager, given)))
            if layer.reads:
                expected, found = (_weights(each.menus, layer, half, 0.0, bits) for each in (eager, given))
                gone = (expected[:, :-1] == 0).all(0)
                assert int(gone.sum()) >= layer.fan_in - len(given.menus.kept_columns(layer, half)) > 0
                removed = torch.ones(layer.fan_in, dtype=torch.bool)
                removed[given.menus.kept_columns(layer, half)] = False
                assert not found[:, :-1][:, removed].any()
                assert float((found - expected).norm() / size) < most, (layer.name, BITS[bits])


@pytest.mark.parametrize("name", NAMES)
def test_around_a_plan_they_are_close_to_the_eager_ones(name: str) -> None:
    """8- and 32-bit labels, some pruned: with fewer bits, eager menus round every set of channels anew.

    Of layers that read pruned groups, roundings are those of all columns, which is another error altogether. A layer
    that reads two pruned groups gets the sum of two fits, and what stands before it sees that layer.
    """
    eager, given = case(name, bits=BITS), lazy(case(name, bits=BITS))
    layers = eager.menus.problem().layers
    plan = original_labels(eager.menus.problem())
    plan.weight_bits[:] = 3 - np.arange(len(layers)) % 2
    plan.sparsity[:] = [min(1, len(layer.sparsities) - 1) for layer in layers]
    expected, found = eager.around(plan), given.around(plan)
    steps = np.arange(expected.pruning.shape[1]) - plan.sparsity[:, None]
    near = np.abs(steps) <= NEAR
    assert share_missed(found.pruning[near], expected.pruning[near]) < 0.05
    untouched = [row for row, layer in enumerate(eager.menus.network.layers) if not layer.reads]
    most = 0.2 if name == "concat" else 0.02
    assert share_missed(found.rounding[untouched], expected.rounding[untouched]) < most
    for effects in (found, expected):
        assert not effects.pruning[steps == 0].any()


@pytest.mark.parametrize("name", NAMES)
def test_an_evaluator_of_lazy_menus_predicts_what_it_measures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of one group at a time, the weights that stay in 32 bits; and a layer of that plan at 8 bits."""
    monkeypatch.setattr("autocompress.evaluation.effects.CLASSES_AROUND", 100)
    given = lazy(case(name, bits=BITS, inputs=8))
    evaluate, layers = evaluator(given, dtype="float32"), given.menus.problem().layers
    found, original = evaluate.effects(), original_labels(given.menus.problem())
    rows = [row for row, layer in enumerate(layers) if len(layer.sparsities) > 1]
    for row in rows:
        shift = evaluate(changed(original, sparsity=(row, 1))).shift.astype(np.float64)
        assert np.linalg.norm(found.pruning[row, 1] - shift) <= 0.35 * np.linalg.norm(shift) + 5e-5
    plan = changed(original, sparsity=(rows[0], 1))
    around, start = evaluate.effects(plan), evaluate(plan).shift.astype(np.float64)
    moved = evaluate(changed(plan, weight_bits=(rows[0], 2))).shift - start
    option = 2 * len(given.menus.settings.activation_bits) + 1
    assert share_missed(around.rounding[rows[0], option], moved) < 0.25


def test_menus_with_fewer_widths_have_effects_of_their_own() -> None:
    """Both keep their effects in one store: those of all widths are no use to menus that offer some."""
    given = case("concat")
    group = given.menus.network.groups[0]
    options = given.menus.kept_options(group)
    fewer = replace(given, menus=given.menus.only({group.owner: (options[0], options[-1])}))
    whole, part = (evaluator(each, dtype="float32").effects() for each in (given, fewer))
    assert not np.allclose(part.pruning, whole.pruning)
    np.testing.assert_allclose(part.pruning, fewer.effects().pruning, atol=1e-4)
