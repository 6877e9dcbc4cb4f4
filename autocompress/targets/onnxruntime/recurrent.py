"""Recurrent operators as ONNX has them: one node for each layer, gates in ONNX's order, directions stacked.

PyTorch's operator runs several layers with matrices whose rows are its gates: r, z, n of a GRU and i, f, g, o of an
LSTM. ONNX's GRU and LSTM run one layer, their gates are z, r, h and i, o, f, c, and the matrices of both directions are
one tensor. So the rows of every stored matrix, with their scales, are put into ONNX's order before the file is written.
The matrices stay tensors of their own there, as each has its own bits, and are stacked when the file runs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from autocompress.execute.compressed import LayerWeights
from autocompress.network.exported import RECURRENT

_ATEN = torch.ops.aten
# Places in PyTorch's order of ONNX's gates.
_GATES = {_ATEN.gru.input: (1, 0, 2), _ATEN.lstm.input: (0, 3, 1, 2)}
_MODES = {_ATEN.gru.input: "GRU", _ATEN.rnn_tanh.input: "Tanh", _ATEN.rnn_relu.input: "Relu"}


@torch.library.custom_op("autocompress::recurrence", mutates_args=())
def recurrence(
    mode: str, x: Tensor, states: list[Tensor], inputs: list[Tensor], hidden: list[Tensor], biases: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Operator that stands for one layer of a GRU or RNN until the file holds it; it is never run.

    Args:
        mode: `GRU`, or the activation of an RNN.
        x: (T, N, I) inputs.
        states: (D, N, H) first hidden states of D directions; empty: zeros.
        inputs: matrix (gates · H, I) of every direction.
        hidden: matrix (gates · H, H) of every direction.
        biases: (2 · gates · H,) of every direction; empty: none.

    Returns:
        Outputs (T, N, D · H) and last hidden states (D, N, H).
    """
    raise NotImplementedError


@recurrence.register_fake
def _(
    mode: str, x: Tensor, states: list[Tensor], inputs: list[Tensor], hidden: list[Tensor], biases: list[Tensor]
) -> tuple[Tensor, Tensor]:
    width = hidden[0].shape[1]
    return x.new_empty(*x.shape[:2], len(hidden) * width), x.new_empty(len(hidden), x.shape[1], width)


