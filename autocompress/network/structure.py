"""What tracing finds: layers, channel groups and costs, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from autocompress_envs.problem import CostModel

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Layer:
    """One weight-carrying operator.

    Attributes:
        name: as in `named_modules()`.
        kind: `conv`, `depthwise` or `linear`.
        weight_shape: of the PyTorch weight.
        groups: of the convolution; 1 for linear layers.
        positions: output positions per sample, so that the layer does `positions` multiply-accumulates a weight.
        input_shape: of one call, without the batch axis.
        output_shape: of one call, without the batch axis.
        norm: name of the batch norm that can be folded into the layer (it alone reads the layer's output), or None.
        has_bias: whether the layer has a bias once its norm is folded.
        reads: index of the groups whose removed channels take weight columns away, in column order. A depthwise
            layer loses rows only, so it reads none.
        writes: index of the group that the layer's output channels belong to, or None.
        fixed_reason: why the output channels can't be removed; empty where they can.
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

    @property
    def rows(self) -> int:
        """Output channels."""
        return self.weight_shape[0]

    @property
    def fan_in(self) -> int:
        """Weight columns of one output channel."""
        return int(np.prod(self.weight_shape[1:], dtype=np.int64))

    @property
    def parameters(self) -> int:
        return self.rows * self.fan_in

    @property
    def macs(self) -> int:
        return self.parameters * self.positions


@dataclass(frozen=True)
class Group:
    """Channels that must be removed together. Channel c of the group is, in every member, the listed rows or columns.

    Attributes:
        owner: name of the first layer of the group in network order; its label's sparsity is the group's.
        width: number of channels, n.
        producers: by layer name, (n, r) int64: the output channels (weight rows) of the layer; depthwise
            followers are here too.
        consumers: by layer name, (n, m) int64: the columns of the layer's flattened (rows, fan_in) weight.
        norms: by module name, (n, r) int64: the channels of norms that are not folded into a layer.
        is_branch: whether the network can do without all of its channels: what the layers that read them put out is
            only added to something else, as in a residual block.
    """

    owner: str
    width: int
    producers: Mapping[str, IntArray]
    consumers: Mapping[str, IntArray]
    norms: Mapping[str, IntArray] = field(default_factory=dict)
    is_branch: bool = False


@dataclass(frozen=True)
class Network:
    """A traced network.

    Attributes:
        layers: in the order in which they run.
        groups: of prunable channels, every one checked by pruning a copy.
        costs: closed-form costs; layer and group order as here.
        fingerprint: hash of the architecture (layers, shapes, wiring; not the weights).
        unknown_operators: operators that are in no cost table, with the number of calls; their cost counts as 0.
        input_shape: of one sample.
    """

    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    costs: CostModel
    fingerprint: str
    unknown_operators: Mapping[str, int]
    input_shape: tuple[int, ...]

    def layer_index(self) -> dict[str, int]:
        return {layer.name: index for index, layer in enumerate(self.layers)}
