"""NumPy archives, read without taking a header's word for anything."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from autocompress.budget import format_bytes
from autocompress.errors import InputError, reason_of
from autocompress.files import check_regular
from autocompress.memory import memory_limit

_PIECE = 1 << 20  # bytes that are unpacked at once
# What zipfile and NumPy were seen to raise on damaged and hostile archives.
_DAMAGED = (
    OSError, EOFError, ValueError, LookupError, SyntaxError, TypeError, RuntimeError, MemoryError, OverflowError,
    zipfile.BadZipFile, zlib.error, tokenize.TokenError,
)  # fmt: skip


def read_npz(path: Path, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Arrays of an archive.

    Args:
        path: path of the archive, for `data` npz:FILE.
        names: names of the arrays; others in the archive are left alone.

    Returns:
        Arrays by name; those that the archive lacks are left out.

    Raises:
        InputError: the file can't be read or is no archive, an array is pickled or has another size than its header
            says, or all of them take more than the memory that a job may take.
    """
    if not path.exists():
        raise InputError(f"`data` npz:FILE must be an existing file, got {path}.")
    check_regular("`data`", path)
    try:
        _check_archive(path, names)
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.getinfo(f"{name}.npy") for name in names if f"{name}.npy" in archive.namelist()}
            _check_size(sum(member.file_size for member in members.values()), path)
            return {name: _array(archive, member, f"{name} of {path}") for name, member in members.items()}
    except InputError:
        raise
    except _DAMAGED as error:
        reason = reason_of(error)
        raise InputError(f"`data` npz:FILE must be a readable .npz archive, got {path}: {reason}.") from error


def _check_archive(path: Path, names: Sequence[str]) -> None:
    """Raise InputError where a file holds a bare array."""
    with path.open("rb") as file:
        if file.read(6) == b"\x93NUMPY":
            raise InputError(f"`data` npz:FILE must be an archive of {', '.join(names)}, got one bare array in {path}.")


def _check_size(size: int, path: Path) -> None:
    """Raise InputError where arrays would take more memory than a job may; deflated zeros take a thousandth on disk."""
    limit = memory_limit(None)
    if size > limit:
        raise InputError(
            f"`data` npz:FILE must fit into the {format_bytes(limit)} of memory that are left, got {path}, whose "
            f"arrays take {format_bytes(size)}."
        )


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> npt.NDArray[Any]:
    """One array of an archive; memory is taken for it only where its header agrees with the archive."""
    with archive.open(member) as file:
        shape, fortran_order, dtype = _header(file)
        if dtype.hasobject:
            raise InputError(f"`data` npz:FILE must hold plain arrays, not pickles, got {name}.")
        said, held = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
        if min(shape, default=0) < 0 or said != held:
            raise InputError(
                f"`data` npz:FILE must hold arrays of the shape in their headers, got {name} with {held:,} bytes "
                f"instead of {said:,}."
            )
        array = np.frombuffer(_content(file, held), dtype)
    return array.reshape(shape, order="F" if fortran_order else "C")


def _content(file: IO[bytes], size: int) -> bytearray:
    """The next `size` bytes of a file, in memory once. Raises EOFError where the file ends before."""
    content = bytearray(size)
    view, done = memoryview(content), 0
    while done < size:
        piece = file.read(min(_PIECE, size - done))
        if not piece:
            raise EOFError("it ends too early")
        view[done : done + len(piece)] = piece
        done += len(piece)
    return content


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and dtype of the array that follows in a file."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)
