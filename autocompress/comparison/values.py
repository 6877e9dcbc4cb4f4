"""The plain values of a suite's keys, checked one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from autocompress.budget import Budget
from autocompress.config import MOST_SEED
from autocompress.errors import InputError

MOST_SEEDS = 10_000


def parse_budgets(value: Any) -> tuple[str, ...]:
    """Budgets in their normal form, such as `size=8%`, at least one and different ones; else InputError."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError(f"`budgets` must be a list such as [size=0.08, size=0.1], got {value!r}.")
    texts = tuple(str(Budget.parse(_text("budgets", each)).counted("budgets")) for each in value)
    for text in texts:
        if texts.count(text) > 1:
            raise InputError(f"`budgets` must be different ones, got {text} twice.")
    return texts


def parse_seeds(value: Any) -> tuple[int, ...]:
    """Seeds from their number (5 means 0 to 4), a list, or text such as `5` or `0,3,4`.

    Raises:
        InputError: the value is something else, or holds a seed twice.
    """
    parts = value.split(",") if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    numbers = [_whole(part) for part in parts]
    if None in numbers or not numbers or min(number for number in numbers if number is not None) < 0:
        raise InputError(f"`seeds` must be a number of seeds, or a list of whole numbers from 0, got {value!r}.")
    seeds = tuple(number for number in numbers if number is not None)
    is_number = len(seeds) == 1 and not isinstance(value, (list, tuple))
    most = MOST_SEEDS if is_number else MOST_SEED
    if max(seeds) > most:
        raise InputError(f"`seeds` must be {'at most' if is_number else 'numbers up to'} {most}, got {max(seeds)}.")
    if is_number:
        seeds = tuple(range(seeds[0]))
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"`seeds` must be at least one, and different ones, got {value!r}.")
    return seeds


def parse_episodes(value: Any) -> int:
    """A number of evaluations, at least 1, also as text; InputError for anything else."""
    number = _whole(value)
    if number is None or number < 1:
        raise InputError(f"`episodes` must be a whole number of at least 1, got {value!r}.")
    return number


def parse_test(value: Any) -> bool:
    """Whether plans are measured on the test split; InputError for anything but true and false."""
    if not isinstance(value, bool):
        raise InputError(f"`test` must be true or false, got {value!r}.")
    return value


def _whole(value: Any) -> int | None:
    """A whole number, also one that is given as text; None for anything else."""
    if (
        isinstance(value, str) and value.strip().isdecimal() and len(value) < 100
    ):  # Python reads no number of 5,000 digits
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(what: str, value: Any) -> str:
    """A budget as text, also one that is given as a mapping."""
    if isinstance(value, Mapping):
        return ",".join(f"{resource}={amount}" for resource, amount in value.items())
    if not isinstance(value, str):
        raise InputError(f"Each of `{what}` must be text such as size=0.1, got {value!r}.")
    return value
