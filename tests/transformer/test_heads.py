"""Heads of attention and widths of feed-forward blocks as groups, on networks as several libraries write them."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformer_toys import TOYS, FewerKeys, FixedNumbers, HeadByHead, vectors

from autocompress.network import Network, fold_batch_norms, mask_channels, remove_channels, trace
from autocompress.network.structure import Group
from autocompress.samples import Inputs, call


def owned(network: Network, part: str) -> list[Group]:
    return [group for group in network.groups if part in group.owner]


def differs(model: nn.Module, network: Network, group: Group, gone: list[int], inputs: Inputs) -> tuple[float, float]:
    """Largest differences from the copy without the channels: of the masked network, and of the original."""
    folded = fold_batch_norms(model, network)
    removed = [(group, np.array(gone))]
    with torch.no_grad():
        smaller, masked = (call(make(folded, removed), inputs) for make in (remove_channels, mask_channels))
        return float((smaller - masked).abs().max()), float((smaller - call(folded, inputs)).abs().max())


@pytest.mark.parametrize("name", TOYS)
def test_heads_and_inner_widths_are_found_and_can_go(name: str) -> None:
    toy = TOYS[name]
    model, inputs = toy.made()
    network = trace(model, inputs)
    for part, width in (toy.heads | toy.inner).items():
        groups = owned(network, part)
        assert [group.width for group in groups] == [width, width]
        assert all(group.is_branch for group in groups)
        for gone in ([0], [width - 1], list(range(width - 1))):
            same, changed = differs(model, network, groups[1], gone, inputs)
            assert same <= 1e-5 < changed


def test_a_head_takes_its_rows_and_columns_along() -> None:
    """By hand: head 2 of 4 with 8 rows each of q, k and v; with grouped queries, head 1 of 2 and both its queries."""
    model, inputs = TOYS["bert"].made()
    group = owned(trace(model, inputs), "layer.0.attention")[0]
    rows = list(range(16, 24))
    assert {name.rpartition(".")[2]: table[2].tolist() for name, table in group.producers.items()} == {
        "query": rows, "key": rows, "value": rows,
    }  # fmt: skip
    assert [table[2].tolist() for table in group.consumers.values()] == [rows]
    model, inputs = TOYS["llama"].made()
    group = owned(trace(model, inputs), "layers.0.self_attn")[0]
    assert {name.rpartition(".")[2]: table[1].tolist() for name, table in group.producers.items()} == {
        "q_proj": list(range(16, 32)), "k_proj": list(range(8, 16)), "v_proj": list(range(8, 16)),
    }  # fmt: skip
    assert [table[1].tolist() for table in group.consumers.values()] == [list(range(16, 32))]


def test_a_layer_that_is_three_in_one() -> None:
    """Of 3 heads with 16 rows, q is rows 0 to 47, k 48 to 95, v 96 to 143; or each head has 24 rows of its own."""
    model, inputs = TOYS["timm"].made()
    (table,) = owned(trace(model, inputs), "blocks.0.attn.qkv")[0].producers.values()
    assert table[1].tolist() == [*range(16, 32), *range(64, 80), *range(112, 128)]
    network = trace(HeadByHead().eval(), vectors(1))
    (table,) = network.groups[0].producers.values()
    assert network.groups[0].width == 4
    assert table[1].tolist() == list(range(24, 48))
    network = trace(FewerKeys().eval(), vectors(1))
    (table,) = network.groups[0].producers.values()
    assert network.groups[0].width == 2
    assert table[1].tolist() == [*range(16, 32), *range(40, 48), *range(56, 64)]


def test_integers_of_modules_follow() -> None:
    """timm reshapes to `num_heads` heads and back to `attn_dim`; a network of fewer heads needs both changed."""
    model, inputs = TOYS["timm"].made()
    network = trace(model, inputs)
    group = owned(network, "blocks.1.attn.qkv")[0]
    assert {(scaled.module, scaled.name, scaled.per_channel) for scaled in group.scaled} == {
        ("blocks.1.attn", "num_heads", 1), ("blocks.1.attn", "attn_dim", 16),
    }  # fmt: skip
    smaller = remove_channels(fold_batch_norms(model, network), [(group, np.array([0, 2]))])
    attention = [smaller.get_submodule(f"blocks.{block}.attn") for block in range(2)]
    assert [(each.num_heads, each.attn_dim) for each in attention] == [(3, 48), (1, 16)]
    assert model.get_submodule("blocks.1.attn").num_heads == 3


def test_heads_whose_number_stands_in_the_code_stay() -> None:
    network = trace(FixedNumbers().eval(), vectors(1))
    assert network.groups == ()
    assert network.layers[0].fixed_reason.startswith("heads: pruned copy fails to run: ")


def test_a_mask_that_is_computed_of_the_input_does_not_hold_heads() -> None:
    """Scores are added to the mask, but without heads there are no scores."""
    model, inputs = TOYS["bert"].made()
    network = trace(model, inputs)
    assert {group.is_branch for group in owned(network, "attention")} == {True}
    assert not owned(network, "pooler")[0].is_branch


def test_tracing_leaves_the_model_as_it_was() -> None:
    model, inputs = TOYS["timm"].made()
    before = copy.deepcopy(model.state_dict())
    trace(model, inputs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.get_submodule("blocks.0.attn").num_heads == 3
