"""Errors of autocompress: one root class, and the exit code each kind gives the command line."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches
from itertools import takewhile

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

    >>> print(unknown_name("agent", "dqn", ["ppo", "td3"]))
    `agent` must be one of ppo, td3, got 'dqn'.
    >>> print(unknown_name("agent", "ppoo", ["ppo", "td3"]))
    `agent` must be one of ppo, td3, got 'ppoo' (did you mean ppo?).
    """
    known = sorted(choices)
    return InputError(f"`{what}` must be one of {', '.join(known)}, got {shown(got)}{did_you_mean(got, known)}.")


def unknown_keys(names: Iterable[str], where: str, known: Iterable[str]) -> InputError:
    """The error for keys of a mapping that nobody knows.

    >>> print(unknown_keys(["episods", "x"], "a.yaml", ["budget", "episodes"]))
    Unknown episods (did you mean episodes?), x in a.yaml; known: budget, episodes.
    """
    choices = list(known)
    unknown = ", ".join(f"{name}{did_you_mean(name, choices)}" for name in names)
    return InputError(f"Unknown {unknown} in {where}; known: {', '.join(choices)}.")


def missing_extra(argument: str, name: str, extra: str) -> InputError:
    """The error for a name whose packages are not installed.

    >>> print(missing_extra("target", "litert", "litert"))
    `target` litert needs the extra litert: pip install 'autocompress[litert]'.
    """
    return InputError(f"`{argument}` {name} needs the extra {extra}: pip install 'autocompress[{extra}]'.")


def did_you_mean(got: str, choices: Iterable[str]) -> str:
    """The choice that a wrong name is most like, as the end of a message; empty where it is like none.

    Of choices that are as like, it is the one that begins like it.

    >>> did_you_mean("Weak", ["standard", "weak"]), did_you_mean("x", ["standard", "weak"])
    (' (did you mean weak?)', '')
    >>> did_you_mean("resnet21", ["resnet20", "resnet32"])
    ' (did you mean resnet20?)'
    """
    wrong, by_lower = got[:_SHOWN].lower(), {choice.lower(): choice for choice in choices}
    near = get_close_matches(wrong, by_lower)
    if not near:
        return ""
    best = max(near, key=lambda each: (SequenceMatcher(None, each, wrong).ratio(), _same_at_first(each, wrong)))
    return f" (did you mean {by_lower[best]}?)"


def _same_at_first(one: str, other: str) -> int:
    """Number of characters that two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


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
