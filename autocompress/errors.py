"""Errors of autocompress: one root class, and the exit code each kind gives the command line."""

from __future__ import annotations

from collections.abc import Iterable

_SHOWN = 200  # characters of a wrong name in a message
_MOST_REPEATED = 300  # characters of what another library says


class AutocompressError(Exception):
    """Root of every error that autocompress raises on purpose."""

    exit_code = 1


class InputError(AutocompressError, ValueError):
    """The user's input breaks a rule. The message says: argument, rule, what was given, how to fix it."""

    exit_code = 2


class WriteError(AutocompressError, OSError):
    """A file can't be written. The message names the file, what failed and what helps.

    Args:
        message: one line.
        number: error number of the operating system; None where it is not known.
    """

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.errno = number


class ExportError(AutocompressError):
    """The network can't be written in a form that runs without its class. The message names what stands in the way."""


def unknown_name(what: str, got: str, choices: Iterable[str]) -> InputError:
    """The error for a name that is in no registry.

    >>> print(unknown_name("agent", "pop", ["ppo", "td3"]))
    `agent` must be one of ppo, td3, got 'pop'.
    """
    return InputError(f"`{what}` must be one of {', '.join(sorted(choices))}, got {shown(got)}.")


def shown(text: str) -> str:
    """A text in quotes for a message, without its end where it is long.

    >>> shown("pop"), len(shown(9999 * "9"))
    ("'pop'", 203)
    """
    return repr(text) if len(text) <= _SHOWN else repr(text[:_SHOWN]) + "…"


def reason_of(error: BaseException) -> str:
    """The first line of what another library says, at most 300 characters: it may repeat what was in a hostile file.

    >>> reason_of(ValueError("no"))
    'no'
    """
    said = str(error.args[0] if isinstance(error, KeyError) and error.args else error)  # a KeyError puts it in quotes
    text = (said.strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return text if len(text) <= _MOST_REPEATED else f"{text[:_MOST_REPEATED]}…"
