"""A function of the user's trains: rounding, zeros and the budget hold; docs/own_training.md runs as it stands."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import autocompress
from autocompress.targets.packed.file import load_packed

ROOT = Path(__file__).parents[2]


def loss_of(model, data):
    inputs, labels = data.search()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(inputs), labels))


def test_the_budget_holds_and_weights_stay_on_their_levels(run):
    """Each layer's codes have other scales and values than before, and as many levels as its bits allow."""
    before = {name: layer.weight().clone() for name, layer in load_packed(run / "model.safetensors").layers.items()}
    losses = []

    def train(model, original, data):
        assert type(model).__name__ == type(original).__name__
        assert model.training
        assert not original.training
        inputs, labels = data.calibration()
        losses.append(loss_of(model, data))
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        losses.append(loss_of(model, data))

    finished = autocompress.finetune(run, train=train)
    assert finished.verification.passed, finished.verification.failures()
    assert finished.meets_budget
    assert losses[1] < losses[0]
    after = load_packed(run / "model.safetensors").layers
    assert all(not torch.equal(layer.weight(), before[name]) for name, layer in after.items())
    assert all(len(row.unique()) <= 2**layer.bits for layer in after.values() for row in layer.weight().flatten(1))
    assert autocompress.verify(run).passed


def unchanged(model, original, data):
    return model


def test_training_nothing_changes_nothing(run):
    before = load_packed(run / "model.safetensors").layers
    autocompress.finetune(run, train=unchanged)
    for name, layer in load_packed(run / "model.safetensors").layers.items():
        assert torch.equal(layer.values, before[name].values)
        assert torch.equal(layer.scale, before[name].scale)
        assert torch.equal(layer.bias, before[name].bias)
        assert layer.input_range.scale == before[name].input_range.scale


def words(model, original, data):
    return "done"


def another(model, original, data):
    return nn.Linear(2, 2)


def broken(model, original, data):
    next(iter(model.parameters())).data.fill_(float("nan"))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (words, "`train` must return the network that it was given, or None, got str; return the module."),
        (another, "`train` must leave every tensor of the network its name and shape, got a difference in "),
        (broken, "`train` must leave finite weights, got NaN or infinity in "),
    ],
)
def test_what_is_no_training_is_refused(run, train, message):
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(autocompress.InputError) as error:
        autocompress.finetune(run, train=train)
    assert str(error.value).startswith(message)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def blocks():
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "own_training.md").read_text(), re.M | re.S)


def test_the_documented_loop(run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(blocks()[0], "own_training.md", "exec"), names)
    assert names["finished"].verification.passed


@pytest.mark.parametrize(
    ("block", "name", "package"), [(1, "train_with_lightning", "lightning"), (2, "train_with_trainer", "accelerate")]
)
@pytest.mark.filterwarnings("ignore")
def test_documented_trainers(run, block, name, package):
    pytest.importorskip(package, reason=f"needs {package}")
    names = {"torch": torch, "__name__": "documented"}
    module = sys.modules.setdefault("documented", type(sys)("documented"))
    vars(module).update(names)
    exec(compile(blocks()[block], "own_training.md", "exec"), vars(module))
    before = (run / "model.safetensors").read_bytes()
    finished = autocompress.finetune(run, train=getattr(module, name))
    assert finished.verification.passed, finished.verification.failures()
    assert (run / "model.safetensors").read_bytes() != before
