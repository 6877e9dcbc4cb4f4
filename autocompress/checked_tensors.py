"""Files of tensors (safetensors) that carry a checksum: a bit that a disk changed does not pass for a weight."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from autocompress.files import replacing

_CHECKSUM = "crc32"


def save_checked(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name, whole or not at all; the same tensors give the same bytes.

    Raises:
        WriteError: the file can't be written.
    """
    content = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(content, temporary, {_CHECKSUM: _checksum(content)})
        except SafetensorError as error:  # it holds the system's error as text alone
            found = re.search(r"(?:I/O error: )?([^:]*?) ?\(os error (\d+)\)", str(error))
            raise OSError(*((int(found[2]), found[1].strip()) if found else (None, str(error)))) from error


def load_checked(path: Path, *, check: bool = True) -> dict[str, Tensor] | None:
    """The tensors that `save_checked` wrote, memory-mapped.

    Args:
        path: path of the file.
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
    return tensors if not check or claimed == _checksum(tensors) else None


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of names, types, shapes and values, 8 hex digits."""
    found = 0
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data, found)
    return f"{found:08x}"
