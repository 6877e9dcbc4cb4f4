"""From the path of an ONNX file to a network that was checked against ONNX Runtime."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.models.onnx.checking import (
    HALF_TOLERANCE,
    SIZES,
    TOLERANCE,
    Case,
    Input,
    Runtime,
    check,
    joined,
)
from autocompress.models.onnx.constants import fold_constants
from autocompress.models.onnx.fusing import with_biases
from autocompress.models.onnx.network import OnnxNetwork
from autocompress.models.onnx.operators import OF_CONSTANTS, OF_TENSORS, handle
from autocompress.models.onnx.reading import read_onnx
from autocompress.models.onnx.translation import translate

if TYPE_CHECKING:
    from onnx import ModelProto

_BATCHES = (1, 3)  # sizes of the two batches that are compared
_SEED = 20261126
_HALVES = ("float16", "bfloat16")


def load_onnx(path: str | Path) -> OnnxNetwork:
    """The network of an ONNX file, in eval mode, on the CPU, float32.

    It takes any number of samples, also where the file fixes the batch axis, wherever its operators allow that.

    Args:
        path: path of the file; tensors that it keeps in other files are read from its folder.

    Raises:
        InputError: the file can't be read, has operators that are not known, or computes something else in torch than
            in ONNX Runtime.
    """
    path = Path(path)
    proto = read_onnx(path, {*OF_TENSORS, *OF_CONSTANTS})
    inputs = _inputs(proto, path)
    runtime = Runtime(path, path)
    plan = _plan(inputs, runtime, path)
    tolerance = HALF_TOLERANCE if _has_halves(proto) else TOLERANCE
    try:
        return _checked(proto, inputs, plan, tolerance, path)
    except InputError:
        if not plan.is_own_idea:
            raise
    first = _Plan(plan.trials[:1], plan.cases[:1])
    return _checked(proto, inputs, first, tolerance, path)


def _checked(proto: ModelProto, inputs: Sequence[Input], plan: _Plan, tolerance: float, path: Path) -> OnnxNetwork:
    """The network, which computes what the runtime does for all of a plan's batches."""
    network = _translated(proto, inputs, plan.trials)
    network.difference = check(network, plan.cases, tolerance, proto, path)
    if len(plan.cases) == 1 and inputs[0].dims:  # no other number of samples was tried
        network.fixed_batch = len(plan.cases[0].inputs[inputs[0].name])
    return network


# --- inputs ----------------------------------------------------------------------------------------------------------


def _inputs(proto: ModelProto, path: Path) -> list[Input]:
    """The file's inputs; those of old files that only name a tensor of the file are none."""
    from onnx import helper

    stored = {tensor.name for tensor in proto.graph.initializer}
    found = []
    for value in proto.graph.input:
        if value.name in stored:
            continue
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
            raise InputError(f"`model` must have tensors of a known rank as inputs, got {value.name} in {path}.")
        name = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
        if np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).kind not in "fiub":
            raise InputError(f"`model` must have numbers as inputs, got {value.name} in {path}, which is {name}.")
        dims = tuple(
            dim.dim_value
            if dim.HasField("dim_value") and dim.dim_value > 0
            else dim.dim_param or f"{value.name}:{axis}"
            for axis, dim in enumerate(kind.shape.dim)
        )
        found.append(Input(value.name, name, dims))
    if not found:
        raise InputError(f"`model` must have at least one input, got none in {path}.")
    return found


def _has_halves(proto: ModelProto) -> bool:
    from onnx import TensorProto

    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    values = (*proto.graph.input, *proto.graph.output)
    return any(value.type.tensor_type.elem_type in halves for value in values) or any(
        tensor.data_type in halves for tensor in proto.graph.initializer
    )


