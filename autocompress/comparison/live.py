"""The live view of a comparison: on a terminal a bar for all cells and one for each, else plain lines."""

from __future__ import annotations

import math
from typing import Protocol

from autocompress.comparison.results import CellResult
from autocompress.comparison.suite import Cell
from autocompress.progress import Progress, Silent, Step
from autocompress.report.live import PlainView, TerminalView


class ComparisonProgress(Progress, Protocol):
    """An observer of a comparison. Every method is called from the thread that runs it."""

    def cells(self, done: int, total: int, failures: int) -> None:
        """Called when `done` of `total` cells of the comparison are done; `failures` of these failed."""

    def cell_step(self, cell: Cell, step: Step | None) -> None:
        """Called when a cell begins (`step` is None), and now and then with its latest evaluated plan."""

    def cell_done(self, result: CellResult) -> None:
        """Called when a cell has finished or failed."""


class SilentComparison(Silent):
    """A `ComparisonProgress` that does nothing."""

    def cells(self, done: int, total: int, failures: int) -> None:
        pass

    def cell_step(self, cell: Cell, step: Step | None) -> None:
        pass

    def cell_done(self, result: CellResult) -> None:
        pass


class TerminalComparison(TerminalView):
    """One Rich progress display: a bar for all cells, and one for each cell that runs."""

    def cells(self, done: int, total: int, failures: int) -> None:
        self._advance("cells", done, total, f"{failures} failed" if failures else "")

    def cell_step(self, cell: Cell, step: Step | None) -> None:
        if step is None:
            self._advance(str(cell), 0, None, "starts")
        else:
            self._advance(str(cell), step.index + 1, step.total, f"best plan: KL {step.best_kl:.4f} nats")

    def cell_done(self, result: CellResult) -> None:
        self._drop(str(result.cell))
        if not result.finished:
            self.note(cell_line(result))


class PlainComparison(PlainView):
    """A line for every cell that is done."""

    _count = ""

    def cells(self, done: int, total: int, failures: int) -> None:
        self._at("cells", done, total)
        self._count = f"{done}/{total}" + (f" ({failures} failed)" if failures else "")

    def cell_step(self, cell: Cell, step: Step | None) -> None:
        pass

    def cell_done(self, result: CellResult) -> None:
        self._line(f"{self._count} {cell_line(result)}")


def cell_line(result: CellResult) -> str:
    """The result of a cell in one line.

    >>> cell_line(CellResult("rl", "rl", "size=8%", 3, kl=0.0412, test_accuracy=0.9731, evaluations=400, seconds=61.2))
    'rl, size=8%, seed 3: KL 0.0412 nats  test accuracy 97.3 %  400 evaluations in 61 s'
    """
    if not result.finished:
        return f"{result.cell} FAILED: {result.message}"
    shown = [f"KL {result.kl:.4f} nats"]
    for name, accuracy in (("test accuracy", result.test_accuracy), ("search accuracy", result.accuracy)):
        if not math.isnan(accuracy):
            shown.append(f"{name} {100 * accuracy:.1f} %")
            break
    return f"{result.cell}: {'  '.join(shown)}  {result.evaluations} evaluations in {result.seconds:.0f} s"
