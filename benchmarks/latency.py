"""Latency of finished runs in ONNX Runtime, in one go, one thread, taking turns; their original in float32 with them.

python benchmarks/latency.py --model resnet56 --weights FILE runs/a runs/b
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from autocompress.execute import uncompressed
from autocompress.models import load_model
from autocompress.network import fold_batch_norms, trace
from autocompress.targets.graph.lowering import lower
from autocompress.targets.onnxruntime.file import write_onnx
from autocompress.targets.onnxruntime.session import open_session
from autocompress.targets.timing import median_seconds


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
    sessions = {"original, float32": open_session(write_onnx(lower(original, example, integer=False)))}
    sessions |= {str(run): open_session(run / "model.onnx") for run in arguments.runs}
    for batch in (1, 32):
        seconds = median_seconds(sessions, example[:batch], rounds=200 if batch == 1 else 30)
        print(json.dumps({"batch": batch, "milliseconds": {name: round(1e3 * s, 3) for name, s in seconds.items()}}))


if __name__ == "__main__":
    main()
