"""The page of a front: its points against the task's measure and the divergence, and all of them side by side.

A search for the least of a resource leaves a front too: the budgets that it tried, each with what its network loses at
most.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autocompress.errors import InputError
from autocompress.files import regular_file, write_atomically
from autocompress.job.front import prices_of
from autocompress.report.front_figures import (
    Quality,
    Tolerance,
    bound_figure,
    divergence_figure,
    prices_text,
    quality_figure,
    quality_of,
)
from autocompress.report.run_page import render, run_view, side_by_side
from autocompress.report.run_record import RunRecord, is_known, mapping_in, read_run
from autocompress.report.tables import NAMES
from autocompress.run.names import FRONT, REPORT, TOLERANCE


@dataclass(frozen=True)
class FrontRecord:
    """What the folder of a front says.

    Attributes:
        folder: the folder.
        resource: resource whose budgets differ.
        budgets: budget of each point, from the strictest to the mildest.
        runs: the points.
        tolerance: what was tolerated and found; None where the budgets were given.
    """

    folder: Path
    resource: str
    budgets: Sequence[str]
    runs: Sequence[RunRecord]
    tolerance: Tolerance | None = None

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
                    **({} if self.tolerance is None else _test_data(self.tolerance, at)),
                }
                for at, (budget, run, amount) in enumerate(zip(self.budgets, self.runs, self.amounts, strict=True))
            ],
        }


def _test_data(tolerance: Tolerance, at: int) -> dict[str, Any]:
    """The test of one network as plain data."""
    return {"bound": tolerance.bounds[at], "passed": tolerance.passed[at], "chosen": at == tolerance.chosen}


def is_front(folder: str | Path) -> bool:
    """Whether a folder is that of a front, finished or not, or of a search for the least of a resource."""
    return _file_of(Path(folder)) is not None


def _file_of(folder: Path) -> Path | None:
    """The file that says which points a front has; None where the folder is that of no front."""
    return next((folder / name for name in (FRONT, TOLERANCE) if regular_file(folder / name)), None)


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
    file = _file_of(path)
    if file is None:
        raise InputError(f"`run` must be the folder of a front, got {path}, which has no {FRONT} and no {TOLERANCE}.")
    found, of_tolerance = mapping_in(file), file.name == TOLERANCE
    resource = str(found.get("resource"))
    points: Any = found.get("tries" if of_tolerance else "points")
    if resource not in NAMES or not _are_points(points) or (of_tolerance and not _is_tolerance(found)):
        raise InputError(f"{file} must be as it was written, got a damaged file; make the front again.")
    runs = [read_run(path / _name(point)) for point in points]  # the front may have moved
    for run in runs:
        if resource not in run.outcome["compressed"]["resources"]:
            raise InputError(f"`{resource}` must be counted at every point of a front, got {run.folder} without.")
    record = FrontRecord(path, resource, [point["budget"] for point in points], runs)
    return _tried(record, found) if of_tolerance else record


def _tried(record: FrontRecord, found: Mapping[str, Any]) -> FrontRecord:
    """The record of the budgets that were tried, from the strictest to the mildest, with their tests."""
    order = sorted(range(len(record.runs)), key=record.amounts.__getitem__)
    tries = [found["tries"][at] for at in order]
    tolerance = Tolerance(
        is_share=found["measure"] == "max_drop",
        tolerated=found["tolerated"],
        bounds=[each["bound"] for each in tries],
        passed=[each["passed"] for each in tries],
        chosen=[_name(each) for each in tries].index(_name(found["chosen"])),
        samples=found["samples"],
        confidence=found["confidence"],
    )
    budgets, runs = [record.budgets[at] for at in order], [record.runs[at] for at in order]
    return replace(record, budgets=budgets, runs=runs, tolerance=tolerance)


def _is_tolerance(found: Mapping[str, Any]) -> bool:
    """Whether a file of a tolerance has all that is read of it."""
    numbers = [found.get(name) for name in ("tolerated", "samples", "confidence")]
    tests = [(each.get("bound"), each.get("passed")) for each in found["tries"]]
    chosen = found.get("chosen")
    return (
        found.get("measure") in ("max_drop", "max_kl")
        and all(is_known(each) for each in (*numbers, *(bound for bound, _ in tests)))
        and all(isinstance(passed, bool) for _, passed in tests)
        and _is_point(chosen)
        and _name(chosen) in map(_name, found["tries"])
    )


def _name(point: Any) -> str:
    """Name of the folder of a point."""
    return Path(point["run_folder"]).name


def _are_points(points: Any) -> bool:
    return isinstance(points, list) and bool(points) and all(map(_is_point, points))


def _is_point(point: Any) -> bool:
    texts = isinstance(point, dict) and all(isinstance(point.get(name), str) for name in ("budget", "run_folder"))
    return texts and _name(point) not in ("", "..")


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
    if record.tolerance is not None:
        figures.insert(0, bound_figure(record.amounts, budgets, record.tolerance))
    links = [_link(run.folder / REPORT, page) for run in record.runs]
    return render(
        "front.html",
        title=f"{record.runs[0].config.model}, {'a front of' if record.tolerance is None else 'the least'} {name}",
        runs=views,
        resource=name,
        quality=quality,
        tolerance=record.tolerance,
        figures=figures,
        prices=[] if record.tolerance is not None else _prices(record),
        links=links,
        points=[_row(*each) for each in zip(record.budgets, record.runs, record.amounts, links, strict=True)],
        **side_by_side(views),
    )


def _prices(record: FrontRecord) -> list[tuple[float | None, str]]:
    """The lowest price at which each point is the best by the reward `balanced`, None for none, and all such prices.

    Empty where a point's share of the original is not known.
    """
    outcomes = [run.outcome for run in record.runs]
    if not all(is_known((each.get("fraction_of_original") or {}).get(record.resource)) for each in outcomes):
        return []
    found = prices_of(outcomes, record.resource)
    return [(None if each is None else each[0], prices_text(each)) for each in found]


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
