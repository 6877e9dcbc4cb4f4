"""Layers, groups and reasons of networks small enough to read; nothing of the user's model changes."""

import re

import numpy as np
import pytest
import torch
import torchvision
from tiny_networks import Concat, Hooked, OptionA, Residual, chain, depthwise, shake_norms
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.network import trace
from autocompress.network.costs import header_bytes
from autocompress.samples import Field


def reasons(model: nn.Module, *shape: int) -> dict[str, str]:
    return {layer.name: layer.fixed_reason for layer in trace(model, torch.zeros(1, *shape)).layers}


def test_chain_layers() -> None:
    network = trace(chain(), torch.zeros(5, 1, 4, 4))
    first, second, last = network.layers
    assert [layer.name for layer in network.layers] == ["0", "3", "6"]
    assert [layer.kind for layer in network.layers] == ["conv", "conv", "linear"]
    assert [layer.positions for layer in network.layers] == [16, 16, 1]
    assert [layer.norm for layer in network.layers] == ["1", None, None]
    assert [layer.has_bias for layer in network.layers] == [True, True, True]
    assert (first.input_shape, first.output_shape) == ((1, 4, 4), (2, 4, 4))
    assert (first.rows, first.fan_in, first.parameters, first.macs) == (2, 9, 18, 288)
    assert [(layer.reads, layer.writes) for layer in network.layers] == [((), 0), ((0,), 1), ((1,), None)]
    assert (first.fixed_reason, second.fixed_reason, last.fixed_reason) == ("", "", "network output")
    assert (last.input_shape, last.output_shape) == ((48,), (2,))
    assert network.inputs == (Field("input", (1, 4, 4)),)
    assert network.unknown_operators == {}
    assert network.layer_index() == {"0": 0, "3": 1, "6": 2}


def test_flatten_gives_every_channel_its_columns() -> None:
    group = trace(chain(), torch.zeros(1, 1, 4, 4)).groups[1]
    assert (group.owner, group.width) == ("3", 3)
    assert {name: rows.tolist() for name, rows in group.producers.items()} == {"3": [[0], [1], [2]]}
    assert group.consumers.keys() == {"6"}
    assert group.consumers["6"].tolist() == np.arange(48).reshape(3, 16).tolist()


def test_residual_ties_widths() -> None:
    network = trace(Residual(), torch.zeros(1, 1, 4, 4))
    outer, inner = network.groups
    assert (outer.owner, outer.width, outer.producers.keys(), outer.consumers.keys()) == (
        "stem",
        4,
        {"stem", "conv2"},
        {"conv1", "head"},
    )
    assert (inner.owner, inner.width, inner.producers.keys(), inner.consumers.keys()) == (
        "conv1",
        6,
        {"conv1"},
        {"conv2"},
    )
    assert inner.consumers["conv2"][2].tolist() == list(range(18, 27))
    assert [(layer.reads, layer.writes) for layer in network.layers] == [((), 0), ((0,), 1), ((1,), 0), ((0,), None)]


def test_concat_offsets_columns_and_keeps_the_norm() -> None:
    network = trace(Concat(), torch.zeros(1, 2, 3, 3))
    left, right, join = network.groups
    assert left.consumers["join"].tolist() == [[0], [1], [2]]
    assert right.consumers["join"].tolist() == [[3], [4], [5], [6]]
    assert right.norms["norm"].tolist() == [[3], [4], [5], [6]]
    assert join.consumers["head"].tolist() == [[0], [1], [2], [3], [4]]
    assert network.layers[network.layer_index()["join"]].reads == (0, 1)
    assert [layer.norm for layer in network.layers] == [None] * 4


def test_depthwise_follows() -> None:
    network = trace(depthwise(), torch.zeros(1, 2, 4, 4))
    group = network.groups[0]
    assert [layer.kind for layer in network.layers] == ["conv", "depthwise", "conv", "linear"]
    assert (group.owner, group.producers.keys(), group.consumers.keys()) == ("0", {"0", "3"}, {"6"})
    assert [(layer.reads, layer.writes) for layer in network.layers] == [((), 0), ((), 0), ((0,), 1), ((1,), None)]


def test_option_a_shortcut_is_fixed_and_its_inner_channels_are_not() -> None:
    network = trace(OptionA(), torch.zeros(1, 3, 8, 8))
    assert [group.owner for group in network.groups] == ["conv1"]
    assert {layer.name: layer.fixed_reason for layer in network.layers} == {
        "stem": "tied to some channels of conv2 only",
        "conv1": "",
        "conv2": "tied to some channels of conv2 only",
        "linear": "network output",
    }


