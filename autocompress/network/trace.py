"""Tracing a model: its layers, its channel groups, its costs."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.network.branches import with_branches
from autocompress.network.costs import build_costs, fixed_operators
from autocompress.network.flow import layers_behind
from autocompress.network.folding import fold_norms, is_foldable
from autocompress.network.groups import ChannelGroups, find_groups, is_depthwise
from autocompress.network.heads import find_blocks
from autocompress.network.interface import raw
from autocompress.network.recurrent import Recurrent
from autocompress.network.structure import EMBEDDING, LINEAR, RECURRENT, TRANSPOSED, Group, Layer, Network
from autocompress.network.tape import BATCH, Call, Tape, Value, record_tape
from autocompress.network.ties import with_ties
from autocompress.network.transposed import TransposedConv
from autocompress.network.verification import first_line
from autocompress.network.written_out import step_by_step
from autocompress.samples import Inputs, fields_of, tensors_of


def trace(model: nn.Module, example: Inputs) -> Network:
    """The layers, channel groups and costs of a network of convolutions, linears, embeddings and other operators.

    The model is copied and only copies run, in eval mode: its own mode, hooks, parameters, buffers and the
    random state stay as they are. Modules that never run, and modules whose weight is not used as it is
    stored, are no layers.

    Args:
        model: network in the form of `network.interface`.
        example: (1+, ...) input, of which the first sample is run.

    Raises:
        InputError: `model` is no module, `example` is no batch, the model can't run on it, or it has no
            layers.
    """
    sample = _checked_sample(model, example)
    with torch.random.fork_rng(devices=[]), step_by_step():
        evaluated = copy.deepcopy(raw(model)).eval()  # how rows are made of outputs is nothing that a file holds
        tape = _run(evaluated, sample)
        calls = _calls_by_layer(tape)
        norm_of = _foldable_norms(evaluated, tape, calls)
        folded = fold_norms(evaluated, norm_of)
        shared = _shared_layers(calls)
        fixed = _recurrent(evaluated, calls) | dict.fromkeys(layers_behind(tape, tape.outputs), "network output")
        with_width = [name for name in calls if not isinstance(evaluated.get_submodule(name), nn.Embedding)]
        blocks = find_blocks(folded, tape, {*fixed, *shared})
        found = find_groups(folded, sample, blocks, with_width, fixed, shared)
    layers = tuple(_layer(evaluated, tape, name, calls[name], norm_of, found) for name in calls)
    layers = with_ties(tape, layers, found.groups, blocks)
    unknown = Counter(call.operator for call in tape.calls if call.kind == "unknown")
    return Network(
        layers=layers,
        groups=with_branches(tape, layers, found.groups),
        costs=build_costs(folded, tape, layers, found.groups),
        fingerprint=_fingerprint(layers, tape),
        computation=tape.computation,
        unknown_operators=dict(unknown),
        inputs=fields_of(sample),
        fixed_operators=fixed_operators(tape),
        shared_weights=tape.shared,
    )


def _checked_sample(model: nn.Module, example: Inputs) -> Inputs:
    """A copy (1, ...) of the first sample. Raises InputError where model or example is of no use."""
    if not isinstance(model, nn.Module):
        raise InputError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.")
    if not isinstance(example, Inputs):
        raise InputError(f"`example` must be a tensor (1+, ...), got {type(example).__name__}.")
    for tensor in tensors_of(example):
        if tensor.numel() == 0 or (tensor.ndim < 2 and isinstance(example, Tensor)):
            shape = tuple(tensor.shape)
            raise InputError(f"`example` must have a batch axis and at least one sample, got shape {shape}.")
    return example.detach()[:1].clone()


def _run(model: nn.Module, sample: Inputs) -> Tape:
    """The tape of a model. Raises InputError where it can't run on the sample, or has no layers."""
    try:
        tape = record_tape(model, sample)
    except InputError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_of(sample))
        raise InputError(f"`example` must fit the model's input, got shape {shapes}: {first_line(error)}") from error
    if not any(call.kind == "layer" for call in tape.calls):
        raise InputError(
            "`model` must run at least one convolution, Linear, Embedding, GRU, LSTM or RNN on `example`, with a "
            "weight of its own, got none."
        )
    return tape


def _calls_by_layer(tape: Tape) -> dict[str, list[Call]]:
    """The calls of every layer by its name, in the order in which the layers first run."""
    calls: dict[str, list[Call]] = defaultdict(list)
    for call in tape.calls:
        if call.kind == "layer":
            calls[call.module].append(call)
    return dict(calls)


