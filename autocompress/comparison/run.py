"""`autocompress.compare`: every cell of a suite, what was found in tables and plots, and how to go on after a kill."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.comparison.folder import begin, claim, keep, kept
from autocompress.comparison.live import ComparisonProgress, SilentComparison
from autocompress.comparison.report import write_report
from autocompress.comparison.results import CellResult
from autocompress.comparison.session import Requests, Session, job_key, requests_of
from autocompress.comparison.suite import Cell, Suite, make_suite, overridden, read_suite
from autocompress.comparison.summary import Summary, summarise
from autocompress.comparison.workers import run_here, run_in_processes
from autocompress.errors import InputError
from autocompress.version import versions


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        folder: where its files are.
        suite: what was run.
        results: one a cell, in the suite's order.
        summaries: one for each method and budget, in the suite's order.
    """

    folder: Path
    suite: Suite
    results: tuple[CellResult, ...]
    summaries: tuple[Summary, ...]

    @property
    def failures(self) -> tuple[CellResult, ...]:
        return tuple(result for result in self.results if not result.finished)


def compare(
    suite: str | Path | Mapping[str, Any] | Suite,
    *,
    out: str | Path | None = None,
    jobs: int = 1,
    resume: bool = False,
    force: bool = False,
    methods: str | Iterable[str] | None = None,
    seeds: int | str | Iterable[int] | None = None,
    episodes: int | str | None = None,
    progress: ComparisonProgress | None = None,
    **base: Any,
) -> Comparison:
    """Run methods x budgets x seeds on one network; write results, a summary, a LaTeX table and plots into a folder.

    A cell that fails does not end the comparison: see `Comparison.failures`. With `jobs` above 1, a script that calls
    this must guard its main part with `if __name__ == "__main__":`, for the worker processes import it.

    Args:
        suite: a YAML file, its content, or a `Suite`.
        out: folder of the comparison. Default: runs/compare-SUITE.
        jobs: processes that run cells; PyTorch's threads are divided between them.
        resume: continue the comparison in `out`: finished cells are kept, failed ones run again. Methods, budgets and
            seeds may have been added to the suite.
        force: replace the comparison in `out`.
        methods: names of those of the suite to run, or of searchers that it has not. Default: all of the suite.
        seeds: overrides the suite's: how many, or which.
        episodes: overrides the suite's: most network evaluations of a cell.
        progress: told what happens.
        **base: options of `search` that override the suite's base, such as `weights` and `data`.

    Raises:
        InputError: the suite or an option breaks a rule, or the folder is taken.
        OSError: the folder can't be written. What was written before stays valid.
    """
    wanted = suite if isinstance(suite, Suite) else _suite(suite)
    wanted = overridden(wanted, base, methods=methods, seeds=seeds, episodes=episodes)
    requests = requests_of(wanted)
    if jobs < 1:
        raise InputError(f"`jobs` must be at least 1, got {jobs}.")
    folder, watcher = Path(out) if out else default_folder(suite), progress or SilentComparison()
    claim(folder, wanted, resume=resume, force=force)
    results = _run(wanted, requests, folder, jobs, watcher, resume=resume)
    summaries = summarise(results)
    watcher.stage(f"tables and plots: {folder}")
    write_report(folder, wanted, results, summaries)
    return Comparison(folder, wanted, results, summaries)


def default_folder(suite: object) -> Path:
    """runs/compare-SUITE, after the suite's file.

    >>> default_folder("configs/compare/digits.yaml").as_posix()
    'runs/compare-digits'
    """
    return Path("runs") / (f"compare-{Path(suite).stem}" if isinstance(suite, (str, Path)) else "compare")


def _suite(suite: str | Path | Mapping[str, Any]) -> Suite:
    return make_suite(suite) if isinstance(suite, Mapping) else read_suite(suite)


def _run(
    suite: Suite, requests: Requests, folder: Path, jobs: int, watcher: ComparisonProgress, *, resume: bool
) -> tuple[CellResult, ...]:
    """Run every cell that has not finished; the results of all, in the suite's order."""
    before = kept(folder, suite) if resume else {}
    results = {cell: result for cell, result in before.items() if result.finished}
    pending = _by_job(suite, [cell for cell in suite.cells() if cell not in results])
    session = _checked(suite, requests, folder, results, pending, watcher, anew=not resume)
    begin(folder, suite, versions(), session.conditions, session.policies, resume=resume)
    total = len(suite.cells())
    if results:
        watcher.note(f"{len(results)} of {total} cells had finished before")
    watcher.cells(len(results), total, 0)
    alone = jobs == 1 or len(pending) < 2
    if not alone:
        del session  # its memory
    cells = (
        run_here(session, suite, pending, watcher) if alone else run_in_processes(suite, folder, pending, jobs, watcher)
    )
    with closing(cells) as done:  # whatever stops this loop ends the processes
        for result in done:
            keep(folder, suite, result)
            results[result.cell] = result
            watcher.cells(len(results), total, sum(not each.finished for each in results.values()))
            watcher.cell_done(result)
    return tuple(results[cell] for cell in suite.cells())


def _checked(
    suite: Suite,
    requests: Requests,
    folder: Path,
    finished: Iterable[Cell],
    pending: Sequence[Cell],
    watcher: ComparisonProgress,
    *,
    anew: bool,
) -> Session:
    """Load every job once before cells run: what is wrong with one shows now, and processes find its menus made."""
    session = Session(suite, requests, folder, watcher, anew=anew)
    begun = {cell.method for cell in finished}
    for method in suite.configs:
        if method not in begun:
            session.policies.pop(method, None)  # no result binds it to the one that it began with
        session.check_policy(method)
    for method in dict.fromkeys(cell.method for cell in pending):
        session.check(method)
    return session


def _by_job(suite: Suite, cells: Sequence[Cell]) -> list[Cell]:
    """Cells that share a job side by side, else in their order."""
    keys = {name: job_key(config) for name, config in suite.configs.items()}
    order = list(dict.fromkeys(keys.values()))
    return sorted(cells, key=lambda cell: order.index(keys[cell.method]))
