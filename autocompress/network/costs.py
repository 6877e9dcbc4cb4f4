"""The closed-form cost model of a traced network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import nn

from autocompress.network.flow import folded_storages, layers_ahead, moments
from autocompress.network.recording import BATCH, Recording, first_values
from autocompress.network.structure import Group, Layer
from autocompress_envs.problem import CostModel

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

FILE_BYTES = 16  # a safetensors file: 8 bytes for the header's length, braces, padding to a multiple of 8
FLOAT_BYTES = 4


def build_costs(
    model: nn.Module,
    recording: Recording,
    layers: Sequence[Layer],
    groups: Sequence[Group],
    granularity: str = "channel",
) -> CostModel:
    """Costs of every labelling.

    Bytes are those of a safetensors file: per layer the packed weight, one scale per row, the bias and the input's
    range; unfolded norms, other parameters and buffers in float32; and the file's header. The header counts every one
    of those tensors, whatever the label.

    Args:
        model: with its norms folded.
        recording: of the model before folding.
        layers: in network order.
        groups: whose order is the order of `kept` in the cost model.
        granularity: `channel`, `element` or `n:m`.
    """
    fan_in_coef, out_coef = _coefficients(layers, groups)
    width = np.array([group.width for group in groups], np.int64)
    fan_in = np.array([layer.fan_in for layer in layers], np.int64)
    rows = np.array([layer.rows for layer in layers], np.int64)
    fixed_bytes, fixed_bytes_coef = _fixed_bytes(model, layers, groups)
    tensor_const, tensor_coef, readers, alive = _activations(recording, layers, groups)
    return CostModel(
        group_width=width,
        fan_in_const=fan_in - fan_in_coef @ width,
        fan_in_coef=fan_in_coef,
        out_const=rows - out_coef @ width,
        out_coef=out_coef,
        positions=np.array([layer.positions for layer in layers], np.int64),
        has_bias=np.array([layer.has_bias for layer in layers], bool),
        fixed_bytes=fixed_bytes,
        fixed_bytes_coef=fixed_bytes_coef,
        tensor_const=tensor_const,
        tensor_coef=tensor_coef,
        tensor_readers=readers,
        alive=alive,
        granularity=granularity,
    )


def _coefficients(layers: Sequence[Layer], groups: Sequence[Group]) -> tuple[IntArray, IntArray]:
    """(L, G) weight columns and (L, G) weight rows per channel of each group."""
    index = {layer.name: i for i, layer in enumerate(layers)}
    columns, rows = (np.zeros((len(layers), len(groups)), np.int64) for _ in range(2))
    for g, group in enumerate(groups):
        for name, indices in group.consumers.items():
            columns[index[name], g] = indices.shape[1]
        for name, indices in group.producers.items():
            rows[index[name], g] = indices.shape[1]
    return columns, rows


def _fixed_bytes(model: nn.Module, layers: Sequence[Layer], groups: Sequence[Group]) -> tuple[int, IntArray]:
    others = _other_tensors(model, {layer.name for layer in layers})
    coefficients = np.array([_norm_bytes(model, group) for group in groups], np.int64)
    total = FLOAT_BYTES * sum(int(np.prod(shape, dtype=np.int64)) for shape in others.values())
    shrinking = sum(int(bytes_) * group.width for bytes_, group in zip(coefficients, groups, strict=True))
    return header_bytes(_layer_tensors(layers) | others) + total - shrinking, coefficients


def _norm_bytes(model: nn.Module, group: Group) -> int:
    """Bytes of unfolded norms per channel of the group."""
    norms = {name: _stored(model.get_submodule(name)) for name in group.norms}
    return FLOAT_BYTES * sum(len(norms[name]) * int(channels.shape[1]) for name, channels in group.norms.items())


def _stored(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of what a module stores by itself; a batch norm's count of seen batches is of no use afterwards."""
    own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    kept = {name: tensor for name, tensor in own.items() if name != "num_batches_tracked"}
    return {name: tuple(tensor.shape) for name, tensor in kept.items()}