# --- sizes, and what the runtime makes of them -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """Sizes for the translation, and batches that the runtime has run.

    Attributes:
        trials: shape of every input in every trial, by name.
        cases: batches with the runtime's outputs, the first in a size that the file allows.
        is_own_idea: whether the second batch is of a size that the file does not allow: the network may take it still.
    """

    trials: tuple[Mapping[str, tuple[int, ...]], ...]
    cases: tuple[Case, ...]
    is_own_idea: bool = False


@dataclass(frozen=True)
class _Draws:
    """Random batches of a file's inputs, which the runtime runs.

    Attributes:
        inputs: the file's inputs.
        runtime: runtime.
        batch: first axis of all inputs: a size, or a name where the file leaves it open; None where inputs differ.
        generator: source of the numbers.
    """

    inputs: Sequence[Input]
    runtime: Runtime
    batch: int | str | None
    generator: np.random.Generator

    @property
    def open_axes(self) -> set[str]:
        """Names of the axes that the file leaves open, but for the batch."""
        return {size for each in self.inputs for size in each.dims if isinstance(size, str) and size != self.batch}

    def run(self, samples: int, size: int) -> Case | None:
        """A batch with all open axes of one size; None where the runtime can't run it."""
        sizes = dict.fromkeys(self.open_axes, size)
        if isinstance(self.batch, str):
            sizes[self.batch] = samples
        arrays = {each.name: each.random(sizes, self.generator) for each in self.inputs}
        outputs = self.runtime.run(arrays)
        return None if outputs is None else Case(arrays, outputs)

    def first(self) -> Iterator[tuple[int, Case]]:
        """Sizes of the open axes that the runtime can run, with a batch of each."""
        for size in SIZES if self.open_axes else SIZES[:1]:
            case = self.run(_BATCHES[0], size)
            if case is not None:
                yield size, case


def _plan(inputs: Sequence[Input], runtime: Runtime, path: Path) -> _Plan:
    """Sizes for all axes with which the runtime runs."""
    draws = _Draws(inputs, runtime, _batch_axis(inputs), np.random.default_rng(_SEED))
    found = list(itertools.islice(draws.first(), 2))
    if not found:
        shapes = ", ".join(f"{each.name} {list(each.dims)}" for each in inputs)
        raise InputError(f"`model` must run in ONNX Runtime on inputs of its own shapes, got {path} with {shapes}.")
    size, case = found[0]
    more = _larger_batch(draws, case, size)
    trials = [_shapes(case)]
    if more is not None:
        # A batch of 1 is no trial where a file takes any: 1 might as well be a size that never changes.
        trials = [_shapes(case, 2 if isinstance(draws.batch, str) else None), _shapes(more)]
    trials += [_shapes(other, 2 if isinstance(draws.batch, str) else None) for _, other in found[1:]]
    is_own_idea = more is not None and not isinstance(draws.batch, str)
    return _Plan(tuple(trials), (case,) if more is None else (case, more), is_own_idea)


def _batch_axis(inputs: Sequence[Input]) -> int | str | None:
    """Size or name of the first axis, where it is the same in all inputs."""
    first = {each.dims[0] if each.dims else None for each in inputs}
    return first.pop() if len(first) == 1 else None


def _larger_batch(draws: _Draws, case: Case, size: int) -> Case | None:
    """A larger batch; where the file fixes the batch, several of them as one. None where that can't be."""
    if isinstance(draws.batch, str):
        return draws.run(_BATCHES[1], size)
    by_sample = draws.batch is not None and all(
        np.ndim(output) and len(output) == draws.batch for output in case.outputs
    )
    parts = [case, *(draws.run(1, size) for _ in range(_BATCHES[1] - 1))] if by_sample else []
    complete = [part for part in parts if part is not None]
    return joined(complete) if complete and len(complete) == len(parts) else None


def _shapes(case: Case, samples: int | None = None) -> dict[str, tuple[int, ...]]:
    """Shapes of a batch's inputs; with another number of samples, if there is one."""
    shapes = {name: tuple(array.shape) for name, array in case.inputs.items()}
    return shapes if samples is None else {name: (samples, *shape[1:]) for name, shape in shapes.items()}


# --- translation -----------------------------------------------------------------------------------------------------


def _translated(
    proto: ModelProto, inputs: Sequence[Input], trials: Sequence[Mapping[str, tuple[int, ...]]]
) -> OnnxNetwork:
    from torch._subclasses.fake_tensor import FakeTensorMode

    outputs = [value.name for value in proto.graph.output]
    constants, nodes = fold_constants(proto)
    nodes = with_biases(nodes, constants, outputs)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        given = {each.name: tuple(_empty(each, trial[each.name]) for trial in trials) for each in inputs}
    return translate(nodes, constants, proto, given, outputs, handle, mode)


def _empty(given: Input, shape: tuple[int, ...]) -> Tensor:
    """A tensor of an input's type in the network: floating-point numbers are float32."""
    kind = np.dtype(given.kind)
    return torch.empty(shape, dtype=torch.float32 if kind.kind == "f" else torch.from_numpy(np.zeros(1, kind)).dtype)
