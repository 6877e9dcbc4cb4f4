"""A model as a graph of ATen operators, which runs without the model's class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn

from autocompress.errors import ExportError
from autocompress.network.interface import Interfaced, raw
from autocompress.quiet import quiet
from autocompress.samples import Inputs, repeated, tensors_of

LayerCalls = Mapping[fx.Node, str]  # names of layers by the node that calls them, in the order of the graph

_ATEN = torch.ops.aten
_CONVOLUTIONS = (
    *(_ATEN.conv1d.default, _ATEN.conv1d.padding, _ATEN.conv2d.default, _ATEN.conv2d.padding),
    *(_ATEN.conv3d.default, _ATEN.conv3d.padding),
)
TRANSPOSED = (_ATEN.conv_transpose1d.default, _ATEN.conv_transpose2d.input, _ATEN.conv_transpose3d.input)
RECURRENT = (_ATEN.gru.input, _ATEN.lstm.input, _ATEN.rnn_tanh.input, _ATEN.rnn_relu.input)
_WEIGHT_OF = dict.fromkeys([*_CONVOLUTIONS, *TRANSPOSED, _ATEN.linear.default], 1) | {_ATEN.embedding.default: 0}
"""Position of the weight among the arguments of each operator that layers run."""
_NEW = {*_CONVOLUTIONS, _ATEN.linear.default, _ATEN.batch_norm.default, _ATEN.add.Tensor, _ATEN.layer_norm.default}
"""Operators whose output is memory of its own."""
_KEPT = {*_CONVOLUTIONS, _ATEN.linear.default}
"""Operators that decompositions keep although they are made of others."""
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_ELSEWHERE = {
    getattr(_ATEN, f"{name}_").default: getattr(_ATEN, name).default
    for name in ("relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "gelu", "leaky_relu", "elu", "mish")
}
"""By operator that writes over its input: the one that doesn't."""
_REORDERED = (
    *(_ATEN.transpose.int, _ATEN.view.default, _ATEN.reshape.default, _ATEN._unsafe_view.default),
    *(_ATEN.unflatten.int, _ATEN.flatten.using_ints, _ATEN.clone.default, _ATEN.contiguous.default),
)
# What torch.export raises where a network's Python can't be followed; all its own errors are kinds of these.
_EXPORT_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, AssertionError)


def export_graph(model: nn.Module, sample: Inputs, *, any_length: bool = False) -> fx.GraphModule:
    """The graph of a model in eval mode, for any number of samples; it shares the model's parameters.

    Operators are functional, so that a node's value never changes after it was made.

    Args:
        model: network in the form of `network.interface`.
        sample: (1, …) input.
        any_length: whether the graph takes texts of any number of tokens, too. Default: only of the sample's.

    Raises:
        ExportError: torch.export can't follow the model, or only for one batch size or one number of tokens.
    """
    model, example = raw(model), tensors_of(repeated(sample, 2))
    free = free_axes(model, len(example), any_length=any_length)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(model, example, dynamic_shapes=free)
            _write_apart_(program.graph_module)
            graph = (program.run_decompositions({}) if _is_composite(program.graph) else program).module()
    except _EXPORT_FAILURES as error:
        raise ExportError(
            f"`model` must be a network that torch.export can follow: {_kind_and_first_line(error)}."
        ) from error
    assert isinstance(graph, fx.GraphModule)
    _check_interface(graph, len(example))
    for node in list(graph.graph.nodes):
        if node.op == "call_module":  # guards on the input's shape: (2, …) was only an example
            graph.graph.erase_node(node)
    _free_the_batch_axis_(graph.graph)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    _name_once_(graph, model)
    plain = fx.GraphModule(graph, graph.graph)  # the exported one refuses eval() and train()
    return plain.requires_grad_(False)


def _write_apart_(graph: fx.GraphModule) -> None:
    """Let activations write into new memory that wrote over a layer's output which nothing else reads.

    Decompositions would do the same, but they break bounded activations (ReLU6) up with symbolic shapes first, which
    took two thirds of the time of an export.
    """
    for node in graph.graph.nodes:
        elsewhere = _ELSEWHERE.get(node.target)
        if elsewhere is not None and node.args[0].target in _NEW and len(node.args[0].users) == 1:
            node.target = elsewhere
    graph.recompile()


