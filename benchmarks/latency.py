"""Latency of finished runs in ONNX Runtime, in one thread, each in turns with its original in float32.

python benchmarks/latency.py --model resnet56 --weights FILE runs/a runs/b
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from autocompress.execute import uncompressed
from autocompress.job.result_data import timing_data
from autocompress.models import load_model
from autocompress.network import fold_batch_norms, trace
from autocompress.targets.graph.lowering import lower
from autocompress.targets.onnxruntime.file import write_onnx
from autocompress.targets.onnxruntime.session import open_session
from autocompress.targets.timing import time_pair


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--pixels", type=int, default=32)
    arguments = parser.parse_args()
    example = torch.randn(32, 3, arguments.pixels, arguments.pixels, generator=torch.Generator().manual_seed(0))
    model = load_model(arguments.model, arguments.weights)
    network = trace(model, example[:1])
    original = uncompressed(fold_batch_norms(model, network), network)
    first = open_session(write_onnx(lower(original, example, integer=False)))
    for run in arguments.runs:
        second = open_session(run / "model.onnx")
        for batch in (1, 32):
            print(
                json.dumps({"run": str(run), "batch": batch, **timing_data(time_pair(first, second, example[:batch]))})
            )


if __name__ == "__main__":
    main()
