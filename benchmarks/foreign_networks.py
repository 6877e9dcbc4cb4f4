"""The whole job on torchvision networks with random weights and random images: does it go through?

python benchmarks/foreign_networks.py
"""

from __future__ import annotations

import argparse
import tempfile
import time

import torch

import autocompress
from autocompress.data import from_tensors
from autocompress.models import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet18,mobilenet_v2,shufflenet_v2_x0_5")
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--episodes", type=int, default=20)
    options = parser.parse_args()
    torch.manual_seed(0)
    images, labels = torch.randn(256, 3, options.pixels, options.pixels), torch.randint(10, (256,))
    for name in options.networks.split(","):
        started = time.perf_counter()
        model = load_model(f"torchvision:{name}", num_classes=10)
        data = from_tensors((images, labels), (images[:64], labels[:64]), calibration_samples=64, search_samples=64)
        with tempfile.TemporaryDirectory() as folder:
            result = autocompress.search(
                model, data, "size=0.1", episodes=options.episodes, out=f"{folder}/run", cache=f"{folder}/cache"
            )
        share = result.outcome.resources["size"] / result.original_outcome.resources["size"]
        print(
            f"{name}: {len(result.network.layers)} layers, {len(result.network.groups)} groups, "
            f"size {100 * share:.2f} %, KL {result.outcome.kl:.4f}, {time.perf_counter() - started:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
