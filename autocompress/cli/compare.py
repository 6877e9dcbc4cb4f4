"""The command `autocompress compare`: methods x budgets x seeds from one suite file."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autocompress.cli.shell import Cluster, Format, Quiet, Trust, emit, reported, watching
from autocompress.config import Config, make_config
from autocompress.errors import AutocompressError

if TYPE_CHECKING:
    from rich.console import Console

    from autocompress.comparison.live import ComparisonProgress
    from autocompress.comparison.run import Comparison

Suite = Annotated[Path, typer.Argument(metavar="SUITE", help="YAML file of the comparison.", show_default=False)]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="PATH", help="Trained weights: .safetensors, .pt or .pth. Default: those of the suite's base."
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Data, in the form of search --data, such as parquet:FOLDER. Default: that of the suite's base.",
    ),
]
Cache = Annotated[
    str | None, typer.Option(metavar="PATH", help="Folder of the menu cache. Default: that of the suite's base.")
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Torch device that networks run on, such as cpu or cuda. Default: that of the suite's base, else CUDA "
        "where there is one.",
    ),
]
Methods = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Methods to run, such as solver,rl: names in the suite, or search methods that it lacks. "
        "Default: all methods of the suite.",
    ),
]
Seeds = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Number of seeds for each method and budget, or a list such as 0,3,4. Default: the suite's.",
    ),
]
Episodes = Annotated[
    str | None,
    typer.Option(metavar="N", help="Most network evaluations of one search (a cell). Default: the suite's."),
]
Out = Annotated[
    Path | None, typer.Option(metavar="PATH", help="Folder of the comparison. Default: runs/compare-SUITE.")
]
Jobs = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Number of processes that run searches; PyTorch's threads are divided between them. With --cluster, most "
        "searches at once. Default: 1, or as many as the cluster has CPUs.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Continue the comparison in the folder: finished cells are kept, failed ones run again."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the comparison that is in the folder.")]


def compare(
    suite: Suite,
    weights: Weights = None,
    data: Data = None,
    cache: Cache = None,
    device: Device = None,
    methods: Methods = None,
    seeds: Seeds = None,
    episodes: Episodes = None,
    out: Out = None,
    jobs: Jobs = None,
    cluster: Cluster = None,
    resume: Resume = False,
    force: Force = False,
    trust: Trust = False,
    format: Format = "table",
    quiet: Quiet = False,
) -> None:
    """Compare methods x budgets x seeds on one network, and write results, tables and plots into a folder."""
    with reported() as context:
        from autocompress.comparison import run  # here, where an interruption is told in one line: it takes seconds

        folder = out or run.default_folder(suite)
        shown = make_config({"format": format, "quiet": quiet, "jobs": jobs})
        context.how_to_resume = lambda: _how_to_resume(folder)
        with _view(shown) as view:
            done = run.compare(
                suite,
                out=folder,
                jobs=shown.jobs,
                cluster=cluster,
                resume=resume,
                force=force,
                trust=trust,
                methods=methods,
                seeds=seeds,
                episodes=episodes,
                progress=view,
                weights=weights,
                data=data,
                cache=cache,
                device=device,
            )
        emit(shown, done.to_dict(), lambda console: _print(console, done))
        _stop_unless_finished(done)


def _how_to_resume(folder: Path) -> str:
    """A sentence with the command that continues the comparison; empty where none was begun.

    The suite in the folder holds every option that was given, so the command needs no others.
    """
    from autocompress.comparison.folder import suite_file

    suite = suite_file(folder)
    if not suite.is_file():
        return ""
    return f" What was evaluated is kept; continue with: autocompress compare {suite} --out {folder} --resume"


def _view(config: Config) -> AbstractContextManager[ComparisonProgress]:
    """The view of a comparison that suits the options and standard error."""
    from autocompress.comparison.live import PlainComparison, SilentComparison, TerminalComparison

    return watching(config, SilentComparison, TerminalComparison, PlainComparison)


def _print(console: Console, done: Comparison) -> None:
    from autocompress.comparison.tables import terminal_tables

    for table in terminal_tables(done.summaries):
        console.print(table)
    console.print(f"folder: {done.folder}", soft_wrap=True, markup=False, highlight=False)


def _stop_unless_finished(done: Comparison) -> None:
    """Raise an error, which ends the command with exit code 1, if a cell failed."""
    if done.failures:
        listed = "".join(f"\n  {each.cell}: {each.message}" for each in done.failures)
        raise AutocompressError(f"{len(done.failures)} of {len(done.results)} cells failed:{listed}")
