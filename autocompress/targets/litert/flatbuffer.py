"""The content of a `.tflite` file: tensors and operators, written as a flatbuffer in the format's schema.

A flatbuffer may point to one vector from many places. Shapes, options and zero points that are equal are written once:
a weight with a scale for every row must name as many zero points, of 8 bytes each, all of them 0.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from autocompress.targets.litert.runtime import schema

_VERSION = 3  # of the schema
_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16  # bytes, of every constant: the schema's `force_align`
_LAST_OLD_CODE = 127  # operators up to here also have a code of 8 bits, for old readers


@dataclass(frozen=True, eq=False)
class Rounding:
    """How the integers of a tensor stand for numbers: scale * (code - zero).

    Attributes:
        scales: (1,) or (rows,) float32.
        zero: code of the number 0, the same for all rows.
        axis: axis that the rows lie on.
    """

    scales: npt.NDArray[np.float32]
    zero: int = 0
    axis: int = 0


@dataclass(frozen=True, eq=False)
class FileTensor:
    """A tensor of the file.

    Attributes:
        kind: name of its type in the schema, such as `INT8`.
        shape: its shape, for one sample.
        content: bytes of a constant; None: it is computed.
        rounding: how its integers stand for numbers; None: they are numbers themselves.
        name: its name; None: nobody asks for it.
        free: axes that may have any size; they are said of inputs and outputs only.
    """

    kind: str
    shape: tuple[int, ...]
    content: bytes | None = None
    rounding: Rounding | None = None
    name: str | None = None
    free: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class FileOperator:
    """An operator of the file: its code in the schema, its options by field, and the tensors it reads and writes."""

    code: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: str = ""
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class FileParts:
    """All that a file holds.

    Attributes:
        tensors: tensors, which are named by their place here.
        operators: operators in the order in which they run.
        inputs: tensors that the network takes.
        outputs: tensors that it gives.
    """

    tensors: tuple[FileTensor, ...]
    operators: tuple[FileOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def written(parts: FileParts) -> bytes:
    """The content of a file with these tensors and operators; the same ones give the same bytes.

    Raises:
        InputError: the extra `litert` is not installed.
    """
    return _Writer().content(parts)


class _Writer:
    """Writes one file. A flatbuffer is built from its end: what is pointed to is written first."""

    def __init__(self) -> None:
        self._schema = schema()
        import flatbuffers  # comes with the schema

        self._builder: Any = flatbuffers.Builder(1 << 16)
        self._once: dict[Hashable, int] = {}

    def content(self, parts: FileParts) -> bytes:
        numbers: dict[bytes, int] = {}  # by content: the number of its buffer; 0 is the empty one
        for tensor in parts.tensors:
            if tensor.content is not None:
                numbers.setdefault(tensor.content, len(numbers) + 1)
        buffers = [self._buffer(None), *map(self._buffer, numbers)]
        codes = {name: number for number, name in enumerate(dict.fromkeys(each.code for each in parts.operators))}
        written_tensors = [self._tensor(each, numbers) for each in parts.tensors]
        graph = self._table(
            "SubGraph",
            Tensors=self._offsets(written_tensors),
            Inputs=self._integers(parts.inputs),
            Outputs=self._integers(parts.outputs),
            Operators=self._offsets([self._operator(each, codes[each.code]) for each in parts.operators]),
        )
        model = self._table(
            "Model",
            Version=_VERSION,
            OperatorCodes=self._offsets([self._code(name) for name in codes]),
            Subgraphs=self._offsets([graph]),
            Buffers=self._offsets(buffers),
        )
        self._builder.Finish(model, _IDENTIFIER)
        return bytes(self._builder.Output())

    def _tensor(self, tensor: FileTensor, numbers: dict[bytes, int]) -> int:
        signature = tuple(-1 if axis in tensor.free else size for axis, size in enumerate(tensor.shape))
        fields: dict[str, int] = {"Shape": self._integers(tensor.shape)}
        if tensor.name is not None:
            fields |= {"Name": self._builder.CreateString(tensor.name), "ShapeSignature": self._integers(signature)}
        if tensor.rounding is not None:
            fields["Quantization"] = self._rounding(tensor.rounding)
        if tensor.content is not None:
            fields["Buffer"] = numbers[tensor.content]
        return self._table("Tensor", Type=getattr(self._schema.TensorType, tensor.kind), **fields)

    def _rounding(self, rounding: Rounding) -> int:
        zeros = np.full(len(rounding.scales), rounding.zero, np.int64)
        scales = rounding.scales.astype(np.float32)
        fields = {"Scale": self._vector(scales), "ZeroPoint": self._vector(zeros)}
        return self._table_once("QuantizationParameters", QuantizedDimension=rounding.axis, **fields)

    def _operator(self, operator: FileOperator, code: int) -> int:
        fields: dict[str, int] = {}
        if operator.options:
            fields["BuiltinOptionsType"] = getattr(self._schema.BuiltinOptions, operator.options)
            fields["BuiltinOptions"] = self._options(operator)
        inputs, outputs = self._integers(operator.inputs), self._integers(operator.outputs)
        return self._table("Operator", OpcodeIndex=code, Inputs=inputs, Outputs=outputs, **fields)

    def _options(self, operator: FileOperator) -> int:
        def write() -> int:
            options = getattr(self._schema, f"{operator.options}T")()
            for name, value in operator.fields.items():
                assert hasattr(options, name), name
                setattr(options, name, value)
            return int(options.Pack(self._builder))

        return self._written_once((operator.options, *sorted(operator.fields.items())), write)

    def _code(self, name: str) -> int:
        code = getattr(self._schema.BuiltinOperator, name)
        old = min(code, _LAST_OLD_CODE)
        version = _VERSIONS.get(name, 1)
        return self._table("OperatorCode", DeprecatedBuiltinCode=old, BuiltinCode=code, Version=version)

    def _buffer(self, content: bytes | None) -> int:
        if content is None:
            return self._table("Buffer")
        self._builder.StartVector(1, len(content), _ALIGNMENT)
        self._builder.head -= len(content)
        self._builder.Bytes[self._builder.head : self._builder.head + len(content)] = content
        return self._table("Buffer", Data=self._builder.EndVector())

    def _table(self, kind: str, **fields: int) -> int:
        start, end = getattr(self._schema, f"{kind}Start"), getattr(self._schema, f"{kind}End")
        start(self._builder)
        for name, value in fields.items():
            getattr(self._schema, f"{kind}Add{name}")(self._builder, value)
        return int(end(self._builder))

    def _table_once(self, kind: str, **fields: int) -> int:
        return self._written_once((kind, *fields.items()), lambda: self._table(kind, **fields))

    def _integers(self, numbers: Sequence[int]) -> int:
        return self._vector(np.array(numbers, np.int32))

    def _vector(self, values: npt.NDArray[Any]) -> int:
        """A vector of numbers, which is written once however often it is asked for."""
        key = (values.dtype.str, values.tobytes())
        return self._written_once(key, lambda: int(self._builder.CreateNumpyVector(values)))

    def _offsets(self, offsets: Sequence[int]) -> int:
        self._builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self._builder.PrependUOffsetTRelative(offset)
        return int(self._builder.EndVector())

    def _written_once(self, key: Hashable, write: Callable[[], int]) -> int:
        if key not in self._once:
            self._once[key] = write()
        return self._once[key]


# Versions of the operators, as the format counts them: the first that takes the types which files here have.
_VERSIONS = {
    "CONV_2D": 8,
    "DEPTHWISE_CONV_2D": 7,
    "FULLY_CONNECTED": 12,
    "DEQUANTIZE": 6,
}
