"""The machine that a job ran on, in the numbers that its times depend on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores, threads, memory and device, as plain data. Nothing in it names the machine or its user.

    Args:
        device: torch device that the job ran on, such as `cuda:0`. Default: the CPU.
    """
    import psutil
    import torch

    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": device_name(device),
    }


def device_name(device: str) -> str:
    """A torch device with the name of its hardware where PyTorch knows it."""
    import torch

    found = torch.device(device)
    if found.type == "cuda" and torch.cuda.is_available():
        return f"{device} ({torch.cuda.get_device_name(found)})"
    return device


def usable_cores() -> int:
    """Number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # no Linux
        return os.cpu_count() or 1


def processor_name(info: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the processor; its architecture where nothing says more."""
    try:
        lines = info.read_text(errors="replace").splitlines()
    except OSError:  # no Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), "") or platform.processor() or platform.machine()
