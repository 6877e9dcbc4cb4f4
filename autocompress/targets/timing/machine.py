"""The machine that times are taken on: what it is, and how busy it was meanwhile."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MOST_WAITING = 0.05
"""Share of the time that a quiet machine keeps a program waiting at most."""


@dataclass(frozen=True)
class Machine:
    """What the times of one machine depend on.

    Attributes:
        processor: name of the processor, as the system gives it.
        cores: number of logical cores that this process may use.
        system: operating system and architecture, such as `Linux x86_64`.
    """

    processor: str
    cores: int
    system: str

    def __str__(self) -> str:
        return f"{self.processor}, {self.cores} cores, {self.system}"

    def data(self) -> dict[str, Any]:
        """The machine as plain data; `of` reads it."""
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Machine:
        """The machine that `data` was made of. Raises KeyError where a field is missing."""
        return cls(str(data["processor"]), int(data["cores"]), str(data["system"]))


def this_machine() -> Machine:
    """The machine that this process runs on."""
    return Machine(_processor(), _cores(), f"{platform.system()} {platform.machine()}")


@dataclass(frozen=True)
class Waiting:
    """How busy a machine was.

    Attributes:
        share: share of the time, in [0, 1], in which the timed program had no processor.
        load: mean number of programs that ran or waited to run in the last minute; NaN where the system does not say.
        cores: number of logical cores.
    """

    share: float
    load: float
    cores: int

    @property
    def is_busy(self) -> bool:
        """Whether other programs took time away, or there were more programs than cores."""
        return self.share > MOST_WAITING or self.load > self.cores

    def __str__(self) -> str:
        return f"waited {100 * self.share:.0f} % of the time, load {self.load:.1f} on {self.cores} cores"


class Watch:
    """A stopwatch that also knows for how much of the time this process had a processor."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def waiting(self) -> Waiting:
        """How busy the machine was since the watch was made."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        share = min(max(1.0 - cpu / wall, 0.0), 1.0) if wall > 0 else 0.0
        return Waiting(share, _load(), _cores())


def threads_in_words(threads: int) -> str:
    """The number of threads in words.

    >>> threads_in_words(1), threads_in_words(4)
    ('one thread', '4 threads')
    """
    return "one thread" if threads == 1 else f"{threads} threads"


def _load() -> float:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none
        return float("nan")


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    """The processor's model name; `platform` knows it on some systems only."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
