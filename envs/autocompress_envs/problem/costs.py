"""What a labelling costs: bytes, operations, time, energy and peak memory in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from autocompress_envs.problem.arrays import BoolArray, FloatArray, IntArray
from autocompress_envs.problem.energy import EnergyCosts
from autocompress_envs.problem.kernels import KernelCosts

SCALE_BYTES = 4
"""Bytes of one float32 scale, per output channel of a weight below 16 bits."""

BIAS_BYTES = 4
"""Bytes of one float32 bias, per output channel of a layer with a bias."""

RANGE_BYTES = 8
"""Bytes of the scale and the zero point, both float32, of a layer's input below 32 bits."""

FLOAT_BYTES = 4
"""Bytes of one element in float32."""


@dataclass(frozen=True)
class CostModel:
    """Closed-form costs of a network with L layers and G channel groups.

    Let `kept` (G,) be the channels left in every group. The weight matrix of layer l then has

        fan_in[l] = fan_in_const[l] + fan_in_coef[l] @ kept     columns
        out[l]    = out_const[l] + out_coef[l] @ kept           rows

    Between the layers, T activation tensors are alive in P moments of the forward pass. Tensor t has
    tensor_const[t] + tensor_coef[t] @ kept elements a sample.

    Attributes:
        group_width: (G,) channels of every group in the original.
        fan_in_const: (L,) weight columns that belong to no group.
        fan_in_coef: (L, G) weight columns per kept channel of each group.
        out_const: (L,) weight rows that belong to no group.
        out_coef: (L, G) weight rows per kept channel of each group.
        positions: (L,) multiply-accumulates per weight and sample: the output positions.
        has_bias: (L,) whether the layer has a bias once batch norms are folded into it.
        fixed_bytes: bytes of the file besides the layers: headers, norms that can't be folded, other
            parameters.
        fixed_bytes_coef: (G,) further such bytes per kept channel.
        tensor_const: (T,) elements of every activation tensor that belong to no group, for one sample.
        tensor_coef: (T, G) elements per kept channel of each group, for one sample.
        tensor_readers: (T, L) which layers read the tensor. It is held with the most activation bits of these
            layers, and with 32 bits where no layer reads it.
        alive: (P, T) which tensors are alive at which moment.
        granularity: `channel`, `element`, or `n:m` such as `2:4`. The last two leave widths as they are and
            shrink the storage of weights.
        fixed_macs: multiply-accumulates of operators that carry no weights; they stay whatever the labels.
        kernels: time of the layers in the kernels of a runtime; None: nothing was timed, and there is no resource
            `latency`. Layers of a low rank are not timed: it is that of the whole layer.
        energy: what the modelled energy depends on; None, the default: there is no resource `energy`.
        members: (L,) layers whose rows a layer's `out` counts: 1, but for the first layer of a tie. Of a low rank each
            of them has a first factor of its own. Empty, the default: 1 everywhere.
    """

    group_width: IntArray
    fan_in_const: IntArray
    fan_in_coef: IntArray
    out_const: IntArray
    out_coef: IntArray
    positions: IntArray
    has_bias: BoolArray
    fixed_bytes: int
    fixed_bytes_coef: IntArray
    tensor_const: IntArray
    tensor_coef: IntArray
    tensor_readers: BoolArray
    alive: BoolArray
    granularity: str = "channel"
    fixed_macs: int = 0
    kernels: KernelCosts | None = None
    energy: EnergyCosts | None = None
    members: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def additive(self) -> tuple[str, ...]:
        """Names of the resources that are sums over layers; peak memory is none."""
        found = ["size", "macs", "bitops"]
        found += [] if self.kernels is None else ["latency"]
        return (*found, *([] if self.energy is None else ["energy"]))

    @property
    def first_factors(self) -> IntArray:
        """(L,) first factors that every layer has where its rank is low."""
        return self.members if len(self.members) else np.ones(len(self.positions), dtype=np.int64)

    @cached_property
    def _held_beside(self) -> IntArray:
        """(P, L) 1 where what a layer's two factors hand on may be alive: as long as a tensor that the layer reads.

        That is a moment too many where the tensor lives on for others, never one too few: a layer of which no tensor
        is known counts in every moment.
        """
        readers = self.tensor_readers.astype(np.int64)  # (T, L)
        beside = (self.alive.astype(np.int64) @ readers > 0) | ~self.tensor_readers.any(0)
        return beside.astype(np.int64)

    def widths(self, kept: IntArray) -> tuple[IntArray, IntArray]:
        """Weight columns and weight rows of every layer.

        Args:
            kept: (..., G) channels left in every group.

        Returns:
            `fan_in` and `out`, each (..., L).
        """
        return self.fan_in_const + _product(kept, self.fan_in_coef.T), self.out_const + _product(kept, self.out_coef.T)

    def resources(
        self,
        kept: IntArray,
        weight_bits: IntArray,
        activation_bits: IntArray,
        sparsity: FloatArray | float = 0.0,
        rank: IntArray | int = 0,
    ) -> dict[str, IntArray]:
        """The amount of every resource that a labelling takes. Leading axes are batch axes.

        Args:
            kept: (..., G) channels left in every group.
            weight_bits: (..., L) bits of every layer's weights.
            activation_bits: (..., L) bits of every layer's input.
            sparsity: (..., L) fraction of the weights removed inside every layer, in [0, 1). It has no effect
                with granularity `channel`. 0 by default.
            rank: (..., L) rank of every layer's two factors, 0 for a layer as it is. 0 by default.

        Returns:
            `size` (bytes of the file), `macs` (multiply-accumulates a sample), `bitops` (bit operations a
            sample), `latency` (nanoseconds of a batch; only where something was timed), `energy` (picojoules a
            sample; only where it is modelled) and `memory` (bytes of activations at the peak, for one sample), each
            of shape (...).
        """
        fan_in, out = self.widths(kept)
        at = np.arange(len(self.positions))
        layers = self.of_layers(at, fan_in, out, weight_bits, activation_bits, sparsity, rank)
        totals = {name: amounts.sum(-1) + self.fixed(name, kept) for name, amounts in layers.items()}
        totals["memory"] = self.memory(kept, activation_bits, rank)
        return totals

    def of_layers(
        self,
        at: IntArray,
        fan_in: IntArray,
        out: IntArray,
        weight_bits: IntArray,
        activation_bits: IntArray,
        sparsity: FloatArray | float,
        rank: IntArray | int = 0,
    ) -> dict[str, IntArray]:
        """The amounts of the additive resources that layers take. All arguments broadcast.

        Args:
            at: indices of the layers.
            fan_in: weight columns.
            out: weight rows.
            weight_bits: bits of the weights.
            activation_bits: bits of the layers' inputs.
            sparsity: fraction of the weights removed inside the layers, in [0, 1).
            rank: rank of the layers' two factors, 0 for layers as they are. Default: 0.

        Returns:
            Amounts by name, in the order of `additive`.
        """
        amounts = layer_resources(
            fan_in,
            out,
            self.positions[at],
            self.has_bias[at],
            weight_bits,
            activation_bits,
            sparsity,
            self.granularity,
            rank,
            self.first_factors[at],
        )
        if self.kernels is not None:
            amounts["latency"] = self.kernels.of_layers(at, fan_in, out, weight_bits, activation_bits)
        if self.energy is not None:
            macs = self._factor_macs(at, fan_in, out, rank, amounts["macs"])
            handed = rank * self.first_factors[at] * self.positions[at] * FLOAT_BYTES
            amounts["energy"] = self.energy.of_layers(
                at, fan_in, out, weight_bits, activation_bits, macs, amounts["size"], np.asarray(handed)
            )
        return amounts

    def _factor_macs(
        self, at: IntArray, fan_in: IntArray, out: IntArray, rank: IntArray | int, macs: IntArray
    ) -> tuple[IntArray, IntArray]:
        """Multiply-accumulates of whole layers and of first factors; and of second factors, which read float32."""
        second = np.asarray(rank * out * self.positions[at])
        return macs - second, second

    def fixed(self, name: str, kept: IntArray) -> IntArray | int:
        """The part of an additive resource that belongs to no layer.

        Operators without weights have no label; they compute in 32 bits.

        Args:
            name: `size`, `macs`, `bitops`, `latency` or `energy`.
            kept: (..., G) channels left in every group.

        Returns:
            (...) bytes of `size`; one number of the others.
        """
        if name == "size":
            fixed_bytes: IntArray = self.fixed_bytes + kept @ self.fixed_bytes_coef
            return fixed_bytes
        if name == "latency" and self.kernels is not None:
            return self.kernels.fixed
        if name == "energy" and self.energy is not None:
            return self.energy.fixed
        return {"macs": self.fixed_macs, "bitops": self.fixed_macs * 32 * 32}[name]

    def handed_on(self, rank: IntArray | int) -> IntArray:
        """(..., L) bytes of what first factors hand on to second ones, in float32, for one sample.

        Args:
            rank: (..., L) rank of every layer's two factors, 0 for a layer as it is.
        """
        handed: IntArray = np.asarray(rank) * self.first_factors * self.positions * FLOAT_BYTES
        return handed

    def memory(self, kept: IntArray, activation_bits: IntArray, rank: IntArray | int = 0) -> IntArray:
        """Bytes of activations at the peak, for one sample.

        Args:
            kept: (..., G) channels left in every group.
            activation_bits: (..., L) bits of every layer's input.
            rank: (..., L) rank of every layer's two factors, 0 for a layer as it is. 0 by default.

        Returns:
            (...) the largest sum of bytes of the tensors that are alive at the same moment.
        """
        read_bits = np.where(self.tensor_readers, activation_bits[..., None, :], 0).max(-1, initial=0)  # (..., T)
        bits = np.where(read_bits > 0, read_bits, 32)
        elements = self.tensor_const + kept @ self.tensor_coef.T  # (..., T)
        tensor_bytes = -(-elements * bits // 8)  # rounded up
        moments = tensor_bytes @ self.alive.T.astype(np.int64)  # (..., P)
        if np.any(rank):
            moments = moments + self.handed_on(rank) @ self._held_beside.T
        peak: IntArray = moments.max(-1, initial=0)
        return peak


def _product(first: IntArray, second: IntArray) -> IntArray:
    """The matrix product of whole numbers, in floats where it is large; exact, as sums stay below 2^53."""
    if first.ndim < 2:
        return first @ second
    return (first.astype(np.float64) @ second.astype(np.float64)).astype(np.int64)


def layer_resources(
    fan_in: IntArray,
    out: IntArray,
    positions: IntArray,
    has_bias: BoolArray,
    weight_bits: IntArray,
    activation_bits: IntArray,
    sparsity: FloatArray | float,
    granularity: str,
    rank: IntArray | int = 0,
    members: IntArray | int = 1,
) -> dict[str, IntArray]:
    """The amounts of the additive resources that layers take. All arguments broadcast.

    Multiply-accumulates with zero weights count unless whole channels are gone: dense kernels execute them.

    A layer of 100 columns and 10 rows at 4 bits takes 500 bytes of weights, 40 of scales, 40 of biases and 8
    of range:

    >>> amounts = layer_resources(*map(np.array, (100, 10, 1, True, 4, 8)), sparsity=0.0, granularity="channel")
    >>> {name: int(amount) for name, amount in amounts.items()}
    {'size': 588, 'macs': 1000, 'bitops': 32000}

    A low rank makes two layers of it: the first one has `rank` rows and no bias, the second one `rank` columns, and
    reads what is handed on in float32. At rank 4 they have 4 · 100 + 10 · 4 weights and 4 + 10 scales, 220 + 56 bytes,
    beside the 48 of biases and range. A layer that stands for several `members` has as many first ones.

    >>> low = layer_resources(*map(np.array, (100, 10, 1, True, 4, 8)), sparsity=0.0, granularity="channel", rank=4)
    >>> {name: int(amount) for name, amount in low.items()}  # 400 · 4 · 8 + 40 · 4 · 32 bit operations
    {'size': 324, 'macs': 440, 'bitops': 17920}

    Args:
        fan_in: weight columns.
        out: weight rows.
        positions: multiply-accumulates per weight and sample.
        has_bias: whether the layer has a bias.
        weight_bits: bits of the weights.
        activation_bits: bits of the layer's input.
        sparsity: fraction of the weights removed inside the layer, in [0, 1).
        granularity: `channel`, `element` or `n:m`.
        rank: rank of the layer's two factors, 0 for the layer as it is. 0 by default.
        members: layers whose rows `out` counts. Default: 1.

    Returns:
        `size` (bytes), `macs` and `bitops` (a sample), each of the broadcast shape.
    """
    weights = fan_in * out
    macs = weights * positions
    scale_bytes = SCALE_BYTES * (weight_bits < 16)
    weight_bytes = -(-stored_bits(weights, weight_bits, sparsity, granularity) // 8)  # rounded up
    size = weight_bytes + out * (scale_bytes + BIAS_BYTES * has_bias) + RANGE_BYTES * (activation_bits < 32)
    amounts = {"size": size, "macs": macs, "bitops": macs * weight_bits * activation_bits}
    if not np.any(rank):
        return amounts
    first, second = rank * fan_in * members, rank * out  # weights of the factors
    factor_bytes = -(-first * weight_bits // 8) - (-second * weight_bits // 8) + rank * members * scale_bytes
    low = {
        "size": size - weight_bytes + factor_bytes,
        "macs": (first + second) * positions,
        "bitops": (first * activation_bits + second * 32) * positions * weight_bits,
    }
    return {name: np.where(np.asarray(rank) > 0, low[name], amount) for name, amount in amounts.items()}


def stored_bits(weights: IntArray, weight_bits: IntArray, sparsity: FloatArray | float, granularity: str) -> IntArray:
    """Bits that weights take in a file: codes, and a bitmap (`element`) or indices (`n:m`) where sparse.

    >>> int(stored_bits(np.array(1_000), np.array(4), 0.5, "element"))  # 500 codes of 4 bits, 1,000 bits of bitmap
    3000
    >>> int(stored_bits(np.array(1_000), np.array(4), 0.5, "2:4"))  # 500 codes of 4 bits, 500 indices of 2 bits
    3000

    Args:
        weights: number of weights before any is removed.
        weight_bits: bits of one weight.
        sparsity: fraction of the weights removed, in [0, 1). Without effect for `channel`.
        granularity: `channel`, `element` or `n:m`.

    Raises:
        ValueError: `granularity` is none of these.
    """
    if granularity == "channel":
        return weights * weight_bits
    kept = weights - removed_weights(weights, sparsity)
    if granularity == "element":
        index_bits = weights
    else:
        _, block = n_of_m(granularity)
        index_bits = kept * math.ceil(math.log2(block))
    total: IntArray = kept * weight_bits + np.where(np.asarray(sparsity) > 0, index_bits, 0)
    return total


def removed_weights(weights: IntArray, sparsity: FloatArray | float) -> IntArray:
    """The number of weights that a sparsity removes, rounded down.

    >>> int(removed_weights(np.array(10), 0.25))
    2

    Args:
        weights: number of weights.
        sparsity: fraction to remove, in [0, 1].
    """
    removed: IntArray = np.floor(np.asarray(sparsity) * weights + 1e-9).astype(np.int64)
    return removed


def n_of_m(granularity: str) -> tuple[int, int]:
    """The numbers n (kept) and m (in a block) of a granularity such as `2:4`.

    >>> n_of_m("2:4")
    (2, 4)

    Raises:
        ValueError: `granularity` is not written n:m, or n is not below m.
    """
    kept, _, block = granularity.partition(":")
    if not (kept.isdigit() and block.isdigit() and 0 < int(kept) < int(block)):
        raise ValueError(f"`granularity` must be channel, element or n:m with n < m, got {granularity!r}.")
    return int(kept), int(block)
