"""Tasks: every built-in one passes the contract suite; what `auto` takes, and what metrics are worth."""

import math

import pytest
import torch

import autocompress
from autocompress.errors import InputError
from autocompress.samples import from_tree
from autocompress.tasks import TASKS, Seen, Task, choose
from autocompress.tasks.metrics import METRICS, Meter
from autocompress.testing import ContractError, check_task

RANDOM = torch.Generator().manual_seed(1)
IMAGES = torch.zeros(6, 3, 8, 8)
TOKENS = from_tree(
    {"input_ids": torch.arange(30).view(6, 5), "attention_mask": torch.tensor([[1, 1, 1, 1, 0]] * 5 + [[1] * 5])}
)


def drawn(*shape):
    return torch.randn(*shape, generator=RANDOM)


@pytest.mark.parametrize(
    ("task", "outputs", "inputs", "labels"),
    [
        ("classification", [drawn(6, 4)], IMAGES, None),
        ("classification", [drawn(6, 1)], IMAGES, None),
        ("regression", [drawn(6, 3)], IMAGES, drawn(6, 3)),
        ("regression", [drawn(6)], IMAGES, drawn(6)),
        ("regression", [drawn(6, 1, 8, 8), drawn(6, 2)], IMAGES, None),
        ("embedding", [drawn(6, 32)], IMAGES, drawn(6, 32)),
        ("embedding", [drawn(6, 5, 32), drawn(6, 32)], TOKENS, None),
        ("token-classification", [drawn(6, 5, 4)], TOKENS, torch.arange(30).view(6, 5) % 4),
        ("segmentation", [drawn(6, 4, 8, 8)], IMAGES, torch.arange(384).view(6, 8, 8) % 5),
        ("detection", [drawn(6, 85, 4, 4)], IMAGES, None),
    ],
)
def test_built_in_tasks(task, outputs, inputs, labels):
    check_task(TASKS.find(task), outputs, inputs, labels)


@pytest.mark.parametrize(
    ("rows", "rule"),
    [
        (lambda seen: lambda outputs, inputs: outputs[0], "Rows must be logits"),
        (lambda seen: lambda outputs, inputs: outputs[0][:, None] - outputs[0].mean(0), "depend on the other samples"),
        (lambda seen: lambda outputs, inputs: outputs[0][:, None].detach() * 1.0, "Gradients must flow"),
        (lambda seen: lambda outputs, inputs: outputs[0][:, None].log(), "Rows must be finite"),
    ],
)
def test_wrong_rows_are_found(rows, rule):
    outputs = drawn(6, 3) if "logits" not in rule else drawn(6, 3, 2, 2)
    with pytest.raises(ContractError, match=rule):
        check_task(Task("mine", rows, "numbers"), [outputs], IMAGES)


@pytest.mark.parametrize(
    ("names", "outputs", "inputs", "labels", "expected"),
    [
        (["output"], [drawn(6, 4)], IMAGES, None, "classification"),
        (["output"], [drawn(6, 4)], IMAGES, torch.arange(6) % 4, "classification"),
        (["output"], [drawn(6, 1)], IMAGES, torch.arange(6) % 2, "classification"),
        (["output"], [drawn(6, 1)], IMAGES, torch.arange(6), "regression"),
        (["output"], [drawn(6, 4)], IMAGES, drawn(6, 4), "regression"),
        (["output"], [drawn(6)], IMAGES, None, "regression"),
        (["output"], [drawn(6, 1, 8, 8)], IMAGES, None, "regression"),
        (["output"], [torch.nn.functional.normalize(drawn(6, 4))], IMAGES, None, "embedding"),
        (["last_hidden_state", "pooler_output"], [drawn(6, 5, 4), drawn(6, 4)], TOKENS, None, "embedding"),
        (["logits"], [drawn(6, 5, 4)], TOKENS, None, "token-classification"),
        (["output"], [drawn(6, 4, 8, 8)], IMAGES, torch.zeros(6, 8, 8).long(), "segmentation"),
        (["out"], [drawn(6, 4, 8, 8)], IMAGES, None, "segmentation"),
        (["output"], [drawn(6, 4, 8, 8)], IMAGES, None, "regression"),
        (["a", "b"], [drawn(6, 4), drawn(6, 2)], IMAGES, None, "regression"),
    ],
)
def test_what_auto_takes(names, outputs, inputs, labels, expected):
    found, reason = choose(Seen(tuple(names), tuple(outputs), inputs), labels)
    assert found == expected
    assert reason


