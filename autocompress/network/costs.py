"""The closed-form cost model of a traced network."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from torch import nn

from autocompress.network.flow import folded_storages, layers_ahead, moments
from autocompress.network.structure import EMBEDDING, Group, Layer
from autocompress.network.tape import BATCH, Tape, first_values
from autocompress_envs.problem import FLOAT_MAC, CostModel, EnergyCosts, access_energy

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

FILE_BYTES = 16  # a safetensors file: 8 bytes for the header's length, braces, padding to a multiple of 8
FLOAT_BYTES = 4


def build_costs(
    model: nn.Module,
    tape: Tape,
    layers: Sequence[Layer],
    groups: Sequence[Group],
    granularity: str = "channel",
) -> CostModel:
    """The cost model, from which the resources of every labelling follow.

    Bytes are those of a safetensors file: per layer the packed weight, one scale per row, the bias and the
    input's range; unfolded norms, other parameters and buffers in float32; and the file's header. The header
    counts every one of those tensors, whatever the label.

    Args:
        model: network with its norms folded.
        tape: operators of one forward pass of the network before folding.
        layers: layers in network order.
        groups: channel groups; their order is that of `kept` in the cost model.
        granularity: unit that is pruned: `channel`, `element` or `n:m`.
    """
    fan_in_coef, out_coef = _coefficients(layers, groups)
    width = np.array([group.width for group in groups], np.int64)
    fan_in = np.array([layer.fan_in for layer in layers], np.int64)
    rows = np.array([layer.rows for layer in layers], np.int64)
    fixed_bytes, fixed_bytes_coef = _fixed_bytes(model, layers, groups)
    tensor_const, tensor_coef, readers, alive = _activations(tape, layers, groups)
    fixed_macs = sum(fixed_operators(tape).values())
    made = CostModel(
        group_width=width,
        fan_in_const=fan_in - fan_in_coef @ width,
        fan_in_coef=fan_in_coef,
        out_const=rows - out_coef @ width,
        out_coef=out_coef,
        positions=np.array([layer.macs_a_weight for layer in layers], np.int64),
        has_bias=np.array([layer.has_bias for layer in layers], bool),
        fixed_bytes=fixed_bytes,
        fixed_bytes_coef=fixed_bytes_coef,
        tensor_const=tensor_const,
        tensor_coef=tensor_coef,
        tensor_readers=readers,
        alive=alive,
        granularity=granularity,
        fixed_macs=fixed_macs,
    )
    most = int(made.memory(width, np.full(len(layers), 32)))
    return replace(made, energy=_energy(layers, most, fixed_macs))


def _energy(layers: Sequence[Layer], memory_bytes: int, fixed_macs: int) -> EnergyCosts:
    """What the energy of the layers depends on.

    Args:
        layers: layers in network order.
        memory_bytes: bytes of the original's activations at the peak.
        fixed_macs: multiply-accumulates a sample of operators without weights, which compute in float32.
    """
    has_own = np.array([layer.kind == "depthwise" for layer in layers], bool)
    return EnergyCosts(
        input_elements=np.array([_input_elements(layer) for layer in layers], np.int64),
        width=np.array([layer.rows if own else layer.fan_in for layer, own in zip(layers, has_own, strict=True)]),
        has_own_inputs=has_own,
        lookups=np.array([layer.positions if layer.kind == EMBEDDING else 0 for layer in layers], np.int64),
        access=access_energy(memory_bytes),
        fixed=-(-fixed_macs * FLOAT_MAC // 1000),
    )


def _input_elements(layer: Layer) -> int:
    """Elements of a layer's input for one sample, over all calls; of an embedding none, as it reads indices."""
    if layer.kind == EMBEDDING:
        return 0
    positions = int(np.prod(layer.output_shape, dtype=np.int64)) // layer.width  # of one call
    return int(np.prod(layer.input_shape, dtype=np.int64)) * layer.positions // max(positions, 1)


