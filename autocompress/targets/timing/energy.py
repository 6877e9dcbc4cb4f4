"""The energy that a machine's own counter shows, where it has one that may be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
"""Folder of Linux's energy counters (RAPL: running average power limit)."""

ReadJoules = Callable[[], float]


@dataclass(frozen=True)
class MeasuredEnergy:
    """Joules that one run of each of two networks took, as a counter showed them.

    The counter is that of whole processors: what else ran there, and what they take when idle, is in it.

    Attributes:
        original: joules of one run of the first network, the mean over the rounds that count.
        compressed: joules of one run of the second network.
        source: what was read, such as `RAPL package-0`.
    """

    original: float
    compressed: float
    source: str


class EnergyCounter:
    """Counters of all processors, added up. Made by `energy_counter`.

    Args:
        zones: folders of the counters.
    """

    def __init__(self, zones: list[Path]) -> None:
        self._zones = zones
        self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
        self._last = self._read()
        self._total = 0

    @property
    def source(self) -> str:
        """What is read."""
        return f"RAPL {', '.join((zone / 'name').read_text().strip() for zone in self._zones)}"

    def joules(self) -> float:
        """Joules since the counter was opened. To be read at least once a minute: counters start again at 0."""
        now = self._read()
        for before, after, most in zip(self._last, now, self._ranges, strict=True):
            self._total += after - before if after >= before else after - before + most
        self._last = now
        return self._total / 1e6

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]


def energy_counter(folder: Path = POWERCAP) -> EnergyCounter | None:
    """The counters of this machine's processors; None where there are none, or none that this process may read.

    Args:
        folder: folder of the counters. Default: the system's.
    """
    zones = sorted(zone for zone in folder.glob("intel-rapl:*") if zone.name.count(":") == 1)
    try:
        found = [zone for zone in zones if (zone / "name").read_text().startswith("package")]
        return EnergyCounter(found) if found else None
    except (OSError, ValueError):  # most systems let only root read them
        return None
