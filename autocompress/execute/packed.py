"""The packed file: a plan's weights in safetensors, every code at its real width.

Tensors, by layer name: `NAME.weight` (bytes, see `_encode`; float16 or float32 where the label says 16 or 32 bits),
`NAME.weight_scale`, `NAME.bias`, `NAME.input_range` (scale, zero point); everything else under its own name. How many
rows, columns and bits a weight has is told by the plan that lies beside the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.evaluation.stitch import LayerChoice, kept_rows, resolve
from autocompress.execute.bits import pack_bits, unpack_bits
from autocompress.menus.menus import Menus
from autocompress.menus.quantizers import code_range
from autocompress.network.structure import Layer
from autocompress_envs.numbers import Labeling, n_of_m, removed_weights

Codes = npt.NDArray[np.int8]
BoolMap = npt.NDArray[np.bool_]


def pack(menus: Menus, labeling: Labeling, stitched: nn.Module) -> bytes:
    """The packed file of a plan. It is never larger than the `size` that the cost model gives the plan.

    Args:
        menus: of the network.
        labeling: the plan.
        stitched: the model with the plan's weights, for everything that belongs to no layer.
    """
    tensors: dict[str, Tensor] = {}
    names = {layer.name for layer in menus.network.layers}
    for layer, choice in zip(menus.network.layers, resolve(menus, labeling), strict=True):
        tensors |= _layer_tensors(menus, layer, choice)
    for name, tensor in stitched.state_dict().items():
        if name.rpartition(".")[0] not in names and not name.endswith("num_batches_tracked"):
            tensors[name] = tensor.detach().cpu().contiguous()
    return save(tensors)


def load_packed(path: str | Path, menus: Menus, labeling: Labeling) -> dict[str, Tensor]:
    """The weights in a packed file, as a float32 state dict of the plan's stitched model (`Evaluator.stitched`).

    Raises:
        InputError: the file is missing or damaged, or belongs to another plan.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"`path` must be a packed safetensors file, got {path}: {error}.") from error
    state = {}
    for layer, choice in zip(menus.network.layers, resolve(menus, labeling), strict=True):
        state[f"{layer.name}.weight"] = _decoded(menus, layer, choice, tensors, path)
        if layer.has_bias:
            state[f"{layer.name}.bias"] = _found(tensors, f"{layer.name}.bias", path)
        for name in ("weight", "weight_scale", "bias", "input_range"):
            tensors.pop(f"{layer.name}.{name}", None)
    return state | tensors


def _layer_tensors(menus: Menus, layer: Layer, choice: LayerChoice) -> dict[str, Tensor]:
    variant = menus.variant(layer, choice.reads, choice.sparsity, choice.weight_bits)
    rows = kept_rows(menus, layer, choice)
    bits = menus.settings.weight_bits[choice.weight_bits]
    tensors = {}
    if variant.scale is None:
        dtype = torch.float16 if bits == 16 else torch.float32
        tensors["weight"] = _float_weight(variant.values[rows].to(dtype), choice.sparsity, menus.settings.granularity)
    else:
        codes = _encode(variant.values[rows].numpy(), bits, choice.sparsity, menus.settings.granularity)
        tensors["weight"] = torch.from_numpy(codes)
        tensors["weight_scale"] = variant.scale[rows]
    if layer.has_bias:
        tensors["bias"] = variant.bias[rows]
    found = menus.ranges[layer.name][choice.activation_bits]
    if found is not None:
        tensors["input_range"] = torch.tensor([found.scale, found.zero], dtype=torch.float32)
    return {f"{layer.name}.{name}": tensor.contiguous() for name, tensor in tensors.items()}


def _encode(codes: Codes, bits: int, sparsity: float, granularity: str) -> npt.NDArray[np.uint8]:
    """Codes (rows, columns) as unsigned numbers, `bits` each; where sparse, a map of the kept ones before them."""
    kept = _kept_map(codes, sparsity, granularity)
    if kept is None:
        return pack_bits(_unsigned(codes.ravel(), bits), bits)
    index = _index_bits(kept, granularity)
    values = np.unpackbits(pack_bits(_unsigned(codes[kept], bits), bits), count=int(kept.sum()) * bits)
    return np.packbits(np.concatenate([index, values]))


def _float_weight(values: Tensor, sparsity: float, granularity: str) -> Tensor:
    kept = _kept_map(values.numpy(), sparsity, granularity)
    if kept is None:
        return values.flatten()
    stored = values.numpy()[kept].view(np.uint8)
    return torch.from_numpy(np.concatenate([np.packbits(_index_bits(kept, granularity)), stored]))


