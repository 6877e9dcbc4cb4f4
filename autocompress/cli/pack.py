"""The commands `autocompress pack` and `unpack`: a finished run as one file that is safe to open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autocompress.cli.shell import reported
from autocompress.files import strict_json
from autocompress.run.folder import check_finished
from autocompress.run.names import (
    CARD,
    CONFIG,
    EXPORTED,
    JOURNAL,
    LAYERS,
    OUTCOME,
    PLAN,
    POLICY,
    POLICY_WEIGHTS,
    REPORT,
)
from autocompress.run.pack import RUN, unpack
from autocompress.run.pack import pack as write_pack

_NAMES = (CONFIG, PLAN, OUTCOME, LAYERS, JOURNAL, REPORT, CARD, POLICY, POLICY_WEIGHTS, *EXPORTED)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.", show_default=False)]
Pack = Annotated[Path, typer.Argument(metavar="FILE", help="File that pack has written.", show_default=False)]
OutFile = Annotated[Path | None, typer.Option(metavar="FILE", help="The file. Default: the run's name with .zip.")]
OutFolder = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="New folder. Default: the file's name without its ending.")
]


def pack(run: RunFolder, out: OutFile = None) -> None:
    """Write a finished run into one file: options, plan, measurements, report, card and networks, with checksums.

    What only the run's own machine needs stays behind: changes of outputs, checkpoints and TensorBoard's logs.
    """
    with reported():
        check_finished(run, (CONFIG, PLAN, OUTCOME))
        file = out or Path(f"{run.resolve().name}.zip")
        write_pack(run, [*_NAMES, *_written(run)], RUN, file)
        typer.echo(f"{file}: {file.stat().st_size:,} bytes")


def unpack_(file: Pack, out: OutFolder = None) -> None:
    """Unpack a run into a new folder. Every file is checked first, and nothing in it is run."""
    with reported():
        folder = out or Path(file.stem)
        names = unpack(file, RUN, folder)
        typer.echo(f"{folder}: {len(names)} files")


def _written(run: Path) -> list[str]:
    """Names of the files that the run says it wrote; targets from outside have names of their own."""
    try:
        names = strict_json((run / OUTCOME).read_bytes())["file_bytes"]
    except (ValueError, KeyError, TypeError):
        return []
    return [name for name in names if name == Path(name).name]
