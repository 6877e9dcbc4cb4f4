"""The whole job on torchvision and timm networks with random weights and random images: does it go through?

python benchmarks/foreign_networks.py                      # 14 networks at 224 pixels; minutes each on two cores
python benchmarks/foreign_networks.py --networks torchvision:resnet50 --samples 512 --episodes 40 --device cuda

Prints a row for each network: layers, size, seconds of the whole job from an empty cache to the verified file and the
process's own of them, the seconds of its stages, and the peak memory of its process. Every network has a process of its
own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time

import torch

import autocompress
from autocompress.data import from_tensors
from autocompress.models import load_model
from autocompress.progress import Silent

NETWORKS = (
    "torchvision:resnet18,torchvision:resnet50,torchvision:mobilenet_v2,torchvision:mobilenet_v3_large,"
    "torchvision:efficientnet_b0,torchvision:densenet121,torchvision:regnet_y_400mf,torchvision:convnext_tiny,"
    "torchvision:swin_t,timm:deit_small_patch16_224,timm:mixer_s16_224,torchvision:vgg16,"
    "torchvision:shufflenet_v2_x1_0,timm:ghostnet_100"
)


class Stages(Silent):
    """Remembers when each stage of a job began.

    Attributes:
        seconds: seconds by stage, in order; a stage is named by its first words.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = ("load", time.perf_counter())

    def stage(self, text: str) -> None:
        self._begin(text.split(":")[0])

    def advance(self, done: int, total: int, what: str) -> None:
        if what != self._last[0]:
            self._begin(what)

    def note(self, text: str) -> None:
        print(f"  note: {text}", file=sys.stderr, flush=True)

    def _begin(self, name: str) -> None:
        before, since = self._last
        now = time.perf_counter()
        self.seconds[before] = round(self.seconds.get(before, 0.0) + now - since, 1)
        self._last = (name, now)
        print(f"  {now - since:6.1f} s {before}, peak so far {_peak_gb():.1f} GB", file=sys.stderr, flush=True)


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def one(name: str, options: argparse.Namespace) -> None:
    """Compress one network and print its row as JSON."""
    torch.manual_seed(0)
    started, stages = time.perf_counter(), Stages()
    # At most a third of the training samples calibrate.
    images = torch.randn(3 * options.samples, 3, options.pixels, options.pixels)
    labels = torch.randint(1000, (len(images),))
    labels[-1] = 999  # the number of classes is that of the largest
    data = from_tensors(
        (images, labels),
        (images[:64], labels[:64]),
        calibration_samples=options.samples,
        search_samples=options.samples,
    )
    with tempfile.TemporaryDirectory() as folder:
        result = autocompress.search(
            load_model(name, num_classes=1000),
            data,
            f"size={options.size}",
            episodes=options.episodes,
            device=options.device,
            memory=options.memory,
            out=f"{folder}/run",
            cache=f"{folder}/cache",
            progress=stages,
        )
    stages.stage("end")
    row = {
        "network": name,
        "layers": len(result.network.layers),
        "groups": len(result.network.groups),
        "size": result.outcome.resources["size"] / result.original_outcome.resources["size"],
        "kl": result.outcome.kl,
        "seconds": time.perf_counter() - started,
        "own_seconds": time.process_time(),
        "peak_gb": _peak_gb(),
        "failures": [] if result.verification is None else result.verification.failures(),
        "stages": stages.seconds,
    }
    if torch.cuda.is_available():
        row["peak_gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
    print(json.dumps(row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=NETWORKS)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--samples", type=int, default=256, help="search samples, and as many for calibration")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--size", default="0.15")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--memory", default=None)
    parser.add_argument("--one", action="store_true", help="run in this process, and print JSON")
    options = parser.parse_args()
    if options.one:
        one(options.networks, options)
        return
    shared = ("pixels", "samples", "episodes", "size", "device", "memory")
    own = [f"--{name}={value}" for name in shared if (value := getattr(options, name)) is not None]
    for name in options.networks.split(","):
        command = [sys.executable, __file__, "--one", "--networks", name, *own]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"{name}: failed with exit code {done.returncode}", flush=True)
            continue
        row = json.loads(done.stdout.strip().splitlines()[-1])
        gpu = f", {row['peak_gpu_gb']:.1f} GB on the GPU" if "peak_gpu_gb" in row else ""
        longest = sorted(row["stages"].items(), key=lambda item: -item[1])[:6]
        print(
            f"{name}: {row['layers']} layers, {row['groups']} groups, size {100 * row['size']:.2f} %, "
            f"KL {row['kl']:.4f}, {row['seconds']:.0f} s ({row['own_seconds']:.0f} s of its own), "
            f"peak {row['peak_gb']:.1f} GB{gpu}; "
            + ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in longest)
            + "".join(f"; FAILED {failure}" for failure in row["failures"]),
            flush=True,
        )


if __name__ == "__main__":
    main()
