"""XNNPACK's graph in the making: its values, nodes and constants, from the tensors of a LiteRT file.

Values are made when a node first asks for them. So what is not read is not in the file: a weight that LiteRT
dequantizes first, or zeros that are padded for a convolution, which pads by itself here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from autocompress.targets.litert.flatbuffer import FileParts, FileTensor

_ALIGNMENT = 16  # bytes, of every constant
_NOT_EXTERNAL = 2**32 - 1
_IS_INPUT, _IS_OUTPUT = 1, 2  # XNNPACK's XNN_VALUE_FLAG_EXTERNAL_…
_TYPES = {"FLOAT32": "xnn_datatype_fp32", "INT8": "xnn_datatype_qint8"}
_BY_ROW = {"INT8": "xnn_datatype_qcint8", "INT32": "xnn_datatype_qcint32"}

Json = dict[str, Any]


class XnnGraph:
    """Values, nodes and constants of XNNPACK's graph, as far as they have been made.

    Args:
        parts: tensors and operators of the same network's LiteRT file.
    """

    def __init__(self, parts: FileParts) -> None:
        self.parts = parts
        self.tensors = list(parts.tensors)
        self.values: list[Json] = []
        self.nodes: list[Json] = []
        self.constants: list[Json] = [{}]  # number 0 stands for no constant
        self.packed = bytearray()  # constants that XNNPACK copies when the file is loaded
        self.kept: dict[str, bytes] = {}  # constants by name that it reads in every run
        self.later: dict[int, Callable[[], None]] = {}  # tensors that are computed only if somebody reads them
        self.rounded: set[int] = set()  # float32 tensors whose numbers are codes on a range
        self.dequantized: dict[int, int] = {}  # by float32 weight: the constant that it is stored as
        self.padded: dict[int, tuple[int, tuple[int, int, int, int]]] = {}  # images, and zeros on their four sides
        self._made: dict[tuple[int, str], int] = {}
        self._places: dict[bytes, int] = {}
        self.outputs, self._copies = self._each_once(parts)
        self._external = {tensor: number for number, tensor in enumerate([*parts.inputs, *self.outputs])}

    def _each_once(self, parts: FileParts) -> tuple[list[int], list[tuple[int, int]]]:
        """The outputs, and the copies that are made of those that are an input or another output too."""
        outputs: list[int] = []
        copies: list[tuple[int, int]] = []
        for tensor in parts.outputs:
            if tensor in outputs or tensor in parts.inputs:
                copies.append((tensor, self.tensor(tensor, self.shape(tensor))))
                tensor = copies[-1][1]
            outputs.append(tensor)
        return outputs, copies

    # --- tensors ---

    def tensor(self, like: int, shape: Sequence[int]) -> int:
        """A new tensor of another one's type and range that is computed."""
        self.tensors.append(FileTensor(self.tensors[like].kind, tuple(shape), None, self.tensors[like].rounding))
        return len(self.tensors) - 1

    def shape(self, tensor: int) -> tuple[int, ...]:
        """The shape of a tensor for one sample."""
        return self.tensors[tensor].shape

    def numbers(self, tensor: int) -> list[int]:
        """The whole numbers of a constant, such as axes."""
        content = self.tensors[tensor].content
        assert content is not None
        return [int(each) for each in np.frombuffer(content, np.int32)]

    def number(self, tensor: int) -> float:
        """The number that a constant of one number stands for."""
        found = self.tensors[tensor]
        assert found.content is not None
        if found.rounding is None:
            return float(np.frombuffer(found.content, np.float32)[0])
        code = int(np.frombuffer(found.content, np.int8)[0])
        return float(found.rounding.scales[0]) * (code - found.rounding.zero)

    def is_zero(self, tensor: int) -> bool:
        """Whether a constant is all zeros."""
        content = self.tensors[tensor].content
        return content is not None and not any(content)

    def widen(self, tensor: int, made: int) -> None:
        """Let a tensor be the numbers of a float16 constant in float32."""
        content = self.tensors[tensor].content
        assert content is not None
        numbers = np.frombuffer(content, np.float16).astype(np.float32)
        self.tensors[made] = replace(self.tensors[made], content=numbers.tobytes())

    def reshape_constant(self, tensor: int, shape: Sequence[int]) -> None:
        """Give a constant that no node reads yet another shape, with its rows on the first axis."""
        found = self.tensors[tensor]
        rounding = None if found.rounding is None else replace(found.rounding, axis=0)
        self.tensors[tensor] = replace(found, shape=tuple(shape), rounding=rounding)

    def value(self, tensor: int) -> int:
        """The number of the value that holds a tensor."""
        if tensor in self.later:
            self.later.pop(tensor)()
        if (tensor, "") not in self._made:
            self._made[tensor, ""] = self._define(tensor)
        return self._made[tensor, ""]

    def dynamic(self, tensor: int, axes: int) -> int:
        """The number of a value with a tensor's numbers in 8 bits, on a range that is found in every run.

        Args:
            tensor: float32 tensor.
            axes: number of its last axes that share a range.
        """
        key = (tensor, f"dynamic {axes}")
        if key not in self._made:
            read = self.value(tensor)
            parameters = {"num_nonbatch_dims": axes}
            plain = self._plain("xnn_datatype_qdint8", self.shape(tensor))
            self._made[key] = self._add_value(plain, ("PerTokenDynamicQuant", parameters))
            self.node("XNNConvert", {"input_id": read, "output_id": self._made[key]})
        return self._made[key]

    def _define(self, tensor: int) -> int:
        found = self.tensors[tensor]
        plain = self._plain(_TYPES[found.kind], found.shape or (1,))
        if found.content is not None:
            plain["constant_buffer_idx"] = self.keep(found.content)
        elif tensor in self._external:
            plain["external_id"] = self._external[tensor]
            plain["flags"] = _IS_INPUT if tensor in self.parts.inputs else _IS_OUTPUT
        rounding = found.rounding
        if rounding is None:
            return self._add_value(plain, None)
        one = {"scale": float(np.float32(rounding.scales[0])), "zero_point": int(rounding.zero)}
        return self._add_value(plain, ("PerTensorQuant", one))

    def parameter(self, tensor: int) -> int:
        """The number of the value of a layer's weight or bias: float32, or codes with a scale for each row."""
        key = (tensor, "parameter")
        if key not in self._made:
            self._made[key] = self._parameter(self.tensors[tensor])
        return self._made[key]

    def _parameter(self, found: FileTensor) -> int:
        assert found.content is not None
        kind, content, rounding = found.kind, found.content, found.rounding
        if kind == "INT4":
            kind, content = "INT8", unpacked_from_4_bits(content, math.prod(found.shape))
        plain = self._plain(_TYPES[kind] if rounding is None else _BY_ROW[kind], found.shape)
        plain["constant_buffer_idx"] = self.pack(content)
        if rounding is None:
            return self._add_value(plain, None)
        by_row = {"scale": [], "channel_dim": rounding.axis, "num_scales": len(rounding.scales)}
        by_row["scale_buffer_idx"] = self.pack(rounding.scales.astype(np.float32).tobytes())
        return self._add_value(plain, ("PerChannelQuant", by_row))

    def _plain(self, kind: str, shape: Sequence[int]) -> Json:
        return {
            "datatype": kind,
            "num_dims": len(shape),
            "dims": [int(size) for size in shape],
            "external_id": _NOT_EXTERNAL,
            "id_out": len(self.values),
        }

    def _add_value(self, plain: Json, parameters: tuple[str, Json] | None) -> int:
        kind, value = "XNNTensorValue", plain
        if parameters is not None:
            kind = "XNNQuantizedTensorValue"
            value = {"tensor_value": plain, "quant_params_type": parameters[0], "quant_params": parameters[1]}
        self.values.append({"xvalue_union_type": kind, "xvalue_union": value})
        return len(self.values) - 1

    # --- constants ---

    def pack(self, content: bytes) -> int:
        """The number of a constant that XNNPACK copies when the file is loaded; equal ones are one constant."""
        if content not in self._places:
            offset = len(self.packed)
            self.packed += content + bytes(-len(content) % _ALIGNMENT)
            self._places[content] = self._add_constant({"offset": offset, "size": len(content)})
        return self._places[content]

    def keep(self, content: bytes) -> int:
        """The number of a constant that XNNPACK reads in every run; equal ones are one constant."""
        name = next((name for name, kept in self.kept.items() if kept == content), None)
        if name is None:
            name = f"c{len(self.kept)}"
            self.kept[name] = content
        return self._add_constant({"offset": 2**64 - 1, "size": len(content), "named_key": name})

    def _add_constant(self, constant: Json) -> int:
        self.constants.append(constant)
        return len(self.constants) - 1

    # --- nodes ---

    def node(self, kind: str, fields: Mapping[str, Any], bounds: tuple[Any, Any] | None = None) -> None:
        """Add a node.

        Args:
            kind: its name in XNNPACK's schema.
            fields: its fields there.
            bounds: smallest and largest value of its result. Default: it may have any.
        """
        made: Json = {"xnode_union_type": kind, "xnode_union": dict(fields)}
        if bounds is not None:
            made["output_min_max"] = {"output_min": bounds[0], "output_max": bounds[1]}
        self.nodes.append(made)

    def content(self) -> Json:
        """The graph in XNNPACK's schema."""
        for tensor, made in self._copies:
            self.node("XNNCopy", {"input_id": self.value(tensor), "output_id": self.value(made)})
        ends = [[self.value(tensor) for tensor in each] for each in (self.parts.inputs, self.outputs)]
        return {
            "version": "0",
            "xnodes": self.nodes,
            "xvalues": self.values,
            "num_externs": len(self._external),
            "input_ids": ends[0],
            "output_ids": ends[1],
            "constant_data": self.constants,
        }


def unpacked_from_4_bits(content: bytes, count: int) -> bytes:
    """Codes of -8 … 7, two in a byte, as one in a byte.

    >>> np.frombuffer(unpacked_from_4_bits(bytes.fromhex("f107"), 3), np.int8)
    array([ 1, -1,  7], dtype=int8)
    """
    both = np.frombuffer(content, np.uint8)
    codes: npt.NDArray[np.int8] = np.stack([both << 4, both & 0xF0], 1).ravel()[:count].view(np.int8) >> 4
    return codes.tobytes()
