"""Runs with a budget of latency, timed anew by a loop of this file's own: which of them are above their budget.

python benchmarks/latency_guarantee.py --model digits runs/d1 runs/d2
python benchmarks/latency_guarantee.py --model resnet20 --weights FILE --shape 3,32,32 runs/a runs/b

Only the original's float32 file is made by the package. Timing is the target's runtime (ONNX Runtime or OpenVINO) and
NumPy: one run of the original, one of the run's file, and so on; medians, and the median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from autocompress.execute import uncompressed
from autocompress.models import load_model
from autocompress.network import fold_batch_norms, trace
from autocompress.targets.graph.lowering import lower
from autocompress.targets.onnxruntime.file import write_onnx

FILES = {"ONNX Runtime": "model.onnx", "OpenVINO": "model_openvino.onnx"}  # by runtime
Call = Callable[[], Any]


def onnxruntime_call(content: bytes, threads: int, batch: np.ndarray) -> Call:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: batch}
    return lambda: session.run(None, feed)


def openvino_call(content: bytes, threads: int, batch: np.ndarray) -> Call:
    import openvino

    core = openvino.Core()
    model = core.read_model(content)
    model.reshape(list(batch.shape))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    settings |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(batch))
    return request.infer


CALLS = {"ONNX Runtime": onnxruntime_call, "OpenVINO": openvino_call}


def seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(original: bytes, run: Path, shape: tuple[int, ...], least_seconds: float) -> dict[str, Any]:
    outcome = json.loads((run / "outcome.json").read_text())
    limit, runtime = outcome["latency"]["limit"], outcome["runtime"]["name"]
    batch = np.random.default_rng(0).standard_normal((limit["batch"], *shape)).astype(np.float32)
    contents = original, (run / FILES[runtime]).read_bytes()
    both = [CALLS[runtime](each, limit["threads"], batch) for each in contents]
    for call in both:
        for _ in range(20):
            seconds(call)
    taken: list[tuple[float, float]] = []
    end = time.perf_counter() + least_seconds
    while time.perf_counter() < end or len(taken) < 200:
        first, second = (seconds(call) for call in both)
        taken.append((first, second))
    times = np.array(taken)
    ratio = float(np.median(times[:, 1] / times[:, 0]))
    milliseconds = 1e3 * np.median(times, axis=0)
    used = ratio / limit["share"] if limit["share"] is not None else milliseconds[1] / 1e3 / limit["seconds"]
    return {
        "run": str(run),
        "runtime": runtime,
        "limit": limit["share"] if limit["share"] is not None else f"{1e3 * limit['seconds']:g} ms",
        "claimed_ratio": outcome["latency"]["ratio"]["median"],
        "ratio": round(ratio, 4),
        "original_ms": round(milliseconds[0], 4),
        "compressed_ms": round(milliseconds[1], 4),
        "used": round(used, 4),
        "accuracy": outcome["runtime"]["accuracy"],
        "rounds": len(taken),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--shape", default="1,8,8", help="shape of a sample")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds for each run, at least")
    arguments = parser.parse_args()
    shape = tuple(int(size) for size in arguments.shape.split(","))
    example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    model = load_model(arguments.model, arguments.weights)
    network = trace(model, example[:1])
    original = write_onnx(lower(uncompressed(fold_batch_norms(model, network), network), example, integer=False))
    found = [measure(original, run, shape, arguments.seconds) for run in arguments.runs]
    for each in found:
        print(json.dumps(each))
    used = np.array([each["used"] for each in found])
    print(
        f"{len(used)} runs: {int((used <= 1).sum())} within their budget, {int((used > 1.01).sum())} above it by more "
        f"than 1 %, at most {used.max():.4f} of it"
    )


if __name__ == "__main__":
    main()
