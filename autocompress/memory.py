"""Memory that a process may still take."""

from __future__ import annotations

from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")  # version 2; a container sees its own group here


def available_bytes(cgroup: Path = _CGROUP) -> int:
    """Bytes that can be allocated without swapping, within the limit of the process's container.

    Args:
        cgroup: folder of the control group (Linux); where it holds no `memory.max`, only the machine counts.

    Returns:
        The smaller of both, at least 0.
    """
    machine = int(psutil.virtual_memory().available)
    return max(0, min(machine, _left_in(cgroup, machine)))


def _left_in(cgroup: Path, unlimited: int) -> int:
    """Bytes up to the limit of the control group; `unlimited` where there is no limit or none can be read."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except OSError:
        return unlimited
    return unlimited if limit == "max" else int(limit) - used + _cached_files(cgroup)


def _cached_files(cgroup: Path) -> int:
    """Bytes of files in memory that the kernel gives back on demand; `memory.current` counts them as used."""
    try:
        entries = [line.split() for line in (cgroup / "memory.stat").read_text().splitlines()]
    except OSError:
        return 0
    return next((int(value) for name, value in entries if name == "inactive_file"), 0)
