"""A file in the making: the tensors of a lowered graph's nodes, in the forms in which operators want them.

A node of the graph has up to four tensors in the file. It may be float32, or, behind a `round_activation`, INT8. And it
may lie as in PyTorch, channels on axis 1, or with channels last, as LiteRT's convolutions and poolings want it. Each
form is made when an operator first asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import fx

from autocompress.execute.compressed import LayerWeights
from autocompress.menus.activations import ActivationRange
from autocompress.targets.litert.flatbuffer import FileOperator, FileParts, FileTensor, Rounding

Array = npt.NDArray[Any]

_TO_SIGNED = 128  # codes of activations are 0 … 255 in the graph and -128 … 127 in the file
_KINDS = {"float32": "FLOAT32", "float16": "FLOAT16", "int64": "INT64", "int32": "INT32", "int8": "INT8"}


@dataclass(frozen=True)
class Form:
    """How a tensor of the file holds a node's values.

    Attributes:
        last: whether axis 1 of the node, its channels, is the tensor's last axis.
        range: range on which they are rounded to INT8; None: they are float32.
    """

    last: bool
    range: ActivationRange | None = None

    @property
    def rounding(self) -> Rounding | None:
        """The same as the file says it."""
        if self.range is None:
            return None
        return Rounding(np.array([self.range.scale], np.float32), self.range.zero - _TO_SIGNED)


def arguments(node: fx.Node, *defaults: Any) -> tuple[Any, ...]:
    """The arguments of a node by position, as many as there are defaults; these stand for those that are not given."""
    given: tuple[Any, ...] = node.args
    return (*given, *defaults[len(given) :])[: len(defaults)]


def source_of(node: fx.Node) -> fx.Node:
    """The node that is the first argument of another."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def moved(shape: Sequence[Any], last: bool) -> tuple[Any, ...]:
    """A shape, or anything else with one entry an axis, with the entry of axis 1 behind the others where `last`."""
    return (shape[0], *shape[2:], shape[1]) if last else tuple(shape)


