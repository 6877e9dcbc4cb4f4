"""Which architectures go all the way: from random weights to a verified ONNX file, for images, text, speech and more.

python benchmarks/architectures.py                        # all, one process each; about 40 minutes on one thread
python benchmarks/architectures.py --only bert,vit        # those whose names hold one of these
python benchmarks/architectures.py --page                 # none: only writes the page of the results so far

Networks of torchvision, timm and transformers are built from their own classes and small configurations; nothing is
downloaded. Results go into architectures.json beside this script, where those of networks that are not run again stay,
and from there into docs/architectures.md: task that was taken, layers, share of the weights that may be labelled,
channel groups, size and divergence of the result, whether the file agrees with PyTorch, seconds and peak memory. Where
a network does not go all the way, the result is the line that a user would read.
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
from architectures_page import DATA, PAGE, page
from architectures_zoo import ARCHITECTURES, KINDS
from torch import Tensor

import autocompress
from autocompress.data import from_tensors
from autocompress.errors import ExportError
from autocompress.files import write_atomically
from autocompress.machine import machine
from autocompress.progress import Silent

LIMIT_S = 900
LIBRARIES = ("torchvision", "timm", "transformers")


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
        **described(model),
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


def described(model: torch.nn.Module) -> dict[str, Any]:
    """Class of a network, or of the largest part that a library made, that library, and its number of weights."""
    classes = [type(module) for module in model.modules()]
    made = [each for each in classes if each.__module__.partition(".")[0] in LIBRARIES] or classes[:1]
    library = made[0].__module__.partition(".")[0]
    return {
        "class": made[0].__name__,
        "library": library if library in LIBRARIES else "",
        "weights": sum(each.numel() for each in model.parameters()),
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
    parser.add_argument("--page", action="store_true", help="run none, and write the page of the results so far")
    options = parser.parse_args()
    if options.page:
        write_atomically(PAGE, page(json.loads(DATA.read_text()), KINDS))
        return
    wanted = options.only.split(",")
    names = [name for name in ARCHITECTURES if any(part in name for part in wanted)]
    if options.one:
        try:
            print(json.dumps(one(options.only, options)))
        except (autocompress.InputError, ExportError) as error:
            print(json.dumps({"line": str(error)}))
        return
    own = [f"--{name}={getattr(options, name)}" for name in ("samples", "episodes", "size", "target")]
    for name in names:
        result = _result([sys.executable, __file__, "--one", "--only", name, *own])
        print(f"{name}: {json.dumps(result)}", flush=True)
        _keep(name, {**result, **conditions(options)})


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    """How and where a network was run."""
    found = machine()
    return {
        "options": f"{options.samples} + {options.samples} samples, {options.episodes} evaluations, "
        f"size={options.size}, {options.target}",
        "machine": f"{found['cores']} cores, {found['processor']}",
        "date": time.strftime("%Y-%m-%d"),
    }


def _keep(name: str, result: dict[str, Any]) -> None:
    """Put a result among those of before, and write the page anew."""
    data = json.loads(DATA.read_text())
    data[name] = result
    write_atomically(DATA, json.dumps(data, indent=1) + "\n")
    write_atomically(PAGE, page(data, KINDS))


def _result(command: list[str]) -> dict[str, Any]:
    """Run one architecture in a process of its own: its numbers, or why there are none, as `line`."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"line": f"not finished after {LIMIT_S} s"}
    if done.returncode:
        return {"line": f"CRASHED: {done.stderr.strip().splitlines()[-1:]}"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
