"""How weights lie in a file: unsigned integers of 1 to 8 bits without gaps, and where sparse, an index before them.

Signed codes become unsigned by subtracting the smallest code of their width: 4-bit codes -8 … 7 become 0 … 15. With 1
bit, -1 and 1 become 0 and 1. Each then takes exactly its bits, most significant first, across the bytes' borders:

    codes   -8    7   -1        3 codes of 4 bits
    stored   0   15    7
    bits   0000 1111 0111 (0000)
    bytes    0x0f     0x70

A sparse weight stores only the weights that are kept, and before them which ones these are: with `element` one bit for
every weight, with `n:m` the position of every kept weight in its block of m.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.execute.compressed import LayerWeights, kept_map
from autocompress.menus.rounding import code_range
from autocompress_envs.problem import n_of_m, removed_weights

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]

FLOATS = {16: torch.float16, 32: torch.float32}  # by bits: the type that floating-point weights are stored in
_LARGEST_BLOCK = 256  # of n:m, so that a position is one byte


def pack_bits(values: UInt8, bits: int) -> UInt8:
    """Values without gaps between them, most significant bit first; zeros fill the last byte.

    >>> [f"{byte:08b}" for byte in pack_bits(np.array([1, 2, 3, 0], dtype=np.uint8), 2)]  # 01 10 11 00
    ['01101100']
    >>> pack_bits(np.array([0, 15, 7], dtype=np.uint8), 4).tobytes().hex()
    '0f70'

    Args:
        values: (n,) unsigned values below 2^bits.
        bits: width of a value, 1 to 8.

    Returns:
        (⌈n · bits / 8⌉,) bytes.
    """
    return np.packbits(_bits_of(values, bits))


def unpack_bits(packed: UInt8, bits: int, count: int) -> UInt8:
    """The values that `pack_bits` was given.

    >>> unpack_bits(np.array([0b01101100], dtype=np.uint8), 2, 4)
    array([1, 2, 3, 0], dtype=uint8)

    Args:
        packed: bytes from `pack_bits`.
        bits: width of a value, 1 to 8.
        count: number of values.

    Returns:
        (count,) values.
    """
    return _values_of(np.unpackbits(packed, count=count * bits), bits)


def encode_weight(layer: LayerWeights, granularity: str) -> Tensor:
    """A layer's weight as a file holds it.

    Dense floats keep their shape, as float16 or float32. All else is (bytes,) uint8: first the index of a sparse weight
    (one bit per weight with `element`, the positions of the kept weights in their blocks with `n:m`), then the kept
    weights in order. Codes begin at the next bit, floats at the next byte.

    >>> codes = torch.tensor([[-8, 7, -1]], dtype=torch.int8)
    >>> layer = LayerWeights(codes, torch.ones(1), None, bits=4, sparsity=0.0, input_range=None)
    >>> encode_weight(layer, "channel").tolist() == [0x0F, 0x70]
    True

    Args:
        layer: layer whose weight is stored.
        granularity: unit that sparsity removes: `channel`, `element` or `n:m`.

    Raises:
        InputError: the weight has fewer zeros than its sparsity says.
    """
    kept = kept_map(layer.values, layer.sparsity, granularity)
    if kept is None and layer.bits in FLOATS:
        return layer.values.to(FLOATS[layer.bits])
    stored = layer.values.flatten() if kept is None else layer.values[kept]
    index = np.zeros(0, np.uint8) if kept is None else _index_of(kept, layer.sparsity, granularity)
    if layer.bits in FLOATS:
        raw = stored.to(FLOATS[layer.bits]).numpy().view(np.uint8)
        return torch.from_numpy(np.concatenate([np.packbits(index), raw]))
    codes = stored.numpy().astype(np.int16)
    unsigned = (codes + 1) // 2 if layer.bits == 1 else codes - code_range(layer.bits)[0]
    return torch.from_numpy(np.packbits(np.concatenate([index, _bits_of(unsigned.astype(np.uint8), layer.bits)])))


def decode_weight(stored: Tensor, shape: tuple[int, ...], bits: int, sparsity: float, granularity: str) -> Tensor:
    """The weight that `encode_weight` was given, bit for bit: int8 codes, or float32.

    >>> decode_weight(torch.tensor([0x0F, 0x70], dtype=torch.uint8), (1, 3), 4, 0.0, "channel")
    tensor([[-8,  7, -1]], dtype=torch.int8)

    Args:
        stored: tensor from `encode_weight`.
        shape: shape of the weight.
        bits: bit-width of the weight, 1 to 8, 16 or 32.
        sparsity: fraction of the layer's single weights that are removed; 0 with `channel`.
        granularity: unit that sparsity removes: `channel`, `element` or `n:m`.

    Raises:
        InputError: the tensor does not have the bytes of such a weight, or holds no such index. Nothing larger than the
            weight is made before that is known.
    """
    total = math.prod(shape)
    if total > 8 * _LARGEST_BLOCK * stored.nbytes:  # no index is that short
        raise InputError(f"it must hold {total} weights, got {stored.nbytes} bytes")
    kept, index_bits = _counts(total, sparsity, granularity)
    expected = -(-(index_bits + kept * bits) // 8) if bits < 16 else -(-index_bits // 8) + kept * bits // 8
    if stored.nbytes != expected:
        raise InputError(f"it must take {expected} bytes, got {stored.nbytes}")
    if not index_bits and bits in FLOATS:
        if stored.dtype != FLOATS[bits]:
            raise InputError(f"it must be of {FLOATS[bits]}, got {stored.dtype}")
        return stored.float().reshape(shape)
    if stored.dtype != torch.uint8:
        raise InputError(f"it must be of torch.uint8, got {stored.dtype}")
    raw = stored.numpy()
    values = torch.from_numpy(_stored_values(raw, bits, index_bits, kept))
    if not index_bits:
        return values.view(shape)
    flat = torch.zeros(total, dtype=values.dtype)
    index = np.unpackbits(raw, count=index_bits)
    flat[torch.from_numpy(_kept_positions(index, kept, total, granularity))] = values
    return flat.view(shape)


def _counts(total: int, sparsity: float, granularity: str) -> tuple[int, int]:
    """(number of stored weights, number of bits of the index before them)."""
    if granularity == "channel" or sparsity == 0:
        return total, 0
    if granularity == "element":
        return total - int(removed_weights(np.array(total), sparsity)), total
    stays, block = _block(granularity)
    if total % block or not math.isclose(sparsity, 1 - stays / block, abs_tol=1e-6):
        raise InputError(f"it must be sparse by {granularity} in whole blocks, got {total} weights at {sparsity}")
    return total // block * stays, total // block * stays * (block - 1).bit_length()


def _block(granularity: str) -> tuple[int, int]:
    """(n, m) of `n:m`."""
    stays, block = n_of_m(granularity)
    if block > _LARGEST_BLOCK:
        raise InputError(f"it must have blocks of at most {_LARGEST_BLOCK} weights, got {granularity}")
    return stays, block


def _index_of(kept: Tensor, sparsity: float, granularity: str) -> UInt8:
    """(index bits,) zeros and ones: a bit per weight, or with `n:m` the position of every kept weight in its block."""
    expected, _ = _counts(kept.numel(), sparsity, granularity)
    flat = kept.flatten().numpy()
    if int(flat.sum()) != expected:
        zeros = kept.numel() - expected
        raise InputError(f"it must have {zeros} zeros to leave out, got {kept.numel() - int(flat.sum())}")
    if granularity == "element":
        return flat.astype(np.uint8)
    _, block = _block(granularity)
    return _bits_of(np.nonzero(flat.reshape(-1, block))[1].astype(np.uint8), (block - 1).bit_length())


def _kept_positions(index: UInt8, kept: int, total: int, granularity: str) -> Int64:
    """(kept,) positions of the stored weights among all, ascending."""
    if granularity == "element":
        positions = np.flatnonzero(index).astype(np.int64)
        if len(positions) != kept:
            raise InputError(f"its bitmap must have {kept} weights, got {len(positions)}")
        return positions
    stays, block = _block(granularity)
    places = _values_of(index, (block - 1).bit_length()).reshape(-1, stays).astype(np.int64)  # (blocks, n)
    if places.max(initial=0) >= block or (np.diff(places, axis=1) <= 0).any():
        raise InputError(f"its index must have ascending positions below {block}, got others")
    positions = np.arange(0, total, block)[:, None] + places
    return positions.ravel()


def _stored_values(raw: UInt8, bits: int, index_bits: int, count: int) -> npt.NDArray[np.generic]:
    """(count,) int8 codes or float32 weights that stand behind the index."""
    if bits in FLOATS:
        kind = np.float16 if bits == 16 else np.float32
        return raw[-(-index_bits // 8) :].copy().view(kind).astype(np.float32)
    unsigned = _values_of(np.unpackbits(raw, count=index_bits + count * bits)[index_bits:], bits).astype(np.int16)
    return (2 * unsigned - 1 if bits == 1 else unsigned + code_range(bits)[0]).astype(np.int8)


def _bits_of(values: UInt8, bits: int) -> UInt8:
    """(n · bits,) zeros and ones of (n,) values, most significant bit first."""
    all_bits = np.unpackbits(values[:, None], axis=1)  # (n, 8)
    return all_bits[:, 8 - bits :].ravel()


def _values_of(table: UInt8, bits: int) -> UInt8:
    """(n,) values from their (n · bits,) zeros and ones."""
    all_bits = np.pad(table.reshape(-1, bits), ((0, 0), (8 - bits, 0)))  # (n, 8)
    return np.packbits(all_bits, axis=1)[:, 0]
