"""A comparison is a folder: what is in it, who may use it, and how its cells are read again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress.comparison.results import CellResult
from autocompress.comparison.suite import Cell, Suite, check_continues, read_suite
from autocompress.errors import InputError
from autocompress.files import write_atomically

SUITE, CELLS, EVALUATIONS, POLICIES = "suite.yaml", "cells", "evaluations", "policies.json"
RESULTS, RESULTS_CSV = "results.parquet", "results.csv"
SUMMARY, SUMMARY_CSV, TABLE = "summary.json", "summary.csv", "table.tex"
PARETO, PROGRESS = "pareto", "progress"  # each as .png and .html
_PLOTS = tuple(f"{name}.{kind}" for name in (PARETO, PROGRESS) for kind in ("png", "html"))
MADE = (RESULTS, RESULTS_CSV, SUMMARY, SUMMARY_CSV, TABLE, *_PLOTS)


def claim(path: Path, suite: Suite, *, resume: bool, force: bool) -> None:
    """Check that a comparison may use the folder; nothing is written or removed yet.

    Raises:
        InputError: the folder holds a comparison and neither `force` nor `resume` is given, or holds other things,
            or there is nothing to resume, or what is to be resumed differs by more than added methods, budgets
            and seeds.
    """
    if force and resume:
        raise InputError("`force` and `resume` exclude each other, got both: --force starts anew, --resume continues.")
    if resume:
        if not (path / SUITE).is_file():
            raise InputError(f"`resume` needs the folder of a comparison, got {path}, which has no {SUITE}.")
        check_continues(read_suite(path / SUITE), suite)
    elif path.exists():
        _check_free(path, force)


def _check_free(path: Path, force: bool) -> None:
    if not path.is_dir():
        raise InputError(f"`out` must be a folder, got {path}, which is a file.")
    if (path / SUITE).exists():
        if not force:
            raise InputError(
                f"`out` must be a new folder, got {path}, which holds a comparison; "
                "pass --force to replace it or --resume to continue it."
            )
    elif any(path.iterdir()):
        raise InputError(
            f"`out` must be a new or empty folder, got {path}, which holds files that are no comparison's."
        )


def begin(
    path: Path,
    suite: Suite,
    versions: Mapping[str, str],
    conditions: Mapping[str, Mapping[str, Any]],
    policies: Mapping[str, str | None],
    *,
    resume: bool,
) -> None:
    """Make the folder of a comparison that can be resumed from now on.

    Args:
        path: from `claim`; what an earlier comparison left there is removed, unless `resume` is set.
        suite: what is run.
        versions: of what computes, by name; written as comments.
        conditions: what every job was made on, by its key.
        policies: stamps of those that the methods begin with, by the methods' names.
        resume: whether an earlier comparison goes on.
    """
    path.mkdir(parents=True, exist_ok=True)
    if not resume:
        for folder in (CELLS, EVALUATIONS):
            shutil.rmtree(path / folder, ignore_errors=True)
        for name in MADE:
            (path / name).unlink(missing_ok=True)
    made_by = "".join(f"# {name} {version}\n" for name, version in versions.items())
    write_atomically(path / SUITE, made_by + suite.to_yaml())
    for folder in (CELLS, EVALUATIONS):
        (path / folder).mkdir(exist_ok=True)
    for key, made_on in conditions.items():
        write_atomically(path / EVALUATIONS / f"{key}.json", json.dumps(made_on, indent=1) + "\n")
    write_atomically(path / POLICIES, json.dumps(policies, indent=1) + "\n")


def read_conditions(path: Path) -> dict[str, dict[str, Any]]:
    """What the jobs of the comparison in `path` were made on, by their keys."""
    return {file.stem: json.loads(file.read_text()) for file in (path / EVALUATIONS).glob("*.json")}


def read_policies(path: Path) -> dict[str, str | None]:
    """Stamps of the policies that the methods begin with, by name; a folder of an earlier version holds none."""
    file = path / POLICIES
    return json.loads(file.read_text()) if file.is_file() else {}


def keep(path: Path, suite: Suite, result: CellResult) -> None:
    """Write a cell's file, at once or not at all."""
    write_atomically(_file(path, suite, result.cell), result.to_json())


def kept(path: Path, suite: Suite) -> dict[Cell, CellResult]:
    """The results of the suite's cells that have one.

    Raises:
        InputError: a cell's file is damaged.
    """
    files = {cell: _file(path, suite, cell) for cell in suite.cells()}
    return {cell: CellResult.from_json(file.read_text(), str(file)) for cell, file in files.items() if file.is_file()}


def _file(path: Path, suite: Suite, cell: Cell) -> Path:
    return path / CELLS / f"{suite.slug(cell)}.json"
