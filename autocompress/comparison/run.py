"""`autocompress.compare`: runs every cell of a suite, writes tables and plots, and goes on after a kill."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.comparison.folder import CELLS, begin, keep, kept, opened, suite_file
from autocompress.comparison.live import ComparisonProgress, SilentComparison
from autocompress.comparison.report import write_report
from autocompress.comparison.results import CellResult
from autocompress.comparison.session import Requests, Session, job_key, requests_of
from autocompress.comparison.suite import Cell, Suite, make_suite, overridden, read_suite
from autocompress.comparison.summary import Summary, summarise
from autocompress.comparison.workers import run_by_workers, run_here
from autocompress.errors import InputError
from autocompress.evaluation import AUTO, torch_device
from autocompress.job.trust import check_trusted, lies_in, named_functions, remember
from autocompress.version import versions
from autocompress.workers.ray_tasks import check_cluster


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison.

    Attributes:
        folder: folder of the comparison's files.
        suite: suite of the comparison, with everything that was overridden.
        results: results of all cells, in the suite's order.
        summaries: summaries over seeds, one for each method and budget, in the suite's order.
    """

    folder: Path
    suite: Suite
    results: tuple[CellResult, ...]
    summaries: tuple[Summary, ...]

    @property
    def failures(self) -> tuple[CellResult, ...]:
        """Results of the cells that failed."""
        return tuple(result for result in self.results if not result.finished)

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON data: its folder, number of cells, failures and summary."""
        return {
            "folder": str(self.folder),
            "cells": len(self.results),
            "failures": [{"cell": str(each.cell), "message": each.message} for each in self.failures],
            "summary": [summary.to_dict() for summary in self.summaries],
        }


def compare(
    suite: str | Path | Mapping[str, Any] | Suite,
    *,
    out: str | Path | None = None,
    jobs: int | None = None,
    cluster: str | None = None,
    resume: bool = False,
    force: bool = False,
    trust: bool = False,
    methods: str | Iterable[str] | None = None,
    seeds: int | str | Iterable[int] | None = None,
    episodes: int | str | None = None,
    progress: ComparisonProgress | None = None,
    **base: Any,
) -> Comparison:
    """Run methods x budgets x seeds on one network, and write results, tables and plots into a folder.

    A cell that fails does not end the comparison; `Comparison.failures` has its result. A cell whose worker dies is
    run again once. With `jobs` above 1, a script that calls this function must guard its main part with
    `if __name__ == "__main__":`, because the worker processes import it.

    Args:
        suite: path of a YAML file, its content as a mapping, or a `Suite`.
        out: folder of the comparison. Default: runs/compare-SUITE, named after the suite's file.
        jobs: number of processes that run cells, at least 1; PyTorch's threads are divided between them. With
            `cluster`, most tasks at once. Default: 1; with `cluster`, as many as it has CPUs.
        cluster: address of a Ray cluster whose workers run the cells: `local`, `auto` or host:port. They must see the
            same files under the same paths. Default: None, for processes of this machine.
        resume: continue the comparison in `out`: finished cells are kept, failed ones run again. Methods,
            budgets and seeds may have been added to the suite.
        force: replace the comparison in `out`.
        trust: whether functions of somebody's own may run that the suite names, where its file lies in the folder of a
            comparison; see `autocompress.job.trust`. Default: only those that you named yourself.
        methods: names of the methods to run: some of the suite, or search methods that it does not have.
            Default: all methods of the suite.
        seeds: number of seeds, or a list of them. Default: the suite's.
        episodes: largest number of network evaluations in a cell. Default: the suite's.
        progress: observer that is told of every cell and stage. Default: nobody.
        **base: options of `search` that override the suite's base, such as `weights` and `data`.

    Returns:
        The results of all cells and their summaries.

    Raises:
        InputError: the suite or an option breaks a rule, or the folder is taken, also by another process, or the
            cluster can't be reached.
        WriteError: the folder can't be written. What was written before stays valid.
    """
    wanted = suite if isinstance(suite, Suite) else _suite(suite)
    folder, watcher = Path(out) if out else default_folder(suite), progress or SilentComparison()
    if isinstance(suite, (str, Path)) and lies_in(suite, folder, CELLS):
        named = [function for function in named_functions(wanted.base) if base.get(function.option) is None]
        check_trusted(named, Path(suite).parent, trust=trust)
    device = _device(base.get("device") or wanted.base.get("device", AUTO), folder, resume=resume)
    wanted = overridden(wanted, {**base, "device": device}, methods=methods, seeds=seeds, episodes=episodes)
    requests = requests_of(wanted)
    if jobs is not None and jobs < 1:
        raise InputError(f"`jobs` must be at least 1, got {jobs}.")
    check_cluster(cluster)
    with opened(folder, wanted, versions(), resume=resume, force=force) as begun:
        remember(named_functions(wanted.base))
        results = _run(wanted, requests, folder, jobs, cluster, watcher, resume=begun)
        summaries = summarise(results)
        watcher.stage(f"tables and plots: {folder}")
        write_report(folder, wanted, results, summaries)
    return Comparison(folder, wanted, results, summaries)


def default_folder(suite: object) -> Path:
    """The folder of a comparison for which none is given: runs/compare-SUITE, named after the suite's file.

    >>> default_folder("configs/compare/digits.yaml").as_posix()
    'runs/compare-digits'
    """
    return Path("runs") / (f"compare-{Path(suite).stem}" if isinstance(suite, (str, Path)) else "compare")


def _device(name: str, folder: Path, *, resume: bool) -> str:
    """The device's own name in place of `auto`, for the suite in the folder; a comparison goes on where it began."""
    if name == AUTO and resume and suite_file(folder).is_file():
        name = read_suite(suite_file(folder)).base.get("device", AUTO)
    return str(torch_device(name))


