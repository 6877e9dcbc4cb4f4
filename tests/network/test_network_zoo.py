"""Ten published architectures: counts against PyTorch's own counter and against networks that were really pruned."""

import copy

import numpy as np
import pytest
import timm
import torch
import torch_pruning as tp
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autocompress.network import Network, fold_batch_norms, remove_channels, trace

# name, number of groups whose channels can be removed
ZOO = [
    ("resnet18", 12),
    ("mobilenet_v2", 25),
    ("mobilenet_v3_small", 27),
    ("efficientnet_b0", 40),
    ("squeezenet1_1", 25),
    ("densenet", 26),  # the stem, two in each of 11 dense layers, three transitions
    ("regnet_y_400mf", 21),
    ("timm:resnet10t", 10),
    ("timm:ghostnet_050", 30),
    ("timm:convnext_atto", 12),
]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "densenet":  # shorter than the published ones: torch-pruning takes half a minute for those
        return torchvision.models.DenseNet(16, (3, 3, 3, 2), 32).eval()
    source, _, rest = name.rpartition(":")
    return (timm.create_model(rest) if source else torchvision.models.get_model(rest)).eval()


def counted_macs(model: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def predicted(network: Network, kept: np.ndarray) -> dict[str, int]:
    bits = np.full(len(network.layers), 32)
    return {name: int(amount) for name, amount in network.costs.resources(kept, bits, bits).items()}


def weights_of_layers(model: nn.Module, network: Network) -> int:
    return sum(model.get_parameter(f"{layer.name}.weight").numel() for layer in network.layers)


def prune_with_torch_pruning(
    model: nn.Module, x: torch.Tensor, network: Network, removed: list[np.ndarray]
) -> nn.Module:
    """The independent implementation of removal: only the owners' names and the channel indices are ours."""
    pruned = copy.deepcopy(model)
    graph = tp.DependencyGraph().build_dependency(pruned, x, verbose=False)
    for group, channels in zip(network.groups, removed, strict=True):
        layer = pruned.get_submodule(group.owner)
        pruner = graph.get_pruner_of_module(layer)
        graph.get_pruning_group(layer, pruner.prune_out_channels, channels.tolist()).prune()
    return pruned


@pytest.mark.parametrize(("name", "groups"), ZOO)
@pytest.mark.filterwarnings("ignore")
def test_counts(name: str, groups: int) -> None:
    model, x = build(name), torch.randn(1, 3, 64, 64)
    network = trace(model, x)
    assert len(network.groups) == groups
    assert network.unknown_operators == {}
    full = predicted(network, network.costs.group_width)
    assert full["macs"] == sum(layer.macs for layer in network.layers) == counted_macs(model, x)

    rng = np.random.default_rng(0)
    removed = [np.sort(rng.choice(group.width, group.width // 2, replace=False)) for group in network.groups]
    kept = network.costs.group_width - np.array([len(channels) for channels in removed])
    half = predicted(network, kept)
    pruned = prune_with_torch_pruning(model, x, network, removed)
    fan_in, out = network.costs.widths(kept)
    assert int((fan_in * out).sum()) == weights_of_layers(pruned, network)
    assert half["macs"] == counted_macs(pruned, x)

    ours = remove_channels(fold_batch_norms(model, network), list(zip(network.groups, removed, strict=True)))
    assert weights_of_layers(ours, network) == weights_of_layers(pruned, network)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1", "timm:ghostnet_050", "timm:resnet10t"])
@pytest.mark.filterwarnings("ignore")
def test_every_cost_of_the_pruned_network_is_as_predicted(name: str) -> None:
    """Trace the smaller network afresh. Its file header may have shorter numbers, nothing else may differ."""
    model, x = build(name), torch.randn(1, 3, 64, 64)
    network = trace(model, x)
    rng = np.random.default_rng(1)
    removed = [np.sort(rng.choice(group.width, group.width // 3, replace=False)) for group in network.groups]
    kept = network.costs.group_width - np.array([len(channels) for channels in removed])
    folded = fold_batch_norms(model, network)
    smaller = trace(remove_channels(folded, list(zip(network.groups, removed, strict=True))), x)
    promised, found = predicted(network, kept), predicted(smaller, smaller.costs.group_width)
    assert {key: promised[key] for key in ("macs", "bitops", "memory")} == {
        key: found[key] for key in ("macs", "bitops", "memory")
    }
    assert 0 <= promised["size"] - found["size"] <= 10 * 4 * len(network.layers)
