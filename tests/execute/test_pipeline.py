"""The way from a plan to the finished network, and what the user is told on it."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from execute_toys import digits, same

from autocompress.data import from_tensors
from autocompress.errors import ExportError
from autocompress.evaluation import measure
from autocompress.evaluation.renormalize import Renormalizer
from autocompress.evaluation.stitch import rows_left
from autocompress.execute import pipeline
from autocompress.execute.compressed import from_menus, renormalized, with_layers_of
from autocompress.execute.finetune import finetune
from autocompress.execute.pipeline import Execution, execute, kept_parts, recalibration_inputs, tune
from autocompress.execute.recalibrate import recalibrate
from autocompress.execute.tuning import FineTuning, KeptParts, Tuned
from autocompress.progress import Silent

_TUNING = FineTuning(epochs=0.2, batch_size=64, augmentation="none")


@dataclass
class Told(Silent):
    stages: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    steps: list = field(default_factory=list)

    def stage(self, text):
        self.stages.append(text)

    def note(self, text):
        self.notes.append(text)

    def tuning(self, *values):
        self.steps.append(values)


def run(sparsity, bits, settings):
    """The toy, the plan's network renormalized, the plan, and the result."""
    toy, told = digits(), Told()
    compressed, labeling = toy.compressed(sparsity, bits, 8)
    done = execute(toy.menus, labeling, toy.folded, toy.folded, toy.data, settings, told)
    renormalizer = Renormalizer(toy.folded, toy.menus.network, toy.data.calibration()[0])
    return toy, renormalized(compressed, renormalizer, rows_left(toy.menus, labeling)), labeling, done, told


def test_menus_weights_are_renormalized():
    toy, compressed, labeling, done, told = run(0.5, 8, Execution(0, None))
    assert same(done.compressed, compressed)
    before = from_menus(toy.menus, labeling, toy.folded)
    kls = [measure(toy.folded, each.rounded(), [toy.data.search()]).kl for each in (before, compressed)]
    assert kls[1] < 0.9 * kls[0]
    assert (done.recalibrated, done.tuned, told.stages, told.notes) == (False, None, [], [])


def test_recalibrated_and_fine_tuned():
    toy, compressed, labeling, done, told = run(0.5, 2, Execution(96, _TUNING))
    inputs = toy.data.calibration()[0]
    assert done.recalibrated
    plain, rows = from_menus(toy.menus, labeling, toy.folded), rows_left(toy.menus, labeling)
    whole = recalibrate(plain, toy.folded, toy.menus, labeling, inputs[:96])
    first = {name: whole.layers[name] for name in list(whole.layers)[:7]}
    renormalizer = Renormalizer(toy.folded, toy.menus.network, inputs)
    fitted = renormalized(with_layers_of(plain, first), renormalizer, rows, list(first))
    assert done.tuned is not None
    assert done.compressed is done.tuned.compressed
    tuned = finetune(fitted, toy.folded, toy.data, _TUNING, kept=kept_parts(toy.menus, labeling))
    assert same(done.compressed, tuned.compressed)
    kls = [
        measure(toy.folded, each.rounded(), [toy.data.search()]).kl for each in (compressed, fitted, done.compressed)
    ]
    assert kls[1] < 0.5 * kls[0]
    assert kls[2] < kls[1]
    all_layers = measure(toy.folded, whole.rounded(), [toy.data.search()]).kl
    assert told.stages == [
        "re-calibration: every layer is fitted to the original on the compressed network's own inputs",
        "fine-tuning: 0.2 epochs, learning from the original",
    ]
    assert told.notes == [
        f"re-calibration keeps the first 7 of 9 layers: KL {kls[1]:.4f} on the search split, before {kls[0]:.4f}, "
        f"with all layers {all_layers:.4f}"
    ]
    assert told.steps[-1][:2] == (4, 4)


def test_recalibration_is_left_out_where_it_does_not_help(monkeypatch):
    """It is handed the whole network's worst enemy: the same with the weights of its first layer turned round."""
    toy = digits()

    def harmful(compressed, *_, **__):
        other = from_menus(toy.menus, toy.compressed(0.0, 8, 8)[1], toy.folded)
        first = next(iter(other.layers))
        return with_layers_of(other, {first: replace(other.layers[first], scale=-other.layers[first].scale)})

    monkeypatch.setattr(pipeline, "recalibrate", harmful)
    _, compressed, _, done, told = run(0.0, 8, Execution(160, None))
    search = [toy.data.search()]
    before, after = (measure(toy.folded, each.rounded(), search).kl for each in (compressed, harmful(None)))
    assert not done.recalibrated
    assert same(done.compressed, compressed)
    assert after > 3 > 0.1 > before
    assert told.notes == [
        f"re-calibration is left out: it moved the KL on the search split from {before:.4f} to {after:.4f}"
    ]


