"""ONNX Runtime, which judges ONNX files that come in and runs those that go out: without its telemetry, and quiet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnxruntime  # type: ignore[import-untyped]

_FATAL_ONLY = 4
_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"  # the only switch that is looked at before anything is collected or written


def runtime() -> Any:
    """The module `onnxruntime`, without its telemetry: no events, no files in TMPDIR or the user's cache.

    ONNX Runtime reads the switch once, when it is imported; a program that has imported it before keeps what it chose.
    Nor is a switch changed that the user has set.
    """
    os.environ.setdefault(_NO_TELEMETRY, "1")
    import onnxruntime

    return onnxruntime


def inference_session(
    content: bytes | str | Path, threads: int, *, optimized: Path | None = None
) -> onnxruntime.InferenceSession:
    """A file loaded on the CPU. What ONNX Runtime raises where it can't be loaded is raised as it is.

    Args:
        content: bytes of the file, or its path.
        threads: number of threads that one operator may use, at least 1.
        optimized: file to write the network to as the runtime has rearranged it; None: none.
    """
    options = runtime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    source = content if isinstance(content, bytes) else str(content)
    return runtime().InferenceSession(source, options, providers=["CPUExecutionProvider"])
