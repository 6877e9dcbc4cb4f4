"""What the library tells an observer while a job runs. The library itself never prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Step:
    """State of a search after one evaluated plan.

    Attributes:
        index: number of evaluations before this one, from 0; other work that counts as evaluations is
            included.
        total: largest number of evaluations of the search.
        is_best: whether the evaluated plan is the best so far.
        best_kl: KL divergence of the best plan so far from the original, in nats, on the search split.
        best_accuracy: accuracy of the best plan so far on the search split, in [0, 1]; NaN without labels.
        resources: amount of every resource that the best plan so far needs, by resource.
        limits: absolute upper bounds of the budget, by resource.
    """

    index: int
    total: int
    is_best: bool
    best_kl: float
    best_accuracy: float
    resources: Mapping[str, int]
    limits: Mapping[str, int]


class Progress(Protocol):
    """An observer of a job. Every method is called from the thread that runs the job."""

    def stage(self, text: str) -> None:
        """Called when a part of the job begins; `text` says which."""

    def note(self, text: str) -> None:
        """Called with something that the user did not ask for but has to know."""

    def advance(self, done: int, total: int, what: str) -> None:
        """Called when `done` of `total` pieces of `what` (calibration, menus, ...) are ready."""

    def step(self, step: Step) -> None:
        """Called after every evaluated plan."""

    def tuning(self, step: int, total: int, loss: float, accuracy: float, seconds_left: float) -> None:
        """Called now and then during fine-tuning.

        Args:
            step: number of optimizer steps done.
            total: number of optimizer steps in all.
            loss: recent training loss.
            accuracy: best accuracy so far on the search split, in [0, 1]; NaN without labels.
            seconds_left: expected time until fine-tuning ends, in seconds.
        """


class Silent:
    """A `Progress` that does nothing."""

    def stage(self, text: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def advance(self, done: int, total: int, what: str) -> None:
        pass

    def step(self, step: Step) -> None:
        pass

    def tuning(self, step: int, total: int, loss: float, accuracy: float, seconds_left: float) -> None:
        pass
