"""Lowering: a compressed network as a graph of ATen operators, with every rounding of an activation as a node.

All files are written from this form, and it needs no class of the original.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from autocompress.errors import InputError
from autocompress.execute.compressed import Compressed, LayerWeights, write_weights_
from autocompress.menus.quantizers import code_range
from autocompress.network.exported import LayerCalls, export_graph, layer_calls
from autocompress.plan import Plan
from autocompress.targets.graph.removed_branches import without_branches
from autocompress.targets.graph.rounding_points import round_activation, round_layer_inputs_, round_tensors_

__all__ = ["Lowered", "lower", "round_activation"]


_LARGEST_BIAS = 2**29  # in steps; the input may be rounded on another layer's range, so not all of 31 bits are used


@dataclass(frozen=True, eq=False)
class Lowered:
    """A compressed network, ready to be written to a file.

    Attributes:
        graph: takes (N, …) float32 with any N. Its nodes are one placeholder, get_attr for parameters and buffers under
            the original's names (`layer1.0.conv1.weight`), calls of ATen operators (functional ones) and of
            `round_activation`, and one output.
        layers: by name, whose weight and bias the graph holds as float32 parameters; of removed branches it holds at
            most the bias.
        plan: the labels that it was made by.
        input_shape: of one sample.
    """

    graph: fx.GraphModule
    layers: Mapping[str, LayerWeights]
    plan: Plan
    input_shape: tuple[int, ...]


def lower(compressed: Compressed, calibration: Tensor, *, integer: bool) -> Lowered:
    """The compressed network as a graph.

    Args:
        compressed: it is not changed and shares no memory with the result.
        calibration: (n, …) float32 samples of the input, at least one; more than 256 are not looked at.
        integer: False rounds every layer's input for that layer alone, exactly as `Compressed.rounded` does. True is
            for runtimes with integer kernels: it rounds tensors, for all that read them, and rounds the outputs
            that integer kernels would otherwise have to hand on in float32 (`round_tensors_`).

    Raises:
        InputError: `calibration` holds no sample.
        ExportError: `torch.export` can't follow the network, or only for one batch size.
    """
    if not len(calibration):
        raise InputError("`calibration` must hold at least one sample, got none.")
    layers = {name: with_room_for_bias(layer) if integer else layer for name, layer in compressed.layers.items()}
    model = copy.deepcopy(compressed.model).cpu().float().eval().requires_grad_(False)
    for name, layer in layers.items():
        if layer is not compressed.layers[name]:
            write_weights_(model, name, layer)
    graph = export_graph(model, calibration[:1].cpu().float())
    graph, calls = without_branches(graph, layer_calls(graph, model, layers), layers)
    with torch.no_grad():
        if integer:
            round_tensors_(graph.graph, calls, layers, calibration[:256].cpu().float())
        else:
            round_layer_inputs_(graph.graph, calls, layers)
    graph.graph.lint()
    graph.recompile()
    return Lowered(graph, _as_run(graph, calls, layers), compressed.plan, tuple(calibration.shape[1:]))


def with_room_for_bias(layer: LayerWeights) -> LayerWeights:
    """The layer with no row whose bias, in steps of input scale times weight scale, leaves 32 bits.

    Such rows have weights that are next to nothing beside their bias, as dead channels do. On the coarser scale the
    weights become what they amount to, mostly 0; the row's output moves by less than a millionth of its bias a weight.
    """
    if layer.scale is None or layer.bias is None or layer.input_range is None:
        return layer
    smallest = layer.bias.abs() / (layer.input_range.scale * _LARGEST_BIAS)
    if bool((layer.scale >= smallest).all()):
        return layer
    scale = torch.maximum(layer.scale, smallest)
    shape = (-1, *[1] * (layer.values.ndim - 1))
    fitted = (layer.weight() / scale.view(shape)).round().clamp(*code_range(layer.bits)).to(torch.int8)
    coarser = (scale > layer.scale).view(shape)
    return replace(layer, values=torch.where(coarser, fitted, layer.values), scale=scale)


def _as_run(graph: fx.GraphModule, calls: LayerCalls, layers: Mapping[str, LayerWeights]) -> dict[str, LayerWeights]:
    """The layers with the biases that the graph has: integer kernels may have rounded them."""
    found = dict(layers)
    for call, name in calls.items():
        bias = call.args[2] if len(call.args) > 2 else None
        if isinstance(bias, fx.Node):
            found[name] = replace(layers[name], bias=graph.get_parameter(str(bias.target)).detach().clone())
    return found
