"""Where a graph's activations are rounded.

There are two ways. `round_layer_inputs_` gives every layer its own rounding of its input, which is what the plan says.

`round_tensors_` is for runtimes with integer kernels, which run an operator in integers only if all tensors around it
are integers. Its steps:

1. `_wanted`: the tensors that layers read rounded, each with one range for all that read it.
2. `_extra`: the tensors that integer kernels put out or add up, which no layer asked to be rounded.
3. `_calibrated`: ranges for these, from samples.
4. `_insert_`: a rounding behind every such tensor.
5. `_repeat_behind_moves_`: the same rounding once more where a rounded tensor was only moved (view, pad, slice), since
   a runtime looks for it directly before its kernel.
6. `_round_biases_`: biases in whole steps, as integer kernels add them.

For `y = relu(conv(x)); z = y + conv2(y); head(z)` with all layers at 8 bits: x, y and z are wanted by the three layers;
the output of conv2 is extra, since its kernel is an integer one, and the sum then adds two rounded tensors.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from autocompress.execute.compressed import LayerWeights
from autocompress.menus.activations import ActivationRange, calibrate_range
from autocompress.network.exported import LayerCalls
from autocompress.samples import Inputs, tensors_of

_ATEN = torch.ops.aten
# Operators whose outputs are values of their input (or zeros), in another place: a rounded tensor stays rounded.
_LOSSLESS = frozenset(
    [
        *(_ATEN.view.default, _ATEN.reshape.default, _ATEN.flatten.using_ints, _ATEN.unflatten.int),
        *(_ATEN.permute.default, _ATEN.transpose.int, _ATEN.squeeze.dim, _ATEN.squeeze.dims, _ATEN.unsqueeze.default),
        *(_ATEN.expand.default, _ATEN.clone.default, _ATEN.contiguous.default, _ATEN.pixel_shuffle.default),
    ]
)
_PADS = frozenset([_ATEN.pad.default, _ATEN.constant_pad_nd.default])
# The same, but some values of their input are lost.
_LOSSY = frozenset(
    [
        *(_ATEN.slice.Tensor, _ATEN.select.int, _ATEN.max_pool1d.default, _ATEN.max_pool2d.default),
        *(_ATEN.split.Tensor, _ATEN.split_with_sizes.default, _ATEN.chunk.default, operator.getitem),
    ]
)
# Activations that a runtime merges into the layer before them when the result is rounded.
_MERGED = frozenset([_ATEN.relu.default, _ATEN.clamp.default, _ATEN.hardtanh.default, _ATEN.relu6.default])
_JOINS = frozenset([_ATEN.add.Tensor, _ATEN.cat.default])
_POOLS = frozenset([_ATEN.adaptive_avg_pool2d.default, _ATEN.avg_pool2d.default])
_CONVOLUTIONS = frozenset([_ATEN.conv1d.default, _ATEN.conv1d.padding, _ATEN.conv2d.default, _ATEN.conv2d.padding])

_BITS = 8  # of the outputs that are rounded for the runtime's sake; the only width its kernels have
_BATCH = 32  # samples that the graph is run on at once for the ranges
_DRAWN_A_SAMPLE = 512  # values of a tensor that its range is taken from, for every sample


@torch.library.custom_op("autocompress::round_activation", mutates_args=())
def round_activation(x: Tensor, scale: float, zero: int, bits: int) -> Tensor:
    """Operator that rounds a tensor as `ActivationRange.apply` does; files hold it as quantize and dequantize.

        q = clamp(round(x / scale) + zero, 0, 2^bits - 1),    result = (q - zero) * scale

    >>> round_activation(torch.tensor([-1.0, 0.07, 0.13, 99.0]), 0.1, 2, 4)  # codes 0, 3, 3, 15
    tensor([-0.2000,  0.1000,  0.1000,  1.3000])

    Args:
        x: tensor of any shape.
        scale: step, above 0.
        zero: code of the value 0, in 0 … 2^bits - 1.
        bits: bit-width of the codes, 4 to 8.
    """
    # Clamped around 0 instead of around `zero`: the same values without adding and subtracting it.
    return x.div(scale).round_().clamp_(-zero, 2**bits - 1 - zero).mul_(scale)


@round_activation.register_fake
def _(x: Tensor, scale: float, zero: int, bits: int) -> Tensor:
    return torch.empty_like(x)


ROUND_ACTIVATION: Any = torch.ops.autocompress.round_activation.default
"""The target of graph nodes that call `round_activation`."""


def round_layer_inputs_(graph: fx.Graph, calls: LayerCalls, layers: Mapping[str, LayerWeights]) -> None:
    """Let every layer read its own rounding of its input.

    Layers that read the same tensor on the same range share one rounding.

    Args:
        graph: graph of the network; it is changed.
        calls: layer names by the nodes that call them.
        layers: finished layers by name; those without `input_range` read their input as it is.
    """
    made: dict[tuple[fx.Node, ActivationRange], fx.Node] = {}
    for call, name in calls.items():
        found, source = layers[name].input_range, call.all_input_nodes[0]
        if found is None:
            continue
        if (source, found) not in made:
            made[source, found] = _rounding(graph, source, found, before=call)
        call.update_arg(0, made[source, found])


def round_tensors_(graph: fx.Graph, calls: LayerCalls, layers: Mapping[str, LayerWeights], calibration: Inputs) -> None:
    """Round tensors so that a runtime finds integers on every side of its integer kernels.

    A tensor that a layer wants rounded is rounded once, for all that read it (a shortcut's addition too). Where
    layers disagree on the range, the one with the most bits is taken, and of those the one with the largest scale.

    Also rounded, to 8 bits, are outputs of convolutions with integer weights and rounded inputs, sums and
    concatenations of rounded tensors, and what is left of removed branches. Two kinds of tensors are not: those that
    a layer reads which the plan gives unrounded inputs, and those behind the last layers, so that the network's
    output is never rounded. A ReLU or clamp behind a layer is left to the layer's kernel: its result is rounded.

    Integer kernels add the bias in steps of input scale times weight scale. At few bits that changes outputs, so the
    graph's biases take those values, and the graph stays true to the file.

    Args:
        graph: graph of the network; it is changed, and the biases of its module too.
        calls: layer names by the nodes that call them.
        layers: finished layers by name.
        calibration: (n, …) float32 samples of the network's input, for the ranges that the layers do not give.
    """
    wanted = _wanted(calls, layers)
    extra = _extra(graph, calls, layers, wanted)
    _insert_(graph, wanted)
    found = _calibrated(graph, extra, calibration)  # with the wanted roundings in place
    _insert_(graph, found)
    _repeat_behind_moves_(graph, calls)
    _round_biases_(graph, calls, layers)


def _wanted(calls: LayerCalls, layers: Mapping[str, LayerWeights]) -> dict[fx.Node, ActivationRange]:
    """The tensors that layers read rounded, where they were made and not where they were last moved, with one range."""
    points: dict[fx.Node, ActivationRange] = {}
    for call, name in calls.items():
        found = layers[name].input_range
        if found is not None:
            source = _whole_source(call.all_input_nodes[0])
            rivals = [found, points.get(source, found)]
            points[source] = max(rivals, key=lambda rival: (rival.bits, rival.scale))
    return points


def _extra(
    graph: fx.Graph, calls: LayerCalls, layers: Mapping[str, LayerWeights], points: Mapping[fx.Node, ActivationRange]
) -> list[fx.Node]:
    """Tensors that integer kernels put out or add up and no layer asked to be rounded, in the order of the graph.

    One pass over the graph: a sum of rounded tensors already counts as rounded for the sums behind it.
    """
    integer = {call for call, name in calls.items() if _is_integer(layers[name]) and call.target in _CONVOLUTIONS}
    unrounded = {_source(call.all_input_nodes[0]) for call, name in calls.items() if layers[name].input_range is None}
    barred = unrounded | _behind_the_last_layers(graph, calls)
    rounded, constants = set(points), _constants(graph, layers)
    extra: list[fx.Node] = []
    for node in graph.nodes:
        if node not in integer and not _joins_rounded(node, rounded | constants):
            continue
        added = [source for source in map(_source, node.all_input_nodes) if source in constants - rounded]
        rounded.update(added)
        extra += added
        output = _merged_output(node)
        if output not in rounded and output not in barred:
            rounded.add(output)
            extra.append(output)
    return extra


def _constants(graph: fx.Graph, layers: Mapping[str, LayerWeights]) -> set[fx.Node]:
    """The biases that are added where branches are removed."""
    names = {f"{name}.bias" for name, layer in layers.items() if layer.is_empty}
    return {node for node in graph.find_nodes(op="get_attr") if node.target in names}


def _is_integer(layer: LayerWeights) -> bool:
    """Whether an integer kernel can run the layer: both its weight and its input are codes."""
    return layer.scale is not None and layer.input_range is not None


def _joins_rounded(node: fx.Node, rounded: set[fx.Node]) -> bool:
    """Whether the node is a sum, concatenation or average whose inputs all come from rounded tensors."""
    inputs = node.all_input_nodes
    several = len(inputs) > 1 or node.target in _POOLS
    return node.target in _JOINS | _POOLS and several and all(_source(each) in rounded for each in inputs)


def _merged_output(node: fx.Node) -> fx.Node:
    """The node, or the activation that alone reads it and that its kernel computes too."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target in _MERGED else node


def _behind_the_last_layers(graph: fx.Graph, calls: LayerCalls) -> set[fx.Node]:
    """Nodes whose values no layer reads, directly or through others."""
    behind: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        if all(user in behind and user not in calls for user in node.users):
            behind.add(node)
    return behind


def _moves(node: fx.Node) -> bool:
    """Whether the node's values are values of its input, or zeros: on any range, rounded ones stay rounded."""
    if node.target is operator.getitem:  # one of several results: where they come from decides
        return _moves(node.all_input_nodes[0])
    lossy = node.target in _LOSSY and bool(node.all_input_nodes)
    return node.target in _LOSSLESS or lossy or (node.target in _PADS and _puts_zeros(node))


def _puts_zeros(pad: fx.Node) -> bool:
    """Whether what is put around a tensor are zeros. One of the two operators is told a mode, too."""
    told = [*pad.args[2:], *(pad.kwargs.get(name) for name in ("mode", "value"))]
    return not any(each for each in told if each != "constant")


def _source(node: fx.Node) -> fx.Node:
    """The node that computed the values which `node` holds, before they were moved."""
    while _moves(node):
        node = node.all_input_nodes[0]
    return node


def _whole_source(node: fx.Node) -> fx.Node:
    """As `_source`, but not back through an operator that loses values which others read.

    The layer's range was calibrated on what is left; the others may need a wider one.
    """
    while _moves(node):
        source = node.all_input_nodes[0]
        if node.target in _LOSSY and len(source.users) > 1:
            break
        node = source
    return node


def _insert_(graph: fx.Graph, points: Mapping[fx.Node, ActivationRange]) -> None:
    """Put a rounding behind each node, which all that read the node now read instead."""
    for node, found in points.items():
        following = node.next
        while following.op in ("placeholder", "get_attr"):
            following = following.next
        rounding = _rounding(graph, node, found, before=following)
        for user in list(node.users):
            if user is not rounding and user.target is not _ATEN.sym_size.int:
                user.replace_input_with(node, rounding)


def _rounding(graph: fx.Graph, node: fx.Node, found: ActivationRange, before: fx.Node) -> fx.Node:
    """A new node that rounds `node`; nothing reads it yet."""
    with graph.inserting_before(before):
        rounding = graph.call_function(ROUND_ACTIVATION, (node, found.scale, found.zero, found.bits))
    rounding.meta["val"] = node.meta.get("val")
    return rounding


def _repeat_behind_moves_(graph: fx.Graph, calls: LayerCalls) -> None:
    """Round moved tensors again, on the same range: it changes no value, and kernels find integers at their inputs."""
    for node in list(graph.nodes):
        read = node.all_input_nodes[:1] if node in calls else node.all_input_nodes
        rounded = all(_source(each).target is ROUND_ACTIVATION for each in read)
        if not rounded or (node not in calls and node.target not in _JOINS | _POOLS):
            continue
        for moved in [each for each in read if _moves(each)]:
            repeated = _rounding(graph, moved, _range_of(_source(moved)), before=node)
            node.replace_input_with(moved, repeated)


def _round_biases_(graph: fx.Graph, calls: LayerCalls, layers: Mapping[str, LayerWeights]) -> None:
    """Set biases to whole steps of input scale * weight scale, where an integer kernel will run the layer.

    That is a linear layer with a rounded input, or a convolution whose output is rounded too.
    """
    module = graph.owning_module
    assert module is not None
    for call, name in calls.items():
        scale, source = layers[name].scale, call.all_input_nodes[0]
        bias = call.args[2] if len(call.args) > 2 else None
        integer = call.target is _ATEN.linear.default or ROUND_ACTIVATION in _targets(_merged_output(call).users)
        if scale is None or source.target is not ROUND_ACTIVATION or not isinstance(bias, fx.Node) or not integer:
            continue
        if len(bias.users) == 1:  # a layer that runs several times would need several biases
            step = scale * _range_of(source).scale  # (rows,)
            values = module.get_parameter(str(bias.target))
            values.copy_(values.div(step).round_().mul_(step))


def _targets(nodes: Iterable[fx.Node]) -> set[Any]:
    return {node.target for node in nodes}


def _range_of(rounding: fx.Node) -> ActivationRange:
    """The range of a rounding's node; its `noise` is not known and 0."""
    _, scale, zero, bits = rounding.args
    return ActivationRange(int(bits), float(scale), int(zero), 0.0)  # type: ignore[arg-type]


def _calibrated(graph: fx.Graph, nodes: list[fx.Node], calibration: Inputs) -> dict[fx.Node, ActivationRange]:
    """8-bit ranges for nodes, from the values that they have on the (n, …) samples."""
    if not nodes:
        return {}
    module = graph.owning_module
    assert module is not None
    module.recompile()
    sampler = _Sampler(module, nodes)
    for batch in calibration.split(_BATCH):
        sampler.run(*tensors_of(batch))
    return {node: calibrate_range(torch.cat(sampler.samples[node]), _BITS) for node in nodes}


class _Sampler(fx.Interpreter):
    """Runs the graph and keeps 512 values a sample of a few nodes, and the smallest and largest of every batch."""

    def __init__(self, module: fx.GraphModule, nodes: list[fx.Node]) -> None:
        super().__init__(module)
        self.samples: dict[fx.Node, list[Tensor]] = {node: [] for node in nodes}
        self._generator = torch.Generator().manual_seed(0)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.samples:
            values = result.flatten()
            drawn = torch.randint(len(values), (_DRAWN_A_SAMPLE * len(result),), generator=self._generator)
            self.samples[n].append(torch.cat([values[drawn], values.amin()[None], values.amax()[None]]))
        return result


def rounding_nodes(graph: fx.Graph) -> Iterator[tuple[fx.Node, ActivationRange]]:
    """Every rounding in the graph with its range, in the order of the graph."""
    for node in graph.nodes:
        if node.target is ROUND_ACTIVATION:
            yield node, _range_of(node)
