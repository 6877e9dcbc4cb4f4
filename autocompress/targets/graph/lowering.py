"""Lowering: a compressed network as a graph of ATen operators, with every rounding of an activation as a node.

All files are written from this form, and it needs no class of the original. `lower` takes these steps:

1. The network's weights get room for their biases where integer kernels run (`with_room_for_bias`).
2. `torch.export` follows the network operator by operator (`network.exported`), where it takes texts at any number
   of tokens (`lengths`).
3. Removed branches leave the graph (`removed_branches`).
4. Roundings of activations enter it (`rounding_points`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from autocompress.errors import InputError
from autocompress.execute.compressed import Compressed, LayerWeights, write_weights_
from autocompress.menus.rounding import code_range
from autocompress.network.exported import LayerCalls, export_graph, layer_calls
from autocompress.network.interface import argument_names, output_names
from autocompress.plan import Plan
from autocompress.samples import Field, Inputs, cast, fields_of
from autocompress.targets.graph.lengths import exported_at_any_length
from autocompress.targets.graph.removed_branches import without_branches
from autocompress.targets.graph.rounding_points import round_activation, round_layer_inputs_, round_tensors_
from autocompress.tasks.outputs import ONLY

__all__ = ["NAMES", "Lowered", "lower", "round_activation"]

_MOST_SAMPLES = 256  # that ranges are taken from
NAMES = ("input", "output")  # of files whose network has no names of its own
_LARGEST_BIAS = 2**29  # in steps; the input may be rounded on another layer's range, so not all of 31 bits are used


@dataclass(frozen=True, eq=False)
class Lowered:
    """A compressed network, ready to be written to a file.

    `graph` says what is computed, in float32, and runs as it is: `graph(x)` gives the outputs that a file has to give.
    `layers` says how each layer's weight is stored: its codes, scales and bits. A file of your own needs both:
    operators from the graph's nodes, weights from the layers. The graph holds their float32 values as `NAME.weight`.

    >>> from torch import nn
    >>> from autocompress.menus.activations import ActivationRange
    >>> from autocompress.plan import Label
    >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    >>> codes, scale = torch.tensor([[1, -8, 7], [0, 2, -3]], dtype=torch.int8), torch.tensor([0.5, 0.25])
    >>> rounding = ActivationRange(bits=8, scale=0.1, zero=128, noise=0.0)
    >>> layer = LayerWeights(codes, scale, torch.zeros(2), bits=4, sparsity=0.0, input_range=rounding)
    >>> write_weights_(model, "0", layer)
    >>> plan = Plan({"0": Label(weight_bits=4, activation_bits=8)})
    >>> lowered = lower(Compressed(model, {"0": layer}, plan), torch.randn(1, 3), integer=False)
    >>> for node in lowered.graph.graph.nodes:
    ...     print(node.op, node.target, node.args)
    get_attr 0.weight ()
    get_attr 0.bias ()
    placeholder input ()
    call_function autocompress.round_activation.default (input_1, 0.1, 128, 8)
    call_function aten.linear.default (round_activation_default, _0_weight, _0_bias)
    call_function aten.relu.default (linear,)
    output output ((relu,),)
    >>> lowered.layers["0"].values[0], lowered.layers["0"].scale  # weight = code * scale of its row
    (tensor([ 1, -8,  7], dtype=torch.int8), tensor([0.5000, 0.2500]))
    >>> lowered.graph.get_parameter("0.weight")[0].tolist()
    [0.5, -4.0, 3.5]

    Attributes:
        graph: module that takes (N, …) tensors with any N, as `inputs` says; where `takes_any_length` says so, texts
            with any number of tokens, too. The nodes of `graph.graph` are, each after
            what it reads:

            - one placeholder for each tensor that the network takes.
            - get_attr: a parameter or buffer under the original's name (`layer1.0.conv1.weight`).
            - call_function of a functional ATen operator (`torch.ops.aten.conv2d.default`): it changes no tensor.
              Arguments are nodes, numbers, and lists of them. A layer is a linear or convolution whose second argument
              is the get_attr of its weight, or in a transposed convolution a reordering of it, or an embedding, whose
              first argument it is. `gru.input`, `lstm.input`, `rnn_tanh.input` and `rnn_relu.input` run several layers:
              their third argument is the list of all matrices and biases.
            - call_function of `round_activation(x, scale, zero, bits)`: x rounded to steps of `scale` and clamped to
              2^bits of them, (clamp(round(x / scale) + zero, 0, 2^bits - 1) - zero) * scale. In an integer file it is
              a quantization followed by a dequantization. A layer whose input is rounded reads such a node.
            - one output: a node, alone or in a tuple; or several nodes in a tuple.
        layers: finished weights by layer name, in the order of the network; a layer of low rank is two, `NAME.0` and
            `NAME.1` (`Plan.modules`). The graph holds the same weight, as it runs, in float32 under `NAME.weight`, and
            the bias under `NAME.bias`. Of a removed branch's layers it holds at most the bias.
        plan: labels that the network was made by.
        inputs: form of every tensor that the network takes, in the order of the placeholders.
        names: names of the only input, and of the outputs, in files that have such names.
        arguments: names by which the network's own `forward` takes its tensors; empty where they are not known.
    """

    graph: fx.GraphModule
    layers: Mapping[str, LayerWeights]
    plan: Plan
    inputs: tuple[Field, ...]
    names: tuple[str, ...] = NAMES
    arguments: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self.names[1:]


def exported(compressed: Compressed, calibration: Inputs) -> fx.GraphModule:
    """The graph that `lower` begins with, for `lower` of several networks that differ in nothing but their weights.

    Args:
        compressed: network; it is not changed and shares no memory with the result.
        calibration: (n, …) samples of the input, n at least 1; only their form counts, and of texts two of them.

    Raises:
        ExportError: `torch.export` can't follow the network, or only for one batch size.
    """
    return _exported(_as_lowered(compressed), cast(calibration[:_MOST_SAMPLES], "cpu", torch.float32))


def lower(
    compressed: Compressed, calibration: Inputs, *, integer: bool, graph: fx.GraphModule | None = None
) -> Lowered:
    """The compressed network as a graph.

    Args:
        compressed: network to be lowered; it is not changed and shares no memory with the result.
        calibration: (n, …) samples of the input, n at least 1; only the first 256 are used.
        integer: False rounds every layer's input for that layer alone, exactly as `Compressed.rounded` does. True is
            for runtimes with integer kernels: it rounds tensors, for all that read them, and rounds the outputs
            that integer kernels would otherwise have to hand on in float32 (`round_tensors_`).
        graph: what `exported` gave for a network with other weights, and all else the same, which saves most of the
            time; it is not changed. Default: the network is exported.

    Raises:
        InputError: `calibration` holds no sample.
        ExportError: `torch.export` can't follow the network, or only for one batch size.
    """
    if not len(calibration):
        raise InputError("`calibration` must hold at least one sample, got none.")
    layers = {name: with_room_for_bias(layer) if integer else layer for name, layer in compressed.layers.items()}
    model = _as_lowered(compressed)
    for name, layer in layers.items():
        if layer is not compressed.layers[name]:
            write_weights_(model, name, layer)
    samples = cast(calibration[:_MOST_SAMPLES], "cpu", torch.float32)
    graph = _exported(model, samples) if graph is None else _with_parameters_of(model, graph)
    graph, calls = without_branches(graph, layer_calls(graph, model, layers), layers)
    with torch.no_grad():
        if integer:
            round_tensors_(graph.graph, calls, layers, samples)
        else:
            round_layer_inputs_(graph.graph, calls, layers)
    graph.graph.lint()
    graph.recompile()
    calculated, names = _as_run(graph, calls, layers), _names(compressed.model, graph.graph.output_node())
    arguments = argument_names(compressed.model, samples)
    return Lowered(graph, calculated, compressed.plan, fields_of(samples), names, arguments)


def _as_lowered(compressed: Compressed) -> nn.Module:
    """A copy of the network's module, as it is exported."""
    return copy.deepcopy(compressed.model).cpu().float().eval().requires_grad_(False)