def _suite(suite: str | Path | Mapping[str, Any]) -> Suite:
    """The suite of a file or of its content."""
    return make_suite(suite) if isinstance(suite, Mapping) else read_suite(suite)


def _run(
    suite: Suite,
    requests: Requests,
    folder: Path,
    jobs: int | None,
    cluster: str | None,
    watcher: ComparisonProgress,
    *,
    resume: bool,
) -> tuple[CellResult, ...]:
    """Run every cell that has not finished; returns the results of all cells in the suite's order."""
    before = kept(folder, suite) if resume else {}
    results = {cell: result for cell, result in before.items() if result.finished}
    pending = _by_job(suite, [cell for cell in suite.cells() if cell not in results])
    session = _checked(suite, requests, folder, results, pending, watcher, anew=not resume)
    begin(folder, suite, versions(), session.conditions, session.policies, resume=resume)
    total = len(suite.cells())
    if results:
        watcher.note(f"{len(results)} of {total} cells had finished before")
    watcher.cells(len(results), total, 0)
    if cluster is None and ((jobs or 1) == 1 or len(pending) < 2):
        cells = run_here(session, suite, pending, watcher)
    else:
        cells = run_by_workers(suite, folder, pending, jobs, cluster, watcher)
    del session  # where others run the cells, this frees the memory of its network and menus
    with closing(cells) as done:  # ends the processes, whatever stops this loop
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
    """A session in which every job was loaded once, before any cell runs.

    So errors show now, and worker processes find the menus in the cache.
    """
    session = Session(suite, requests, folder, watcher, anew=anew)
    begun = {cell.method for cell in finished}
    for method in suite.configs:
        if method not in begun:
            session.policies.pop(method, None)  # without a result yet, the method may begin with another policy
        session.check_policy(method)
    for method in dict.fromkeys(cell.method for cell in pending):
        session.check(method)
    return session


def _by_job(suite: Suite, cells: Sequence[Cell]) -> list[Cell]:
    """The cells, with those of one job side by side, and otherwise in their order."""
    keys = {name: job_key(config) for name, config in suite.configs.items()}
    order = list(dict.fromkeys(keys.values()))
    return sorted(cells, key=lambda cell: order.index(keys[cell.method]))
