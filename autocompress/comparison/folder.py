"""The folder of a comparison: its files, whether it may be used, and how results are written and read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autocompress.comparison.results import CellResult
from autocompress.comparison.suite import Cell, Suite, check_continues, read_suite
from autocompress.errors import AutocompressError, InputError, WriteError
from autocompress.files import is_passing, regular_file, sweep, write_atomically, writing
from autocompress.run.lock import locked

SUITE, CELLS, EVALUATIONS, POLICIES = "suite.yaml", "cells", "evaluations", "policies.json"
NEXT_SUITE = "suite.next.yaml"  # of a comparison that has not begun; it begins when its networks are loaded
RESULTS, RESULTS_CSV = "results.parquet", "results.csv"
SUMMARY, SUMMARY_CSV, TABLE = "summary.json", "summary.csv", "table.tex"
PARETO, PROGRESS = "pareto", "progress"  # plots, each as .png and .html
_PLOTS = tuple(f"{name}.{kind}" for name in (PARETO, PROGRESS) for kind in ("png", "html"))
REPORT_FILES = (RESULTS, RESULTS_CSV, SUMMARY, SUMMARY_CSV, TABLE, *_PLOTS)


def claim(path: Path, suite: Suite, *, resume: bool, force: bool) -> None:
    """Check that a comparison may use a folder; nothing is written or removed yet.

    Args:
        path: folder of the comparison; it need not exist.
        suite: suite of the comparison.
        resume: whether the comparison in the folder is to be continued.
        force: whether the comparison in the folder is to be replaced.

    Raises:
        InputError: the folder holds a comparison and neither `force` nor `resume` is given, or holds other
            things, or there is nothing to resume, or what is to be resumed differs by more than added
            methods, budgets and seeds.
    """
    if force and resume:
        raise InputError("`force` and `resume` exclude each other, got both: --force starts anew, --resume continues.")
    if resume:
        if not suite_file(path).is_file():
            raise InputError(f"`resume` needs the folder of a comparison, got {path}, which has no {SUITE}.")
        check_continues(read_suite(suite_file(path)), suite)
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
    elif any(each.name != NEXT_SUITE and not is_passing(each.name) for each in path.iterdir()):
        raise InputError(
            f"`out` must be a new or empty folder, got {path}, which holds files that are no comparison's."
        )


def suite_file(path: Path) -> Path:
    """The file of the suite in a folder; of the comparison that has yet to begin there, where there is one."""
    following = path / NEXT_SUITE
    return following if following.is_file() else path / SUITE


@contextmanager
def opened(path: Path, suite: Suite, versions: Mapping[str, str], *, resume: bool, force: bool) -> Iterator[bool]:
    """Hold the folder of a comparison. Its suite is written there at once, as that of one that has yet to begin.

    A comparison that lies there (`force`) is left alone until `begin` replaces it, because loading may show that the
    suite is wrong: then nothing has changed. After a kill meanwhile, `resume` begins with the suite there.

    Args:
        path: folder of the comparison; it need not exist.
        suite: suite of the comparison.
        versions: versions of the software by name; written as comments.
        resume: whether the comparison in the folder is to be continued.
        force: whether the comparison in the folder is to be replaced.

    Yields:
        Whether a comparison is continued; not where it has yet to begin.

    Raises:
        InputError: see `claim` and `locked`.
        WriteError: the folder can't be written.
    """
    claim(path, suite, resume=resume, force=force)
    with locked(path, "out", "compare"):
        claim(path, suite, resume=resume, force=force)  # again: another process may have used it until now
        following = path / NEXT_SUITE
        if resume:
            yield not following.is_file()
            return
        write_atomically(following, _suite_text(suite, versions))
        try:
            yield False
        except WriteError:
            raise
        except AutocompressError:
            following.unlink(missing_ok=True)
            raise


def begin(
    path: Path,
    suite: Suite,
    versions: Mapping[str, str],
    conditions: Mapping[str, Mapping[str, Any]],
    policies: Mapping[str, str | None],
    *,
    resume: bool,
) -> None:
    """Create the folder of a comparison; from then on the comparison can be resumed.

    Args:
        path: folder that `claim` has checked. Files of an earlier comparison are removed, unless `resume` is
            set.
        suite: suite of the comparison.
        versions: versions of Python and of the packages that compute, by name; written as comments into the
            suite's file.
        conditions: conditions of every job's evaluations, by the job's key; see `Session`.
        policies: digest of the policy that each method's searches begin with, by the method's name; None
            without one.
        resume: whether an earlier comparison is continued.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    if not resume:
        for folder in (CELLS, EVALUATIONS):
            shutil.rmtree(path / folder, ignore_errors=True)
        for name in REPORT_FILES:
            (path / name).unlink(missing_ok=True)
    write_atomically(path / SUITE, _suite_text(suite, versions))
    for name in (CELLS, EVALUATIONS):
        with writing(path / name):
            (path / name).mkdir(exist_ok=True)
        sweep(path / name)
    for key, values in conditions.items():
        write_atomically(path / EVALUATIONS / f"{key}.json", json.dumps(values, indent=1) + "\n")
    write_atomically(path / POLICIES, json.dumps(policies, indent=1) + "\n")
    (path / NEXT_SUITE).unlink(missing_ok=True)  # last: until here a kill leaves a comparison that has yet to begin


def _suite_text(suite: Suite, versions: Mapping[str, str]) -> str:
    """A suite as YAML, with versions of the software as comments."""
    return "".join(f"# {name} {version}\n" for name, version in versions.items()) + suite.to_yaml()


def read_conditions(path: Path) -> dict[str, dict[str, Any]]:
    """Conditions of the evaluations of the comparison in `path`, by the jobs' keys; see `Session`.

    Raises:
        InputError: a file is damaged.
    """
    return {file.stem: _mapping(file) for file in (path / EVALUATIONS).glob("*.json")}


def read_policies(path: Path) -> dict[str, str | None]:
    """Digests of the policies that the methods begin with, by name; empty for earlier versions.

    Raises:
        InputError: the file is damaged.
    """
    file = path / POLICIES
    return _mapping(file) if regular_file(file) else {}


def _mapping(file: Path) -> dict[str, Any]:
    """The mapping that a file of JSON holds. Raises InputError where it is damaged."""
    try:
        content = json.loads(file.read_text()) if regular_file(file) else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"`resume` must find a mapping in {file}, which is damaged; start anew with --force.")
    return content


def keep(path: Path, suite: Suite, result: CellResult) -> None:
    """Write the result of a cell into its file, which is written whole or not at all."""
    write_atomically(_file(path, suite, result.cell), result.to_json())


def kept(path: Path, suite: Suite) -> dict[Cell, CellResult]:
    """Read the results of a comparison.

    Args:
        path: folder of the comparison.
        suite: suite whose cells are looked for.

    Returns:
        The results by cell; cells without a file are left out.

    Raises:
        InputError: the file of a cell is damaged.
    """
    files = {cell: _file(path, suite, cell) for cell in suite.cells()}
    return {cell: CellResult.from_json(file.read_text(), str(file)) for cell, file in files.items() if file.is_file()}


def _file(path: Path, suite: Suite, cell: Cell) -> Path:
    return path / CELLS / f"{suite.slug(cell)}.json"
