"""Files of tensors (safetensors) that carry a checksum: a bit that a disk changed does not pass for a weight."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from autocompress.files import replacing, write_all

_CHECKSUM = "crc32"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_checked(path: Path, tensors: Mapping[str, Tensor], of: str = "") -> None:
    """Write tensors by name, whole or not at all; the same tensors give the same bytes.

    The file is written here, tensor by tensor, because `safetensors.save_file` gives files the rights 0600 and hides
    the system's errors in a text.

    Args:
        path: path of the file.
        tensors: tensors by name.
        of: name of the network or layer that they belong to. It is part of the checksum, so that another's file does
            not pass for this one.

    Raises:
        WriteError: the file can't be written.
    """
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    ordered = sorted(content.items(), key=lambda item: (-item[1].element_size(), item[0]))  # so all are aligned
    header: dict[str, Any] = {"__metadata__": {_CHECKSUM: _checksum(content, of)}}
    start = 0
    for name, tensor in ordered:
        end = start + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb", buffering=0) as file:
        write_all(file, struct.pack("<Q", len(text)) + text)
        for _, tensor in ordered:
            write_all(file, _bytes(tensor))


def load_checked(path: Path, of: str = "", *, check: bool = True) -> dict[str, Tensor] | None:
    """The tensors that `save_checked` wrote, memory-mapped.

    Args:
        path: path of the file.
        of: the name that they were written with.
        check: whether to read all of it and compare the checksum, at about 1 GB a second.

    Returns:
        The tensors by name; None where there is no file, or it is damaged, or has no checksum.
    """
    if not path.is_file():  # also a pipe, which would be waited for without end
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            claimed = (file.metadata() or {}).get(_CHECKSUM)
    except (SafetensorError, FileNotFoundError):  # another process may have removed it just now
        return None
    return tensors if not check or claimed == _checksum(tensors, of) else None


def _checksum(tensors: Mapping[str, Tensor], of: str) -> str:
    """CRC-32 of names, types, shapes and values, 8 hex digits."""
    found = zlib.crc32(of.encode())
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        found = zlib.crc32(_bytes(tensor), found)
    return f"{found:08x}"


def _bytes(tensor: Tensor) -> memoryview:
    """The values of a tensor as bytes, in the order of their indices, without a copy."""
    flat = tensor.detach().contiguous().flatten()
    flat = flat.as_strided((1,), (1,)) if len(flat) == 1 else flat  # the stride of a single value may be anything
    return memoryview(flat.view(torch.uint8).numpy().data)
