"""Random legal plans on many architectures: made real, exported, verified; how many fail.

python benchmarks/random_plans.py --network digits --plans 40
python benchmarks/random_plans.py --network torchvision:mobilenet_v3_small --plans 20
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autocompress.config import make_config
from autocompress.data import Data, load_data
from autocompress.data.dataset import Split, make_data
from autocompress.data.pixels import Normalization
from autocompress.data.sources import TensorSource
from autocompress.errors import AutocompressError
from autocompress.execute import Execution, execute
from autocompress.job.finish import finish
from autocompress.job.prepare import load, menu_settings, prepare
from autocompress.progress import Silent
from autocompress_envs.problem import Labeling, Problem

PIXELS = 64  # edge of the random images that networks without data are run on


def random_images(count: int = 192) -> Data:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=PIXELS, mode="bilinear") * 2 - 1
    source = TensorSource(images, None, Normalization(None, None))
    return make_data("random images", source, None, (), Split(0, 64, 64))


def random_labeling(problem: Problem, rng: np.random.Generator) -> Labeling:
    fields = ("sparsities", "weight_bits", "activation_bits")
    return Labeling(*(np.array([rng.integers(len(getattr(layer, f))) for layer in problem.layers]) for f in fields))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", required=True)
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    options: dict[str, Any] = {
        "weight_bits": (2, 4, 8, 32), "activation_bits": (8, 32), "remove_branches": True, "recalibration_samples": 64,
    }  # fmt: skip
    data: Any = random_images()
    if arguments.network == "digits":
        data = load_data("digits", search_samples=64, calibration_samples=64)
    elif arguments.network.startswith("resnet"):
        options["weights"] = arguments.shared / f"models/{arguments.network}-cifar10-jpeg.safetensors"
        data = load_data(f"parquet:{arguments.shared / 'data/cifar10-jpeg'}", search_samples=64, calibration_samples=64)
    data = replace(data, test=None)  # 64 samples tell whether a file computes what PyTorch does
    config = make_config({"model": arguments.network, **options})
    job = prepare(load(arguments.network, data, config, Silent()), config, menu_settings(config), Silent())
    rng, failures, started = np.random.default_rng(arguments.seed), [], time.perf_counter()
    agreements, differences = [], []
    for _ in range(arguments.plans):
        labeling = random_labeling(job.problem, rng)
        with tempfile.TemporaryDirectory() as folder:
            try:
                executed = execute(job.menus, labeling, job.folded, job.teacher, data, Execution(64, None), Silent())
                made = finish(job, executed, labeling, {}, Path(folder), Silent())
            except AutocompressError as error:
                failures.append(str(error))
                continue
        failures += made.verification.failures()
        runtime = made.verification.runtime
        assert runtime is not None
        agreements.append(runtime.agreement)
        differences.append(runtime.difference)
    found = {"network": arguments.network, "plans": arguments.plans, "failures": failures}
    found["agreement"] = {"lowest": min(agreements), "mean": float(np.mean(agreements))}
    found["largest_difference"] = max(differences)
    print(json.dumps({**found, "seconds": round(time.perf_counter() - started)}))


if __name__ == "__main__":
    main()
