"""The result of tracing as plain data: layers, channel groups and costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from autocompress.samples import Field
from autocompress_envs.problem import CostModel

IntArray = npt.NDArray[np.int64]

LINEAR = "linear"
EMBEDDING = "embedding"  # kind of a layer that looks rows of its weight up, one for each token
RECURRENT = "recurrent"  # kind of a matrix of a GRU, LSTM or RNN: a linear layer that is a part of one operator
TRANSPOSED = "transposed"  # kind of a transposed convolution


@dataclass(frozen=True)
class Layer:
    """One weight-carrying operator.

    Attributes:
        name: name of the module, as in `named_modules()`.
        kind: `conv`, `depthwise`, `transposed` (a transposed convolution), `linear`, `recurrent` (a matrix of a GRU,
            LSTM or RNN) or `embedding` (a table whose rows are looked up).
        weight_shape: shape of the weight, output channels first.
        groups: number of the convolution's groups; 1 for linear layers.
        positions: output positions per sample over all calls; of an embedding the rows that are looked up.
        input_shape: shape of the first call's input, without the batch axis.
        output_shape: shape of the first call's output, without the batch axis.
        norm: name of the batch norm that can be folded into the layer, as it alone reads the output; or None.
        has_bias: whether the layer has a bias once its norm is folded.
        reads: indices of the groups whose removed channels take weight columns away, in column order. A
            depthwise layer loses rows only, so it reads none.
        writes: index of the group that the layer's output channels belong to, or None.
        fixed_reason: reason why the output channels can't be removed; empty where they can.
        tied_to: name of the layer whose bits it has, as runtimes run both as one (q, k and v; gate and up); or None.
        input_positions: input positions per sample over all calls of a transposed convolution; else 0.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    groups: int
    positions: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    norm: str | None
    has_bias: bool
    reads: tuple[int, ...]
    writes: int | None
    fixed_reason: str = ""
    tied_to: str | None = None
    input_positions: int = 0

    @property
    def rows(self) -> int:
        """Number of output channels, which are the rows of the flattened weight."""
        return self.weight_shape[0]

    @property
    def fan_in(self) -> int:
        """Number of weights of one output channel, which are the columns of the flattened weight."""
        return int(np.prod(self.weight_shape[1:], dtype=np.int64))

    @property
    def width(self) -> int:
        """Number of values that the layer gives at one position: its rows, or of an embedding its columns."""
        return self.weight_shape[1] if self.kind == EMBEDDING else self.weight_shape[0]

    @property
    def parameters(self) -> int:
        """Number of weights, without the bias."""
        return self.rows * self.fan_in

    @property
    def macs_a_weight(self) -> int:
        """Multiply-accumulates of each weight for one sample: one at each output position.

        In a transposed convolution it is one at each input position; looking rows up takes none.
        """
        if self.kind == EMBEDDING:
            return 0
        return self.input_positions if self.kind == TRANSPOSED else self.positions

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one sample."""
        return self.parameters * self.macs_a_weight

    @property
    def has_channels_last(self) -> bool:
        """Whether channels are the last axis of input and output; else they are the second."""
        return self.kind in (LINEAR, RECURRENT)

    @property
    def reads_unrounded(self) -> bool:
        """Whether the input is never rounded: tokens, and what recurrent operators read, which run in floats."""
        return self.kind in (EMBEDDING, RECURRENT)


@dataclass(frozen=True)
class Scaled:
    """An integer of a module that counts a group's channels, such as `num_heads`.

    Attributes:
        module: name of the module.
        name: name of the attribute.
        per_channel: what it counts for every channel that is left.
    """

    module: str
    name: str
    per_channel: int


@dataclass(frozen=True)
class Group:
    """Channels that must be removed together. Of attention, a channel is a whole head.

    Channel c of the group is, in every member, the rows or columns that stand in row c of the member's table.

    Attributes:
        owner: name of the first layer of the group in network order; its label's sparsity is the group's.
        width: number n of channels.
        producers: tables (n, r) int64 by layer name: the layer's output channels (weight rows). Depthwise
            layers that follow are here too.
        consumers: tables (n, m) int64 by layer name: the columns of the layer's flattened (rows, fan_in)
            weight.
        norms: tables (n, r) int64 by module name: the channels of norms that are not folded into a layer.
        is_branch: whether the network can do without all of the channels, as the results of the layers that
            read them are only added to something else; so in a residual block.
        scaled: integers of modules that change with the number of channels.
    """

    owner: str
    width: int
    producers: Mapping[str, IntArray]
    consumers: Mapping[str, IntArray]
    norms: Mapping[str, IntArray] = field(default_factory=dict)
    is_branch: bool = False
    scaled: tuple[Scaled, ...] = ()


@dataclass(frozen=True)
class Network:
    """A traced network.

    Attributes:
        layers: layers in the order in which they first run.
        groups: groups of prunable channels, every one checked by pruning a copy.
        costs: closed-form costs, with layers and groups in the same order.
        fingerprint: hash of the architecture (layers, shapes, wiring; not the weights), 16 hex digits. A plan
            fits networks of the same fingerprint.
        computation: hash of every operator with its constants, 16 hex digits. Networks that differ in it
            compute something else with the same weights, so they share no menus.
        unknown_operators: number of calls by name of the operators that are in no cost table; their cost
            counts as 0.
        inputs: form of every tensor that the network takes.
        fixed_operators: multiply-accumulates a sample by name of the operators that multiply by no layer's
            weight, such as the products of attention; they count in full whatever the labels.
        shared_weights: names of the modules that are no layers because others use their weight too, each with a reason;
            these weights stay as they are, in float32.
    """

    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    costs: CostModel
    fingerprint: str
    computation: str
    unknown_operators: Mapping[str, int]
    inputs: tuple[Field, ...]
    fixed_operators: Mapping[str, int] = field(default_factory=dict)
    shared_weights: Mapping[str, str] = field(default_factory=dict)

    def layer_index(self) -> dict[str, int]:
        """Index of every layer by its name."""
        return {layer.name: index for index, layer in enumerate(self.layers)}

    def leaders(self) -> dict[int, int]:
        """Index of the layer that a layer is tied to, by the layer's own index; layers without ties are left out."""
        index = self.layer_index()
        return {index[layer.name]: index[layer.tied_to] for layer in self.layers if layer.tied_to is not None}

    @property
    def layer_macs(self) -> int:
        """Multiply-accumulates of all layers for one sample."""
        return sum(layer.macs for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """Bytes of float32 activations at the peak of a forward pass, for one sample."""
        bits = np.full(len(self.layers), 32)
        return int(self.costs.memory(self.costs.group_width, bits))
