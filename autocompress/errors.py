"""Errors of autocompress: one root class, and the exit code each kind gives the command line."""

from __future__ import annotations

from collections.abc import Iterable


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
    return InputError(f"`{what}` must be one of {', '.join(sorted(choices))}, got {got!r}.")
