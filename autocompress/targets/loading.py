"""Loading a packed file as a module that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.evaluation.batches import placed
from autocompress.evaluation.stitch import stand_in, write_layer_
from autocompress.execute.compressed import Compressed, LayerWeights
from autocompress.execute.factors import cut_
from autocompress.menus.low_rank import can_be_cut
from autocompress.network.folding import fold_batch_norms
from autocompress.network.groups import is_depthwise
from autocompress.network.interface import plain
from autocompress.network.layered import with_layers
from autocompress.network.slicing import scale_integers_
from autocompress.network.structure import Layer, Network
from autocompress.network.trace import trace
from autocompress.plan import FIRST, SECOND
from autocompress.run.names import MODEL
from autocompress.targets.packed.file import PackedWeights, load_packed_weights, other_tensors, rebuilt


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """A compressed network, ready to run: in float32 and eval mode, rounding activations as its plan says.

    It takes its tensors by position or by the names of the arguments of the original's `forward`.

    Args:
        path: packed file, or the folder of a run, which has one.
        model: original network, needed only where the file holds no graph; it is not changed, nor moved.

    Raises:
        InputError: the file is missing or damaged, or holds no graph and `model` is not given or is another network.
    """
    file = Path(path) / MODEL if Path(path).is_dir() else Path(path)
    weights = load_packed_weights(file)
    if model is None or weights.graph is not None:
        return rebuilt(weights, file).graph
    example, model = weights.example(), placed(model, torch.device("cpu"))
    model = with_layers(model, example)
    return plain(restored(weights, model, trace(model, example)).rounded())


def restore(path: str | Path, model: nn.Module, network: Network) -> Compressed:
    """The network in a packed file as a module of the original's class, also where the file holds no graph.

    Args:
        path: packed file.
        model: original network, whose norms are folded in a copy that the weights are written into; it is not changed.
        network: trace of `model`.

    Raises:
        InputError: the file is missing or damaged, or `model` is another network.
    """
    return restored(load_packed_weights(path), model, network)


def restored(weights: PackedWeights, model: nn.Module, network: Network) -> Compressed:
    """The network in a packed file that has been read, as a module of the original's class.

    Args:
        weights: content of the file.
        model: original network; it is not changed.
        network: trace of `model`.

    Raises:
        InputError: `model` is another network.
    """
    check_network(weights, network)
    folded = fold_batch_norms(model, network).cpu().float().eval()
    for layer in network.layers:
        rank = weights.plan.labels[layer.name].rank
        if rank:
            _write_factors_(folded, layer, weights, rank)
        else:
            module, own = folded.get_submodule(layer.name), weights.layers[layer.name]
            _write_layer_(module, layer.name, own, stand_in(network, layer))
    for group in network.groups:
        rank = weights.plan.labels[group.owner].rank
        last = weights.layers[f"{group.owner}.{SECOND}" if rank else group.owner]
        left = len(last.values) // group.producers[group.owner].shape[1]
        scale_integers_(folded, group, max(left, 1))
    _write_others_(folded, weights)
    return Compressed(folded, weights.layers, weights.plan)


def check_network(weights: PackedWeights, network: Network) -> None:
    """Refuse a packed file of another network.

    Args:
        weights: content of the file.
        network: trace of the network that the file should be of.

    Raises:
        InputError: the fingerprint or the layers' names differ.
    """
    names = [layer.name for layer in network.layers]
    packed = list(weights.plan.labels)
    if weights.plan.fingerprint not in ("", network.fingerprint) or packed != names:
        raise InputError(
            f"`model` must be the network that was packed, {len(packed)} layers, fingerprint "
            f"{weights.plan.fingerprint}, got {len(names)} layers, {network.fingerprint}."
        )


def _write_layer_(module: Any, name: str, layer: LayerWeights, unit: tuple[int, int]) -> None:
    """Give a module of the original the finished layer's weight and bias, and their shape."""
    shape, found = tuple(layer.values.shape), tuple(module.weight.shape)
    fits = len(shape) == len(found) and shape[2:] == found[2:] and all(map(int.__le__, shape, found))
    own_bias = getattr(module, "bias", None)
    if not fits or (layer.bias is None) != (own_bias is None):
        raise InputError(f"`model` must have room for {name}.weight of shape {shape} and its bias, got {found}.")
    weight, bias = layer.as_run(unit)
    module.weight = nn.Parameter(weight, requires_grad=False)  # no longer tied to another layer's
    if own_bias is not None:
        module.bias = nn.Parameter(bias, requires_grad=False)
    write_layer_(module, module.weight.data, bias, is_depthwise(module))


def _write_factors_(model: nn.Module, layer: Layer, weights: PackedWeights, rank: int) -> None:
    """Put the two factors of a finished layer in the place of the original's module."""
    if not can_be_cut(layer):
        raise InputError(f"`model` must have a layer of any rank at {layer.name}, got one that has no rank.")
    cut_(model, layer.name, rank)
    for part in (FIRST, SECOND):
        name = f"{layer.name}.{part}"
        _write_layer_(model.get_submodule(name), name, weights.layers[name], (1, 1))


def _write_others_(model: nn.Module, weights: PackedWeights) -> None:
    """Write the tensors that belong to no layer; norms shrink with the channels that they normalise.

    A file with a graph has no tensor that the graph does not read, as the norm before a removed branch; and it has the
    graph's own constants, which the model makes itself.
    """
    expected = {name for name, _ in other_tensors(model, weights.layers)}
    if weights.graph is None and expected != weights.others.keys():
        raise InputError(
            f"`model` must have the tensors of the file, got a difference in {min(expected ^ weights.others.keys())}."
        )
    for name, tensor in weights.others.items():
        if name not in expected:
            continue
        parent, _, leaf = name.rpartition(".")
        module: Any = model.get_submodule(parent)
        found: Tensor = getattr(module, leaf)
        if hasattr(module, "num_features") and tensor.ndim == 1:
            module.num_features = len(tensor)
        elif found.shape != tensor.shape:
            raise InputError(f"`model` must have {name} of shape {list(tensor.shape)}, got {list(found.shape)}.")
        found.data = tensor
