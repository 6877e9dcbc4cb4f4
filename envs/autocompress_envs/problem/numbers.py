"""The numbers of one compression task: what every label of every layer costs and how much it is expected to hurt.

This is all that the environment, the solvers and the policies know of a network. NumPy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

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
        fixed_macs: multiply-accumulates of operators that carry no weights; they stay whatever the labels.
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
        totals = {name: amounts.sum(-1) + self.fixed(name, kept) for name, amounts in layers.items()}
        totals["memory"] = self.memory(kept, activation_bits)
        return totals

    def fixed(self, name: str, kept: IntArray) -> IntArray | int:
        """The part of a resource that no layer has, for `kept` (..., G): (...) `size`; one number `macs` or `bitops`.

        Operators without weights have no label; they compute in 32 bits.
        """
        if name == "size":
            fixed_bytes: IntArray = self.fixed_bytes + kept @ self.fixed_bytes_coef
            return fixed_bytes
        return {"macs": self.fixed_macs, "bitops": self.fixed_macs * 32 * 32}[name]

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


@dataclass(frozen=True)
class LayerNumbers:
    """One layer's menu in numbers.

    Attributes:
        name: the layer's name.
        kind: `conv`, `depthwise` or `linear`.
        sparsities: (S,) what this layer may choose, ascending, first 0. Just (0.0,) where it has nothing to choose.
        kept: (S,) channels left in the layer's own group for each sparsity; empty where it owns no group.
        group: index of the group it owns, or None.
        weight_bits: (B,) ascending.
        activation_bits: (A,) ascending.
        source: index of the layer whose chosen sparsity selects the first axis of `errors` (the owner of the group
            that this layer reads, or the layer itself where the granularity is not `channel`); None: one row.
        errors: (S of source or 1, B, A) expected loss (nats of KL divergence a sample), at least 0.
        extra_sources: owners of further groups that this layer reads (concatenations), each with the error (S,)
            that its sparsity adds.
    """

    name: str
    kind: str
    sparsities: FloatArray
    kept: IntArray
    group: int | None
    weight_bits: IntArray
    activation_bits: IntArray
    source: int | None
    errors: FloatArray
    extra_sources: tuple[tuple[int, FloatArray], ...] = ()


@dataclass(frozen=True)
class Labeling:
    """A plan in indices into the menus, one entry per layer: each (L,) int64."""

    sparsity: IntArray
    weight_bits: IntArray
    activation_bits: IntArray

    def key(self) -> bytes:
        """The same for equal labellings of one network, and only for these."""
        return np.stack([self.sparsity, self.weight_bits, self.activation_bits]).astype(np.int64).tobytes()


@dataclass(frozen=True)
class Problem:
    """Everything that the environment knows of one network: its layers' menus and its costs."""

    layers: tuple[LayerNumbers, ...]
    costs: CostModel

    def kept(self, labeling: Labeling) -> IntArray:
        """(G,) channels left in every group."""
        kept = self.costs.group_width.copy()
        for index, layer in enumerate(self.layers):
            if layer.group is not None:
                kept[layer.group] = layer.kept[labeling.sparsity[index]]
        return kept

    def resources(self, labeling: Labeling) -> dict[str, int]:
        """Every resource of a labelling, exactly as it will be counted in the end."""
        picked = zip(self.layers, labeling.sparsity, labeling.weight_bits, labeling.activation_bits, strict=True)
        chosen = np.array([(at.sparsities[s], at.weight_bits[w], at.activation_bits[a]) for at, s, w, a in picked])
        bits = chosen[:, 1:].astype(np.int64)
        totals = self.costs.resources(self.kept(labeling), bits[:, 0], bits[:, 1], chosen[:, 0])
        return {name: int(amount) for name, amount in totals.items()}

    def original(self) -> dict[str, int]:
        """Resources of the uncompressed network: all channels, 32 bits everywhere."""
        full = np.full(len(self.layers), 32)
        totals = self.costs.resources(self.costs.group_width, full, full)
        return {name: int(amount) for name, amount in totals.items()}


@dataclass(frozen=True)
class Outcome:
    """What was measured for one plan.

    Attributes:
        kl: mean Kullback-Leibler divergence from the original's outputs to the plan's, in nats, at least 0.
        accuracy: task metric in [0, 1] (top-1), NaN without labels.
        agreement: fraction of samples with the original's top-1 answer.
        resources: every resource.
        shift: (N, K) by how much the plan raises the log-probability of each of K classes on each of N samples; None
            where only the numbers above were kept.
    """

    kl: float
    accuracy: float
    agreement: float
    resources: dict[str, int]
    shift: npt.NDArray[np.float16] | None = field(default=None, compare=False, repr=False)
