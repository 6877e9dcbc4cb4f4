"""The content of a `.pte` file: ExecuTorch's program, which calls XNNPACK once, and what XNNPACK needs behind it.

    program (header, flatbuffer)  |  XNNPACK's header, its graph, packed constants  |  constants that are kept …

Everything begins at a multiple of 16 bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

from autocompress.targets.executorch.graph import XnnGraph
from autocompress.targets.executorch.schema import PROGRAM, XNNPACK, flatbuffer

MOST_SAMPLES = 32
"""Samples that a file takes at once: ExecuTorch plans its memory for so many."""

_ALIGNMENT = 16
_BACKEND = "XnnpackBackend"
_NO_CONSTANTS = b""  # ExecuTorch's own, which must have a segment
_HEADER = b"eh00", 32  # of the program: its mark and its length
_XNN_HEADER = b"XH00", 30, 32  # of XNNPACK's part: its mark, its length, and its length with zeros behind


def program_of(graph: XnnGraph) -> bytes:
    """The content of the file of a finished graph.

    Raises:
        InputError: the extra `executorch` is not installed.
    """
    segments = [_NO_CONSTANTS, _delegate(graph), *graph.kept.values()]
    program = _with_header(flatbuffer(PROGRAM, _program(graph, segments)), sum(map(len, map(_aligned, segments))))
    return b"".join([program, *map(_aligned, segments)])


def _delegate(graph: XnnGraph) -> bytes:
    """XNNPACK's part: a header that says where the graph and its packed constants lie, and both."""
    content = flatbuffer(XNNPACK, graph.content())
    mark, length, begin = _XNN_HEADER
    end = begin + len(_aligned(content))
    header = struct.pack("<4x4sHIIIQ", mark, length, begin, len(content), end, len(graph.packed))
    return b"".join([header.ljust(begin, b"\0"), _aligned(content), bytes(graph.packed)])


def _program(graph: XnnGraph, segments: Sequence[bytes]) -> dict[str, Any]:
    """ExecuTorch's program: inputs, outputs, and one call of XNNPACK that turns the ones into the others."""
    inputs, outputs = graph.parts.inputs, graph.outputs
    values, end = [], 0
    for tensor in (*inputs, *outputs):
        sizes = [MOST_SAMPLES, *graph.shape(tensor)[1:]]
        values.append(_value(sizes, end))
        end += _rounded_up(4 * math.prod(sizes))
    places = list(range(len(values)))
    call = {"instr_args_type": "DelegateCall", "instr_args": {"delegate_index": 0, "args": places}}
    plan = {
        "name": "forward",
        "container_meta_type": {"encoded_inp_str": "", "encoded_out_str": ""},
        "values": values,
        "inputs": places[: len(inputs)],
        "outputs": places[len(inputs) :],
        "chains": [{"inputs": [], "outputs": [], "instructions": [call]}],
        "operators": [],
        "delegates": [{"id": _BACKEND, "processed": {"location": "SEGMENT", "index": 1}, "compile_specs": []}],
        "non_const_buffer_sizes": [0, end],
    }
    offsets = [sum(len(_aligned(each)) for each in segments[:number]) for number in range(len(segments))]
    return {
        "version": 0,
        "execution_plan": [plan],
        "constant_segment": {"segment_index": 0, "offsets": [0]},
        "segments": [{"offset": at, "size": len(each)} for at, each in zip(offsets, segments, strict=True)],
        "named_data": [{"key": name, "segment_index": number} for number, name in enumerate(graph.kept, 2)],
    }


def _value(sizes: list[int], offset: int) -> dict[str, Any]:
    """A float32 tensor of at most these sizes, at its place in the memory that ExecuTorch plans."""
    tensor = {
        "scalar_type": "FLOAT",
        "sizes": sizes,
        "dim_order": list(range(len(sizes))),
        "allocation_info": {
            "memory_id": 1,
            "memory_offset_low": offset % 2**32,
            "memory_offset_high": offset // 2**32,
        },
        "shape_dynamism": "DYNAMIC_BOUND",
    }
    return {"val_type": "Tensor", "val": tensor}


def _with_header(content: bytes, behind: int) -> bytes:
    """ExecuTorch's header in a program's flatbuffer, behind its first 8 bytes: root and mark of the format."""
    mark, length = _HEADER
    whole = len(content) + length
    base = _rounded_up(whole)
    (root,) = struct.unpack("<I", content[:4])
    header = struct.pack("<4sIQQQ", mark, length, whole, base, behind)
    return _aligned(struct.pack("<I", root + length) + content[4:8] + header + content[8:])


def _aligned(content: bytes) -> bytes:
    """The content with zeros behind it."""
    return content.ljust(_rounded_up(len(content)), b"\0")


def _rounded_up(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
