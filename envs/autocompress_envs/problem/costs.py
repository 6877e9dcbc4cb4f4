"""What a labelling costs: bytes, multiply-accumulates, bit operations and peak memory in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from autocompress_envs.problem.arrays import BoolArray, FloatArray, IntArray

SCALE_BYTES = 4  # one float32 scale per output channel of a quantized weight
BIAS_BYTES = 4  # one float32 bias per output channel
RANGE_BYTES = 8  # float32 scale and zero point of a quantized layer input


@dataclass(frozen=True)
class CostModel:
    """Closed-form costs of a network with L layers and G channel groups.

    With `kept` (..., G) the channels left in every group, layer l has
    `fan_in = fan_in_const + fan_in_coef @ kept` weight columns in each of its
    `out = out_const + out_coef @ kept` rows. T activation tensors are alive in P moments of the forward pass.

    Attributes:
        group_width: (G,) channels of every group in the original.
        fan_in_const: (L,), fan_in_coef: (L, G) weight columns that stay, and columns per kept channel of each group.
        out_const: (L,), out_coef: (L, G) the same for weight rows.
        positions: (L,) multiply-accumulates per weight and sample (output positions).
        has_bias: (L,) whether the layer has a bias once batch norms are folded into it.
        fixed_bytes: every other byte of the file: headers, norms that can't be folded, other parameters.
        fixed_bytes_coef: (G,) the part of those that shrinks, per kept channel.
        tensor_const: (T,), tensor_coef: (T, G) elements of every activation tensor, for one sample.
        tensor_readers: (T, L) which layers read the tensor; it is held with the most activation bits of these,
            32 where no layer reads it.
        alive: (P, T) which tensors are alive at which moment.
        granularity: `channel`, `element`, or `n:m`; the last two leave widths alone and shrink weight storage.
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

    def widths(self, kept: IntArray) -> tuple[IntArray, IntArray]:
        """(fan_in, out), each (..., L), for `kept` (..., G)."""
        return self.fan_in_const + _product(kept, self.fan_in_coef.T), self.out_const + _product(kept, self.out_coef.T)

    def resources(
        self, kept: IntArray, weight_bits: IntArray, activation_bits: IntArray, sparsity: FloatArray | float = 0.0
    ) -> dict[str, IntArray]:
        """Every resource of a labelling; leading axes are batch axes.

        Args:
            kept: (..., G) channels left.
            weight_bits: (..., L).
            activation_bits: (..., L).
            sparsity: (..., L) fraction of the weights removed inside the layer; granularities other than channel.

        Returns:
            `size` (bytes), `macs`, `bitops` and `memory` (bytes), each of shape (...).
        """
        fan_in, out = self.widths(kept)
        layers = layer_resources(
            fan_in, out, self.positions, self.has_bias, weight_bits, activation_bits, sparsity, self.granularity
        )
        totals = {name: amounts.sum(-1) for name, amounts in layers.items()}
        totals["size"] = totals["size"] + self.fixed_bytes + kept @ self.fixed_bytes_coef
        totals["memory"] = self.memory(kept, activation_bits)
        return totals

    def memory(self, kept: IntArray, activation_bits: IntArray) -> IntArray:
        """(...,) bytes of activations at the peak, for one sample."""
        read_bits = np.where(self.tensor_readers, activation_bits[..., None, :], 0).max(-1, initial=0)  # (..., T)
        bits = np.where(read_bits > 0, read_bits, 32)
        tensor_bytes = -(-(self.tensor_const + kept @ self.tensor_coef.T) * bits // 8)
        peak: IntArray = (tensor_bytes @ self.alive.T.astype(np.int64)).max(-1, initial=0)
        return peak


def _product(first: IntArray, second: IntArray) -> IntArray:
    """The matrix product of whole numbers, by way of floats where it is large: exact, as sums stay below 2^53."""
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
) -> dict[str, IntArray]:
    """`size`, `macs` and `bitops` of layers; every argument broadcasts.

    Multiply-accumulates with zero weights count unless whole channels are gone: dense kernels execute them.
    """
    weights = fan_in * out
    macs = weights * positions
    per_row = SCALE_BYTES * (weight_bits < 16) + BIAS_BYTES * has_bias
    ranges = RANGE_BYTES * (activation_bits < 32)
    size = -(-stored_bits(weights, weight_bits, sparsity, granularity) // 8) + out * per_row + ranges
    return {"size": size, "macs": macs, "bitops": macs * weight_bits * activation_bits}


def stored_bits(weights: IntArray, weight_bits: IntArray, sparsity: FloatArray | float, granularity: str) -> IntArray:
    """Bits that `weights` weights take in a file: codes, plus a bitmap (element) or indices (n:m) where sparse."""
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
    """How many of `weights` weights a sparsity removes: rounded down."""
    removed: IntArray = np.floor(np.asarray(sparsity) * weights + 1e-9).astype(np.int64)
    return removed


def n_of_m(granularity: str) -> tuple[int, int]:
    """(n kept, m in a block) of a granularity such as `2:4`.

    >>> n_of_m("2:4")
    (2, 4)
    """
    kept, _, block = granularity.partition(":")
    if not (kept.isdigit() and block.isdigit() and 0 < int(kept) < int(block)):
        raise ValueError(f"`granularity` must be channel, element or n:m with n < m, got {granularity!r}.")
    return int(kept), int(block)
