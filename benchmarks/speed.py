"""How long menus and episodes take, and how much memory menus need.

python benchmarks/speed.py menus --shared ../shared      # ResNet-20, 56, 110: seconds, peak memory
python benchmarks/speed.py episodes --shared ../shared   # ResNet-20, 56: episodes a second, share of overhead
python benchmarks/speed.py costs                         # CostModel.resources, microseconds a call
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from tasks import JOINT, load_network, prepare

from autocompress.menus import MenuSettings, build_menus
from autocompress.models import CifarResNet
from autocompress.network import trace
from autocompress.searchers.base import SearchSettings, Task
from autocompress.searchers.search import run_search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("menus", "episodes", "costs", "one-menu"))
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--depth", type=int, default=56, help="for one-menu")
    options = parser.parse_args()
    if options.what == "menus":
        for depth in (20, 56, 110):  # a process each, so that every peak is its own
            command = [sys.executable, __file__, "one-menu", "--depth", str(depth), "--shared", str(options.shared)]
            subprocess.run(command, check=True)
    elif options.what == "one-menu":
        time_menus(options.depth, options.shared)
    elif options.what == "episodes":
        for task in ("resnet20-2.6bits", "resnet56-half-macs"):
            time_episodes(task, options.shared)
    else:
        time_costs()


def time_menus(depth: int, shared: Path) -> None:
    """Joint menus (8 sparsities x 6 bit-widths) from an empty cache. ResNet-110 has random weights."""
    model, data = load_network(56 if depth == 110 else depth, shared)
    if depth == 110:
        torch.manual_seed(0)
        model = CifarResNet(110).eval()
    inputs, _ = data.calibration()
    before = peak_megabytes()
    started = time.perf_counter()
    network = trace(model, inputs[:1])
    traced = time.perf_counter()
    build_menus(model, network, inputs, MenuSettings(**JOINT), data_fingerprint=data.fingerprint).problem()
    print(
        f"resnet{depth}: {len(network.layers)} layers, trace {traced - started:.1f} s, "
        f"menus {time.perf_counter() - traced:.1f} s, peak memory {peak_megabytes():.0f} MB ({before:.0f} MB before)",
        flush=True,
    )


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def time_episodes(name: str, shared: Path, episodes: int = 60) -> None:
    """Default search, menus from the cache; what is not the forward passes counts as overhead."""
    job = prepare(name, shared)
    forward = job.evaluator.forward_seconds
    started = time.perf_counter()
    settings = SearchSettings(episodes=episodes)
    task = Task(job.problem, job.limits, job.evaluator, probabilities=job.evaluator.probabilities)
    found = run_search(task, settings)
    seconds = time.perf_counter() - started
    share = 1 - (job.evaluator.forward_seconds - forward) / seconds
    print(f"{name}: {found.evaluations / seconds:.2f} episodes/s ({job.evaluator.dtype}), overhead {100 * share:.1f} %")


def time_costs() -> None:
    """All resources of one plan."""
    for depth in (20, 56, 110):
        network = trace(CifarResNet(depth).eval(), torch.zeros(1, 3, 32, 32))
        kept, bits = network.costs.group_width, torch.full((len(network.layers),), 8).numpy()
        started = time.perf_counter()
        for _ in range(1000):
            network.costs.resources(kept, bits, bits)
        print(f"resnet{depth}: {1000 * (time.perf_counter() - started):.0f} µs a call")


if __name__ == "__main__":
    main()
