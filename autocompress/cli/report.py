"""The command `autocompress report`: the page of a run, of several side by side, or of a front."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autocompress.cli.shell import Format, Quiet, Trust, emit, reported, watching_progress
from autocompress.config import make_config
from autocompress.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

Runs = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...",
        help="Folders of finished runs, which stand side by side, or the folder of one front, or of one search with "
        "--max-drop or --max-kl.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="File of the page. Default: report.html in the run's folder; of several runs, here."
    ),
]
Measure = Annotated[
    bool,
    typer.Option(
        "--measure",
        help="First measure what each layer's label costs alone: one evaluation a layer, on the run's own data.",
    ),
]


def report(
    runs: Runs,
    out: Out = None,
    measure: Measure = False,
    trust: Trust = False,
    format: Format = "table",
    quiet: Quiet = False,
) -> None:
    """Write the page of a run, of several side by side, of a front or of a tolerance: one HTML file, no network."""
    with reported():
        from autocompress import api
        from autocompress.report.front_page import front_among
        from autocompress.report.run_data import run_data
        from autocompress.report.run_record import read_run

        shown = make_config({"format": format, "quiet": quiet})
        _check(runs, out)
        front = front_among(runs)
        single = runs if front is None else [run.folder for run in front.runs]
        for run in single if measure else []:
            with watching_progress(shown) as view:
                api.measure_layers(run, trust=trust, progress=view)
        page = api.report(*runs, out=out)
        told = {} if front is None else {"front": front.data()}
        data = {"page": str(page), **told, "runs": [run_data(read_run(run)) for run in single]}
        emit(shown, data, lambda console: _print(console, page))


def _check(runs: list[Path], out: Path | None) -> None:
    """Raise InputError where the page can't be written, before anything is measured."""
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise InputError(f"`out` must be a file in an existing folder, got {out}.")
    if len(runs) != len({run.resolve() for run in runs}):
        raise InputError(f"`run` must be different folders, got {', '.join(map(str, runs))}.")


def _print(console: Console, page: Path) -> None:
    console.print(f"{page}: {page.stat().st_size:,} bytes", soft_wrap=True, markup=False, highlight=False)
