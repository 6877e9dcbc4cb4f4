"""What a labelling takes in time, predicted: a closed form over the kernels that a runtime runs.

The unit is the kernel that runs a layer together with what the runtime fused into it, not the layer's operations: half
of the channels is not half of the time. Some kernels run only where the widths suit them, such as multiples of four
channels; elsewhere another one takes their place, which may be half as fast. The numbers come from whole networks that
were timed; nothing here knows how.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autocompress_envs.problem.arrays import FloatArray, IntArray


@dataclass(frozen=True)
class KernelCosts:
    """Time of every one of L layers in each of K kernels, in nanoseconds.

    A layer with C weight columns and R rows takes, with kernel k,

        per_layer[k, l] + per_column[k, l] C + per_row[k, l] R + per_weight[k, l] C R      rounded up

    A layer that has no columns or no rows left is gone, with all that was fused into it, and takes nothing.

    Attributes:
        kernel: (33, 33) index of the kernel that a layer is meant for, by its weight bits and its activation bits.
        instead: (K,) index of the kernel that runs where the widths don't suit a kernel; its own where all do.
        column_step: (K, L) number whose multiples of columns suit the kernel; 1 where all do.
        row_step: (K, L) number whose multiples of rows suit the kernel; 1 where all do.
        least_rows: (K, L) fewest rows that suit the kernel.
        per_layer: (K, L) time whatever the widths are, at least 0: the call, and what follows the layer.
        per_column: (K, L) time a column, at least 0: gathering the inputs.
        per_row: (K, L) time a row, at least 0: writing the outputs, and what is computed of each of them.
        per_weight: (K, L) time a weight, at least 0: multiply-accumulates.
        fixed: time that no label changes.
    """

    kernel: IntArray
    instead: IntArray
    column_step: IntArray
    row_step: IntArray
    least_rows: IntArray
    per_layer: FloatArray
    per_column: FloatArray
    per_row: FloatArray
    per_weight: FloatArray
    fixed: int

    def of_layers(
        self, at: IntArray, fan_in: IntArray, out: IntArray, weight_bits: IntArray, activation_bits: IntArray
    ) -> IntArray:
        """Nanoseconds of layers. All arguments broadcast.

        Args:
            at: indices of the layers.
            fan_in: weight columns.
            out: weight rows.
            weight_bits: bits of the weights.
            activation_bits: bits of the layers' inputs.
        """
        k = self.running(at, fan_in, out, weight_bits, activation_bits)
        time = self.per_layer[k, at] + self.per_column[k, at] * fan_in + self.per_row[k, at] * out
        time = time + self.per_weight[k, at] * (fan_in * out)
        whole: IntArray = np.ceil(np.where((fan_in > 0) & (out > 0), time, 0.0) - 1e-6).astype(np.int64)
        return whole

    def running(
        self, at: IntArray, fan_in: IntArray, out: IntArray, weight_bits: IntArray, activation_bits: IntArray
    ) -> IntArray:
        """Indices of the kernels that run layers; the arguments are those of `of_layers`."""
        meant = self.kernel[weight_bits, activation_bits]
        suits = (fan_in % self.column_step[meant, at] == 0) & (out % self.row_step[meant, at] == 0)
        index: IntArray = np.where(suits & (out >= self.least_rows[meant, at]), meant, self.instead[meant])
        return index
