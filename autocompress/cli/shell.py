"""What all commands share: progress on standard error, results on standard output, errors as one line."""

from __future__ import annotations

import errno
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from autocompress.config import Config
from autocompress.errors import AutocompressError, WriteError
from autocompress.run.names import REPORT

if TYPE_CHECKING:
    from rich.console import Console

    from autocompress.progress import Progress

View = TypeVar("View")
Quiet = Annotated[bool, typer.Option("--quiet", help="Print no progress, only the result.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Let functions run that the folder names and that you did not name yourself.")
]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Ray cluster that does the work: local (this machine alone), auto (the one that runs here) or host:port. "
        "It needs the extra distributed, and the same files under the same paths. Default: processes of this machine.",
    ),
]
Format = Annotated[str, typer.Option(metavar="TEXT", help="Form of the result on standard output: table or json.")]
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what more space helps against
_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
INTERRUPTED = 130  # exit code 128 + SIGINT, as in shells
PIPE_WIDTH = 200  # width in characters of tables that go to a file or a pipe


@contextmanager
def watching(
    config: Config,
    silent: Callable[[], View],
    terminal: Callable[[Console], AbstractContextManager[View]],
    plain: Callable[[Console], AbstractContextManager[View]],
) -> Iterator[View]:
    """Open the view that suits the options and standard error.

    Args:
        config: options; `quiet` is read.
        silent: makes the view for `--quiet`.
        terminal: makes the view for a terminal, from the console of standard error.
        plain: makes the view for a file or a pipe, from the console of standard error.

    Yields:
        The view.
    """
    from rich.console import Console

    if config.quiet:
        yield silent()
        return
    console = Console(stderr=True)
    with terminal(console) if console.is_terminal else plain(console) as view:
        yield view


def watching_progress(config: Config) -> AbstractContextManager[Progress]:
    """The view of a job that suits the options and standard error."""
    from autocompress.progress import Silent
    from autocompress.report.live import PlainView, TerminalView

    return watching(config, Silent, TerminalView, PlainView)


@contextmanager
def on_a_page(config: Config, view: Progress) -> Iterator[tuple[Progress, Callable[[Path], None]]]:
    """Show a job on a page of this machine as well, where `--watch` asks for it.

    Args:
        config: options; `watch` is read.
        view: progress that is told of everything.

    Yields:
        The progress to tell, and a function that gives the report of a finished run to the page.
    """
    if not config.watch:
        yield view, lambda folder: None
        return
    from autocompress.report.watch import Watched

    with Watched(view) as page:
        typer.echo(f"watch: {page.address}", err=True)
        yield page, lambda folder: page.finish((folder / REPORT).read_text())


def emit(config: Config, data: Mapping[str, Any], table: Callable[[Console], None]) -> None:
    """Write a result to standard output.

    Args:
        config: options; `format` is read.
        data: result as JSON data, which is written with `--format json`.
        table: function that prints the result on a console, called with `--format table`.
    """
    if config.format == "json":
        typer.echo(json.dumps(data, indent=1, allow_nan=False))
        return
    from rich.console import Console

    table(Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH))


class Context:
    """What a command knows about its job for the case that something goes wrong.

    Attributes:
        how_to_resume: function that returns a sentence on how to go on, with a space before it; empty where
            there is nothing to resume.
    """

    def __init__(self) -> None:
        self.how_to_resume: Callable[[], str] = lambda: ""


@contextmanager
def reported() -> Iterator[Context]:
    """Turn expected errors into one line on standard error and an exit code.

    The exit code is 2 for wrong input, 1 for a failure and 130 for an interruption (Ctrl-C, SIGTERM, SIGHUP). Other
    errors keep their traceback.

    Yields:
        The context, whose `how_to_resume` is added to the line where it helps.
    """
    context = Context()
    try:
        with _terminate_as_interrupt():
            yield context
    except WriteError as error:
        raise _failure(f"{error}{context.how_to_resume()}", error.exit_code) from None
    except AutocompressError as error:
        raise _failure(str(error), error.exit_code) from None
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        where = f": {error.filename}" if error.filename else ""
        resume = context.how_to_resume() if error.errno in _FULL else ""
        raise _failure(f"{error.strerror or error}{where}.{resume}", 1) from None
    except KeyboardInterrupt:
        raise _failure(f"interrupted.{context.how_to_resume()}", INTERRUPTED) from None


def _failure(message: str, code: int) -> typer.Exit:
    """Print an error and return what ends the command with that exit code."""
    with suppress(OSError):  # the terminal is closed, which may be why the command ends
        typer.echo(f"autocompress: {message}", err=True)
    return typer.Exit(code)


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the job as Ctrl-C does: files are closed, and the message says how to resume."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {name: signal.getsignal(name) for name in _ENDING}
    handled = [name for name, handler in before.items() if handler is not signal.SIG_IGN]  # nohup ignores SIGHUP
    for name in handled:
        signal.signal(name, interrupt)
    try:
        yield
    finally:
        for name in handled:
            signal.signal(name, before[name])
