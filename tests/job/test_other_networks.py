"""The whole job on networks with layers behind operators of several results, or beside layers of other kinds."""

from functools import partial

import pytest
import torch
from run_toys import Watcher
from torch import Tensor, nn

import autocompress
from autocompress import InputError
from autocompress.network import groups
from autocompress.network.dependency_graph import bounded_search

QUICK = {
    "method": "solver", "budget": "size=0.9", "dtype": "float32", "search_samples": 64, "calibration_samples": 64,
    "selection_samples": 0, "recalibration_samples": 64,
}  # fmt: skip


class Largest(nn.Module):
    """Input 8: a linear layer on the four largest of what another puts out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 64), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.first(x)).topk(4, dim=1)[0])


class Volumes(nn.Module):
    """Input 2x4x5x5: a 3-d convolution, which is no layer that may be labelled, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.head = nn.Conv3d(2, 4, 3, padding=1), nn.Linear(4, 64), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(torch.relu(self.conv(x)).mean((2, 3, 4)))))


class Attending(nn.Module):
    """Input 5x6: `nn.MultiheadAttention`, whose fused operator has no cost formula, between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 16), nn.Linear(16, 64)
        self.attention, self.last = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.last(torch.relu(self.head(x.mean(1))))


NETWORKS = {
    "topk": (Largest, (8,)),
    "conv3d": (Volumes, (2, 4, 5, 5)),
    "attention": (Attending, (5, 6)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_whole_job_goes_through(name, tmp_path):
    """On unlabelled noise, with some layer below 32 bits; the file answers in ONNX Runtime as PyTorch does."""
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, inputs = build().eval(), torch.randn(300, *shape, generator=torch.Generator().manual_seed(1))
    data = (inputs[:200], None), (inputs[200:], None)
    result = autocompress.search(model, data, out=tmp_path / "run", cache=tmp_path / "cache", **QUICK)
    assert result.verification.passed, result.verification.failures()
    assert result.verification.runtime.agreement >= 0.98
    assert min(label.weight_bits for label in result.plan.labels.values()) <= 8
    assert result.outcome.resources["size"] <= result.limits["size"]


def test_attention_is_counted():
    """By hand for 5 positions of 16 channels: four projections, which are layers, two products of 2 x 5 x 5 x 8."""
    build, shape = NETWORKS["attention"]
    network = autocompress.inspect(build(), (torch.randn(40, *shape), None), search_samples=9).network
    assert network.unknown_operators == {}
    assert sum(network.fixed_operators.values()) == 2 * 2 * 5 * 5 * 8
    assert [layer.macs for layer in network.layers if "attention" in layer.name] == 4 * [5 * 16 * 16]


class ByKeyword(nn.Module):
    """Input 8."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.first(input=x)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            ByKeyword(),
            "`model` must hand its layers their input by position, got it by keyword at first; write self.first(x).",
        ),
        (
            nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1), nn.Threshold(1e9, 1.0)),
            "`model` must give numbers that differ between the samples, got 1 for all 20.",
        ),
    ],
)
def test_what_is_refused_in_one_line(model, message, tmp_path):
    with pytest.raises(InputError) as error:
        autocompress.search(model, (torch.randn(60, 8), None), out=tmp_path / "run", cache=tmp_path, **QUICK)
    assert str(error.value) == message
    assert not (tmp_path / "run").exists()


def test_layers_whose_groups_can_not_be_read_are_named_and_the_job_goes_on(monkeypatch, tmp_path):
    """As with a windowed attention, whose reshapes torch-pruning multiplies: here a bound that a flattening exceeds."""
    monkeypatch.setattr(groups, "bounded_search", partial(bounded_search, 200))
    layers = [nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)]
    data, watcher = (torch.randn(200, 3, 8, 8), None), Watcher()
    made = {"out": tmp_path / "run", "cache": tmp_path / "cache", "progress": watcher}
    result = autocompress.search(nn.Sequential(*layers).eval(), data, **made, **{**QUICK, "budget": "size=0.7"})
    assert [note for note in watcher.notes if note.startswith("channel groups")] == [
        "channel groups are not offered for 2, which keep their widths and get bits only: torch-pruning can't read the "
        "graph: it ties more than 200 channels to one layer's, which are misread reshapes"
    ]
    assert result.verification.passed, result.verification.failures()
    assert result.plan.labels["2"].sparsity == 0
