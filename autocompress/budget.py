"""Budgets: upper bounds on resources, absolute or as a fraction of the original."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from autocompress.errors import InputError, unknown_name

RESOURCES: Mapping[str, str] = {
    "size": "bytes",
    "macs": "multiply-accumulates",
    "bitops": "bit operations",
    "memory": "bytes of activations at the peak",
    "latency": "nanoseconds of a batch",
    "energy": "picojoules a sample, modelled",
}
"""Units of the resources by name. All but `latency`, which is measured, are counted."""

COUNTED = ("size", "macs", "bitops", "memory", "energy")
"""Resources that are counted, whatever the machine; `energy` by a model of a chip."""

ABSOLUTE = {"size": "b", "memory": "b", "latency": "ns", "energy": "pJ"}
"""Units of whole amounts in the text of a budget, by resource; others go without."""


def shown_name(resource: str) -> str:
    """The name of a resource beside an amount: energy is modelled, which must be said wherever it is shown.

    >>> shown_name("size"), shown_name("energy")
    ('size', 'modelled energy')
    """
    return "modelled energy" if resource == "energy" else resource


_SECONDS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9}  # in nanoseconds
_JOULES = {"pj": 1, "nj": 10**3, "uj": 10**6, "µj": 10**6, "μj": 10**6, "mj": 10**9, "j": 10**12}  # in picojoules
_OWN_UNITS = {
    "latency": (_SECONDS, "time such as 5ms (ns, us, ms or s)", "time"),
    "energy": (_JOULES, "modelled energy a sample such as 2mJ (pJ, nJ, uJ, mJ or J)", "energy"),
}  # units, and how messages name an amount and the original's
_SUFFIXES = {
    "": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
_MOST_EXPONENT = 24  # no network costs a yotta of anything
_SHOWN = 60  # characters of a number in a message
_NUMBER = re.compile(r"^([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(%|[a-zµμ]*)$", re.IGNORECASE)


@dataclass(frozen=True)
class Limit:
    """One upper bound: `amount` in the resource's unit, or as a fraction of the original's amount."""

    resource: str
    amount: Fraction
    is_fraction: bool

    def resolve(self, original: int) -> int:
        """The largest whole amount that the limit admits, given the `original` network's amount.

        Raises:
            InputError: it admits nothing at all.
        """
        limit = int(self.amount * original) if self.is_fraction else int(self.amount)
        if limit < 1:
            raise InputError(
                f"`budget` of {self.resource} must be at least 1 of the original's {original:,} "
                f"{RESOURCES[self.resource]}, got {_format(self)}; raise it."
            )
        return limit


@dataclass(frozen=True)
class Budget:
    """Upper bounds on one or several resources.

    >>> Budget.parse("size=40kB,macs=0.5").resolve({"size": 10**6, "macs": 1001})
    {'size': 40000, 'macs': 500}
    """

    limits: tuple[Limit, ...]

    def __post_init__(self) -> None:
        names = [limit.resource for limit in self.limits]
        if not names or len(set(names)) < len(names):
            raise InputError(f"`budget` must name each resource once and at least one, got {names}.")

    @classmethod
    def parse(cls, text: str | Budget | Iterable[str]) -> Budget:
        """Read `RESOURCE=AMOUNT[,RESOURCE=AMOUNT…]`.

        A bare number up to 1 is a fraction of the original, as is a percentage; larger numbers, and numbers with
        a unit (kB, MB, KiB, k, M, G), are absolute. Absolute latencies need a unit (ns, us, ms or s), and so do
        absolute energies (pJ, nJ, uJ, mJ or J).

        Raises:
            InputError: malformed text, an unknown resource, or an amount that is not positive.
        """
        if isinstance(text, Budget):
            return text
        parts = text.split(",") if isinstance(text, str) else [part for item in text for part in item.split(",")]
        return cls(tuple(_parse_limit(part.strip()) for part in parts))

    def resolve(self, original: Mapping[str, int]) -> dict[str, int]:
        """Absolute limits by resource, in whole units, for a network with these `original` amounts.

        Raises:
            InputError: a limit comes to less than one whole unit.
        """
        return {limit.resource: limit.resolve(original[limit.resource]) for limit in self.limits}

    def of(self, resource: str) -> Limit | None:
        """The limit of a resource, or None."""
        return next((limit for limit in self.limits if limit.resource == resource), None)

    def counted(self, name: str) -> Budget:
        """This budget, where it needs no measurement.

        Args:
            name: name of the option, for the message.

        Raises:
            InputError: it limits `latency`.
        """
        if self.of("latency") is not None:
            raise InputError(
                f"`{name}` must be of resources that are counted ({', '.join(COUNTED)}), got latency, which is "
                "measured on files; use `autocompress search`."
            )
        return self

    def __str__(self) -> str:
        """The normal form; `parse` reads it back."""
        return ",".join(f"{limit.resource}={_format(limit)}" for limit in self.limits)


def parse_bytes(text: str, name: str) -> int:
    """Bytes of an amount with a unit, such as `4GB`, `500 MiB` or `2e9`.

    >>> parse_bytes("1.5 kB", "memory")
    1500

    Args:
        text: number and unit (none, B, kB, MB, GB, KiB, MiB, GiB, k, M, G, T).
        name: name of the option, for the message.

    Raises:
        InputError: it is no amount of bytes, or less than 1.
    """
    match = _NUMBER.match(text.strip())
    if match is None or match[2].lower() not in _SUFFIXES:
        raise InputError(f"`{name}` must be a number of bytes such as 500MB or 4GB, got {text!r}.")
    amount = int(_amount(f"`{name}`", match[1]) * _SUFFIXES[match[2].lower()])
    if amount < 1:
        raise InputError(f"`{name}` must be at least 1 byte, got {text!r}.")
    return amount


def format_bytes(amount: int) -> str:
    """An amount of bytes for people, rounded up; `parse_bytes` reads it.

    >>> format_bytes(1_910_000_000), format_bytes(48_100_000), format_bytes(900)
    ('2.0 GB', '49 MB', '1 kB')

    Args:
        amount: bytes, at least 0.
    """
    if amount >= 10**9:
        return f"{math.ceil(amount / 10**8) / 10:.1f} GB"
    return f"{math.ceil(amount / 10**6)} MB" if amount >= 10**6 else f"{math.ceil(amount / 10**3)} kB"


def _parse_limit(part: str) -> Limit:
    resource, equals, number = (piece.strip() for piece in part.partition("="))
    match = _NUMBER.match(number)
    if resource in _OWN_UNITS:
        return _parse_with_unit(resource, number, match)
    if not equals or match is None or match[2].lower() not in (*_SUFFIXES, "%"):
        raise InputError(f"`budget` must read RESOURCE=AMOUNT such as size=0.1, size=40kB or macs=50%, got {part!r}.")
    if resource not in RESOURCES:
        raise unknown_name("budget resource", resource, RESOURCES)
    amount, unit = _amount(f"`budget` of {resource}", match[1]), match[2].lower()
    if amount <= 0:
        raise InputError(f"`budget` of {resource} must be above 0, got {number!r}.")
    if unit == "%":
        return Limit(resource, amount / 100, True)
    return Limit(resource, amount * _SUFFIXES[unit], unit == "" and amount <= 1)


def _parse_with_unit(resource: str, number: str, match: re.Match[str] | None) -> Limit:
    """A fraction of the original's amount, or an amount with a unit of the resource's own."""
    units, such, whole = _OWN_UNITS[resource]
    unit = "" if match is None else match[2].lower()
    amount = None if match is None else _amount(f"`budget` of {resource}", match[1])
    if amount is None or (unit not in ("", "%", *units)) or (unit == "" and amount > 1):
        raise InputError(
            f"`budget` of {resource} must be a fraction of the original's {whole} such as 0.5 or 50%, or a {such}, "
            f"got {number!r}."
        )
    if amount <= 0:
        raise InputError(f"`budget` of {resource} must be above 0, got {number!r}.")
    if unit in units:
        return Limit(resource, amount * units[unit], False)
    return Limit(resource, amount / 100 if unit == "%" else amount, True)


def _amount(what: str, number: str) -> Fraction:
    """The exact number of a text. Raises InputError where it has so many digits that arithmetic would not end."""
    amount = Decimal(number)
    if amount and abs(amount.adjusted()) > _MOST_EXPONENT:
        shown = number if len(number) <= _SHOWN else number[:_SHOWN] + "…"
        raise InputError(f"{what} must be from 1e-{_MOST_EXPONENT} to 1e{_MOST_EXPONENT}, got {shown!r}.")
    return Fraction(amount)


def _format(limit: Limit) -> str:
    amount = limit.amount * 100 if limit.is_fraction else limit.amount
    number = f"{Decimal(amount.numerator) / Decimal(amount.denominator):f}"
    if limit.is_fraction:
        return f"{number}%"
    if limit.resource in _OWN_UNITS:
        return f"{number}{ABSOLUTE[limit.resource]}"
    return f"{number}b" if amount <= 1 else number  # bare, it would read as a fraction
