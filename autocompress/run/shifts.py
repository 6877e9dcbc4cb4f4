"""What the evaluated plans of a run did to the network's outputs, beside the journal: one record a plan."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from autocompress.files import regular_file, write_all, writing

Shift = npt.NDArray[np.float16]


class ShiftFile:
    """Records of float16 (N, K), `Outcome.shift`, in the order of evaluation. A torn record is as good as none.

    Args:
        path: path of the file, which is made where there is none.
        shape: (N, K), the shape of every record.

    Raises:
        InputError: a folder, a pipe or a device has that name.
        WriteError: the file can't be made.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._path, self._shape = path, shape
        self._bytes = int(np.prod(shape)) * np.dtype(np.float16).itemsize
        with writing(path):
            if not regular_file(path):
                path.touch()
            self._file = path.open("r+b", buffering=0)

    def __enter__(self) -> ShiftFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, index: int, shift: Shift) -> int:
        """Write the record of evaluation `index` at once.

        Returns:
            Its checksum, for `read`.

        Raises:
            WriteError: the record can't be written.
        """
        content = np.ascontiguousarray(shift, dtype=np.float16).tobytes()
        with writing(self._path):
            self._file.seek(index * self._bytes)
            write_all(self._file, content)
        return zlib.crc32(content)

    def read(self, index: int, checksum: int | None = None) -> Shift | None:
        """The record of evaluation `index`; None where the file ends before its end, or the record is damaged.

        Args:
            index: place of the record.
            checksum: what `write` returned; None: the record is not checked.
        """
        self._file.seek(index * self._bytes)
        content = _read_all(self._file, self._bytes)
        if len(content) < self._bytes or checksum not in (None, zlib.crc32(content)):
            return None
        return np.frombuffer(content, np.float16).reshape(self._shape)


def _read_all(file: io.FileIO, size: int) -> bytes:
    """As many bytes as there are, at most `size`: one call of a file without a buffer may read fewer."""
    parts = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