class FileGraph:
    """The tensors and operators of a file, as far as they have been made.

    Args:
        module: graph that the file is written from.
        shapes: shape of every node, -1 where it grows with the number of samples.
        layers: finished layers by the name of their weight.
        file: kind of the file in a message, such as `a LiteRT file`.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        shapes: Mapping[fx.Node, tuple[int, ...]],
        layers: Mapping[str, LayerWeights],
        file: str,
    ) -> None:
        self.module, self.shapes, self.layers, self.file = module, shapes, layers, file
        self.done: set[fx.Node] = set()  # nodes that another one's operator computes too
        self._tensors: list[FileTensor] = []
        self._operators: list[FileOperator] = []
        self._held: dict[fx.Node, dict[Form, int]] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], int] = {}
        self._inputs: list[int] = []

    # --- tensors ---

    def tensor(self, kind: str, shape: Sequence[int], rounding: Rounding | None = None, **more: Any) -> int:
        """A new tensor that is computed; of axes that grow with the number of samples, its shape names one sample."""
        self._tensors.append(FileTensor(kind, tuple(map(abs, shape)), None, rounding, **more))
        return len(self._tensors) - 1

    def constant(self, values: Array) -> int:
        """A tensor with these numbers; equal ones are one tensor."""
        kind, shape = _KINDS[values.dtype.name], values.shape
        key = (kind, shape, values.tobytes())
        if key not in self._constants:
            self._constants[key] = self.stored(kind, shape, values.tobytes(), None)
        return self._constants[key]

    def stored(self, kind: str, shape: Sequence[int], content: bytes, rounding: Rounding | None) -> int:
        """A tensor with this content, on a range of its own."""
        self._tensors.append(FileTensor(kind, tuple(shape), content, rounding))
        return len(self._tensors) - 1

    def run(self, code: str, inputs: Sequence[int], output: int, options: str = "", **fields: Any) -> int:
        """Add an operator; gives `output`."""
        self._operators.append(FileOperator(code, tuple(inputs), (output,), options, fields))
        return output

    # --- nodes ---

    def hold(self, node: fx.Node, form: Form, tensor: int) -> None:
        """Say that a tensor holds a node's values in this form."""
        self._held.setdefault(node, {})[form] = tensor

    def new(self, node: fx.Node, form: Form) -> int:
        """A new tensor that will hold a node's values in this form."""
        kind = "FLOAT32" if form.range is None else "INT8"
        tensor = self.tensor(kind, moved(self.shapes[node], form.last), form.rounding)
        self.hold(node, form, tensor)
        return tensor

    def forms(self, node: fx.Node) -> list[Form]:
        """The forms that a node is held in already, the first of them first."""
        return list(self._held.get(node, {}))

    def is_last(self, node: fx.Node) -> bool:
        """Whether a node was made with channels last."""
        forms = self.forms(node)
        return bool(forms) and forms[0].last

    def range_of(self, node: fx.Node) -> ActivationRange | None:
        """The range on which a node's values are rounded; None: they are not."""
        return next((form.range for form in self.forms(node) if form.range is not None), None)

    def is_constant(self, node: fx.Node) -> bool:
        """Whether a node is a parameter or buffer."""
        return node.op == "get_attr"

    def values(self, node: fx.Node) -> Array:
        """The numbers of a parameter or buffer."""
        found: Array = attrgetter(str(node.target))(self.module).detach().cpu().numpy()
        return found

    def get(self, node: fx.Node, form: Form) -> int:
        """The tensor that holds a node's values in this form; it is made where there is none yet.

        Args:
            node: node whose values are rounded on the form's range already, where it has one.
            form: form of the tensor.
        """
        held = self._held.setdefault(node, {})
        if form in held:
            return held[form]
        if self.is_constant(node):
            return self._constant_in(node, form)
        found = next((each for each in held if each.range == form.range), None)
        if found is not None:
            return self._turned(node, found, form)
        other = Form(form.last, next(each.range for each in held if each.range != form.range))
        source = self.get(node, other)
        code, options = ("DEQUANTIZE", "DequantizeOptions") if form.range is None else ("QUANTIZE", "QuantizeOptions")
        return self.run(code, [source], self.new(node, form), options)

    def _turned(self, node: fx.Node, found: Form, form: Form) -> int:
        """The tensor with its channels on the other side; without a copy where only one axis is longer than 1."""
        source, shape = self._held[node][found], self.shapes[node]
        made = self.new(node, form)
        axes = list(range(len(shape)))
        if shape[1] == 1 or all(size == 1 for size in shape[2:]):
            return self.reshaped(source, moved(shape, form.last), made)
        order = moved(axes, True) if form.last else (0, axes[-1], *axes[1:-1])
        return self.run("TRANSPOSE", [source, self.constant(np.array(order, np.int32))], made, "TransposeOptions")

    def reshaped(self, source: int, shape: Sequence[int], made: int) -> int:
        """Add a RESHAPE of a tensor; of `shape`, at most one entry is -1."""
        target = self.constant(np.array(shape, np.int32))
        return self.run("RESHAPE", [source, target], made, "ReshapeOptions")

    def _constant_in(self, node: fx.Node, form: Form) -> int:
        values = self.values(node)
        if form.last:
            values = np.ascontiguousarray(np.moveaxis(values, 1, -1))
        if form.range is None:
            tensor = self.constant(values)
        else:
            codes = np.rint(values / np.float32(form.range.scale)) + form.range.zero
            codes = codes.clip(0, 2**form.range.bits - 1) - _TO_SIGNED
            tensor = self.stored("INT8", values.shape, codes.astype(np.int8).tobytes(), form.rounding)
        self.hold(node, form, tensor)
        return tensor

    # --- the file ---

    def take(self, node: fx.Node, name: str, dtype: str) -> None:
        """Make an input of the file for a placeholder."""
        tensor = self.tensor(_KINDS[dtype], self.shapes[node], name=name, free=self._free(node))
        self._inputs.append(tensor)
        self.hold(node, Form(False), tensor)

    def finished(self, outputs: Mapping[str, fx.Node]) -> FileParts:
        """What the file holds; `outputs` are the nodes that it gives, by name."""
        given = []
        for name, node in outputs.items():
            source = self.get(node, Form(False))
            self._tensors[source] = _named(self._tensors[source], name, self._free(node))
            given.append(source)
        return FileParts(tuple(self._tensors), tuple(self._operators), tuple(self._inputs), tuple(given))

    def _free(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(axis for axis, size in enumerate(self.shapes[node]) if size == -1)


def _named(tensor: FileTensor, name: str, free: tuple[int, ...]) -> FileTensor:
    return FileTensor(tensor.kind, tensor.shape, tensor.content, tensor.rounding, name, free)


Handler = Callable[[FileGraph, fx.Node], None]
"""Adds the operators of one node to a file."""
