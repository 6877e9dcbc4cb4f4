"""What all commands share: the view on standard error, results on standard output, errors as lines and exit codes."""

from __future__ import annotations

import errno
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from autocompress.config import Config
from autocompress.errors import AutocompressError

if TYPE_CHECKING:
    from rich.console import Console

    from autocompress.progress import Progress

View = TypeVar("View")
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")]
Format = Annotated[str, typer.Option(metavar="TEXT", help="Form of the result on standard output: table or json.")]
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
PIPE_WIDTH = 200  # columns of tables that go to a file or a pipe


@contextmanager
def watching(
    config: Config,
    silent: Callable[[], View],
    terminal: Callable[[Console], AbstractContextManager[View]],
    plain: Callable[[Console], AbstractContextManager[View]],
) -> Iterator[View]:
    """The one of three views that suits the options and standard error."""
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


def emit(config: Config, data: Mapping[str, Any], table: Callable[[Console], None]) -> None:
    """Write a result to standard output, in the form that was asked for."""
    if config.format == "json":
        typer.echo(json.dumps(data, indent=1, allow_nan=False))
        return
    from rich.console import Console

    table(Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH))


class Context:
    """What is known of the job when something goes wrong: a sentence on how to go on, with a space before it."""

    def __init__(self) -> None:
        self.how_to_resume: Callable[[], str] = lambda: ""


@contextmanager
def reported() -> Iterator[Context]:
    """Turn foreseen errors into one line and an exit code; the unforeseen keep their traceback."""
    context = Context()
    try:
        with _terminate_as_interrupt():
            yield context
    except AutocompressError as error:
        raise _failure(str(error), error.exit_code) from None
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        where = f": {error.filename}" if error.filename else ""
        resume = context.how_to_resume() if error.errno == errno.ENOSPC else ""
        raise _failure(f"{error.strerror or error}{where}.{resume}", 1) from None
    except KeyboardInterrupt:
        raise _failure(f"interrupted.{context.how_to_resume()}", INTERRUPTED) from None


def _failure(message: str, code: int) -> typer.Exit:
    typer.echo(f"autocompress: {message}", err=True)
    return typer.Exit(code)


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the job as Ctrl-C does: files are closed and the way to resume is named."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