@torch.library.custom_op("autocompress::long_short", mutates_args=())
def long_short(
    x: Tensor, states: list[Tensor], inputs: list[Tensor], hidden: list[Tensor], biases: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """As `recurrence`, of an LSTM, whose `states` are h and c; it also gives the last c."""
    raise NotImplementedError


@long_short.register_fake
def _(
    x: Tensor, states: list[Tensor], inputs: list[Tensor], hidden: list[Tensor], biases: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    width = hidden[0].shape[1]
    last = (len(hidden), x.shape[1], width)
    return x.new_empty(*x.shape[:2], len(hidden) * width), x.new_empty(last), x.new_empty(last)


# --- before torch.onnx -----------------------------------------------------------------------------------------------


def with_gates_in_order(graph: fx.Graph, layers: Mapping[str, LayerWeights]) -> dict[str, LayerWeights]:
    """The layers with the rows of recurrent matrices in ONNX's order.

    Args:
        graph: graph of the network.
        layers: finished weights by layer name.
    """
    found = dict(layers)
    for node in graph.nodes:
        if node.target in RECURRENT:
            for each in node.args[2]:
                name, _, leaf = str(each.target).rpartition(".")
                if leaf == "weight" and name in layers:
                    found[name] = _reordered_layer(layers[name], node.target)
    return found


def _reordered_layer(layer: LayerWeights, target: Any) -> LayerWeights:
    scale = None if layer.scale is None else _reordered(layer.scale, target)
    return replace(layer, values=_reordered(layer.values, target), scale=scale)


def _reordered(rows: Tensor, target: Any) -> Tensor:
    """Rows of all gates (gates · H, …) in ONNX's order."""
    order = _GATES.get(target)
    return rows if order is None else rows.unflatten(0, (len(order), -1))[list(order)].flatten(0, 1)


def replace_recurrent_(module: fx.GraphModule, stored: Callable[[fx.Node], fx.Node | None]) -> None:
    """Replace PyTorch's recurrent operators by those above.

    Args:
        module: graph; it is changed.
        stored: function that gives the placeholder of a weight's node, in the rows' new order; None: the weight is
            stored as it is, in float32.
    """
    for node in [node for node in module.graph.nodes if node.target in RECURRENT]:
        with module.graph.inserting_before(node):
            results = _layer_by_layer(module, _Operator.of(node), stored)
        for user in list(node.users):
            assert user.target is operator.getitem, "an operator of several results is read part by part"
            user.replace_all_uses_with(results[int(user.args[1])])  # type: ignore[arg-type]
            module.graph.erase_node(user)
        module.graph.erase_node(node)


@dataclass(frozen=True)
class _Operator:
    """One of PyTorch's recurrent operators, its arguments by name; `states` is empty where it begins with zeros."""

    target: Any
    x: fx.Node
    states: tuple[fx.Node, ...]
    parameters: Sequence[fx.Node]
    has_biases: bool
    layers: int
    directions: int
    batch_first: bool

    @classmethod
    def of(cls, node: fx.Node) -> _Operator:
        args: Any = node.args
        x, first, parameters, has_biases, layers, _, _, bidirectional, batch_first = args
        states = (first,) if isinstance(first, fx.Node) else tuple(first)
        if all(state.target is _ATEN.zeros.default for state in states):
            states = ()
        return cls(node.target, x, states, parameters, has_biases, layers, 1 + bidirectional, batch_first)

    def of_layer(self, layer: int) -> list[Sequence[fx.Node]]:
        """The parameters of every direction of a layer: two matrices, and two biases where there are any."""
        each = 4 if self.has_biases else 2
        first = layer * self.directions * each
        return [self.parameters[first + d * each : first + (d + 1) * each] for d in range(self.directions)]


def _layer_by_layer(
    module: fx.GraphModule, run: _Operator, stored: Callable[[fx.Node], fx.Node | None]
) -> list[fx.Node]:
    """Nodes of all results: the outputs, and the last states of all layers."""
    graph = module.graph
    x = graph.call_function(_ATEN.transpose.int, (run.x, 0, 1)) if run.batch_first else run.x
    last: list[list[fx.Node]] = []
    for layer in range(run.layers):
        directions = run.of_layer(layer)
        matrices = [[_matrix(module, each[place], run.target, stored) for each in directions] for place in (0, 1)]
        biases = [_biases(module, each[2:], run.target) for each in directions] if run.has_biases else []
        begin, end = layer * run.directions, (layer + 1) * run.directions
        states = [graph.call_function(_ATEN.slice.Tensor, (state, 0, begin, end)) for state in run.states]
        made = _call(graph, run.target, (x, states, *matrices, biases))
        x, *ends = (graph.call_function(operator.getitem, (made, part)) for part in range(_results(run.target)))
        last.append(ends)
    if run.batch_first:
        x = graph.call_function(_ATEN.transpose.int, (x, 0, 1))
    joined = [graph.call_function(_ATEN.cat.default, (list(ends), 0)) for ends in zip(*last, strict=True)]
    return [x, *joined]


def _call(graph: fx.Graph, target: Any, args: tuple[Any, ...]) -> fx.Node:
    if target is _ATEN.lstm.input:
        return graph.call_function(torch.ops.autocompress.long_short.default, args)
    return graph.call_function(torch.ops.autocompress.recurrence.default, (_MODES[target], *args))


def _results(target: Any) -> int:
    return 3 if target is _ATEN.lstm.input else 2


def _matrix(
    module: fx.GraphModule, weight: fx.Node, target: Any, stored: Callable[[fx.Node], fx.Node | None]
) -> fx.Node:
    placeholder = stored(weight)
    if placeholder is not None:
        return placeholder
    return _constant(module, weight, _reordered(_value(module, weight), target))


def _biases(module: fx.GraphModule, pair: Sequence[fx.Node], target: Any) -> fx.Node:
    """Both biases of a direction, one behind the other."""
    return _constant(module, pair[0], torch.cat([_reordered(_value(module, each), target) for each in pair]))


def _value(module: fx.GraphModule, node: fx.Node) -> Tensor:
    return module.get_parameter(str(node.target)).detach()


def _constant(module: fx.GraphModule, like: fx.Node, value: Tensor) -> fx.Node:
    """A node of a new buffer, called after the parameter that it comes from."""
    name = f"ordered_{str(like.target).replace('.', '_')}"
    module.register_buffer(name, value)
    return module.graph.get_attr(name)


# --- in torch.onnx ---------------------------------------------------------------------------------------------------


def recurrence_to_onnx(mode: str, x: Any, states: Any, inputs: Any, hidden: Any, biases: Any) -> Any:
    """ONNX's GRU or RNN, for `recurrence`."""
    from onnxscript import opset21

    onnx: Any = opset21
    given = [x, *_stacked(onnx, inputs, hidden, biases), None, *states]
    settings = _settings(hidden)
    if mode == "GRU":
        outputs, last = onnx.GRU(*given, linear_before_reset=1, **settings)
    else:
        outputs, last = onnx.RNN(*given, activations=[mode] * len(hidden), **settings)
    return _side_by_side(onnx, outputs), last


def long_short_to_onnx(x: Any, states: Any, inputs: Any, hidden: Any, biases: Any) -> Any:
    """ONNX's LSTM, for `long_short`."""
    from onnxscript import opset21

    onnx: Any = opset21
    outputs, *last = onnx.LSTM(x, *_stacked(onnx, inputs, hidden, biases), None, *states, **_settings(hidden))
    return _side_by_side(onnx, outputs), *last


def _settings(hidden: Any) -> dict[str, Any]:
    return {"hidden_size": hidden[0].shape[1], "direction": "bidirectional" if len(hidden) == 2 else "forward"}


def _stacked(onnx: Any, *kinds: Any) -> list[Any]:
    """(D, …) of each kind of parameter; None where there are none of a kind."""
    axis = _whole(onnx, [0])
    single = [[onnx.Unsqueeze(each, axis) for each in kind] for kind in kinds]
    return [None if not kind else kind[0] if len(kind) == 1 else onnx.Concat(*kind, axis=0) for kind in single]


def _side_by_side(onnx: Any, outputs: Any) -> Any:
    """(T, N, D · H) of outputs (T, D, N, H)."""
    return onnx.Reshape(onnx.Transpose(outputs, perm=[0, 2, 1, 3]), _whole(onnx, [0, 0, -1]))


def _whole(onnx: Any, numbers: list[int]) -> Any:
    from onnxscript import ir

    return onnx.Constant(value=ir.tensor(numbers, dtype=ir.DataType.INT64))
