"""The commands `autocompress cache list` and `cache clean`: what the cache holds, and removing it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autocompress.budget import format_bytes
from autocompress.cache import (
    DEFAULT_LIMIT,
    LIMIT,
    CacheEntry,
    cache_entries,
    cache_limit,
    clean,
    default_cache,
    parse_age,
)
from autocompress.cli.shell import Format, emit, reported
from autocompress.config import make_config

if TYPE_CHECKING:
    from rich.console import Console

cache_app = typer.Typer(
    help="Show and clean the cache: menus of networks, and trained networks of a policy's zoo. Nothing in it is more "
    f"than saved time. Its limit is ${LIMIT}, by default {DEFAULT_LIMIT}, or none.",
    no_args_is_help=True,
)
Cache = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Folder of the cache. Default: $AUTOCOMPRESS_CACHE or ~/.cache/autocompress."),
]
OlderThan = Annotated[
    str | None,
    typer.Option(metavar="AGE", help="Remove what no job began to use for so long: hours, days or weeks, such as 30d."),
]
Everything = Annotated[bool, typer.Option("--all", help="Remove everything that no running job uses.")]


@cache_app.command(name="list")
def list_(cache: Cache = None, format: Format = "table") -> None:
    """List what the cache holds with sizes and ages, the least recently used first."""
    with reported():
        shown, folder, limit = make_config({"format": format}), cache or default_cache(), cache_limit()
        found = cache_entries(folder)
        data = {"cache": str(folder), "limit_bytes": limit, **_data(found)}
        emit(shown, data, lambda console: _print(console, folder, limit, found))


@cache_app.command(name="clean")
def clean_(
    cache: Cache = None, older_than: OlderThan = None, everything: Everything = False, format: Format = "table"
) -> None:
    """Remove from the cache: by age, everything, or else what is above the limit. What a running job uses stays."""
    with reported():
        shown, folder = make_config({"format": format}), cache or default_cache()
        age = None if older_than is None else parse_age(older_than)
        removed = clean(folder, older_than=age, everything=everything)
        kept = cache_entries(folder)
        in_use = sum(entry.in_use for entry in kept)
        data = {"cache": str(folder), "removed": _data(removed), "kept": _data(kept)}
        text = f"{folder}: removed {_total(removed)}; kept {_total(kept)}" + (f", {in_use} in use" if in_use else "")
        emit(shown, data, lambda console: console.print(text, soft_wrap=True, markup=False, highlight=False))


def _data(entries: Sequence[CacheEntry]) -> dict[str, Any]:
    """Entries as JSON data."""
    rows = [{**vars(entry), "path": str(entry.path)} for entry in entries]
    return {"entries": rows, "bytes": sum(entry.bytes for entry in entries)}


def _print(console: Console, folder: Path, limit: int | None, entries: Sequence[CacheEntry]) -> None:
    from rich.table import Table

    table = Table("entry", "size", "files", "last used", "", title=f"Cache {folder}", title_justify="left")
    for entry in entries:
        name = entry.path.relative_to(folder).as_posix()
        table.add_row(name, _size(entry.bytes), f"{entry.files:,}", _age(entry.used), "in use" if entry.in_use else "")
    console.print(table)
    allowed = "no limit" if limit is None else f"the limit is {_size(limit)}"
    console.print(f"{_total(entries)}; {allowed} ({LIMIT})", soft_wrap=True, markup=False, highlight=False)


def _total(entries: Sequence[CacheEntry]) -> str:
    return f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}, {_size(sum(each.bytes for each in entries))}"


def _size(amount: int) -> str:
    return format_bytes(amount) if amount else "0 B"


def _age(used: float) -> str:
    """How long ago, in the largest unit that fits."""
    seconds = max(0.0, time.time() - used)
    for unit, name in ((24 * 3600, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{int(seconds // unit)} {name} ago"
    return "just now"