def _is_composite(graph: fx.Graph) -> bool:
    """Whether decompositions would change the graph: it writes over a tensor, or has operators made of others."""
    operators = [node.target for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    return any(
        each._schema.is_mutable or (each not in _KEPT and each.has_kernel_for_dispatch_key(_COMPOSITE))
        for each in operators
    )


def _name_once_(graph: fx.GraphModule, model: nn.Module) -> None:
    """Let everything that reads a parameter of several names read it under the model's first one."""
    own = list(model.named_parameters(remove_duplicate=False))
    if len(own) == len(list(model.named_parameters())):
        return
    firsts: dict[int, str] = {}
    for name, parameter in own:
        firsts.setdefault(id(parameter), name)
    first_of = {name: firsts[id(parameter)] for name, parameter in own}
    nodes: dict[str, fx.Node] = {}
    for node in list(graph.graph.find_nodes(op="get_attr")):
        name = first_of.get(str(node.target), str(node.target))
        if name in nodes:
            node.replace_all_uses_with(nodes[name])
            graph.graph.erase_node(node)
            continue
        nodes[name] = node
        if node.target != name:
            _register_(graph, name, graph.get_parameter(str(node.target)))
            node.target = name


def _register_(graph: fx.GraphModule, name: str, parameter: nn.Parameter) -> None:
    """Give a graph's module a parameter of that name, and the modules on the way to it."""
    *parents, leaf = name.split(".")
    module: nn.Module = graph
    for part in parents:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    module.register_parameter(leaf, parameter)


def _free_the_batch_axis_(graph: fx.Graph) -> None:
    """`x.view(x.size(0), 32, 7)` becomes `x.view(-1, 32, 7)`: no shape is computed when the network runs."""
    for node in graph.nodes:
        if node.target in (_ATEN.view.default, _ATEN.reshape.default):
            sizes = list(node.args[1])
            unknown = [position for position, size in enumerate(sizes) if isinstance(size, fx.Node)]
            samples = [position for position in unknown if _is_size(sizes[position], 0)]
            unknown = samples or unknown  # numbers of tokens stay
            if len(unknown) == 1 and -1 not in sizes:
                sizes[unknown[0]] = -1
                node.update_arg(1, sizes)


def _is_size(node: fx.Node, axis: int) -> bool:
    """Whether the node is the size of a tensor's axis."""
    return node.target is _ATEN.sym_size.int and bool(node.args[1] == axis)


def takes_any_length(graph: fx.GraphModule) -> bool:
    """Whether a graph was exported for texts of any length: then it computes with their number of tokens."""
    return any(_is_size(user, 1) for node in graph.graph.nodes if node.op == "placeholder" for user in node.users)


def free_axes(model: nn.Module, tensors: int, *, any_length: bool = False) -> Any:
    """`dynamic_shapes` of torch.export for a network whose tensors all have the samples on their first axis.

    Args:
        model: network that is exported.
        tensors: number of tensors that it takes.
        any_length: whether the second axis of all of them, that of tokens, may have any size, too. Default: no.
    """
    axes = (0, 1) if any_length else (0,)
    by_sample = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for _ in range(tensors))
    return (by_sample,) if isinstance(model, Interfaced) else by_sample  # its forward takes them as `*tensors`


def _check_interface(graph: fx.GraphModule, tensors: int) -> None:
    """Raise ExportError where the graph has not so many inputs, or gives something that is no tensor."""
    inputs = sum(node.op == "placeholder" for node in graph.graph.nodes)
    result = graph.graph.output_node().args[0]
    results = list(result) if isinstance(result, tuple | list) else [result]
    if inputs != tensors or not results or not all(isinstance(each, fx.Node) for each in results):
        raise ExportError(
            f"`model` must take {_count(tensors)} and give tensors, got {inputs} inputs and {len(results)} outputs; "
            "wrap it in a module that picks some."
        )


def _count(tensors: int) -> str:
    return "one tensor" if tensors == 1 else f"{tensors} tensors"


def layer_calls(graph: fx.GraphModule, model: nn.Module, layers: Iterable[str]) -> LayerCalls:
    """The layer that each node of the graph runs, in the order of the graph; other nodes are left out.

    A recurrent operator runs many layers; the first of them stands for all.

    Args:
        graph: graph of the model.
        model: model with the same parameters.
        layers: names of its layers.

    Raises:
        ExportError: a layer is not run as a module.
    """
    owners = {id(model.get_parameter(f"{name}.weight")): name for name in layers}
    calls: dict[fx.Node, str] = {}
    found: set[str] = set()
    for node in graph.graph.nodes:
        parameters = [id(model.get_parameter(weight)) for weight in _weights(node)]
        names = [owners[parameter] for parameter in parameters if parameter in owners]
        found.update(names)
        if names:
            calls[node] = names[0]
    if missing := [name for name in layers if name not in found]:
        raise ExportError(f"`model` must run its layers as modules, got no call of {missing[0]} in the exported graph.")
    return calls


def _weights(node: fx.Node) -> list[str]:
    """Names of the parameters that a node multiplies by, if it is an operator of layers."""
    if node.target in RECURRENT:
        return [str(each.target) for each in node.args[2] if each.op == "get_attr"]  # type: ignore[union-attr]
    weight: Any = node.args[_WEIGHT_OF[node.target]] if node.target in _WEIGHT_OF else None
    while weight is not None and node.target in TRANSPOSED and weight.target in _REORDERED:
        weight = weight.args[0]
    return [str(weight.target)] if weight is not None and weight.op == "get_attr" else []


def _kind_and_first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message, which may run over a page."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
