"""Networks that are loaded in a runtime, and how long they take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median
from typing import Protocol

from torch import Tensor

from autocompress.samples import Inputs
from autocompress.tasks.outputs import Outputs

_WARM_UP = 3  # runs of every session that are not measured


class Session(Protocol):
    """A network that is loaded in a runtime."""

    def run(self, inputs: Inputs) -> Tensor | Outputs:
        """(N, …) float32 outputs of (N, …) `inputs`, any N: a tensor, or several in a tuple."""
        ...


def median_seconds(sessions: Mapping[str, Session], batch: Inputs, rounds: int = 20) -> dict[str, float]:
    """Median seconds that one batch takes in each of several sessions, by name.

    The sessions take turns, so that a busy machine slows them all alike. Three runs of each come first, unmeasured.

    Args:
        sessions: loaded networks by name.
        batch: (N, …) inputs that each of them is given.
        rounds: number of measured runs of each, at least 1.
    """
    for session in sessions.values():
        for _ in range(_WARM_UP):
            session.run(batch)
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(batch)
            seconds[name].append(time.perf_counter() - start)
    return {name: median(taken) for name, taken in seconds.items()}
