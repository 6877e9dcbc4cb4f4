"""Embeddings in menus: losses by hand, responses against really changed tables, and what is never offered."""

import numpy as np
import torch
from menu_toys import randn
from torch import nn

from autocompress.menus import MenuSettings, build_menus
from autocompress.menus.calibration import calibrate
from autocompress.menus.changes import Changes
from autocompress.menus.lookups import lookup_loss
from autocompress.menus.responses import responses
from autocompress.network import trace
from autocompress_envs.problem import Labeling


class Bag(nn.Module):
    """Mean of the rows of some tokens, then two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.table, self.hidden, self.head = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(self.table(tokens).mean(1))))


TOKENS = torch.randint(0, 8, (48, 5), generator=torch.Generator().manual_seed(2))  # the last row is never looked up


def test_a_table_is_a_layer_that_multiplies_nothing() -> None:
    network = trace(Bag(), TOKENS[:1])
    table, hidden, _ = network.layers
    assert (table.kind, table.weight_shape, table.positions, table.macs) == ("embedding", (9, 6), 5, 0)
    assert (table.input_shape, table.output_shape) == ((5,), (5, 6))
    assert (table.reads, table.writes, table.has_bias, table.fixed_reason) == ((), None, False, "a table's width stays")
    assert network.layer_macs == hidden.macs + 24
    assert network.inputs[0].dtype == "int64"


def test_look_ups_are_counted() -> None:
    model = Bag().eval().requires_grad_(False)
    found = calibrate(model, trace(model, TOKENS[:1]), TOKENS)["table"]
    expected = TOKENS.flatten().bincount(minlength=9) / len(TOKENS)
    torch.testing.assert_close(found.gradient_moment, expected)
    assert found.gradient_moment[8] == 0
    assert found.second_moment.shape == (1, 7, 7)
    assert torch.linalg.eigvalsh(found.second_moment[0, :6, :6]).min() > -1e-6


def test_loss_by_hand() -> None:
    change, moment = torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    # rows: 2 + 2 · 2 + 4 = 10 and 9; look-ups: 0.5 and 2
    assert lookup_loss(change, torch.tensor([0.5, 2.0]), moment) == 0.5 * (0.5 * 10 + 2 * 9)


def test_responses_are_what_a_changed_table_does() -> None:
    model = Bag().eval().requires_grad_(False)
    layer = trace(model, TOKENS[:1]).layers[0]
    change = 1e-4 * torch.cat([randn(9, 6, seed=3), torch.zeros(9, 1)], 1).float()
    asked = Changes(layer, 2, lambda: iter([change, 2 * change]), [None])
    found = responses(model, [asked], TOKENS, lambda first, outputs: [outputs[:, 0].sum(), outputs[:, 2].sum()])[
        "table"
    ]
    moved = Bag().double().eval()
    before = moved(TOKENS)
    moved.table.weight.data += change[:, :-1]
    expected = (moved(TOKENS) - before)[:, [0, 2]].float()  # (N, 2)
    assert found.shape == (48, 2, 3)
    torch.testing.assert_close(found[:, :, 0], expected, rtol=2e-3, atol=1e-8)
    torch.testing.assert_close(found[:, :, 1], 2 * found[:, :, 0])
    assert not found[:, :, 2].any()


def test_menus_offer_bits_alone_and_fewer_bits_cost_more() -> None:
    model = Bag().eval()
    network = trace(model, TOKENS[:1])
    settings = MenuSettings(weight_bits=(2, 4, 8, 32), activation_bits=(8, 32))
    menus = build_menus(model, network, TOKENS, settings, data_fingerprint="tokens", judging_inputs=TOKENS[:16])
    table = menus.problem().layers[0]
    assert table.sparsities.tolist() == [0.0]
    losses = table.errors[0, :, 0]
    assert losses[0] > losses[1] > losses[2] > losses[3] == 0
    assert np.array_equal(table.errors[..., 0], table.errors[..., 1])  # nothing is rounded on the way in
    none = np.zeros(3, dtype=np.int64)
    plan = menus.plan(Labeling(none, none + 1, none))
    assert (plan.labels["table"].weight_bits, plan.labels["table"].activation_bits) == (4, 32)
    assert menus.plan(menus.labeling(plan)) == plan
    two_bits = menus.variants(network.layers[0], {})[0]
    assert max(len(row.unique()) for row in two_bits.values) <= 4
    assert not two_bits.bias.any()
