"""The tables of the embedded digits network, from nothing: `make bench-digits`.

    python benchmarks/bench_digits.py [--seeds 5] [--episodes 400] [--jobs 2] [--out runs/bench-digits]

Trains the network as `train_digits.py` does, searches as `make demo` does, and compares every method of
configs/compare/digits.yaml at the same number of evaluations. Prints Markdown. All evaluations are in float32, so that
no measurement of speed decides about the numbers. What was compared before an interruption is not compared again.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from standing import read, show
from train_digits import accuracy, train

import autocompress
from autocompress.budget import format_bytes
from autocompress.comparison.run import Comparison
from autocompress.data.arrays import digits_tensors
from autocompress.machine import machine
from autocompress.models import load_model
from autocompress.models.digits_net import DigitsNet

SUITE = Path(__file__).parents[1] / "configs" / "compare" / "digits.yaml"
DTYPE = "float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each method that draws (%(default)s)")
    parser.add_argument("--episodes", type=int, default=400, help="evaluations of each search (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="searches at once (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-digits"), help="folder (%(default)s)")
    asked, began = parser.parse_args(), time.monotonic()
    print(f"## The embedded digits network\n\n{where()}\n")
    print(trained(), flush=True)
    print(f"\n### `make demo`\n\n{demo()}", flush=True)
    print(f"\n### Methods at {asked.episodes} evaluations, `size=0.08`, pruning and bits", flush=True)
    compared(asked)
    print(f"\nAll of it took {(time.monotonic() - began) / 60:.1f} minutes by the clock.")


def where() -> str:
    """Date, machine, versions and dtype, in one line."""
    found = machine()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxruntime", "autocompress"))
    return (
        f"{time.strftime('%Y-%m-%d')}, {found['processor']}, {found['cores']} cores, "
        f"{format_bytes(found['memory_bytes'])}; Python {platform.python_version()}, {versions}; {DTYPE}."
    )


def trained() -> str:
    """What training from nothing gives, beside the weights that the package ships."""
    x_train, y_train, x_test, y_test = digits_tensors()
    began = time.monotonic()
    ours, seconds = train(x_train, y_train), time.monotonic() - began
    shipped = load_model("digits", None, {}).eval()
    torch.use_deterministic_algorithms(False)
    assert isinstance(shipped, DigitsNet)
    rows = [(name, accuracy(net, x_test, y_test)) for name, net in (("trained now", ours), ("shipped", shipped))]
    values = dict(shipped.named_parameters())
    apart = max(float((each - values[name]).detach().abs().max()) for name, each in ours.named_parameters())
    table = "\n".join(f"| {name} | {share:.2%} |" for name, share in rows)
    return (
        f"Training took {seconds:.0f} s; its weights are at most {apart:.2g} from the shipped ones.\n\n"
        f"| weights | accuracy on {len(y_test)} test images |\n| --- | --- |\n{table}"
    )


def demo() -> str:
    """The search of `make demo`, from an empty cache."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = autocompress.search(
            "digits", "digits", "size=0.12", out=f"{folder}/run", cache=f"{folder}/cache", dtype=DTYPE
        )
    before, after, runtime = result.original_outcome, result.outcome, result.verification.runtime
    assert runtime is not None
    rows = [
        ("original", before.resources, before.accuracy, 0.0),
        ("compressed, PyTorch", after.resources, after.accuracy, after.kl),
        (f"compressed, {runtime.runtime}", after.resources, runtime.closeness.accuracy, runtime.closeness.kl),
    ]
    table = "\n".join(f"| {name} | {has['size']:,} | {share:.2%} | {kl:.4f} |" for name, has, share, kl in rows)
    seconds = f"{result.evaluations} evaluations; {time.monotonic() - began:.0f} s from an empty cache."
    return f"| network | bytes | accuracy | KL, nats |\n| --- | --- | --- | --- |\n{table}\n\n{seconds}"


def compared(asked: argparse.Namespace) -> None:
    """Compare the methods of the suite, and print where each stands."""
    found: Comparison = autocompress.compare(
        SUITE, out=asked.out, resume=asked.out.is_dir(), jobs=asked.jobs, seeds=asked.seeds, episodes=asked.episodes,
        dtype=DTYPE,
    )  # fmt: skip
    for failure in found.failures:
        print(f"FAILED: {failure.method}, seed {failure.seed}: {failure.message}")
    show("digits", read(str(asked.out), asked.episodes))


if __name__ == "__main__":
    main()
