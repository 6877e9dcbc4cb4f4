"""The benchmark tasks: networks, menus and budgets, built once and shared by the scripts of this folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from autocompress.data import Data, load_data
from autocompress.evaluation import Closeness, Evaluator, measure
from autocompress.menus import Menus, MenuSettings, build_menus
from autocompress.models import load_model
from autocompress.network import Network, trace
from autocompress_envs.problem import Labeling, Problem

CACHE = Path("~/.cache/autocompress").expanduser()
BITS_ONLY: Mapping[str, Any] = {"sparsity_levels": 1, "activation_bits": (32,)}
PRUNING_ONLY: Mapping[str, Any] = {"sparsity_levels": 16, "weight_bits": (32,), "activation_bits": (32,)}
JOINT: Mapping[str, Any] = {"sparsity_levels": 8, "weight_bits": (2, 3, 4, 5, 6, 8), "activation_bits": (8,)}


def bits_a_weight(problem: Problem, bits: float) -> dict[str, int]:
    """The size budget that leaves `bits` for every weight on average, scales and all else on top."""
    layers = len(problem.layers)
    zeros = np.zeros(layers, dtype=np.int64)
    cheapest = problem.resources(Labeling(zeros, zeros, zeros))["size"]
    lowest = np.array([layer.weight_bits[0] for layer in problem.layers])
    weights = _weights(problem)
    return {"size": int(cheapest - (weights * lowest).sum() / 8 + weights.sum() * bits / 8)}


def fraction(problem: Problem, resource: str, share: float) -> dict[str, int]:
    """A budget of a share of the original."""
    return {resource: int(problem.original()[resource] * share)}


def _weights(problem: Problem) -> np.ndarray:
    fan_in, out = problem.costs.widths(problem.costs.group_width)
    return fan_in * out


@dataclass(frozen=True)
class Setup:
    """A benchmark task by name: which network, what is on the menu, which budget."""

    depth: int
    menus: Mapping[str, Any]
    limits: Callable[[Problem], dict[str, int]]


TASKS: Mapping[str, Setup] = {
    "resnet20-2.6bits": Setup(20, BITS_ONLY, partial(bits_a_weight, bits=2.6)),
    "resnet20-3bits": Setup(20, BITS_ONLY, partial(bits_a_weight, bits=3.0)),
    "resnet20-half-macs": Setup(20, PRUNING_ONLY, partial(fraction, resource="macs", share=0.5)),
    "resnet56-half-macs": Setup(56, PRUNING_ONLY, partial(fraction, resource="macs", share=0.5)),
    "resnet56-tenth-size": Setup(56, JOINT, partial(fraction, resource="size", share=0.1)),
    "resnet56-tenth-size-bits": Setup(
        56, {**JOINT, "sparsity_levels": 1}, partial(fraction, resource="size", share=0.1)
    ),
    "resnet56-tenth-size-pruning": Setup(56, PRUNING_ONLY, partial(fraction, resource="size", share=0.1)),
}


@dataclass(frozen=True)
class Job:
    """A task, ready to be searched."""

    model: nn.Module
    network: Network
    data: Data
    menus: Menus
    problem: Problem
    evaluator: Evaluator
    limits: dict[str, int]
    seconds: dict[str, float] = field(default_factory=dict)

    def on_test(self, labeling: Labeling) -> Closeness:
        """The plan beside the original on the test split."""
        return measure(self.model, self.evaluator.stitched(labeling), self.data.test_batches())


def load_network(depth: int, shared: Path, search_samples: int = 1000) -> tuple[nn.Module, Data]:
    """A trained CIFAR ResNet of `shared`, and its data."""
    model = load_model(f"resnet{depth}", shared / f"models/resnet{depth}-cifar10-jpeg.safetensors")
    return model, load_data(f"parquet:{shared / 'data/cifar10-jpeg'}", search_samples=search_samples)


def prepare(name: str, shared: Path, search_samples: int = 1000, cache: Path | None = CACHE) -> Job:
    """Load, trace, build or read the menus; `seconds` says how long each took."""
    setup = TASKS[name]
    model, data = load_network(setup.depth, shared, search_samples)
    inputs, _ = data.calibration()
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    network = trace(model, inputs[:1])
    seconds["trace"] = time.perf_counter() - started
    settings = MenuSettings(**setup.menus)
    menus = build_menus(model, network, inputs, settings, data_fingerprint=data.fingerprint, cache=cache)
    problem = menus.problem()
    seconds["menus"] = time.perf_counter() - started - seconds["trace"]
    evaluator = Evaluator(model, network, menus, *data.search())
    return Job(model, network, data, menus, problem, evaluator, setup.limits(problem), seconds)
