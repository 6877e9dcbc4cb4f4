"""ONNX Runtime: runs exported files on the CPU."""

from __future__ import annotations

from pathlib import Path

import onnxruntime  # type: ignore[import-untyped]
import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.network.verification import first_line

_FATAL_ONLY = 4
_LOAD_FAILURES = (
    onnxruntime.capi.onnxruntime_pybind11_state.Fail,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf,
    onnxruntime.capi.onnxruntime_pybind11_state.NoSuchFile,
    onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented,
    onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException,
)


class OnnxSession:
    """One network, loaded. Made by `open_session`.

    Args:
        session: with one input and one output.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name

    def run(self, inputs: Tensor) -> Tensor:
        """Outputs of the (N, …) float32 `inputs`, any N."""
        (outputs,) = self._session.run(None, {self._input: inputs.detach().cpu().float().contiguous().numpy()})
        return torch.from_numpy(outputs)


def open_session(content: bytes | str | Path, threads: int = 1, *, optimized: Path | None = None) -> OnnxSession:
    """Load an ONNX file on the CPU.

    Args:
        content: the file's bytes, or its path.
        threads: at least 1.
        optimized: where to write the network as the runtime has rearranged it, to see which kernels it runs.

    Raises:
        InputError: the file is missing or damaged, or holds what this version of ONNX Runtime can't run.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    what = f"{len(content):,} bytes" if isinstance(content, bytes) else str(content)
    source = content if isinstance(content, bytes) else str(content)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except _LOAD_FAILURES as error:
        raise InputError(f"`path` must be a file that ONNX Runtime loads, got {what}: {first_line(error)}") from error
    return OnnxSession(session)
