"""What the evaluated plans of a run did to the network's outputs, beside the journal: one record a plan."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

Shift = npt.NDArray[np.float16]


class ShiftFile:
    """Records of float16 (N, K), `Outcome.shift`, in the order of evaluation. A torn record is as good as none.

    Args:
        path: path of the file, which is made where there is none.
        shape: (N, K), the shape of every record.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._bytes = int(np.prod(shape)) * np.dtype(np.float16).itemsize
        path.touch()
        self._file = path.open("r+b")

    def __enter__(self) -> ShiftFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, index: int, shift: Shift) -> None:
        """Write and flush the record of evaluation `index`."""
        self._file.seek(index * self._bytes)
        self._file.write(np.ascontiguousarray(shift, dtype=np.float16).tobytes())
        self._file.flush()

    def read(self, index: int) -> Shift | None:
        """The record of evaluation `index`; None where the file ends before its end."""
        self._file.seek(index * self._bytes)
        content = self._file.read(self._bytes)
        return np.frombuffer(content, np.float16).reshape(self._shape) if len(content) == self._bytes else None
