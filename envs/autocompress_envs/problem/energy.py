"""What a labelling takes in energy, modelled: operations by their widths, and bytes moved.

The constants are those of a chip in 45 nm at 0.9 V: M. Horowitz, "Computing's energy problem (and what we can do about
it)", ISSCC 2014, figure 1.1.9.

| what | picojoules |
| --- | ---: |
| integer addition, 8 and 32 bits | 0.03, 0.1 |
| integer multiplication, 8 and 32 bits | 0.2, 3.1 |
| float addition, 16 and 32 bits | 0.4, 0.9 |
| float multiplication, 16 and 32 bits | 1.1, 3.7 |
| 64 bits from 8 kB, 32 kB, 1 MB of memory on the chip | 10, 20, 100 |
| 64 bits from DRAM | 1,300 to 2,600 |

What a network takes on a chip of today is another number; how two plans compare is what the model is for. Waiting,
instructions and everything between the layers are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autocompress_envs.problem.arrays import BoolArray, FloatArray, IntArray

DRAM = 160_000
"""Femtojoules of one byte from DRAM: 640 picojoules for 32 bits, the lower end of what Horowitz gives."""

ON_CHIP = ((8 * 2**10, 1_250), (32 * 2**10, 2_500), (2**20, 12_500))
"""Memories on the chip: their bytes, and the femtojoules of one byte."""

FLOAT_MAC = 4_600
"""Femtojoules of a multiply-accumulate in float32: 3.7 and 0.9 picojoules."""

_EIGHTHS = 8_000  # of a femtojoule in a picojoule: whole numbers, as bits are eighths of bytes


def access_energy(memory_bytes: int) -> int:
    """Femtojoules of one byte of activations: those of the smallest memory that holds them.

    >>> access_energy(8192), access_energy(8193), access_energy(2**20 + 1)
    (1250, 2500, 160000)

    Args:
        memory_bytes: bytes of all activations that are alive at a time.
    """
    return next((energy for capacity, energy in ON_CHIP if memory_bytes <= capacity), DRAM)


def mac_energy(weight_bits: IntArray, activation_bits: IntArray) -> IntArray:
    """Eighths of a femtojoule of one multiply-accumulate.

    Where both operands are integers, they are multiplied as such, and added in 32 bits. A multiplier takes what the
    product of its operands' bits takes: 0.2 picojoules at 8 times 8, as Horowitz has it, and 3.2 at 32 times 32, where
    he has 3.1. Elsewhere it is one of float32.

    >>> [int(mac_energy(np.array(w), np.array(a))) / 8_000 for w, a in ((8, 8), (4, 8), (8, 32))]  # picojoules
    [0.3, 0.2, 4.6]

    Args:
        weight_bits: bits of the weights; 16 and 32 are floating point.
        activation_bits: bits of the layers' inputs; 32 is floating point.
    """
    is_integer = (np.asarray(weight_bits) < 16) & (np.asarray(activation_bits) < 32)
    whole: IntArray = np.where(is_integer, 25 * weight_bits * activation_bits + 8 * 100, 8 * FLOAT_MAC)
    return whole


@dataclass(frozen=True)
class EnergyCosts:
    """What the energy of L layers depends on besides their labels, for one sample.

    A layer takes its multiply-accumulates (`mac_energy`), its bytes once from DRAM, and twice the bytes of its input at
    its activation bits: written once and read once in the smallest memory that holds the original's activations. Of a
    table whose rows are looked up, only these rows are moved.

    Attributes:
        input_elements: (L,) elements of every layer's input in the original, over all calls.
        width: (L,) columns of the original, or its rows where they have inputs of their own: the input shrinks with
            them.
        has_own_inputs: (L,) whether every row reads inputs of its own, as in a depthwise convolution.
        lookups: (L,) rows that are looked up; 0 for layers that multiply.
        access: femtojoules of one byte of activations (`access_energy`).
        fixed: picojoules that no label changes.
    """

    input_elements: IntArray
    width: IntArray
    has_own_inputs: BoolArray
    lookups: IntArray
    access: int
    fixed: int

    def of_layers(
        self,
        at: IntArray,
        fan_in: IntArray,
        out: IntArray,
        weight_bits: IntArray,
        activation_bits: IntArray,
        macs: tuple[IntArray, IntArray],
        moved_bytes: IntArray,
        handed_bytes: IntArray,
    ) -> IntArray:
        """Picojoules of layers, rounded up. All arguments broadcast.

        Args:
            at: indices of the layers.
            fan_in: weight columns.
            out: weight rows.
            weight_bits: bits of the weights.
            activation_bits: bits of the layers' inputs.
            macs: multiply-accumulates of the layers, or of their first factors; and those of their second factors.
            moved_bytes: bytes of the layers in the file.
            handed_bytes: bytes that first factors hand on to second ones.
        """
        own = np.where(self.has_own_inputs[at], out, fan_in)
        elements = -(-self.input_elements[at] * own // np.maximum(self.width[at], 1))  # rounded up
        looked_up = -(-self.lookups[at] * fan_in * weight_bits // 8)
        moved = np.where(self.lookups[at] > 0, np.minimum(looked_up, moved_bytes), moved_bytes)
        eighths = (
            macs[0] * mac_energy(weight_bits, activation_bits)
            + macs[1] * mac_energy(weight_bits, np.array(32))
            + 8 * DRAM * moved
            + 2 * self.access * (elements * activation_bits + 8 * handed_bytes)
        )
        whole: IntArray = -(-eighths // _EIGHTHS)
        return whole

    def slopes(self, weight_bits: IntArray, activation_bits: IntArray) -> tuple[FloatArray, ...]:
        """Picojoules of a multiply-accumulate, of a byte of the file, and of the inputs of a column and of a row.

        They are the slopes of `of_layers` where nothing is rounded, which the solver takes its costs from.

        Args:
            weight_bits: (…, L) bits of the weights.
            activation_bits: (…, L) bits of the layers' inputs.
        """
        mac = mac_energy(weight_bits, activation_bits) / _EIGHTHS
        moved = np.where(self.lookups > 0, 0.0, DRAM / 1000)
        inputs = 2 * self.access * activation_bits * self.input_elements / np.maximum(self.width, 1) / _EIGHTHS
        looked_up = self.lookups * weight_bits * DRAM / _EIGHTHS
        column = np.where(self.has_own_inputs, 0.0, inputs) + looked_up
        found = (mac, np.broadcast_to(moved, mac.shape), column, np.where(self.has_own_inputs, inputs, 0.0))
        return tuple(np.asarray(each, dtype=np.float64) for each in found)
