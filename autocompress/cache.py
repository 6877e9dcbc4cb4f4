"""The cache on disk: menus and trained networks that later jobs find again, its limit, and what may be removed.

Nothing in it is more than saved time: what is missing or damaged is made anew. It is knowledge about a network, data
and settings, which the names of its folders say. So it is used wherever these are the same, also on another machine and
by other versions of PyTorch, although menus that are built there may differ in their last bits. What does depend on
versions, such as the size of an exported file, has them in its own name.
"""

from __future__ import annotations

import atexit
import math
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path

from autocompress.budget import parse_bytes
from autocompress.errors import InputError
from autocompress.files import is_abandoned, sweep, this_machine

MENUS, ZOO = "menus", "zoo"
LIMIT, DEFAULT_LIMIT = "AUTOCOMPRESS_CACHE_LIMIT", "100GB"
_IN_USE = "in-use"  # folder with an empty file for every folder of menus and process that uses it
_WEEK = 7 * 24 * 3600.0  # seconds after which a process on another machine counts as dead
_UNITS = {"h": 3600.0, "d": 24 * 3600.0, "w": _WEEK}


def default_cache() -> Path:
    """Folder of the cache: `$AUTOCOMPRESS_CACHE`, or `autocompress` below the user's own cache folder."""
    if "AUTOCOMPRESS_CACHE" in os.environ:
        return Path(os.environ["AUTOCOMPRESS_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autocompress"


def cache_limit() -> int | None:
    """Most bytes of the cache: `$AUTOCOMPRESS_CACHE_LIMIT`, such as 20GB, by default 100 GB; None for `none`.

    Raises:
        InputError: the variable holds something else.
    """
    text = os.environ.get(LIMIT) or DEFAULT_LIMIT
    return None if text.strip().lower() == "none" else parse_bytes(text, LIMIT)


def parse_age(text: str) -> float:
    """Seconds of an age such as `30d`.

    >>> parse_age("2w") / parse_age("7d")
    2.0

    Raises:
        InputError: it is no number of hours, days or weeks.
    """
    number, unit = text.strip()[:-1], text.strip()[-1:]
    if unit not in _UNITS or not number.isdecimal():
        raise InputError(f"`older-than` must be a number of hours, days or weeks such as 12h, 30d or 4w, got {text!r}.")
    return int(number) * _UNITS[unit]


@dataclass(frozen=True)
class CacheEntry:
    """What the cache holds of one network: its menus, or the weights that it was trained to.

    Attributes:
        path: folder of the menus, or file of the weights.
        kind: `menus` or `zoo`.
        bytes: size of its files together.
        files: number of its files.
        used: seconds since the epoch at which a job began to use it, or added to it.
        in_use: whether a job that runs now uses it.
    """

    path: Path
    kind: str
    bytes: int
    files: int
    used: float
    in_use: bool


def cache_entries(cache: Path) -> list[CacheEntry]:
    """Everything in a cache, the least recently used first; empty where there is none."""
    in_use = _keys_in_use(cache)
    found = [_entry(path, MENUS, path.name in in_use) for path in _within(cache / MENUS) if path.is_dir()]
    found += [_entry(path, ZOO, False) for path in _within(cache / ZOO) if path.is_file()]
    return sorted(found, key=lambda entry: (entry.used, entry.path))


def use(cache: Path, key: str) -> None:
    """Keep the menus of that name in the cache until this process ends, and note that they were used now."""
    folder = cache / MENUS / key
    with suppress(OSError):  # a cache that others may read alone
        os.utime(folder)
    _mark(cache.absolute(), key)


@once
def _mark(cache: Path, key: str) -> None:
    process = os.getpid()
    marker = cache / _IN_USE / f"{key}.{this_machine()}-{process}"

    def remove() -> None:
        if os.getpid() == process:  # a copy of this process (fork) may end earlier
            with suppress(OSError):
                marker.unlink(missing_ok=True)

    with suppress(OSError):
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        atexit.register(remove)


def trim(cache: Path, limit: int | None) -> list[CacheEntry]:
    """Remove the least recently used entries until the cache is within its limit.

    Args:
        cache: folder of the cache.
        limit: bytes; None for no limit.

    Returns:
        What was removed. What a job uses stays, so the rest may be above the limit.
    """
    if limit is None:
        return []
    found = cache_entries(cache)
    total, removed = sum(entry.bytes for entry in found), []
    for entry in found:
        if total > limit and _remove(entry):
            total -= entry.bytes
            removed.append(entry)
    return removed


def clean(cache: Path, *, older_than: float | None = None, everything: bool = False) -> list[CacheEntry]:
    """Remove entries, and the temporary files of dead processes; without an age, what is above the cache's limit.

    Args:
        cache: folder of the cache.
        older_than: seconds since its last use after which an entry goes.
        everything: whether every entry goes.

    Returns:
        What was removed. What a job uses stays.
    """
    for folder in (cache / ZOO, *_within(cache / MENUS)):
        sweep(folder)
    if older_than is None and not everything:
        return trim(cache, cache_limit())
    until = math.inf if older_than is None or everything else time.time() - older_than
    return [entry for entry in cache_entries(cache) if entry.used < until and _remove(entry)]


def _entry(path: Path, kind: str, in_use: bool) -> CacheEntry:
    """An entry of the cache; files that another process removes meanwhile do not count."""
    sizes, used = [], 0.0
    for each in [path, *_within(path)] if kind == MENUS else [path]:
        with suppress(OSError):
            status = each.stat()
            used = max(used, status.st_mtime)
            if each != path or kind == ZOO:
                sizes.append(status.st_size)
    return CacheEntry(path, kind, sum(sizes), len(sizes), used, in_use)


def _within(folder: Path) -> Iterable[Path]:
    """What a folder holds; nothing where there is none."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _remove(entry: CacheEntry) -> bool:
    """Remove an entry that no job uses; whether it is gone. A job that begins meanwhile makes anew what it misses."""
    if entry.in_use:
        return False
    if entry.kind == MENUS:
        shutil.rmtree(entry.path, ignore_errors=True)
    else:
        with suppress(OSError):  # another user's
            entry.path.unlink(missing_ok=True)
    return not entry.path.exists()


def _keys_in_use(cache: Path) -> set[str]:
    """Names of the folders of menus that living processes use; the marks of dead ones are removed."""
    keys = set()
    for marker in _within(cache / _IN_USE):
        key, _, owner = marker.name.rpartition(".")
        with suppress(OSError):
            if is_abandoned(marker, owner, after=_WEEK):
                marker.unlink(missing_ok=True)
            else:
                keys.add(key)
    return keys