def fixed_operators(tape: Tape) -> dict[str, int]:
    """Multiply-accumulates a sample of operators that multiply by no layer's weight, by operator.

    They are counted at the original widths: where fewer channels are left, the count is not below the truth.
    """
    totals: Counter[str] = Counter()
    for call in tape.calls:
        if call.kind == "fixed":
            totals[call.operator] += call.macs
    return {operator: -(-macs // BATCH) for operator, macs in totals.items()}


def _coefficients(layers: Sequence[Layer], groups: Sequence[Group]) -> tuple[IntArray, IntArray]:
    """Weight columns (L, G) and weight rows (L, G) that every layer has per channel of each group."""
    index = {layer.name: i for i, layer in enumerate(layers)}
    columns, rows = (np.zeros((len(layers), len(groups)), np.int64) for _ in range(2))
    for g, group in enumerate(groups):
        for name, indices in group.consumers.items():
            columns[index[name], g] = indices.shape[1]
        for name, indices in group.producers.items():
            rows[index[name], g] = indices.shape[1]
    return columns, rows


def _fixed_bytes(model: nn.Module, layers: Sequence[Layer], groups: Sequence[Group]) -> tuple[int, IntArray]:
    """Bytes beside the layers' own: those that stay, and those (G,) per channel of each group."""
    others = _other_tensors(model, {layer.name for layer in layers})
    coefficients = np.array([_norm_bytes(model, group) for group in groups], np.int64)
    total = FLOAT_BYTES * sum(int(np.prod(shape, dtype=np.int64)) for shape in others.values())
    shrinking = sum(int(bytes_) * group.width for bytes_, group in zip(coefficients, groups, strict=True))
    return header_bytes(_layer_tensors(layers) | others) + total - shrinking, coefficients


def _norm_bytes(model: nn.Module, group: Group) -> int:
    """Bytes that unfolded norms take per channel of the group."""
    norms = {name: _stored(model.get_submodule(name)) for name in group.norms}
    return FLOAT_BYTES * sum(len(norms[name]) * int(channels.shape[1]) for name, channels in group.norms.items())


def _stored(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a module's own parameters and buffers by name.

    A batch norm's count of the batches in training has no use afterwards, so it is not stored.
    """
    own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    kept = {name: tensor for name, tensor in own.items() if name != "num_batches_tracked"}
    return {name: tuple(tensor.shape) for name, tensor in kept.items()}


def _other_tensors(model: nn.Module, layers: set[str]) -> dict[str, tuple[int, ...]]:
    """Shapes by name of the parameters and buffers that belong to no layer."""
    found: dict[str, tuple[int, ...]] = {}
    seen: set[int] = set()  # parameters that several modules have are stored once
    for prefix, module in model.named_modules():
        own = {} if prefix in layers else _stored(module)
        for name, shape in own.items():
            key = id(getattr(module, name))
            if key not in seen:
                seen.add(key)
                found[f"{prefix}.{name}" if prefix else name] = shape
    return found


def _layer_tensors(layers: Sequence[Layer]) -> dict[str, tuple[int, ...]]:
    """Shapes by name of the tensors that a file holds of the layers."""
    tensors: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        tensors[f"{layer.name}.weight"] = layer.weight_shape
        tensors[f"{layer.name}.weight_scale"] = (layer.rows,)
        tensors[f"{layer.name}.input_range"] = (2,)
        if layer.has_bias:
            tensors[f"{layer.name}.bias"] = (layer.rows,)
    return tensors


def header_bytes(tensors: Mapping[str, tuple[int, ...]]) -> int:
    """Upper bound of the bytes of a safetensors file's header, for tensors in float32 or anything narrower.

    The header is one JSON entry per tensor. The bound takes the widest dtype name and the largest offset in
    every one.
    Source: https://huggingface.co/docs/safetensors (format).

    Args:
        tensors: shapes of the tensors by name.
    """
    end = FLOAT_BYTES * sum(int(np.prod(shape, dtype=np.int64)) for shape in tensors.values())
    entries = {name: {"dtype": "BF16", "shape": shape, "data_offsets": [end, end]} for name, shape in tensors.items()}
    return FILE_BYTES + len(json.dumps(entries, separators=(",", ":")))


def _activations(
    tape: Tape, layers: Sequence[Layer], groups: Sequence[Group]
) -> tuple[IntArray, IntArray, BoolArray, BoolArray]:
    """Activation tensors of one sample, as the cost model takes them.

    Returns:
        For T tensors the elements (T,) that stay, the elements (T, G) per channel of each group, and the
        layers (T, L) that read the tensor; and for P moments of the forward pass the tensors (P, T) that are
        alive.
    """
    folded = {layer.norm for layer in layers if layer.norm is not None}
    alias = folded_storages(tape, folded)
    steps = moments(tape, alias, folded)
    tensors = sorted(set().union(*steps))
    column = {storage: t for t, storage in enumerate(tensors)}
    alive = np.zeros((len(steps), len(tensors)), bool)
    for moment, living in enumerate(steps):
        alive[moment, [column[storage] for storage in living]] = True
    ahead = layers_ahead(tape, alias)
    readers = np.array([[layer.name in ahead.get(s, ()) for layer in layers] for s in tensors], bool)
    elements = np.array([-(-tape.storage_elements[s] // BATCH) for s in tensors], np.int64)
    coefficients = _tensor_coefficients(tape, tensors, groups)
    width = np.array([group.width for group in groups], np.int64)
    return (
        elements - coefficients @ width,
        coefficients,
        readers.reshape(len(tensors), len(layers)),
        _maximal_rows(alive),
    )


def _tensor_coefficients(tape: Tape, tensors: Sequence[int], groups: Sequence[Group]) -> IntArray:
    """Elements (T, G) that each tensor has per channel of each group, for one sample."""
    group_of = _group_of_source(tape, groups)
    firsts = first_values(tape)
    coefficients = np.zeros((len(tensors), len(groups)), np.int64)
    for t, storage in enumerate(tensors):
        channels = firsts[storage].channels
        if channels is None or not groups:
            continue
        per_entry = tape.storage_elements[storage] // BATCH // len(channels.sources)
        members = group_of[channels.sources]
        counts = np.bincount(members[members >= 0], minlength=len(groups))
        for g in np.flatnonzero(counts).tolist():
            whole, rest = divmod(int(counts[g]), groups[g].width)
            # Part of a group's channels: how many stay depends on which are removed, so count them as
            # staying.
            coefficients[t, g] = 0 if rest else whole * per_entry
    return coefficients


def _group_of_source(tape: Tape, groups: Sequence[Group]) -> IntArray:
    """Index of the group of every layer output channel in `Channels.sources`; -1 where there is none.

    The last entry is -1 too: it is what a source of -1 reads.
    """
    producers = [(name, g, rows) for g, group in enumerate(groups) for name, rows in group.producers.items()]
    size = 1 + max((tape.first_row[name] + int(rows.max()) for name, _, rows in producers), default=0)
    total = max([size, *(int(v.channels.sources.max()) + 1 for v in tape.values if v.channels is not None)])
    group_of = np.full(total + 1, -1, np.int64)  # index -1, no source, reads the last entry
    for name, g, rows in producers:
        group_of[tape.first_row[name] + rows.ravel()] = g
    return group_of


def _maximal_rows(alive: BoolArray) -> BoolArray:
    """The moments (P', T) that may be the peak: those whose tensors are not all alive in another moment."""
    rows = np.unique(alive, axis=0)
    overlap = rows.astype(np.float32) @ rows.astype(np.float32).T  # (P, P) tensors alive in both
    is_within: BoolArray = overlap >= rows.sum(1, dtype=np.float32)[:, None]
    np.fill_diagonal(is_within, False)
    maximal: BoolArray = rows[~is_within.any(1)]
    return maximal
