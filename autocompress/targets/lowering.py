"""Lowering: a compressed network as a graph of ATen operators, with every rounding of an activation as a node.

All files are written from this form, and it needs no class of the original.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from autocompress.errors import ExportError, InputError
from autocompress.execute.compressed import Compressed, LayerWeights
from autocompress.plan import Plan
from autocompress.targets.rounding_points import LayerCalls, round_activation, round_layer_inputs_, round_tensors_

__all__ = ["Lowered", "lower", "round_activation"]

_ATEN = torch.ops.aten
_LAYER_OPERATORS = frozenset(
    [_ATEN.conv1d.default, _ATEN.conv1d.padding, _ATEN.conv2d.default, _ATEN.conv2d.padding, _ATEN.linear.default]
)
# What torch.export raises where a network's Python can't be followed; all its own errors are kinds of these.
_EXPORT_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, AssertionError)


@dataclass(frozen=True, eq=False)
class Lowered:
    """A compressed network, ready to be written to a file.

    Attributes:
        graph: takes (N, …) float32 with any N. Its nodes are one placeholder, get_attr for parameters and buffers under
            the original's names (`layer1.0.conv1.weight`), calls of ATen operators (functional ones) and of
            `round_activation`, and one output.
        layers: by name, whose weight and bias the graph holds as float32 parameters.
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
    model = copy.deepcopy(compressed.model).cpu().float().eval().requires_grad_(False)
    graph = _exported(model, calibration[:1].cpu().float())
    calls = _layer_calls(graph, model, compressed.layers)
    with torch.no_grad():
        if integer:
            round_tensors_(graph.graph, calls, compressed.layers, calibration[:256].cpu().float())
        else:
            round_layer_inputs_(graph.graph, calls, compressed.layers)
    graph.graph.lint()
    graph.recompile()
    return Lowered(graph, _as_run(graph, calls, compressed.layers), compressed.plan, tuple(calibration.shape[1:]))


def _as_run(graph: fx.GraphModule, calls: LayerCalls, layers: Mapping[str, LayerWeights]) -> dict[str, LayerWeights]:
    """The layers with the biases that the graph has: integer kernels may have rounded them."""
    found = dict(layers)
    for call, name in calls.items():
        bias = call.args[2] if len(call.args) > 2 else None
        if isinstance(bias, fx.Node):
            found[name] = replace(layers[name], bias=graph.get_parameter(str(bias.target)).detach().clone())
    return found


def _exported(model: nn.Module, sample: Tensor) -> fx.GraphModule:
    """With functional operators only, so that a node's value never changes after it was made."""
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    try:
        with torch.no_grad():
            program = torch.export.export(model, (sample.repeat(2, *[1] * (sample.ndim - 1)),), dynamic_shapes=dynamic)
            graph = program.run_decompositions({}).module()
    except _EXPORT_FAILURES as error:
        raise ExportError(f"`model` must be a network that torch.export can follow: {first_line(error)}.") from error
    assert isinstance(graph, fx.GraphModule)
    _check_interface(graph)
    for node in list(graph.graph.nodes):
        if node.op == "call_module":  # guards on the input's shape: (2, …) was only an example
            graph.graph.erase_node(node)
    _free_the_batch_axis_(graph.graph)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    plain = fx.GraphModule(graph, graph.graph)  # the exported one refuses eval() and train()
    return plain.requires_grad_(False)


def _free_the_batch_axis_(graph: fx.Graph) -> None:
    """`x.view(x.size(0), 32, 7)` becomes `x.view(-1, 32, 7)`: nothing has to compute a shape when the network runs."""
    for node in graph.nodes:
        if node.target in (_ATEN.view.default, _ATEN.reshape.default):
            sizes = list(node.args[1])
            unknown = [position for position, size in enumerate(sizes) if isinstance(size, fx.Node)]
            if len(unknown) == 1 and -1 not in sizes:
                sizes[unknown[0]] = -1
                node.update_arg(1, sizes)


def first_line(error: BaseException) -> str:
    """What an error says, without the rest of its page; its kind where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def _check_interface(graph: fx.GraphModule) -> None:
    inputs = sum(node.op == "placeholder" for node in graph.graph.nodes)
    result = graph.graph.output_node().args[0]
    results = list(result) if isinstance(result, tuple | list) else [result]
    if inputs != 1 or len(results) != 1 or not isinstance(results[0], fx.Node):
        raise ExportError(
            f"`model` must take one tensor and give one, got {inputs} inputs and {len(results)} outputs; "
            "wrap it in a module that picks one output."
        )


def _layer_calls(graph: fx.GraphModule, model: nn.Module, layers: Mapping[str, LayerWeights]) -> LayerCalls:
    """Where every layer runs: (call, name of the layer) in the order of the graph."""
    owners: dict[int, list[str]] = {}
    for name in layers:
        owners.setdefault(id(model.get_parameter(f"{name}.weight")), []).append(name)
    calls = {}
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target in _LAYER_OPERATORS and node.args[1].op == "get_attr":
            names = owners.get(id(model.get_parameter(str(node.args[1].target))), [])
            if names:
                calls[node] = names[0] if len(names) == 1 else _module_of(node, names)
    if missing := [name for name in layers if name not in calls.values()]:
        raise ExportError(f"`model` must run its layers as modules, got no call of {missing[0]} in the exported graph.")
    return calls


def _module_of(node: fx.Node, names: list[str]) -> str:
    """Which of the layers that share a weight made the call."""
    path = str(list(node.meta["nn_module_stack"].values())[-1][0]).partition("@")[0]
    if path not in names:
        raise ExportError(
            f"`model` must run its layers as modules, got {node.target} in {path} with {names[0]}.weight."
        )
    return path