class MeanOverChannels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


class HardCodedWidth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 2, 2, 5, 5).transpose(1, 2).reshape(-1, 4, 5, 5)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(self.conv(x)))


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (nn.ReLU(), ""),
        (nn.Sigmoid(), ""),
        (MeanOverChannels(), "pruned copy differs from the masked one"),
        (nn.Softmax(1), "pruned copy differs from the masked one"),
        (Scale(), "a parameter that is no layer's has the same channels"),
        (nn.PReLU(4), "PReLU between has the same channels"),
        (nn.GroupNorm(2, 4), "GroupNorm between has the same channels"),
        (nn.Conv2d(4, 4, 1, groups=2), "grouped convolution between"),
        (nn.Conv2d(4, 8, 1, groups=4), None),
        (Twice(), "runs more than once"),
    ],
)
def test_reason_of_a_fixed_width(between: nn.Module, expected: str | None) -> None:
    if expected is None:  # a channel multiplier: convolution b reads 8 channels
        model = Hooked(between)
        model.b = nn.Conv2d(8, 6, 3, padding=1)
        expected = "grouped convolution between"
    else:
        model = Hooked(between)
    found = reasons(model, 3, 5, 5)
    assert found["a"] == expected
    assert found["b"] == ""
    assert found["head"] == "network output"


def test_a_forward_pass_with_hard_coded_widths_is_fixed() -> None:
    found = reasons(Hooked(HardCodedWidth()), 3, 5, 5)
    assert found["a"].startswith(("pruned copy fails to run: ", "uneven channels", "torch-pruning can't read"))
    assert found["b"] == ""


def test_tied_weights_are_no_layers_and_stored_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    network = trace(model, torch.zeros(1, 4))
    assert [layer.name for layer in network.layers] == ["4"]
    assert network.shared_weights == {"0": "its weight is also that of 2", "2": "its weight is also that of 0"}
    assert network.fixed_operators == {"aten.addmm": 32}
    original = network.costs.resources(network.costs.group_width, np.array([32]), np.array([32]))
    names = header_bytes(
        {"4.weight": (2, 4), "4.weight_scale": (2,), "4.input_range": (2,), "4.bias": (2,)}
        | {"0.weight": (4, 4), "0.bias": (4,), "2.bias": (4,)}
    )
    assert int(original["size"]) == names + 4 * (16 + 4 + 4) + 4 * (8 + 2)
    assert int(original["macs"]) == 32 + 8


def test_first_depthwise_layer_keeps_the_input_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(36, 2))
    found = reasons(model, 3, 5, 5)
    assert re.match("pruned copy fails to run: .*channels", found["0"])
    assert found["1"] == ""


def test_shufflenet_breaks_torch_pruning_and_is_traced() -> None:
    network = trace(torchvision.models.shufflenet_v2_x0_5(), torch.zeros(1, 3, 64, 64))
    assert len(network.layers) == 57
    assert [(group.owner, group.width, list(group.consumers)) for group in network.groups] == [
        ("conv5.0", 1024, ["fc"])  # which takes no graph of torch-pruning's to see
    ]
    *others, before, last = network.layers
    assert (before.fixed_reason, last.fixed_reason) == ("", "network output")
    assert {layer.fixed_reason for layer in others} == {
        "torch-pruning can't read the graph: ZeroDivisionError: integer division or modulo by zero"
    }


def test_layers_are_what_multiplies_by_its_own_weight() -> None:
    """Weights that are transformed first, transposed convolutions and attention's products can't shrink."""

    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias)

    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(2)
            return x @ x.transpose(1, 2)

    model = nn.Sequential(
        Standardized(3, 4, 1), nn.ConvTranspose2d(4, 4, 2), Product(), nn.Flatten(), nn.Linear(16, 2), nn.Linear(2, 2)
    )
    network = trace(model, torch.zeros(1, 3, 4, 4))
    assert [layer.name for layer in network.layers] == ["4", "5"]
    assert network.unknown_operators == {}
    assert network.fixed_operators == {"aten.convolution": 16 * 12 + 16 * 4 * 16, "aten.bmm": 4 * 4 * 25}


def test_linear_on_tokens_and_in_place_operators() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Hardswish(inplace=True), nn.Linear(6, 5), nn.Linear(5, 2))
    network = trace(model, torch.zeros(1, 3, 4))
    assert [layer.positions for layer in network.layers] == [3, 3, 3]
    assert network.unknown_operators == {}
    assert [group.owner for group in network.groups] == ["0", "2"]
    assert network.groups[0].consumers["2"].tolist() == [[0], [1], [2], [3], [4], [5]]
    # both 18 elements of the first result, activated in place, and 15 of the second
    assert network.costs.memory(np.array([6, 5]), np.array([32, 32, 32])) == 4 * (18 + 15)