def _exported(model: nn.Module, samples: Inputs) -> fx.GraphModule:
    """The graph of a module, which shares its parameters."""
    return exported_at_any_length(model, samples) or export_graph(model, samples[:1])


def _with_parameters_of(model: nn.Module, graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of the graph of a module of the same form, with the parameters of this one, which it shares."""
    copied = copy.deepcopy(graph)
    for name, old in list(copied.named_parameters()):
        owner, _, field = name.rpartition(".")
        own = model.get_parameter(name)
        assert own.shape == old.shape, name
        setattr(copied.get_submodule(owner), field, own)
    return copied


def _names(model: nn.Module, output: fx.Node) -> tuple[str, ...]:
    """Names of the network's only input and of its outputs: its own where it comes from an ONNX file."""
    own, names, given = tuple(getattr(model, "input_names", ())), output_names(model), output.args[0]
    count = len(given) if isinstance(given, tuple | list) else 1
    if count != len(names):
        names = tuple(f"{ONLY}_{number}" for number in range(count))
    return own[0] if len(own) == 1 else NAMES[0], *names


def with_room_for_bias(layer: LayerWeights) -> LayerWeights:
    """The layer with a coarser scale in those rows whose bias an integer kernel could not hold.

    Integer kernels keep a bias in 32 bits, in steps of input scale * weight scale. So in every row

        weight scale >= |bias| / (input scale * 2^29)

    must hold. Rows that break it have weights that are next to nothing beside their bias, as dead channels do. On the
    coarser scale most of their weights become 0; the row's output moves by less than a millionth of its bias a weight.
    """
    if layer.scale is None or layer.bias is None or layer.input_range is None:
        return layer
    smallest = layer.bias.abs() / (layer.input_range.scale * _LARGEST_BIAS)  # (rows,)
    if bool((layer.scale >= smallest).all()):
        return layer
    scale = torch.maximum(layer.scale, smallest)
    shape = (-1, *[1] * (layer.values.ndim - 1))
    fitted = (layer.weight() / scale.view(shape)).round().clamp(*code_range(layer.bits)).to(torch.int8)
    coarser = (scale > layer.scale).view(shape)
    return replace(layer, values=torch.where(coarser, fitted, layer.values), scale=scale)


def _as_run(graph: fx.GraphModule, calls: LayerCalls, layers: Mapping[str, LayerWeights]) -> dict[str, LayerWeights]:
    """The layers with the biases that the graph holds, which may have been rounded for integer kernels."""
    found = dict(layers)
    for call, name in calls.items():
        bias = call.args[2] if len(call.args) > 2 else None
        if isinstance(bias, fx.Node):
            found[name] = replace(layers[name], bias=graph.get_parameter(str(bias.target)).detach().clone())
    return found
