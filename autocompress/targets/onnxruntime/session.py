"""ONNX Runtime: runs exported files on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.network.verification import first_line
from autocompress.onnx_runtime import inference_session, runtime
from autocompress.samples import Inputs
from autocompress.targets.timing.session import feeds_of
from autocompress.tasks.outputs import Outputs, single

if TYPE_CHECKING:
    import onnxruntime  # type: ignore[import-untyped]


@cache
def _load_failures() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises where a file is missing, damaged, or more than this version can run."""
    errors = runtime().capi.onnxruntime_pybind11_state
    return (
        errors.Fail,
        errors.InvalidArgument,
        errors.InvalidGraph,
        errors.InvalidProtobuf,
        errors.NoSuchFile,
        errors.NotImplemented,
        errors.RuntimeException,
    )


class OnnxSession:
    """A network that ONNX Runtime has loaded. Made by `open_session`.

    Args:
        session: ONNX Runtime's session of a file.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._names = [each.name for each in session.get_inputs()]

    def run(self, inputs: Inputs) -> Tensor | Outputs:
        """(N, …) float32 outputs of (N, …) `inputs`, any N: a tensor, or several in a tuple."""
        return single(tuple(map(torch.from_numpy, self.prepared(inputs)())))

    def prepared(self, inputs: Inputs) -> Callable[[], list[np.ndarray]]:
        """A function that runs the network on these (N, …) `inputs`, which are converted beforehand."""
        feeds = feeds_of(inputs, self._names)
        return lambda: self._session.run(None, feeds)


def open_session(content: bytes | str | Path, threads: int = 1, *, optimized: Path | None = None) -> OnnxSession:
    """Load an ONNX file on the CPU.

    Args:
        content: bytes of the file, or its path.
        threads: number of threads that one operator may use, at least 1.
        optimized: file to write the network to as the runtime has rearranged it, which shows the kernels that it runs;
            None: none.

    Raises:
        InputError: the file is missing or damaged, or holds what this version of ONNX Runtime can't run.
    """
    what = f"{len(content):,} bytes" if isinstance(content, bytes) else str(content)
    try:
        session = inference_session(content, threads, optimized=optimized)
    except _load_failures() as error:
        raise InputError(f"`path` must be a file that ONNX Runtime loads, got {what}: {first_line(error)}") from error
    return OnnxSession(session)
