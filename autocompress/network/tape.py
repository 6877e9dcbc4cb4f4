"""The tape of one forward pass: which operator reads and writes which tensor, and which layer runs it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from autocompress.borrowed import unfused_attention
from autocompress.errors import InputError
from autocompress.network.channels import Channels, follow, written_by_layer
from autocompress.network.operators import is_free, is_lookup, is_matmul, multiply_accumulates
from autocompress.network.transposed import TransposedConv
from autocompress.samples import Inputs, call, repeated, tensors_of

LAYER_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
LABELLED_TYPES = (*LAYER_TYPES, nn.Embedding)  # those with a width of their own, and tables, whose rows are looked up
NORM_TYPES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
BATCH = 2  # samples of the forward pass; with 2 of them, the batch axis shows


@dataclass(frozen=True)
class Value:
    """One tensor that depends on the network's input.

    Attributes:
        storage: index of the memory that the tensor lies in; views and in-place results share it.
        shape: shape of the tensor, with the batch axis.
        channels: origin of the entries of its channel axis, or None where it is not known.
    """

    storage: int
    shape: tuple[int, ...]
    channels: Channels | None


@dataclass(frozen=True)
class Call:
    """One operator call.

    Attributes:
        operator: name of the operator, such as `aten.convolution`.
        kind: `layer` (multiplies by the weight of `module`, or looks rows of it up), `norm` (the batch norm
            `module`), `view` (moves no data), `fixed` (multiplies by no layer's weight, as the products of
            attention do), `unknown` (costs something that nobody counts) or `other` (costs nothing that the
            budgets count).
        module: name of the layer or norm; empty for the other kinds.
        reads: indices of the values that the operator reads.
        writes: indices of the values that the operator writes.
        macs: multiply-accumulates of a `fixed` call, for the whole batch; 0 for the other kinds.
    """

    operator: str
    kind: str
    module: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    macs: int = 0


@dataclass(frozen=True)
class Tape:
    """The operators of one forward pass of `BATCH` samples, in order, as on autograd's tape.

    Attributes:
        calls: operator calls in the order in which they ran.
        values: every tensor that depends on the input.
        storage_elements: elements of every storage, for the whole batch.
        first_row: number of each layer's first output channel in `Channels.sources`, by the layer's name.
        inputs: indices of the values that the network takes.
        outputs: indices of the values that the network returns.
        shared: names of the modules whose weight others use too, each with why it is no layer.
        computation: digest of what is computed, 16 hex digits: every operator with its constants, such as a
            padding or an epsilon, the names of the parameters and buffers that it reads, and the content of
            other tensors. The values of parameters and of saved buffers don't count.
    """

    calls: tuple[Call, ...]
    values: tuple[Value, ...]
    storage_elements: tuple[int, ...]
    first_row: Mapping[str, int]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    computation: str
    shared: Mapping[str, str] = field(default_factory=dict)

    def storages(self, values: Sequence[int]) -> set[int]:
        """The storages that the values lie in."""
        return {self.values[value].storage for value in values}


def record_tape(model: nn.Module, sample: Inputs) -> Tape:
    """The tape of one run of `model` in the mode it is in, without operators that don't depend on the input.

    Args:
        model: network that runs; its own forward pass may change it, so hand in a copy.
        sample: (1, ...) one sample; it is repeated to a batch of `BATCH`.
    """
    mode = _recorded(model, sample, _tied(model))
    if mode.used_elsewhere:
        mode = _recorded(model, sample, {**mode.shared, **mode.used_elsewhere})
    return mode.finish()


def _recorded(model: nn.Module, sample: Inputs, shared: Mapping[str, str]) -> _TapeMode:
    """The mode that has seen one run, in which the modules that share their weight were no layers."""
    batch = repeated(sample, BATCH)
    mode = _TapeMode(model, shared)
    given = tuple(map(mode.add_input, tensors_of(batch)))
    with mode.watch_modules(), unfused_attention(), torch.no_grad(), mode:
        result = call(model, batch)
    mode.given, mode.results = given, _tensors(result)
    return mode


def _tied(model: nn.Module) -> dict[str, str]:
    """By name of every module that has its weight in common with another one: which.

    One label for both would need one calibration of both, as a table's rows are looked up by one and multiplied by the
    other.
    """
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if isinstance(module, LABELLED_TYPES) and weight is not None:
            users.setdefault(weight.data_ptr(), []).append(name)
    return {
        name: f"its weight is also that of {', '.join(each for each in names if each != name)}"
        for names in users.values()
        if len(names) > 1
        for name in names
    }


class _TapeMode(TorchDispatchMode):
    """Dispatch mode that writes a tape: PyTorch hands it every operator that runs while it is entered.

    It keeps every tensor alive, so that the identities of tensors and storages stay unique.
    """

    def __init__(self, model: nn.Module, shared: Mapping[str, str]) -> None:
        super().__init__()
        self.shared = shared
        self.used_elsewhere: dict[str, str] = {}
        self.given: tuple[int, ...] = ()
        self.results: list[Tensor] = []
        watched = (*LABELLED_TYPES, *NORM_TYPES)
        self._modules = {name: module for name, module in model.named_modules() if isinstance(module, watched)}
        self._running: list[str] = []
        self._calls: list[Call] = []
        self._values: list[Value] = []
        self._value_of: dict[int, int] = {}
        self._storage_of: dict[int, int] = {}
        self._storage_elements: list[int] = []
        self._first_row: dict[str, int] = {}
        self._next_row = 0
        self._alive: list[Tensor] = []
        self._owners = {
            _storage_key(module.weight): name
            for name, module in self._modules.items()
            if isinstance(module, LABELLED_TYPES) and name not in shared
        }
        saved = model.state_dict(keep_vars=True)
        self._saved = {_storage_key(tensor): name for name, tensor in reversed(saved.items())}
        self._computation = hashlib.sha256()

    def add_input(self, batch: Tensor) -> int:
        """Index of the value that an input of the network is."""
        return self._add(batch, None)

    @contextmanager
    def watch_modules(self) -> Iterator[None]:
        """Keep `_running` up to date: the watched modules whose forward pass is under way, innermost last."""
        handles = []
        for name, module in self._modules.items():
            handles.append(module.register_forward_pre_hook(partial(self._enter, name)))
            handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not args and isinstance(module, LABELLED_TYPES):
            raise InputError(
                f"`model` must hand its layers their input by position, got it by keyword at {name}; "
                f"write self.{name}(x)."
            )
        self._running.append(name)

    def _leave(self, *_: Any) -> None:
        self._running.pop()

    def finish(self) -> Tape:
        """The tape, with the values of the inputs and the tensors that the network returned."""
        known = [self._value(tensor) for tensor in self.results if self._is_known(tensor)]
        return Tape(
            tuple(self._calls),
            tuple(self._values),
            tuple(self._storage_elements),
            self._first_row,
            self.given,
            tuple(known),
            self._computation.hexdigest()[:16],
            self.shared,
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = _tensors((args, kwargs))
        known = [tensor for tensor in given if self._is_known(tensor)]
        if known:
            made = [tensor for tensor in _tensors(result) if tensor.numel()]
            kind, module = self._classify(func, given, made)
            macs = multiply_accumulates(func, args, kwargs, result) if kind == "unknown" else None
            reads = tuple(self._value(tensor) for tensor in known)
            described = map(self._described, pytree.tree_leaves((args, kwargs)))
            self._computation.update(f"{func}({', '.join(described)})".encode())
            channels = self._channels(func, args, module if kind == "layer" else "", known, made)
            writes = tuple(self._add(tensor, source) for tensor, source in zip(made, channels, strict=False))
            kind = kind if macs is None else "fixed"
            self._calls.append(Call(str(func.overloadpacket), kind, module, reads, writes, macs or 0))
        return result

    def _described(self, argument: Any) -> str:
        """An operator's argument for the digest: where a tensor comes from, the value of anything else."""
        if not isinstance(argument, Tensor):
            return repr(argument)
        if self._is_known(argument):
            return f"%{self._value(argument)}"
        form = f"{argument.dtype} {tuple(argument.shape)} {argument.stride()} {argument.storage_offset()}"
        name = self._saved.get(_storage_key(argument))
        return f"{form} {name or _content_digest(argument)}"

    def _channels(
        self, func: Any, args: Any, layer: str, known: list[Tensor], made: list[Tensor]
    ) -> list[Channels | None]:
        """Channels of every result: those of `layer` itself, or those that another operator passes on."""
        if layer and isinstance(self._modules[layer], nn.Embedding):
            return [None]
        if layer:
            return [written_by_layer(self._modules[layer], made[0].shape, self._rows_from(layer))]
        inputs = {id(tensor): self._values[self._value(tensor)].channels for tensor in known}
        return follow(func, args, inputs, made)

    def _classify(self, func: Any, given: list[Tensor], made: list[Tensor]) -> tuple[str, str]:
        """Kind and module of a call, as in `Call`, but that `fixed` calls are still `unknown`."""
        if not func._schema.is_mutable and all(self._is_known(tensor) for tensor in made):
            return "view", ""
        module = self._running[-1] if self._running else ""
        if is_lookup(func) and module and self._multiplies_weight(module, given):
            return "layer", module
        if is_matmul(func):
            # A layer is a module whose own weight, unchanged, is what its operator multiplies by.
            if module and self._multiplies_weight(module, given):
                return "layer", module
            self._note_owners(given)
            return "unknown", ""
        if "batch_norm" in str(func) and module and isinstance(self._modules[module], NORM_TYPES):
            return "norm", module
        return ("other" if is_free(func) else "unknown"), ""

    def _multiplies_weight(self, module: str, given: list[Tensor]) -> bool:
        """Whether the module is a layer whose stored weight is among the operator's arguments."""
        if not isinstance(self._modules[module], LABELLED_TYPES) or module in self.shared:
            return False
        if isinstance(self._modules[module], TransposedConv):  # its operator's only one, in another order
            return True
        weight = _storage_key(self._modules[module].weight)
        return any(_storage_key(tensor) == weight for tensor in given)

    def _note_owners(self, given: list[Tensor]) -> None:
        """Note the modules whose weight an operator outside them multiplies by."""
        owners = (self._owners.get(_storage_key(tensor)) for tensor in given)
        self.used_elsewhere |= {name: "its weight is also used outside it" for name in owners if name is not None}

    def _rows_from(self, layer: str) -> int:
        """Number of the layer's first output channel, counted in the order in which layers first run."""
        if layer not in self._first_row:
            self._first_row[layer] = self._next_row
            self._next_row += self._modules[layer].weight.shape[0]
        return self._first_row[layer]

    def _is_known(self, tensor: Tensor) -> bool:
        """Whether the tensor depends on the network's input."""
        return _storage_key(tensor) in self._storage_of

    def _value(self, tensor: Tensor) -> int:
        """Index of a tensor in a known storage; it may be a view from before the storage was written."""
        return self._value_of[id(tensor)] if id(tensor) in self._value_of else self._add(tensor, None)

    def _add(self, tensor: Tensor, channels: Channels | None) -> int:
        """Index of the new value that the tensor is."""
        key = _storage_key(tensor)
        if key not in self._storage_of:
            self._storage_of[key] = len(self._storage_elements)
            self._storage_elements.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        self._values.append(Value(self._storage_of[key], tuple(tensor.shape), channels))
        self._value_of[id(tensor)] = len(self._values) - 1
        self._alive.append(tensor)
        return len(self._values) - 1


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors in any nesting of tuples, lists and dicts, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _content_digest(tensor: Tensor) -> str:
    """Digest of a tensor's values."""
    values = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(values.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def _storage_key(tensor: Tensor) -> int:
    """Identity of the memory that a tensor lies in."""
    return int(tensor.untyped_storage()._cdata)


def first_values(tape: Tape) -> dict[int, Value]:
    """The value that was first written into each storage, by storage."""
    firsts: dict[int, Value] = {}
    written = itertools.chain.from_iterable(call.writes for call in tape.calls)
    for index in itertools.chain(tape.inputs, written):
        firsts.setdefault(tape.values[index].storage, tape.values[index])
    return firsts