def _other_tensors(model: nn.Module, layers: set[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters and buffers that belong to no layer."""
    return {
        f"{prefix}.{name}" if prefix else name: shape
        for prefix, module in model.named_modules()
        if prefix not in layers
        for name, shape in _stored(module).items()
    }


def _layer_tensors(layers: Sequence[Layer]) -> dict[str, tuple[int, ...]]:
    tensors: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        tensors[f"{layer.name}.weight"] = layer.weight_shape
        tensors[f"{layer.name}.weight_scale"] = (layer.rows,)
        tensors[f"{layer.name}.input_range"] = (2,)
        if layer.has_bias:
            tensors[f"{layer.name}.bias"] = (layer.rows,)
    return tensors


def header_bytes(tensors: Mapping[str, tuple[int, ...]]) -> int:
    """Upper bound of the header of a safetensors file with these tensors, in float32 or anything narrower.

    One JSON entry per tensor; the widest dtype name and the largest offset stand in every one.
    Source: https://huggingface.co/docs/safetensors (format).
    """
    end = FLOAT_BYTES * sum(int(np.prod(shape, dtype=np.int64)) for shape in tensors.values())
    entries = {name: {"dtype": "BF16", "shape": shape, "data_offsets": [end, end]} for name, shape in tensors.items()}
    return FILE_BYTES + len(json.dumps(entries, separators=(",", ":")))


def _activations(
    recording: Recording, layers: Sequence[Layer], groups: Sequence[Group]
) -> tuple[IntArray, IntArray, BoolArray, BoolArray]:
    """(T,) constant elements, (T, G) elements per channel, (T, L) readers, (P, T) alive; per sample."""
    folded = {layer.norm for layer in layers if layer.norm is not None}
    alias = folded_storages(recording, folded)
    steps = moments(recording, alias, folded)
    tensors = sorted(set().union(*steps))
    column = {storage: t for t, storage in enumerate(tensors)}
    alive = np.zeros((len(steps), len(tensors)), bool)
    for moment, living in enumerate(steps):
        alive[moment, [column[storage] for storage in living]] = True
    ahead = layers_ahead(recording, alias)
    readers = np.array([[layer.name in ahead.get(s, ()) for layer in layers] for s in tensors], bool)
    elements = np.array([-(-recording.storage_elements[s] // BATCH) for s in tensors], np.int64)
    coefficients = _tensor_coefficients(recording, tensors, groups)
    width = np.array([group.width for group in groups], np.int64)
    return (
        elements - coefficients @ width,
        coefficients,
        readers.reshape(len(tensors), len(layers)),
        _maximal_rows(alive),
    )


def _tensor_coefficients(recording: Recording, tensors: Sequence[int], groups: Sequence[Group]) -> IntArray:
    """(T, G) elements of each tensor per channel of each group."""
    group_of = _group_of_source(recording, groups)
    firsts = first_values(recording)
    coefficients = np.zeros((len(tensors), len(groups)), np.int64)
    for t, storage in enumerate(tensors):
        channels = firsts[storage].channels
        if channels is None or not groups:
            continue
        per_entry = recording.storage_elements[storage] // BATCH // len(channels.sources)
        members = group_of[channels.sources]
        counts = np.bincount(members[members >= 0], minlength=len(groups))
        for g in np.flatnonzero(counts).tolist():
            whole, rest = divmod(int(counts[g]), groups[g].width)
            # Part of a group's channels: how many stay depends on which are removed, so count them as staying.
            coefficients[t, g] = 0 if rest else whole * per_entry
    return coefficients


def _group_of_source(recording: Recording, groups: Sequence[Group]) -> IntArray:
    """Group of every layer output channel in `Channels.sources`, -1 where there is none; so is the last entry."""
    producers = [(name, g, rows) for g, group in enumerate(groups) for name, rows in group.producers.items()]
    size = 1 + max((recording.first_row[name] + int(rows.max()) for name, _, rows in producers), default=0)
    total = max([size, *(int(v.channels.sources.max()) + 1 for v in recording.values if v.channels is not None)])
    group_of = np.full(total + 1, -1, np.int64)  # index -1, no source, reads the last entry
    for name, g, rows in producers:
        group_of[recording.first_row[name] + rows.ravel()] = g
    return group_of


def _maximal_rows(alive: BoolArray) -> BoolArray:
    """Without moments whose tensors are all alive in another moment: they can't be the peak."""
    rows = np.unique(alive, axis=0)
    overlap = rows.astype(np.float32) @ rows.astype(np.float32).T  # (P, P) tensors alive in both
    is_within: BoolArray = overlap >= rows.sum(1, dtype=np.float32)[:, None]
    np.fill_diagonal(is_within, False)
    maximal: BoolArray = rows[~is_within.any(1)]
    return maximal
