"""The page of a front: its points against the task's measure and the divergence, and all of them side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.errors import InputError
from autocompress.files import regular_file, write_atomically
from autocompress.report.front_figures import Quality, divergence_figure, quality_figure, quality_of
from autocompress.report.run_page import render, run_view, side_by_side
from autocompress.report.run_record import RunRecord, mapping_in, read_run
from autocompress.report.tables import NAMES
from autocompress.run.names import FRONT, REPORT


@dataclass(frozen=True)
class FrontRecord:
    """What the folder of a front says.

    Attributes:
        folder: the folder.
        resource: resource whose budgets differ.
        budgets: budget of each point, from the strictest to the mildest.
        runs: the points.
    """

    folder: Path
    resource: str
    budgets: Sequence[str]
    runs: Sequence[RunRecord]

    @property
    def amounts(self) -> list[int]:
        """Amount of the resource that each point takes."""
        return [run.outcome["compressed"]["resources"][self.resource] for run in self.runs]

    @property
    def quality(self) -> Quality | None:
        """The measure that stands for the task; None where there is none."""
        return quality_of([run.outcome for run in self.runs])

    def data(self) -> dict[str, Any]:
        """The front as plain data, ready for JSON."""
        quality = self.quality
        return {
            "folder": str(self.folder),
            "resource": self.resource,
            "measure": None if quality is None else quality.title,
            "original": None if quality is None else quality.original,
            "points": [
                {
                    "budget": budget,
                    "run": str(run.folder),
                    "amount": amount,
                    "value": None if quality is None else quality.values[at],
                    "kl": run.outcome["compressed"]["kl"],
                    "verified": run.outcome.get("verified"),
                }
                for at, (budget, run, amount) in enumerate(zip(self.budgets, self.runs, self.amounts, strict=True))
            ],
        }


def is_front(folder: str | Path) -> bool:
    """Whether a folder is that of a front, finished or not."""
    return regular_file(Path(folder) / FRONT)


def front_among(runs: Sequence[str | Path]) -> FrontRecord | None:
    """The front that a report was asked for; None for runs. Raises InputError for a front beside others."""
    fronts = [run for run in runs if is_front(run)]
    if fronts and len(runs) > 1:
        raise InputError(
            f"`runs` must be one front alone, or finished runs, got {len(runs)} folders with the front {fronts[0]}; "
            "name the folders of its points."
        )
    return read_front(fronts[0]) if fronts else None


def read_front(folder: str | Path) -> FrontRecord:
    """The record of a front; points that have not begun are not in it.

    Raises:
        InputError: the folder holds no front, or a file in it or in a point is damaged or missing.
    """
    path = Path(folder)
    if not is_front(path):
        raise InputError(f"`run` must be the folder of a front, got {path}, which has no {FRONT}.")
    found = mapping_in(path / FRONT)
    resource, points = found.get("resource"), found.get("points")
    if resource not in NAMES or not isinstance(points, list) or not points or not all(map(_is_point, points)):
        raise InputError(f"{path / FRONT} must be as it was written, got a damaged file; make the front again.")
    runs = [read_run(path / Path(point["run_folder"]).name) for point in points]  # the front may have moved
    for run in runs:
        if resource not in run.outcome["compressed"]["resources"]:
            raise InputError(f"`{resource}` must be counted at every point of a front, got {run.folder} without.")
    return FrontRecord(path, resource, [point["budget"] for point in points], runs)


def _is_point(point: Any) -> bool:
    texts = isinstance(point, dict) and all(isinstance(point.get(name), str) for name in ("budget", "run_folder"))
    return texts and Path(point["run_folder"]).name not in ("", "..")


def write_front(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a front, in place of one that is there.

    Args:
        folder: folder of the front.
        out: the file. Default: report.html in the folder. Links to the points' pages are relative to it.

    Raises:
        InputError: the folder holds no front, or a file in it or in a point is damaged or missing.
        WriteError: the file can't be written.
    """
    record = read_front(folder)
    path = record.folder / REPORT if out is None else Path(out)
    write_atomically(path, front_page(record, path))
    return path


def front_page(record: FrontRecord, page: Path) -> str:
    """The page of a front.

    Args:
        record: the front.
        page: where the page will lie, which links are relative to.
    """
    views = [run_view(run) for run in record.runs]
    name, quality = NAMES[record.resource], record.quality
    budgets = [budget.partition("=")[2] for budget in record.budgets]
    losses = [run.outcome["compressed"]["kl"] for run in record.runs]
    figures = [] if quality is None else [quality_figure(record.amounts, budgets, quality)]
    figures.append(divergence_figure(record.amounts, budgets, losses))
    links = [_link(run.folder / REPORT, page) for run in record.runs]
    return render(
        "front.html",
        title=f"{record.runs[0].config.model}, a front of {name}",
        runs=views,
        resource=name,
        quality=quality,
        figures=figures,
        links=links,
        points=[_row(*each) for each in zip(record.budgets, record.runs, record.amounts, links, strict=True)],
        **side_by_side(views),
    )


def _link(target: Path, page: Path) -> str:
    """Address of a file as seen from a page."""
    return Path(os.path.relpath(target.resolve(), page.resolve().parent)).as_posix()


def _row(budget: str, run: RunRecord, amount: int, link: str) -> Mapping[str, Any]:
    original = run.outcome["original"]["resources"].get(budget.partition("=")[0])
    return {
        "budget": budget,
        "amount": amount,
        "share": amount / original if original else None,
        "kl": run.outcome["compressed"]["kl"],
        "verified": run.outcome.get("verified"),
        "link": link,
    }
