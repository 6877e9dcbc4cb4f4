"""The note that the original does no better than chance: it comes where it must, and not on good networks."""

from types import SimpleNamespace

import pytest
import torch
from run_toys import Watcher
from torch import nn

import autocompress
from autocompress.data import from_tensors
from autocompress.job.chance import _of_classes, _of_numbers, chance_note
from autocompress.job.load import load, load_splits
from autocompress.job.options import search_request
from autocompress.progress import Silent

ADVICE = (
    "compression keeps what the network gives, so look first whether inputs are prepared as in training "
    "(normalisation, size, order of channels), whether {}, and whether the trained weights were loaded"
)


def test_guessing_ten_classes_by_hand():
    """100 labels, ten of each class; every answer is 0, so 10 are right. Wilson: 5.52 to 17.44 %."""
    labels = torch.arange(100) % 10
    assert _of_classes(torch.zeros(100, dtype=torch.int64), labels, 10) == (
        "the original is right on 10.0 % of 100 labels of the search split (95 % interval 5.5 to 17.4 %); guessing "
        "would be on 10.0 %: " + ADVICE.format("labels number the classes as the network does")
    )


def test_the_order_of_classes_is_found_out():
    labels = torch.arange(200) % 10
    assert _of_classes((labels + 1) % 10, labels, 10) != ""
    assert _of_classes(labels, labels, 10) == ""


def test_a_good_network_on_data_of_nearly_one_class_is_no_alarm():
    """97 of 100 labels are 0, and 98 of the answers right: fewer than a constant answer's interval reaches."""
    labels = torch.zeros(400, dtype=torch.int64)
    labels[:12] = 1
    predicted = labels.clone()
    predicted[8:16] = 1 - predicted[8:16]
    assert _of_classes(predicted, labels, 2) == ""
    assert "guessing would be on 97.0 %" in _of_classes(torch.zeros(400, dtype=torch.int64), labels, 2)


def test_what_tells_nothing_is_no_alarm():
    none = torch.zeros(50, dtype=torch.int64)
    assert _of_classes(none, none, 3) == ""
    assert _of_classes(none, none - 100, 3) == ""  # positions without a label
    assert _of_numbers(torch.randn(50), torch.ones(50)) == ""


def test_guessing_is_told_from_weak_networks_as_often_as_is_said():
    """Of networks that guess, nearly all are told; of those that are right on a half of ten classes, none."""
    rng = torch.Generator().manual_seed(0)
    told = {"guess": 0, "weak": 0}
    for _ in range(200):
        labels = torch.randint(0, 10, (150,), generator=rng)
        guess = torch.randint(0, 10, (150,), generator=rng)
        weak = torch.where(torch.rand(150, generator=rng) < 0.45, labels, guess)
        told["guess"] += bool(_of_classes(guess, labels, 10))
        told["weak"] += bool(_of_classes(weak, labels, 10))
    assert told["guess"] >= 0.93 * 200
    assert told["weak"] == 0


def test_numbers_in_other_units_and_unrelated_numbers():
    rng = torch.Generator().manual_seed(0)
    y = torch.randn(120, 1, generator=rng)
    good = y + 0.3 * torch.randn(120, 1, generator=rng)
    assert _of_numbers(good, y) == ""
    assert _of_numbers(100 * good, y).startswith("the original's R² on 120 samples of the search split is -")
    assert "a constant answer has 0: " + ADVICE.format("labels are in the units of the outputs") in _of_numbers(
        -good, y
    )
    assert _of_numbers(0.01 * torch.randn(120, 1, generator=rng) + y.mean(), y) != ""
    heavy = torch.tan(3 * (torch.rand(300, 1, generator=rng) - 0.5))  # tails of a Cauchy distribution, almost
    assert _of_numbers(heavy * 0.9, heavy) == ""


class Linear(nn.Module):
    def __init__(self, trained):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
        if trained:
            self.body.weight.data, self.head.weight.data = torch.eye(16, 8), torch.eye(4, 16)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))


def data():
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (300,), generator=rng)
    return torch.eye(8)[labels] * 4 + 0.5 * torch.randn(300, 8, generator=rng), labels


def loaded(model, labels):
    asked = search_request(model, from_tensors((data()[0], labels)), {}, budget="size=0.5")
    return load(asked, load_splits(asked), Silent())


class Begun(Exception):
    """The work has begun."""


@pytest.mark.parametrize("name", ["search", "pareto", "smallest"])
def test_it_is_told_once_before_the_work_begins(name, tmp_path, monkeypatch):
    def prepare(*_):
        raise Begun

    monkeypatch.setattr("autocompress.api.prepare", prepare)
    inputs, labels = data()
    shuffled = labels[torch.randperm(300, generator=torch.Generator().manual_seed(1))]
    options = {
        "search": {"budget": "size=0.5"},
        "pareto": {"points": 2},
        "smallest": {"max_kl": 0.1, "minimize": "size", "selection_samples": 0, "search_samples": 60},
    }[name]
    for given, count in ((labels, 0), (shuffled, 1)):
        watcher = Watcher()
        with pytest.raises(Begun):
            getattr(autocompress, name)(
                Linear(True), (inputs, given), out=tmp_path / "run", force=True, progress=watcher, **options
            )
        assert [note[:24] for note in watcher.notes] == ["the original is right on"] * count


@pytest.mark.parametrize("labels", [None, data()[1].float()])
def test_without_labels_there_is_nothing_to_tell_and_numbers_have_their_own(labels):
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1))
    note = chance_note(loaded(model, labels))
    assert note == "" if labels is None else note.startswith("the original's R² on ")
    assert chance_note(loaded(Linear(True), data()[1])) == ""


def test_tasks_without_such_a_measure_are_left_alone():
    reading = SimpleNamespace(task=SimpleNamespace(name="embedding"), has_answers=False)
    source = SimpleNamespace(load=lambda indices: (torch.zeros(3, 2), torch.zeros(3, 4)))
    assert chance_note(SimpleNamespace(reading=reading, data=SimpleNamespace(train=source, search_indices=(0,)))) == ""