def test_flattened_tokens_which_torch_pruning_misreads_are_fixed() -> None:
    """Channel c owns the columns c, c + 5 and c + 10 there, not three in a row."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Flatten(), nn.Linear(15, 2))
    found = reasons(model, 3, 4)
    assert found["0"] == ""
    assert found["2"].startswith("pruned copy ")


def test_dilated_and_one_dimensional_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3, dilation=2), nn.ReLU(), nn.Conv1d(4, 3, 2, stride=2), nn.Flatten(), nn.Linear(12, 2)
    )
    network = trace(model, torch.zeros(1, 2, 12))
    assert [layer.positions for layer in network.layers] == [8, 4, 1]
    assert network.groups[0].consumers["2"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert network.groups[1].consumers["4"].tolist() == np.arange(12).reshape(3, 4).tolist()


def test_zero_initialised_branches_hide_no_tie() -> None:
    """A residual branch whose last norm is zero must still be found wrong where it is wrong."""

    class ZeroBranch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x))
            return x + self.last(y - y.mean(1, keepdim=True))

    found = reasons(Hooked(ZeroBranch()), 3, 5, 5)
    assert found["between.conv"] == "pruned copy differs from the masked one"


def test_fingerprint_is_of_the_architecture() -> None:
    x = torch.zeros(1, 1, 4, 4)
    torch.manual_seed(0)
    first = trace(chain(), x).fingerprint
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert trace(shake_norms(chain()), x).fingerprint == first
    wider = chain()
    wider[0], wider[1], wider[3] = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)
    assert trace(wider, x).fingerprint != first

    class Plain(Residual):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.stem(x))
            return self.head(self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))).mean((2, 3)))

    assert trace(Plain(), x).fingerprint != trace(Residual(), x).fingerprint


def test_nothing_of_the_model_changes() -> None:
    model = nn.Sequential(chain(), nn.Dropout(), nn.Linear(2, 2))
    model.train()
    model[0][1].eval()
    model[2].weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 the legacy global state is what must not move
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    trace(model, torch.ones(2, 1, 4, 4))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == [True] * 7 + [False, True]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert torch.is_grad_enabled()


def test_frozen_networks_and_no_grad_are_fine() -> None:
    model = chain().requires_grad_(False)
    with torch.no_grad():
        assert len(trace(model, torch.zeros(1, 1, 4, 4)).groups) == 2


def test_wrong_input() -> None:
    x = torch.zeros(1, 1, 4, 4)
    with pytest.raises(InputError, match=re.escape("`model` must be a torch.nn.Module, got str.")):
        trace("resnet", x)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=re.escape("`example` must be a tensor (1+, ...), got list.")):
        trace(chain(), [1])  # type: ignore[arg-type]
    message = "`example` must have a batch axis and at least one sample, got shape (4,)."
    with pytest.raises(InputError, match=re.escape(message)):
        trace(chain(), torch.zeros(4))
    with pytest.raises(InputError, match=r"`example` must fit the model's input, got shape \(1, 3, 4, 4\): .*channels"):
        trace(chain(), torch.zeros(1, 3, 4, 4))
    message = (
        "`model` must run at least one convolution, Linear, Embedding, GRU, LSTM or RNN on `example`, with a weight of "
        "its own, got none."
    )
    with pytest.raises(InputError, match=re.escape(message)):
        trace(nn.ReLU(), x)


def test_groups_that_name_columns_which_a_layer_does_not_have() -> None:
    """Three channels become one between the layers; torch-pruning takes the second to read three."""

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.mv(x, x.new_ones(3))[:, None]

    found = reasons(nn.Sequential(nn.Linear(4, 3), Sum(), nn.Linear(1, 2)), 4)
    assert found["0"].startswith("pruned copy fails to run: index ")


class MakesFloats(nn.Module):
    """Makes a float32 tensor itself, so that it runs in no other dtype."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        places = torch.zeros(len(x), 4, 4, 2)  # float32 whatever x is
        return self.second(nn.functional.grid_sample(self.first(x), places))


def test_groups_of_a_network_that_runs_in_float32_only():
    """In float64 it fails; in float32 its one group is found and checked."""
    with pytest.raises(RuntimeError):
        MakesFloats().double()(torch.zeros(1, 2, 8, 8).double())
    network = trace(MakesFloats().eval(), torch.randn(1, 2, 8, 8))
    assert [(group.owner, group.width) for group in network.groups] == [("first", 8)]
