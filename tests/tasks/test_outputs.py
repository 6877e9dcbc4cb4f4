"""What is taken of a network's outputs: which tensors count, and what is refused."""

import pytest
import torch
from torch import nn

from autocompress.data import from_tensors
from autocompress.errors import InputError
from autocompress.job.load import _tell_task
from autocompress.job.outputs import read
from autocompress.models import load_model
from autocompress.network.interface import interfaced, outputs_by_name, plain, raw
from autocompress.progress import Silent
from autocompress.samples import call, from_tree
from autocompress.tasks import named_outputs
from autocompress.tasks.outputs import OutputForm

A, B, WHOLE = torch.zeros(4, 2), torch.ones(4, 3), torch.arange(4)


class Container:
    def __init__(self, **tensors):
        vars(self).update(tensors)


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (A, ["output"]),
        ((A, None, WHOLE), ["output_0"]),
        ((A,), ["output"]),
        ([A, B], ["output_0", "output_1"]),
        ({"loss": A, "logits": B}, ["logits"]),
        ({"out": A, "aux": B}, ["out"]),
        ({"hidden": A, "pooled": B, "places": WHOLE}, ["hidden", "pooled"]),
        (Container(logits=A, states=(B,)), ["logits"]),
    ],
)
def test_outputs_that_count(result, names):
    assert list(named_outputs(result)) == names


def test_names_that_the_network_knows():
    assert list(named_outputs(A, ("y",))) == ["y"]
    assert list(named_outputs((A, B), ("y", "z"))) == ["y", "z"]


@pytest.mark.parametrize("result", ["words", (), {"places": WHOLE}, WHOLE])
def test_nothing_to_compare_is_refused(result):
    with pytest.raises(InputError) as error:
        named_outputs(result)
    assert str(error.value) == (
        f"`model` must give a tensor of floating-point numbers, or several, got {type(result).__name__}; wrap it in a "
        "module that returns such."
    )


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x, scale):
        return {"first": self.linear(x) * scale, "second": x}


def test_forms_of_a_network():
    """From rows to outputs to the network as it was written, and back: the same modules, other forwards."""
    model, inputs = Two(), from_tree({"x": A, "scale": torch.full((4, 1), 2.0)})

    def rows(outputs, tensors):
        return torch.stack([outputs[0][:, :2], tensors[0]], 1)

    ours = interfaced(model, inputs, OutputForm(("second", "first"), rows))
    assert call(ours, inputs).shape == (4, 2, 2)
    second, first = call(raw(ours), inputs)
    assert torch.equal(second, A)
    assert torch.equal(first, model(A, 2.0)["first"])
    assert list(outputs_by_name(ours, inputs)) == ["first", "second"]
    assert list(plain(ours)(A, 2.0)) == ["first", "second"]
    assert raw(ours).linear is model.linear
    assert raw(raw(ours)) is not model


def test_reading_leaves_the_modes():
    model = load_model("digits")
    model.train()
    model.bn1.eval()
    data = from_tensors((torch.zeros(4, 1, 8, 8), torch.arange(4)), classes=[str(digit) for digit in range(10)])
    assert read(model, *data.train.load(data.calibration_indices), data.classes, "auto").task.name == "classification"
    assert model.training
    assert not model.bn1.training
    assert model.layer2[0].shortcut[1].training
    assert model.bn1.num_batches_tracked.item() == 0


@pytest.mark.parametrize(
    ("model", "inputs", "task", "expected"),
    [
        (nn.Linear(4, 3), (4,), "auto", "`model` must have one output for each of the 2 classes of `data`, got 3."),
        (nn.Flatten(0), (4,), "auto", "`model` must give outputs (N, …) with the samples on the first axis, got shape "
         "(8,) for N = 2."),
        (nn.Linear(5, 2), (4,), "auto", "`model` must take inputs of shape (4,) from `data`, got the error: mat1 and "
         "mat2 shapes cannot be multiplied (2x4 and 5x2)."),
        (nn.Conv2d(1, 2, 1), (1, 3, 3), "classification", "`model` must give one output (N, classes) for the task "
         "classification, got output (2, 2, 3, 3)."),
        (nn.Linear(4, 2), (4,), "token-classification", "`model` must give one output (N, tokens, classes) for the "
         "task token-classification, got output (2, 2)."),
        (nn.Conv2d(1, 1, 1), (1, 3, 3), "segmentation", "`model` must have at least 2 classes for the task "
         "segmentation, got 1; pass --task regression."),
        (nn.Linear(4, 1), (4,), "embedding", "`model` must give vectors (N, …, D), D at least 2, for the task "
         "embedding, got output of shape (2, 1)."),
        (nn.Threshold(9.0, 1.0), (4,), "regression", "`model` must give numbers that differ between the samples, got 1 "
         "for all 2."),
        (nn.Linear(4, 2), (4,), "sorting", "`task` must be one of classification, detection, embedding, regression, "
         "segmentation, token-classification, got 'sorting'."),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(model, inputs, task, expected):
    data = from_tensors((torch.zeros(6, *inputs), torch.tensor([0, 1] * 3)), classes=["cat", "dog"])
    with pytest.raises(InputError) as error:
        read(model, *data.train.load(data.calibration_indices), data.classes, task)
    assert str(error.value) == expected
    assert model.training


def test_numbers_are_no_classes():
    data = from_tensors((torch.zeros(6, 4), torch.rand(6)))
    with pytest.raises(InputError) as error:
        read(nn.Linear(4, 2), *data.train.load(data.calibration_indices), data.classes, "classification")
    assert str(error.value) == (
        "`data` must hold one class a sample, whole numbers (N,), for the task classification, got float32 labels "
        "(2,); name another --task."
    )


def test_numbers_of_another_shape_are_refused_before_anything_else():
    labels = torch.randn(4)
    with pytest.raises(InputError) as error:
        read(nn.Linear(2, 3), torch.randn(4, 2), labels, (), "auto")
    assert str(error.value) == "`data` must hold labels of the outputs' shape (N, 3), got (N)."


class Notes(Silent):
    def __init__(self):
        self.found = []

    def note(self, text):
        self.found.append(text)


@pytest.mark.parametrize(
    ("labels", "task", "notes"),
    [
        (None, "auto", ["task: classification (output (3,) of one row, and no labels that say otherwise); --task NAME "
                        "names another"]),
        (None, "classification", []),
        (torch.tensor([0, 1, 2, 0]), "auto", []),
    ],
)  # fmt: skip
def test_classes_are_told_where_no_label_says_so(labels, task, notes):
    reading = read(nn.Linear(2, 3), A, labels, () if labels is None else ("a", "b", "c"), task)
    watcher, data = Notes(), from_tensors((torch.zeros(9, 2), None))
    assert _tell_task(reading, data, labels is not None, watcher) is data
    assert watcher.found == notes
