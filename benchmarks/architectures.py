"""Which architectures go all the way: from random weights to a verified ONNX file, for images, text, speech and more.

python benchmarks/architectures.py                        # all, one process each; about 40 minutes on one thread
python benchmarks/architectures.py --only bert,vit        # those whose names hold one of these

Networks of torchvision, timm and transformers are built from their own classes and small configurations; nothing is
downloaded. Prints a row for each: task that was taken, layers, share of the weights that may be labelled, channel
groups, size and divergence of the result, whether the file agrees with PyTorch, seconds and peak memory. Where a
network does not go all the way, the row is the line that a user would read.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
from architectures_zoo import ARCHITECTURES
from torch import Tensor

import autocompress
from autocompress.data import from_tensors
from autocompress.errors import ExportError
from autocompress.progress import Silent

LIMIT_S = 900


class Notes(Silent):
    """Keeps the note that says which task was taken."""

    task = "classification"

    def note(self, text: str) -> None:
        print(f"  note: {text}", file=sys.stderr, flush=True)
        if text.startswith("task: "):
            self.task = text.removeprefix("task: ").split()[0].rstrip(";")


def one(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The row of one architecture."""
    torch.manual_seed(0)
    build, inputs = ARCHITECTURES[name]
    model, started, notes = build().eval(), time.perf_counter(), Notes()
    samples = inputs(3 * options.samples)
    train, test = samples, _first(samples, 32)
    data = from_tensors(
        (train, None), (test, None), search_samples=options.samples, calibration_samples=options.samples
    )
    weights = sum(each.numel() for each in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        result = autocompress.search(
            model, data, f"size={options.size}", episodes=options.episodes, selection_samples=0,
            out=f"{folder}/run", cache=f"{folder}/cache", progress=notes, target=options.target,
        )  # fmt: skip
        content = (result.run_folder / "outcome.json").read_text()
    labelled = sum(layer.parameters for layer in result.network.layers)
    runtime = result.verification.runtime
    return {
        "task": notes.task,
        "layers": len(result.network.layers),
        "labelled": min(1.0, labelled / weights),
        "groups": len(result.network.groups),
        "size": result.outcome.resources["size"] / result.original_outcome.resources["size"],
        "kl": result.outcome.kl,
        "agreement": None if runtime is None else runtime.agreement,
        "difference": None if runtime is None else runtime.difference,
        "verified": json.loads(content)["verified"],
        "seconds": time.perf_counter() - started,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def _first(samples: Any, count: int) -> Any:
    if isinstance(samples, Tensor):
        return samples[:count]
    if isinstance(samples, dict):
        return {name: each[:count] for name, each in samples.items()}
    return tuple(each[:count] for each in samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--samples", type=int, default=32, help="search samples, and as many for calibration")
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--size", default="0.4")
    parser.add_argument("--target", default="onnxruntime")
    parser.add_argument("--one", action="store_true", help="run in this process, and print JSON")
    options = parser.parse_args()
    wanted = options.only.split(",")
    names = [name for name in ARCHITECTURES if any(part in name for part in wanted)]
    if options.one:
        try:
            print(json.dumps(one(options.only, options)))
        except (autocompress.InputError, ExportError) as error:
            print(json.dumps({"line": str(error)}))
        return
    own = [f"--{name}={getattr(options, name)}" for name in ("samples", "episodes", "size", "target")]
    passed = 0
    for name in names:
        passed += _report(name, [sys.executable, __file__, "--one", "--only", name, *own])
    print(f"{passed} of {len(names)} went all the way")


def _report(name: str, command: list[str]) -> bool:
    """Run one architecture in a process of its own and print its row. Returns whether it went all the way."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        print(f"{name}: not finished after {LIMIT_S} s", flush=True)
        return False
    if done.returncode:
        print(f"{name}: CRASHED: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return False
    row = json.loads(done.stdout.strip().splitlines()[-1])
    if "line" in row:
        print(f"{name}: refused: {row['line']}", flush=True)
        return False
    agreement = "not run" if row["agreement"] is None else f"{100 * row['agreement']:.1f} %"
    difference = "" if row["difference"] is None else f" ({100 * row['difference']:.2g} % of the spread)"
    print(
        f"{name}: {row['task']}, {row['layers']} layers, {100 * row['labelled']:.1f} % of the weights, {row['groups']} "
        f"groups, size {100 * row['size']:.1f} %, KL {row['kl']:.4f}, agrees on {agreement}{difference}, "
        f"{'verified' if row['verified'] else 'NOT VERIFIED'}, {row['seconds']:.0f} s, peak {row['peak_gb']:.1f} GB",
        flush=True,
    )
    return bool(row["verified"])


if __name__ == "__main__":
    main()
