"""Files for phones: their bytes, their answers beside PyTorch's on the whole test split, and their time.

python benchmarks/mobile.py --shared ../shared --out runs/mobile [--target executorch]

Every network is written with two plans, without a search: all weights at 8 bits, and, where the target has 4, all at 4
but for depthwise layers, which keep 8; activations are rounded to 8 bits. `apply` measures and verifies each file. A
line of JSON is printed for each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import autocompress
from autocompress.models import load_model
from autocompress.network import trace
from autocompress.plan import Label, Plan
from autocompress.targets import TARGETS

CIFAR = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
NETWORKS = ("digits", "resnet20", "resnet56", "efficientnet_lite0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", help=f"out of {', '.join(NETWORKS)}; all by default")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder of the networks and the data")
    parser.add_argument("--out", type=Path, default=Path("runs/mobile"))
    parser.add_argument("--target", default="litert", help="litert or executorch")
    parser.add_argument("--bits", type=int, nargs="*", help="default: 8 and 4, as far as the target has them")
    arguments = parser.parse_args()
    offered = TARGETS.find(arguments.target).weight_bits
    widths = arguments.bits or [bits for bits in (8, 4) if bits in offered]
    for name in arguments.networks or NETWORKS:
        for bits in widths:
            print(json.dumps(measured(name, bits, arguments)), flush=True)


def measured(name: str, bits: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The numbers of one file."""
    options, shape = options_of(name, arguments.shared)
    out = arguments.out / f"{arguments.target}-{name}-{bits}"
    network = trace(load_model(options["model"], options.get("weights")), torch.zeros(1, *shape))
    labels = {
        layer.name: Label(weight_bits=8 if layer.kind == "depthwise" else bits, activation_bits=8)
        for layer in network.layers
    }
    autocompress.apply(plan=Plan(labels), target=arguments.target, out=out, force=True, **options)
    found = json.loads((out / "outcome.json").read_text())
    runtime, timings = found["runtime"], found["runtime"]["timings_by_batch"]
    return {
        "network": name,
        "bits": bits,
        "file_bytes": found["file_bytes"],
        "share_of_float32": found["fraction_of_original"]["size"],
        "samples": found["samples"],
        "accuracy": {key: found[key]["accuracy"] for key in ("original", "compressed")} | {"file": runtime["accuracy"]},
        "agreement_with_pytorch": runtime["agreement_with_pytorch"],
        "difference_from_pytorch": runtime["difference_from_pytorch"],
        "milliseconds": {
            batch: {key: 1e3 * each[key]["median_seconds"]["median"] for key in ("original", "compressed")}
            | {"ratio": each["ratio"], "settled": each["settled"]}
            for batch, each in timings.items()
        },
        "machine": found["machine"],
    }


def options_of(name: str, shared: Path) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Options of `apply`, and the shape of a sample."""
    few = {"calibration_samples": 256, "search_samples": 256, "recalibration_samples": 256}
    if name == "digits":
        return {"model": name, "data": "digits", **few}, (1, 8, 8)
    if name == "efficientnet_lite0":
        data, weights = shared / "data/imagenet-samples", shared / "models/tf_efficientnet_lite0-imagenet.safetensors"
        scaled = {"mean": (0.498,) * 3, "std": (0.502,) * 3}
        return {
            "model": "timm:tf_efficientnet_lite0", "weights": str(weights), "data": f"parquet:{data}",
            "image_size": 224, **scaled, **few,
        }, (3, 224, 224)  # fmt: skip
    data, weights = shared / "data/cifar10-jpeg", shared / f"models/{name}-cifar10-jpeg.safetensors"
    return {"model": name, "weights": str(weights), "data": f"parquet:{data}", **CIFAR, **few}, (3, 32, 32)


if __name__ == "__main__":
    main()
