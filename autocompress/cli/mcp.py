"""The command `autocompress mcp`: tools for coding assistants over standard input and output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autocompress.cli.shell import reported

Folder = Annotated[
    Path,
    typer.Option(metavar="PATH", help="Folder that every path of a tool must lie in. Default: the current folder."),
]


def mcp(folder: Folder = Path()) -> None:
    """Serve inspect, search, status, report and compare to a coding assistant, by the Model Context Protocol."""
    with reported():
        from autocompress.mcp.server import serve  # here: it needs the extra mcp

        serve(folder)
