"""ONNX Runtime as the judge of an import: the network has to compute what the runtime computes from the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import InputError, reason_of
from autocompress.models.onnx.network import OnnxNetwork
from autocompress.onnx_runtime import inference_session

if TYPE_CHECKING:
    from onnx import ModelProto

TOLERANCE = 1e-4  # of an output's largest value: float32 sums in another order differ by 1e-6 to 1e-5
HALF_TOLERANCE = 2e-2  # the same where the file computes in 16 bits; the network computes in 32
SIZES = (64, 224, 32, 16, 8, 4)  # tried for axes that the file leaves open, the batch aside
_SAMPLES = 3  # samples of the second batch


@dataclass(frozen=True)
class Input:
    """One input of a file.

    Attributes:
        name: its name.
        kind: NumPy's name of its type in the file.
        dims: sizes of its axes; a name where the file leaves one open.
    """

    name: str
    kind: str
    dims: tuple[int | str, ...]

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with the open axes filled in."""
        return tuple(size if isinstance(size, int) else sizes[size] for size in self.dims)

    def random(self, sizes: Mapping[str, int], generator: np.random.Generator) -> Any:
        """An array for the runtime: standard normal numbers; zeros and ones where the file wants integers."""
        shape = self.shape(sizes)
        if np.dtype(self.kind).kind == "f":
            return generator.standard_normal(shape).astype(self.kind)
        return generator.integers(0, 2, shape).astype(self.kind)


class Runtime:
    """ONNX Runtime's session of a file.

    Args:
        source: path of the file, or its content.
        path: path for errors.

    Raises:
        InputError: the runtime can't load the file.
    """

    def __init__(self, source: Path | bytes, path: Path) -> None:
        try:
            self._session = inference_session(source, torch.get_num_threads())
        except Exception as error:  # the runtime's own kinds share no base class
            raise InputError(
                f"`model` must be a file that ONNX Runtime loads, got {path}: {reason_of(error)}."
            ) from error

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None) -> list[Any] | None:
        """The outputs for inputs by name; None where the runtime fails, as it does on sizes that don't fit."""
        try:
            return list(self._session.run(outputs, dict(inputs)))
        except Exception:  # as above
            return None


def as_inputs(arrays: Mapping[str, Any]) -> list[Tensor]:
    """Arrays for the runtime as tensors for the network, which computes in float32."""
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays.values()]
    return [tensor.float() if tensor.is_floating_point() else tensor for tensor in tensors]


def difference(expected: Any, got: Tensor) -> float:
    """Largest difference of two outputs over the largest expected value; infinite where they can't be compared.

    Integers and truth values differ by the share of elements that are not equal.
    """
    wanted = np.asarray(expected)
    found = got.detach().numpy()
    if wanted.shape != found.shape:
        return float("inf")
    if wanted.size == 0:
        return 0.0
    if wanted.dtype.kind != "f":
        return float(np.mean(wanted != found))
    wanted, found = wanted.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], found[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    gap, scale = np.abs(wanted - found)[finite].max(), np.abs(wanted[finite]).max()
    return float(gap / max(scale, 1e-30)) if gap else 0.0


@dataclass(frozen=True)
class Case:
    """What the runtime gave for one batch.

    Attributes:
        inputs: arrays by name of the input.
        outputs: arrays, in the order of the file's outputs.
    """

    inputs: Mapping[str, Any]
    outputs: Sequence[Any]


def joined(cases: Sequence[Case]) -> Case:
    """Several batches as one: for files that take one size of batch only."""
    inputs = {name: np.concatenate([case.inputs[name] for case in cases]) for name in cases[0].inputs}
    outputs = [np.concatenate(parts) for parts in zip(*(case.outputs for case in cases), strict=True)]
    return Case(inputs, outputs)


def check(network: OnnxNetwork, cases: Sequence[Case], tolerance: float, proto: ModelProto, path: Path) -> float:
    """Check that the network computes what the runtime does.

    Args:
        network: imported network.
        cases: batches with what the runtime made of them.
        tolerance: largest difference, as a share of an output's largest value.
        proto: content of the file.
        path: path of the file.

    Returns:
        The largest difference, as a share of an output's largest value.

    Raises:
        InputError: they differ; the first node that differs is named, if the runtime shows its result.
    """
    worst = 0.0
    for case in cases:
        with torch.no_grad():
            results = network(*as_inputs(case.inputs))
        found = results if isinstance(results, tuple) else (results,)
        gaps = [difference(expected, got) for expected, got in zip(case.outputs, found, strict=True)]
        worst = max(worst, *gaps)
        if worst > tolerance:
            samples = len(next(iter(case.inputs.values())))
            raise InputError(
                f"`model` must compute the same in torch as in ONNX Runtime, got a difference of {max(gaps):.2g} of "
                f"the largest output, above {tolerance:g}, for {samples} random samples of {path}"
                f"{_first_difference(network, case, tolerance, proto, path)}."
            )
    return worst


def _first_difference(network: OnnxNetwork, case: Case, tolerance: float, proto: ModelProto, path: Path) -> str:
    """Where the first difference is, in words; empty where that can't be found out."""
    from onnx import ModelProto, ValueInfoProto

    known = {value.name for value in proto.graph.output}
    extended = ModelProto()
    extended.CopyFrom(proto)
    names = [name for node in proto.graph.node for name in node.output if name and name not in known]
    extended.graph.output.extend(ValueInfoProto(name=name) for name in names)
    try:
        runtime = Runtime(extended.SerializeToString(), path)
    except (InputError, ValueError):  # too large for one piece, or a type that the runtime can't tell
        return ""
    wanted = [*(value.name for value in proto.graph.output), *names]
    results = runtime.run(case.inputs, wanted)
    expected = dict(zip(wanted, results or [], strict=False))
    for step, name, got in _tensors(network, case):
        if name in expected and difference(expected[name], got) > tolerance:
            return f"; the first node that differs is {step}"
    return ""


def _tensors(network: OnnxNetwork, case: Case) -> Iterator[tuple[str, str, Tensor]]:
    """Node, name and value of every tensor that the network makes."""
    with torch.no_grad():
        for step, name, value in network.intermediate(*as_inputs(case.inputs)):
            if isinstance(value, Tensor):
                yield step.node, name, value
