"""Accuracy after execution: plans found, re-calibrated, fine-tuned, exported, and measured in ONNX Runtime.

    python benchmarks/execution.py --task resnet56-half-macs --epochs 3 --shared ../shared
    python benchmarks/execution.py --task original-resnet56 --epochs 3 --shared ../shared

Every task leaves a run folder, so that `autocompress finetune` and `verify` go on from there.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import autocompress
from autocompress import Label, Plan
from autocompress.data import load_data
from autocompress.evaluation import measure
from autocompress.execute import FineTuning, uncompressed
from autocompress.execute.distillation import Objective
from autocompress.execute.finetune import _Run
from autocompress.job.result_data import finished_data
from autocompress.models import load_model
from autocompress.network import fold_batch_norms, trace
from autocompress.report.live import PlainView

SEARCHES: Mapping[str, Mapping[str, Any]] = {
    "resnet56-half-macs": {
        "model": "resnet56", "budget": "macs=0.5", "weight_bits": (32,), "activation_bits": (32,),
        "sparsity_levels": 16, "episodes": 250, "search_samples": 2000,
    },
    "resnet56-half-macs-8bits": {
        "model": "resnet56", "budget": "macs=0.5", "weight_bits": (8,), "activation_bits": (8,),
        "sparsity_levels": 16, "episodes": 250, "search_samples": 2000,
    },
    "resnet56-sixteenth-size": {
        "model": "resnet56", "budget": "size=0.0625", "episodes": 80, "search_samples": 1000,
    },
}  # fmt: skip
UNIFORM: Mapping[str, tuple[str, Label]] = {
    "resnet20-2bits": ("resnet20", Label(0.0, 2, 8)),
    "resnet56-8bits": ("resnet56", Label(0.0, 8, 8)),
}
ORIGINALS = {"original-resnet20": "resnet20", "original-resnet56": "resnet56"}
RECIPE: Mapping[str, Any] = {"augmentation": "shift+flip", "hard_weight": 0.5, "recalibration_samples": 2048}


def options(arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    shared = arguments.shared
    return {
        **RECIPE,
        "weights": shared / f"models/{model}-cifar10-jpeg.safetensors",
        "data": f"parquet:{shared / 'data/cifar10-jpeg'}",
        "finetune": arguments.epochs,
        "learning_rate": arguments.learning_rate,
        "out": arguments.out / arguments.task,
        "force": True,
        "progress": PlainView(Console(stderr=True)),
    }


def compressed_task(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.task in SEARCHES:
        task = dict(SEARCHES[arguments.task])
        return finished_data(autocompress.search(**task, **options(arguments, task["model"])))
    model, label = UNIFORM[arguments.task]
    given = options(arguments, model)
    network = autocompress.inspect(model, given["data"], weights=given["weights"]).network
    plan = Plan({layer.name: label for layer in network.layers}, fingerprint=network.fingerprint)
    return finished_data(autocompress.apply(model, plan=plan, sparsity_levels=1, **given))


class _KeepLast(_Run):
    """Keeps the last network, not the best by the search split: nothing is closer to the original than itself."""

    def _judge(self) -> float:
        self._best_loss = math.inf
        return super()._judge()


def original_task(arguments: argparse.Namespace) -> dict[str, Any]:
    """The original itself, fine-tuned with the same recipe: labels count half, its own outputs the rest."""
    given = options(arguments, ORIGINALS[arguments.task])
    model, data = load_model(ORIGINALS[arguments.task], given["weights"]), load_data(given["data"])
    network = trace(model, data.calibration()[0][:1])
    folded = fold_batch_norms(model, network)
    settings = FineTuning(
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        augmentation=RECIPE["augmentation"],
        objective=Objective(hard=RECIPE["hard_weight"]),
    )
    whole, device = uncompressed(folded, network), torch.device("cpu")
    tuned = _KeepLast(whole, None, folded, data, settings, device, torch.bfloat16, None, None).finish()
    found = measure(model, tuned.compressed.model, data.test_batches())
    return {"original": found.original_accuracy, "tuned": found.accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=[*SEARCHES, *UNIFORM, *ORIGINALS], required=True)
    parser.add_argument("--epochs", type=float, default=0.0)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()
    started = time.perf_counter()
    found = original_task(arguments) if arguments.task in ORIGINALS else compressed_task(arguments)
    print(json.dumps({"task": arguments.task, "seconds": round(time.perf_counter() - started), **found}))


if __name__ == "__main__":
    main()