def _foldable_norms(model: nn.Module, tape: Tape, calls: Mapping[str, list[Call]]) -> dict[str, str]:
    """By layer name, the norm that alone reads the layer's result, along the layer's output channels."""
    touching: dict[int, list[Call]] = defaultdict(list)
    for call in tape.calls:
        for storage in tape.storages(call.reads):
            touching[storage].append(call)
    runs = Counter(call.module for call in tape.calls)
    returned = tape.storages(tape.outputs)
    shared = _shared_layers(calls)
    norms: dict[str, str] = {}
    for name, (call, *_) in calls.items():
        (result,) = call.writes
        value = tape.values[result]
        readers = touching[value.storage]
        if name in shared or len(readers) != 1 or value.storage in returned:
            continue
        norm = readers[0]
        is_along_rows = value.channels is not None and value.channels.axis == 1
        is_direct = norm.kind == "norm" and result in norm.reads and runs[norm.module] == 1
        if is_direct and is_along_rows and is_foldable(model.get_submodule(norm.module)):
            norms[name] = norm.module
    return norms


def _shared_layers(calls: Mapping[str, list[Call]]) -> dict[str, str]:
    """By name of each layer that runs several times: that reason."""
    return {name: "runs more than once" for name, runs in calls.items() if len(runs) > 1}


def _recurrent(model: nn.Module, calls: Iterable[str]) -> dict[str, str]:
    """By name of each matrix of a GRU, LSTM or RNN: why its rows stay."""
    return {name: "gates of a recurrent layer" for name in calls if _is_recurrent(model, name)}


def _is_recurrent(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), Recurrent)


def _weight(model: nn.Module, layer: str) -> Tensor:
    return model.get_parameter(f"{layer}.weight")


@dataclass(frozen=True)
class _Membership:
    """Indices of the groups that a layer reads, in column order, and of the one that it writes."""

    reads: tuple[int, ...]
    writes: int | None


def _layer(
    model: nn.Module,
    tape: Tape,
    name: str,
    calls: list[Call],
    norm_of: Mapping[str, str],
    found: ChannelGroups,
) -> Layer:
    """One layer, from its calls on the tape and the groups that were found."""
    module: Any = model.get_submodule(name)
    weight_shape = tuple(_weight(model, name).shape)
    results = [tape.values[call.writes[0]] for call in calls]
    width = weight_shape[1] if isinstance(module, nn.Embedding) else weight_shape[0]
    kind = RECURRENT if _is_recurrent(model, name) else _kind(module)
    given = [tape.values[call.reads[0]] for call in calls]
    member = _membership(found.groups, name)
    return Layer(
        name=name,
        kind=kind,
        weight_shape=weight_shape,
        groups=getattr(module, "groups", 1),
        positions=_positions(results, width),
        input_shape=_input_shape(tape, calls[0]),
        output_shape=results[0].shape[1:],
        norm=norm_of.get(name),
        has_bias=getattr(module, "bias", None) is not None or name in norm_of,
        reads=member.reads,
        writes=member.writes,
        fixed_reason="" if member.writes is not None else found.fixed_reasons.get(name, "a table's width stays"),
        input_positions=_positions(given, module.in_channels) if kind == TRANSPOSED else 0,
    )


def _positions(values: Iterable[Value], width: int) -> int:
    """Positions of one sample in values of so many channels."""
    return sum(int(np.prod(value.shape, dtype=np.int64)) for value in values) // (BATCH * width)


def _kind(module: nn.Module) -> str:
    """Kind of a layer, as in `Layer.kind`, but that of a recurrent layer's matrix."""
    if isinstance(module, nn.Embedding):
        return EMBEDDING
    if isinstance(module, TransposedConv):
        return TRANSPOSED
    return LINEAR if isinstance(module, nn.Linear) else "depthwise" if is_depthwise(module) else "conv"


def _membership(groups: tuple[Group, ...], name: str) -> _Membership:
    read = [index for index, group in enumerate(groups) if name in group.consumers]
    read.sort(key=lambda index: int(groups[index].consumers[name].min()))
    written = [index for index, group in enumerate(groups) if name in group.producers]
    return _Membership(tuple(read), written[0] if written else None)


def _input_shape(tape: Tape, call: Call) -> tuple[int, ...]:
    return tape.values[call.reads[0]].shape[1:]


def _fingerprint(layers: tuple[Layer, ...], tape: Tape) -> str:
    """Hash of names, shapes and wiring; neither weights nor this PyTorch version's operators count."""
    feeds: dict[str, set[str]] = defaultdict(set)
    for call in tape.calls:
        if call.kind == "layer":
            feeds[call.module] |= layers_behind(tape, call.reads)
    structure = [
        (each.name, each.kind, each.weight_shape, each.groups, each.positions, each.norm, sorted(feeds[each.name]))
        for each in layers
    ]
    shapes = [tape.values[value].shape for value in tape.inputs]
    text = json.dumps([shapes[0] if len(shapes) == 1 else shapes, structure])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
