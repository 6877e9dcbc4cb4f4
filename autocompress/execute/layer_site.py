"""One layer of the compressed network that is fitted: its structure, its prior, and what it reads and should give.

Shapes: g groups of a convolution (1 elsewhere), k inputs of a row (fan-in), r rows of a group; e entries of a batch on
the layer's first axis, which are its n samples, or several windows of each; p positions drawn in each entry.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from autocompress.evaluation.stitch import LayerChoice, kept_rows
from autocompress.execute.following import MOST_IN_A_BATCH, Batch
from autocompress.execute.layer_moments import PIECE_ELEMENTS, drawn_outputs
from autocompress.menus.algebra import diagonal_blocks
from autocompress.menus.listening import Window, window_of_module
from autocompress.menus.menus import Menus
from autocompress.menus.variants import channel_variants, sparsity_mask
from autocompress.network.structure import Layer

_LEAST_COLUMNS = 65_536  # columns that a layer is fitted to where there are as many
_LEAST_COLUMNS_OF_GROUPS = 8_192  # the same where there are several groups
_COLUMNS_PER_INPUT = 64  # or as many as this for each of its inputs
LEAST_SAMPLES = 64  # samples that they are drawn from at least: positions of one image are much alike


def _columns_wanted(layer: Layer) -> int:
    """Number of columns that tell enough about a layer. A group has few inputs, and every group has its columns."""
    least = _LEAST_COLUMNS if layer.groups == 1 else _LEAST_COLUMNS_OF_GROUPS
    return max(least, _COLUMNS_PER_INPUT * (layer.fan_in + 1))


def most_bytes_of_columns(layer: Layer) -> int:
    """Bytes of the columns of a layer that are made at once, at most."""
    columns = min(layer.positions, -(-_columns_wanted(layer) // LEAST_SAMPLES))  # of one sample
    elements = columns * layer.groups * max(layer.fan_in + 1, layer.rows // layer.groups)
    return 4 * max(elements, min(PIECE_ELEMENTS, MOST_IN_A_BATCH * elements))


@dataclass(frozen=True, eq=False)
class Site:
    """One layer of the compressed network that is fitted, and where its numbers stand in the graphs.

    Attributes:
        layer: structure of the layer in the original.
        choice: resolved part of the plan that is the layer's.
        menus: menus of the network.
        module: module of the layer in the compressed network.
        before: node of the layer in the original's graph.
        node: node of the layer in the compressed network's graph.
        place: place of both in the order.
    """

    layer: Layer
    choice: LayerChoice
    menus: Menus
    module: nn.Module
    before: fx.Node
    node: fx.Node
    place: int

    @cached_property
    def rows(self) -> Tensor:
        """(rows,) int64 output channels of the original's layer that stay."""
        return kept_rows(self.menus, self.layer, self.choice)

    @cached_property
    def shrunk(self) -> Layer:
        """The structure of the layer in the compressed network."""
        groups = getattr(self.module, "groups", 1)
        return replace(self.layer, weight_shape=tuple(self.module.get_parameter("weight").shape), groups=groups)

    @property
    def is_linear(self) -> bool:
        """Whether channels are the last axis of the layer's input and output; else they are the second."""
        return self.layer.has_channels_last

    @cached_property
    def window(self) -> Window | None:
        """What the operator in the graph sees: other padding than with zeros is an operator before it."""
        if getattr(self.module, "padding_mode", "zeros") == "zeros":
            return window_of_module(self.module)
        called: Any = copy.copy(self.module)
        called.padding, called.padding_mode = (0,) * len(called.kernel_size), "zeros"
        return window_of_module(cast(nn.Module, called))

    @property
    def columns_wanted(self) -> int:
        """Number of columns that tell enough about the layer."""
        return _columns_wanted(self.layer)

    @property
    def samples_wanted(self) -> int:
        """Number of samples that have so many columns: 64 times a power of two, so that batches rarely grow."""
        samples = self.columns_wanted / self.layer.positions
        doublings = max(0, math.ceil(math.log2(samples / LEAST_SAMPLES)))
        return LEAST_SAMPLES << doublings

    @cached_property
    def prior(self) -> Tensor:
        """W₀ (g, r, k + 1): the original's weights, re-fitted where columns are gone."""
        source, rows, shrunk = self.menus.sources[self.layer.name], self.rows, self.shrunk
        weight = source.weight
        if shrunk.fan_in < self.layer.fan_in:
            columns = self.menus.kept_columns(self.layer, self.choice.reads)
            (variant,) = channel_variants(source, columns, (32,), self.menus.settings)
            weight = torch.cat([variant.weight(), variant.bias[:, None]], 1).double()
        return weight[rows].view(shrunk.groups, -1, weight.shape[1])

    @cached_property
    def gradient_moment(self) -> Tensor:
        """(g, r, r) float64 G of the outputs that stay, for each group."""
        moment = self.menus.sources[self.layer.name].gradient_moment[self.rows][:, self.rows]
        return diagonal_blocks(moment, self.shrunk.groups).double()

    @property
    def coherence(self) -> float:
        """κ: by how much more the mean of a sample's errors counts than errors that differ (`menus.coherence`)."""
        return self.menus.sources[self.layer.name].coherence

    @cached_property
    def kept(self) -> Tensor | None:
        """(g, r, k) bool, False where the menus removed a weight; None: nowhere.

        The layer's own codes don't say: rounding makes more zeros than the label removes.
        """
        source, settings = self.menus.sources[self.layer.name], self.menus.settings
        if self.choice.sparsity == 0:
            return None
        mask = sparsity_mask(source, source.damped_moment(settings.damping), self.choice.sparsity, settings)
        return mask.view(self.layer.groups, -1, self.layer.fan_in)

    def entries(self, value: Tensor, samples: int) -> Tensor:
        """An input or output of the layer, entry by entry: (e, positions, channels) if linear, else (e, channels, …).

        A network may have cut each sample into windows, which stand one after the other on the first axis. A linear
        layer sees them as further positions.

        Args:
            value: (e, …) value in the graph.
            samples: number of samples in the batch.
        """
        if not self.is_linear:
            return value
        first = samples if len(value) % samples == 0 else len(value)
        return value.reshape(first, -1, value.shape[-1])

    def positions(self, y: Tensor) -> tuple[int, ...]:
        """Output positions of an entry along each axis, of the layer's outputs by entries."""
        return tuple(y.shape[1:-1] if self.is_linear else y.shape[2:])

    def wanted_outputs(self, batch: Batch, drawn: Tensor, entries: slice) -> Tensor:
        """(e, p, rows) outputs that the layer should have, at drawn positions of some entries.

        They are the original layer's. Where the layer's output is only added to a shortcut that is already computed,
        the layer can also make up for what the shortcut lost: they are then y + s - ŝ.

        Args:
            batch: some samples, which the original has run through the layer.
            drawn: (e, p) output positions.
            entries: the entries.
        """
        rows = self.rows.to(drawn.device)

        def at_drawn(value: Tensor) -> Tensor:
            return drawn_outputs(self.entries(value, batch.size)[entries], self.is_linear, drawn)

        target = batch.reference[self.before]
        wanted = at_drawn(target).index_select(2, rows)
        other, other_before = _added_to(self.node), _added_to(self.before)
        if other not in batch.current or other_before not in batch.reference:
            return wanted
        shortcut, shortcut_before = batch.current[other], batch.reference[other_before]
        if shortcut_before.shape != target.shape:  # it is broadcast
            return wanted
        return wanted + at_drawn(shortcut_before).index_select(2, rows) - at_drawn(shortcut)


def _added_to(node: fx.Node) -> fx.Node | None:
    """The other operand of the addition that alone reads the node; None where something else reads it."""
    if len(node.users) != 1:
        return None
    (add,) = node.users
    if getattr(add.target, "overloadpacket", None) is not torch.ops.aten.add or add.kwargs:
        return None
    others = [operand for operand in add.args if operand is not node]
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None
