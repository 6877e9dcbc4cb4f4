"""Memory that a process may still take, and how many samples fit into it."""

from __future__ import annotations

import ctypes
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")  # version 2; a container sees its own group here
_SHARE = 0.7  # of the available memory that is taken where nobody says how much
_GIVEN_BACK_EVERY = 5.0  # seconds: what is given back has to be cleared again when it is taken anew
_given_back = -math.inf  # when memory was given back last, on the monotonic clock
_reusing = 0  # how many `reusing_freed` are entered

# Parameters of glibc's `mallopt` by their numbers in <malloc.h>. Otherwise they are what they come to by themselves in
# a process that frees large pieces: once one is set, glibc adapts none any longer.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MALLOC = {_TRIM_THRESHOLD: 64 * 2**20, _MMAP_THRESHOLD: 32 * 2**20, _MMAP_MAX: 65_536}
_MALLOC_REUSING = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0}


def available_bytes(cgroup: Path = _CGROUP) -> int:
    """Bytes that can be allocated without swapping, within the limit of the process's container.

    Args:
        cgroup: folder of the control group (Linux); where it holds no `memory.max`, only the machine counts.

    Returns:
        The smaller of both, at least 0.
    """
    machine = int(psutil.virtual_memory().available)
    return max(0, min(machine, _left_in(cgroup, machine)))


def resident_bytes() -> int:
    """Bytes of memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def memory_limit(asked: int | None) -> int:
    """Most bytes that a job may take: as many as were asked for, otherwise 70 % of what is available now.

    Args:
        asked: bytes, at least 1; None: nobody said.
    """
    return int(_SHARE * available_bytes()) if asked is None else asked


def memory_left(limit: int | None) -> int:
    """Bytes that this process may still take, at least 0.

    Args:
        limit: most bytes that the process may hold in all; None: what it holds now and 70 % of what is available.
    """
    return memory_limit(None) if limit is None else max(0, limit - resident_bytes())


@contextmanager
def reusing_freed() -> Iterator[None]:
    """While entered, large pieces of memory that are freed are used again; for whole jobs, as a decorator.

    The C library of Linux gives pieces above 32 MB back at once and has them cleared anew for the next operator, which
    is a tenth of the time of networks with large images. Now it keeps them, until `give_back` says that it must not.
    Other systems' libraries stay as they are.
    """
    global _reusing
    _reusing += 1
    try:
        if _reusing == 1:
            _set_malloc(_MALLOC_REUSING)
        yield
    finally:
        _reusing -= 1
        if not _reusing:
            _set_malloc(_MALLOC)
            give_back_at_once()


def give_back() -> None:
    """Give memory that was freed back to the system, at most every 5 s; for loops that take long.

    The C library of Linux keeps what PyTorch frees in pieces below 32 MB, and any within `reusing_freed`. Where small
    ones lie between them, a job grows far beyond what it holds. Other systems' are not asked.
    """
    if time.monotonic() - _given_back >= _GIVEN_BACK_EVERY:
        give_back_at_once()


def give_back_at_once() -> None:
    """The same whenever it was done last; around what holds far more than all else does."""
    global _given_back
    _glibc("malloc_trim")(0)
    _given_back = time.monotonic()


def _set_malloc(values: Mapping[int, int]) -> None:
    for parameter, value in values.items():
        _glibc("mallopt")(parameter, value)


@cache
def _glibc(name: str) -> Callable[..., object]:
    """A function of glibc that only it has, or one that does nothing."""
    found: Callable[..., object] | None = None
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "gnu_get_libc_version"):  # musl is another
        found = getattr(library, name, None)
    return found or (lambda *_: None)


def samples_at_once(bytes_a_sample: int, limit: int, most: int) -> int:
    """Number of samples, 1 to `most`, that fit into a limit; 1 where not even one does.

    >>> samples_at_once(40, 100, 64), samples_at_once(40, 10_000, 64), samples_at_once(40, 30, 64)
    (2, 64, 1)

    Args:
        bytes_a_sample: bytes that each sample takes.
        limit: bytes that all of them may take.
        most: number that is never exceeded, at least 1.
    """
    return max(1, min(most, limit // max(1, bytes_a_sample)))


def bound_on(device_type: str, bounds: Mapping[str, int]) -> int:
    """The bound of a kind of device; of a kind that has none of its own, that of the CPU.

    >>> bound_on("cuda", {"cpu": 1, "cuda": 8}), bound_on("mps", {"cpu": 1, "cuda": 8})
    (8, 1)
    """
    return bounds.get(device_type, bounds["cpu"])


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
