"""GRU, LSTM and RNN as linear layers: the same outputs, costs by hand, and what is refused."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autocompress.errors import InputError
from autocompress.network import trace
from autocompress.network.layered import layered
from autocompress.network.recurrent import Recurrent
from autocompress.network.written_out import step_by_step

KINDS = {"gru": nn.GRU, "lstm": nn.LSTM, "tanh": nn.RNN, "relu": partial(nn.RNN, nonlinearity="relu")}


class Reader(nn.Module):
    """Input (4, 6): a convolution, a bidirectional GRU over 6 steps, the mean of its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 3, 1)
        self.gru = nn.GRU(3, 5, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.gru(torch.relu(self.conv(x)).transpose(1, 2))
        return self.head(outputs.mean(1))


def flat(result: object) -> Tensor:
    return torch.cat([leaf.flatten() for leaf in pytree.tree_leaves(result)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("with_state", [True, False])
def test_computes_the_same(kind: str, bias: bool, batch_first: bool, with_state: bool) -> None:
    torch.manual_seed(0)
    original = KINDS[kind](4, 5, 2, bias=bias, batch_first=batch_first, bidirectional=True).eval()
    made, x, states = layered(original), torch.randn(3, 6, 4), torch.randn(2, 4, 3 if batch_first else 6, 5)
    assert isinstance(made, Recurrent)
    given = () if not with_state else ((states[0], states[1]),) if kind == "lstm" else (states[0],)
    expected = original(x, *given)
    assert torch.equal(flat(made(x, *given)), flat(expected))
    with step_by_step():
        torch.testing.assert_close(flat(made(x, *given)), flat(expected), atol=1e-6, rtol=1e-5)


def test_costs_by_hand() -> None:
    network = trace(layered(Reader()), torch.zeros(1, 4, 6))
    conv, *matrices, head = network.layers
    assert [layer.name for layer in matrices] == [
        f"gru.weight_{what}_l0{suffix}" for suffix in ("", "_reverse") for what in ("ih", "hh")
    ]
    assert [layer.kind for layer in network.layers] == ["conv", *["recurrent"] * 4, "linear"]
    assert [layer.weight_shape for layer in matrices] == [(15, 3), (15, 5)] * 2
    assert [layer.positions for layer in matrices] == [6] * 4
    assert [layer.macs for layer in matrices] == [6 * 45, 6 * 75] * 2
    assert (conv.macs, head.macs, network.fixed_operators) == (6 * 12, 20, {})
    assert network.layer_macs == 6 * (12 + 2 * 45 + 2 * 75) + 20
    assert {layer.fixed_reason for layer in matrices} == {"gates of a recurrent layer"}


def test_channels_before_it_can_go_with_its_columns() -> None:
    network = trace(layered(Reader()), torch.zeros(1, 4, 6))
    (group,) = network.groups
    assert group.owner == "conv"
    assert {name: columns.tolist() for name, columns in group.consumers.items()} == {
        "gru.weight_ih_l0": [[0], [1], [2]],
        "gru.weight_ih_l0_reverse": [[0], [1], [2]],
    }
    full, less = (network.costs.resources(np.array([kept]), *[np.full(6, 32)] * 2)["macs"] for kept in (3, 1))
    assert full - less == 6 * 2 * (4 + 15 + 15)


def test_what_is_no_tensor_of_three_axes_is_refused() -> None:
    made = layered(nn.GRU(4, 5))
    with pytest.raises(InputError, match=r"a tensor of 3 axes \(samples, steps, inputs\), got 2 axes; pad sequences"):
        made(torch.zeros(6, 4))
    packed = nn.utils.rnn.pack_sequence([torch.zeros(3, 4), torch.zeros(2, 4)])
    with pytest.raises(InputError, match="got PackedSequence; pad sequences to one length"):
        made(packed)


def test_projections_stay_and_count_in_full() -> None:
    model = nn.LSTM(4, 6, proj_size=3, batch_first=True)
    assert layered(model) is model
    assert layered(nn.Linear(2, 2).requires_grad_(False)).weight.requires_grad is False
