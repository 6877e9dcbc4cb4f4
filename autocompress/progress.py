"""What the library tells whoever watches. The library itself never prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Step:
    """One evaluated plan, as it happened.

    Attributes:
        index: number of evaluations before this one; other work that counts as evaluations is counted.
        total: evaluations at most.
        is_best: whether it is the best so far.
        best_kl: nats, of the best plan so far.
        best_accuracy: accuracy in [0, 1] of the best plan so far on the search split; NaN without labels.
        resources: every resource of the best plan so far.
        limits: absolute upper bounds by resource.
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
        """A part of the job begins."""

    def note(self, text: str) -> None:
        """Something that the user did not ask for but has to know."""

    def advance(self, done: int, total: int, what: str) -> None:
        """`done` of `total` pieces of `what` are ready: of the calibration, of the menus."""

    def step(self, step: Step) -> None:
        """A plan was evaluated."""

    def tuning(self, step: int, total: int, loss: float, accuracy: float, seconds_left: float) -> None:
        """Fine-tuning goes on: recent training loss, best accuracy in [0, 1] on the search split (NaN: no labels)."""


class Silent:
    """Nobody watches."""

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