def _decoded(
    menus: Menus, layer: Layer, choice: LayerChoice, tensors: Mapping[str, Tensor], path: str | Path
) -> Tensor:
    bits = menus.settings.weight_bits[choice.weight_bits]
    rows, columns = len(kept_rows(menus, layer, choice)), len(menus.kept_columns(layer, choice.reads))
    granularity = menus.settings.granularity
    kept_count = rows * columns
    index = np.zeros(0, dtype=np.uint8)
    if granularity != "channel" and choice.sparsity > 0:
        kept_count -= int(removed_weights(np.array(kept_count), choice.sparsity))
        index = np.zeros(_index_length(rows * columns, kept_count, granularity), dtype=np.uint8)
    stored = tensors.get(f"{layer.name}.weight")
    expected = -(-(len(index) + kept_count * bits) // 8) if bits < 16 else -(-len(index) // 8) + kept_count * bits // 8
    if stored is None or stored.nbytes != expected:
        got = "nothing" if stored is None else f"{stored.nbytes} bytes"
        raise InputError(f"`path` must hold {expected} bytes for {layer.name}.weight, got {got} in {path}.")
    raw = stored.numpy().view(np.uint8)
    flat = np.zeros(rows * columns, dtype=np.float32)
    where = slice(None) if not len(index) else _kept_positions(np.unpackbits(raw, count=len(index)), granularity, flat)
    flat[where] = _values(raw, bits, len(index), kept_count)
    weight = torch.from_numpy(flat).view(rows, columns)
    if bits < 16:
        weight = weight * _found(tensors, f"{layer.name}.weight_scale", path)[:, None]
    return weight.reshape(rows, -1, *layer.weight_shape[2:])


def _found(tensors: Mapping[str, Tensor], name: str, path: str | Path) -> Tensor:
    if name not in tensors:
        raise InputError(f"`path` must hold {name}, got nothing of that name in {path}.")
    return tensors[name]


def _values(raw: npt.NDArray[np.uint8], bits: int, index_bits: int, count: int) -> npt.NDArray[np.float32]:
    if bits >= 16:
        start = -(-index_bits // 8)
        return raw[start:].view(np.float16 if bits == 16 else np.float32).astype(np.float32)
    codes = np.packbits(np.unpackbits(raw, count=index_bits + count * bits)[index_bits:])
    unsigned = unpack_bits(codes, bits, count).astype(np.float32)
    return 2 * unsigned - 1 if bits == 1 else unsigned + code_range(bits)[0]


def _unsigned(codes: Codes, bits: int) -> npt.NDArray[np.uint8]:
    shifted = (codes.astype(np.int16) + 1) // 2 if bits == 1 else codes.astype(np.int16) - code_range(bits)[0]
    return shifted.astype(np.uint8)


def _kept_map(values: npt.NDArray[np.generic], sparsity: float, granularity: str) -> BoolMap | None:
    """(rows, columns) where a value is stored; of the zeros, exactly as many as the label removes are not."""
    if granularity == "channel" or sparsity == 0:
        return None
    zero = values == 0
    if granularity == "element":
        removed = int(removed_weights(np.array(values.size), sparsity))
        kept_map: BoolMap = ~(zero & (zero.ravel().cumsum().reshape(zero.shape) <= removed))
        return kept_map
    kept, block = n_of_m(granularity)
    blocks = zero.reshape(-1, block)
    kept_map = ~(blocks & (blocks.cumsum(1) <= block - kept))
    return kept_map.reshape(values.shape)


def _index_bits(kept: BoolMap, granularity: str) -> npt.NDArray[np.uint8]:
    """A bitmap, or with n:m the position of every kept weight in its block."""
    if granularity == "element":
        return kept.ravel().astype(np.uint8)
    _, block = n_of_m(granularity)
    positions = np.nonzero(kept.reshape(-1, block))[1].astype(np.uint8)
    width = (block - 1).bit_length()
    return np.unpackbits(positions[:, None], axis=1)[:, 8 - width :].ravel()


def _index_length(weights: int, kept: int, granularity: str) -> int:
    return weights if granularity == "element" else kept * (n_of_m(granularity)[1] - 1).bit_length()


def _kept_positions(
    index: npt.NDArray[np.uint8], granularity: str, flat: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    """Indices into `flat` of the stored weights."""
    if granularity == "element":
        return np.flatnonzero(index)
    kept, block = n_of_m(granularity)
    width = (block - 1).bit_length()
    places = np.packbits(np.pad(index.reshape(-1, width), ((0, 0), (8 - width, 0))), axis=1)[:, 0].astype(np.int64)
    starts = np.repeat(np.arange(0, len(flat), block), kept)
    return starts + places
