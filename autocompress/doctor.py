"""What this installation can do: versions, devices, memory, cache, extras, and a whole search in a few seconds."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from autocompress.cache import cache_entries, cache_limit, default_cache
from autocompress.machine import machine
from autocompress.memory import available_bytes, memory_limit
from autocompress.version import __version__

EXTRAS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "vision": ("networks by torchvision:NAME and timm:NAME", ("torchvision", "timm")),
        "text": ("networks by hf:FOLDER, and tokenizers", ("transformers", "tokenizers")),
        "audio": ("sounds by audio:FOLDER", ("soundfile",)),
        "distributed": ("the work of train-policy and compare in a Ray cluster", ("ray",)),
        "metrics": ("metrics of tasks other than classification", ("torchmetrics", "pycocotools")),
        "openvino": ("the target openvino, and export to its format", ("openvino",)),
        "litert": ("--target litert and export to LiteRT", ("ai_edge_litert",)),
        "executorch": ("--target executorch and export to ExecuTorch", ("executorch",)),
        "mcp": ("autocompress mcp, tools for coding assistants", ("mcp",)),
    }
)
"""By extra: what it gives, and the modules that it brings."""

_PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "onnxscript", "torch-pruning", "stable-baselines3", "gymnasium")
_QUICK: dict[str, Any] = {
    "search_samples": 64,
    "calibration_samples": 64,
    "recalibration_samples": 64,
    "selection_samples": 0,
    "sparsity_levels": 2,
    "episodes": 2,
    "dtype": "float32",
}


def examine(*, self_test: bool = True) -> dict[str, Any]:
    """What this installation can do, as plain data.

    Args:
        self_test: whether a small search is run. Default: yes; it takes some seconds.
    """
    found = {
        "versions": _versions(),
        "machine": machine(),
        "devices": _devices(),
        "memory": {"available_bytes": available_bytes(), "a_job_takes_at_most_bytes": memory_limit(None)},
        "cache": _cache(),
        "extras": {name: _extra(gives, modules) for name, (gives, modules) in EXTRAS.items()},
    }
    return {**found, "self_test": _self_test()} if self_test else found


def _versions() -> dict[str, str | None]:
    """Versions of the package and of what it stands on; None for what is missing."""
    return {"autocompress": __version__, **{name: _version(name) for name in _PACKAGES}}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    """The torch devices that networks can run on, the one that `--device auto` takes first."""
    import torch

    cuda = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        cuda.append({"device": f"cuda:{index}", "name": about.name, "memory_bytes": about.total_memory})
    return [*cuda, {"device": "cpu", "name": machine()["processor"], "memory_bytes": None}]


def _cache() -> dict[str, Any]:
    folder = default_cache()
    entries = cache_entries(folder)
    return {"folder": str(folder), "bytes": sum(entry.bytes for entry in entries), "limit_bytes": cache_limit()}


def _extra(gives: str, modules: tuple[str, ...]) -> dict[str, Any]:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return {"gives": gives, "installed": not missing, "missing": missing}


def _self_test() -> dict[str, Any]:
    """Compress a tiny network in a temporary folder, with a cache of its own, and verify its file in its runtime."""
    from autocompress import api

    started = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            where: dict[str, Any] = {"out": Path(folder) / "run", "cache": Path(folder) / "cache"}
            network, data = _tiny()
            made = api.search(network, data, "bitops=0.2", **where, **_QUICK)
            passed, checks = made.verification.passed, [vars(check) for check in made.verification.checks]
    except Exception as error:  # whatever is broken in this installation is what we are after
        return {"passed": False, "error": f"{type(error).__name__}: {error}", "seconds": time.perf_counter() - started}
    return {"passed": passed, "error": None, "checks": checks, "seconds": time.perf_counter() - started}


def _tiny() -> tuple[Any, Any]:
    """A network of two layers, and samples without labels."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
        return network, (torch.randn(200, 1, 8, 8), None)
