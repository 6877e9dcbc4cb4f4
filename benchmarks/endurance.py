"""Many evaluations of the default method in one process: memory, open files and threads must stay as they were.

python benchmarks/endurance.py                                     # 2,000 evaluations: ten searches of 200
python benchmarks/endurance.py --evaluations 1000 --episodes 1000  # one long search

Measured after every hundredth evaluation on the embedded digits network, and compared from
the first reading after the first search on: until it has ended, libraries are loaded and caches fill.
Memory is what is held once the C library has given back what was freed (`malloc_trim`, Linux with glibc); what the
process had before that is shown beside it. A search keeps what every plan did to the outputs, because its agent learns
from that: within one search memory grows with its evaluations, and comes back when the search ends.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

import autocompress
from autocompress.progress import Silent, Step

EVERY = 100
MOST_GROWTH = 0.05


@dataclass(frozen=True)
class Reading:
    """What the process holds after a number of evaluations."""

    evaluations: int
    megabytes: float
    untrimmed_megabytes: float
    files: int
    threads: int
    seconds: float


class Meter(Silent):
    """Reads memory, open files and threads after every hundredth evaluation of all searches together."""

    def __init__(self, most: int) -> None:
        self.evaluations, self.readings, self._most = 0, list[Reading](), most
        self.warm = 0  # readings until the first search had ended
        self._process, self._started = psutil.Process(), time.monotonic()

    def step(self, step: Step) -> None:
        self.evaluations += 1
        if self.evaluations % EVERY == 0 or self.evaluations == self._most:
            self._read()

    def _read(self) -> None:
        gc.collect()
        untrimmed = self._process.memory_info().rss / 1e6
        give_back()
        megabytes, seconds = self._process.memory_info().rss / 1e6, time.monotonic() - self._started
        files, threads = self._process.num_fds(), self._process.num_threads()
        self.readings.append(Reading(self.evaluations, megabytes, untrimmed, files, threads, seconds))
        print(
            f"{self.evaluations:5} evaluations: {megabytes:8.1f} MB ({untrimmed:.1f} before), {files} files, "
            f"{threads} threads, {seconds:.0f} s",
            flush=True,
        )


def give_back() -> None:
    """Have the C library return freed memory to the system, where it can."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=2000)
    parser.add_argument("--episodes", type=int, default=200, help="evaluations of one search; 200 is its default")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first search; each has the next one")
    options = parser.parse_args()
    meter, seed = Meter(options.evaluations), options.seed
    with tempfile.TemporaryDirectory(prefix="endurance-") as folder:
        while (left := options.evaluations - meter.evaluations) > 0:
            before = meter.evaluations
            autocompress.search(
                "digits",
                budget="size=0.12",
                episodes=min(left, options.episodes),
                seed=seed,
                out=Path(folder) / str(seed),
                progress=meter,
                recalibration_samples=0,
            )
            print(f"search with seed {seed}: {meter.evaluations - before} evaluations", flush=True)
            seed += 1
            meter.warm = meter.warm or len(meter.readings)
            if meter.evaluations - before < 2:
                sys.exit("a search made no evaluation")
    sys.exit(0 if is_flat(meter.readings[meter.warm :] or meter.readings) else 1)


def is_flat(readings: list[Reading]) -> bool:
    """Print how much was gained between the first reading and the last, and whether that is little enough."""
    first, last = readings[0], readings[-1]
    growth = last.megabytes / first.megabytes - 1
    files, threads = last.files - first.files, last.threads - first.threads
    print(
        f"from {first.evaluations} to {last.evaluations} evaluations: memory {100 * growth:+.1f} % (at most +5 %), "
        f"files {files:+d}, threads {threads:+d}"
    )
    return growth < MOST_GROWTH and files <= 0 and threads <= 0


if __name__ == "__main__":
    main()