def test_recalibration_that_is_not_possible(monkeypatch):
    def impossible(*_, **__):
        raise ExportError("no way.")

    monkeypatch.setattr(pipeline, "recalibrate", impossible)
    _, compressed, _, done, told = run(0.0, 8, Execution(160, None))
    assert same(done.compressed, compressed)
    assert not done.recalibrated
    assert told.notes == ["no re-calibration: no way."]


@pytest.mark.parametrize(
    ("diverged", "best_step", "notes"),
    [
        (
            True,
            3,
            [
                "fine-tuning diverged at step 7; the best network before that is kept. "
                "Lower --learning-rate to go further"
            ],
        ),
        (
            False,
            0,
            ["fine-tuning did not come closer to its objective on the search split; its start is kept"],
        ),
        (False, 3, []),
    ],
)
def test_what_is_said_of_fine_tuning(monkeypatch, diverged, best_step, notes):
    toy, told = digits(), Told()
    compressed, _ = toy.compressed(0.0, 8, 8)
    monkeypatch.setattr(pipeline, "finetune", lambda *_, **__: Tuned(compressed, 7, 1.0, diverged, best_step, {}))
    tune(compressed, toy.folded, toy.data, Execution(0, _TUNING), _TUNING, KeptParts({}, {}), told)
    assert told.notes == notes


def test_too_large_steps_are_told_and_cost_nothing():
    _, compressed, _, done, told = run(0.0, 8, Execution(0, replace(_TUNING, learning_rate=1e3)))
    assert same(done.compressed, compressed)
    assert len(told.notes) == 1
    assert told.notes[0].startswith("fine-tuning did")


def test_what_is_kept_has_the_compressed_networks_shapes():
    """Without any re-fit: a slice of the original, the same as far as both have it."""
    toy = digits()
    compressed, labeling = toy.compressed(0.5, 32, 32)
    found = kept_parts(toy.menus, labeling)
    kept = found.weights
    assert {name: weight.shape for name, weight in kept.items()} == {
        name: layer.values.shape for name, layer in compressed.layers.items()
    }
    first = toy.folded.conv1.weight
    assert any(len(kept[name]) < len(toy.folded.get_submodule(name).weight) for name in kept)
    assert all(any(torch.equal(row, other) for other in first) for row in kept["conv1"])
    linear = toy.folded.linear.weight
    columns = [any(torch.equal(column, other) for other in linear.T) for column in kept["linear"].T]
    assert all(columns)
    assert {weight.dtype for weight in kept.values()} == {torch.float32}
    assert torch.equal(kept["conv1"], first[found.channels["conv1"]])
    assert {name: len(rows) for name, rows in found.channels.items()} == {name: len(kept[name]) for name in kept}


def class_by_class(count=300):
    return from_tensors(
        (torch.arange(float(count)).view(-1, 1), torch.arange(count) // 100), search_samples=60, calibration_samples=40
    )


@pytest.mark.parametrize("samples", [1, 39, 40])
def test_recalibration_takes_the_calibration_split_first(samples):
    data = class_by_class()
    taken = recalibration_inputs(data, samples)[:].flatten().tolist()
    assert taken == list(data.calibration_indices[:samples])


@pytest.mark.parametrize(("samples", "count"), [(41, 41), (100, 100), (240, 240), (10_000, 240)])
def test_recalibration_then_takes_other_samples_but_none_of_the_search_split(samples, count):
    data = class_by_class()
    taken = recalibration_inputs(data, samples)[:].flatten().tolist()
    assert taken[:40] == list(data.calibration_indices)
    assert len(taken) == len(set(taken)) == count
    assert not set(taken) & set(data.search_indices)
    assert taken == recalibration_inputs(data, samples)[:].flatten().tolist()


def test_recalibration_takes_samples_of_all_classes():
    data = class_by_class()
    labels = recalibration_inputs(data, 100)[:].flatten()[40:] // 100
    assert min(labels.long().bincount(minlength=3).tolist()) > 10


@pytest.mark.parametrize(
    ("losses", "tried", "kept"),
    [
        ([0.3, 0.5], [5, 4], 5),  # fewer layers are no closer
        ([0.5, 0.3, 0.2, 0.4], [5, 4, 3, 2], 3),
        ([1.5, 1.6, 1.7, 0.4, 0.45], [5, 4, 3, 2, 1], 2),  # all are further away than before, fewer are not
        ([1.5, 1.3, 1.2, 1.4, 1.6], [5, 4, 3, 2, 1], 0),
    ],
)
def test_fewer_and_fewer_layers_are_tried_until_that_helps_no_more(losses, tried, kept, monkeypatch):
    toy = digits()
    plain, _ = toy.compressed(0.0, 8, 8)
    seen, left = [], iter([1.0, *losses])
    monkeypatch.setattr(pipeline, "_counts", lambda _: [5, 4, 3, 2, 1])
    monkeypatch.setattr(pipeline, "_first_layers", lambda _, fitted, count, __: seen.append(count) or count)
    found = pipeline._judged(plain, plain, plain, lambda network, _: network, lambda _: next(left), Told())
    assert seen == tried
    assert (found or 0) == kept