def meter(names, classes=0):
    return Meter([METRICS[name] for name in names], classes)


def test_metrics_of_classes_by_hand():
    """Two classes; 3 of 4 known answers right. IoU: 1/2 and 2/3; F1: 2/3 and 4/5. 255 and -100 do not count."""
    found = meter(["accuracy", "miou", "f1"], 2)
    found.update(torch.tensor([[0, 1, 0]]), torch.tensor([[0, 1, 255]]))
    found.update(torch.tensor([[1, 1, 0]]), torch.tensor([[0, 1, -100]]))
    assert found.values() == pytest.approx({"accuracy": 3 / 4, "miou": 7 / 12, "f1": 11 / 15})


def test_metrics_of_numbers_by_hand():
    found = meter(["r2", "mae"])
    found.update(torch.tensor([1.0, 2.0]), torch.tensor([[1.0], [3.0]]))
    found.update(torch.tensor([5.0]), torch.tensor([[5.0]]))
    assert found.values() == pytest.approx({"r2": 1 - 1 / 8, "mae": 1 / 3})


def test_every_column_counts_by_itself():
    """Whatever their units: one is a million times as large as the other, and far from 0."""
    labels = drawn(50, 2) * torch.tensor([1e3, 1e-3]) + torch.tensor([1e5, 0.1])
    predicted = labels.clone()
    predicted[:, 1] = 0.1
    found = meter(["r2"])
    for part in range(0, 50, 20):
        found.update(predicted[part : part + 20], labels[part : part + 20])
    second = labels[:, 1].double()
    of_second = 1 - float((second - 0.1).square().sum() / (second - second.mean()).square().sum())
    assert found.values()["r2"] == pytest.approx((1 + of_second) / 2, abs=1e-5)


def test_boxes():
    pytest.importorskip("pycocotools")
    found = meter(["map50"])
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    right = {"boxes": box, "scores": torch.tensor([0.9]), "labels": torch.tensor([3])}
    wrong = {"boxes": box + 50, "scores": torch.tensor([0.8]), "labels": torch.tensor([3])}
    labels = torch.tensor([[[0.0, 0.0, 10.0, 9.0, 3.0], [0.0, 0.0, 0.0, 0.0, -1.0]]])
    found.update([right], labels)
    assert found.values()["map50"] == pytest.approx(1.0)
    found.update([wrong], labels)
    assert found.values()["map50"] == pytest.approx(0.505, abs=0.01)  # half of the boxes, at 101 recalls


def test_labels_of_another_shape_are_refused():
    with pytest.raises(InputError) as error:
        meter(["r2"]).update(drawn(4, 3), drawn(4, 2))
    assert str(error.value) == "`data` must hold labels of the outputs' shape (N, 3), got (N, 2)."


def test_registering_a_task():
    mine = Task("mine", TASKS.find("regression").rows, "numbers", ("r2",))
    autocompress.register_task(mine)
    try:
        assert "mine" in autocompress.list_tasks()
    finally:
        TASKS.unregister("mine")
    with pytest.raises(InputError) as error:
        autocompress.register_task(Task("other", mine.rows, "numbers", ("r3",)))
    assert str(error.value).startswith("`metrics` must be one of accuracy, ")
    assert math.isfinite(len(METRICS))
