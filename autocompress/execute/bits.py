"""Bit packing: unsigned integers of 1 to 8 bits in a row, without gaps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]


def pack_bits(values: UInt8, bits: int) -> UInt8:
    """(⌈n · bits / 8⌉,) bytes of (n,) values below 2^bits, most significant bit first.

    >>> pack_bits(np.array([1, 2, 3, 0], dtype=np.uint8), 2)
    array([108], dtype=uint8)
    """
    table = np.unpackbits(values[:, None], axis=1)[:, 8 - bits :]  # (n, bits)
    return np.packbits(table.ravel())


def unpack_bits(packed: UInt8, bits: int, count: int) -> UInt8:
    """The (count,) values that `pack_bits` was given.

    >>> unpack_bits(np.array([108], dtype=np.uint8), 2, 4)
    array([1, 2, 3, 0], dtype=uint8)
    """
    table = np.unpackbits(packed, count=count * bits).reshape(count, bits)
    return np.packbits(np.pad(table, ((0, 0), (8 - bits, 0))), axis=1)[:, 0]
