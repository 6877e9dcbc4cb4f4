"""The cache's limit: the least recently used goes first, and never what a living process uses."""

import os
import subprocess
import sys
import time

import pytest

from autocompress.cache import CacheEntry, cache_entries, cache_limit, clean, parse_age, trim, use
from autocompress.errors import InputError
from autocompress.files import this_machine

DAY = 24 * 3600


@pytest.fixture
def cache(tmp_path):
    """Menus of 3 networks, 1,000 bytes each, used 30, 20 and 10 days ago; weights of 500 bytes, used 25 days ago."""
    now = time.time()
    for name, days in (("a" * 24, 30), ("b" * 24, 20), ("c" * 24, 10)):
        folder = tmp_path / "menus" / name
        folder.mkdir(parents=True)
        for number in range(2):
            (folder / f"order{number}.safetensors").write_bytes(b"x" * 500)
            os.utime(folder / f"order{number}.safetensors", (now - 40 * DAY,) * 2)
        os.utime(folder, (now - days * DAY,) * 2)
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "little-1.safetensors").write_bytes(b"x" * 500)
    os.utime(tmp_path / "zoo" / "little-1.safetensors", (now - 25 * DAY,) * 2)
    return tmp_path


def names(entries):
    return [entry.path.name[:6] for entry in entries]


def left(cache):
    return names(cache_entries(cache))


def test_entries_with_sizes_and_ages(cache):
    found = cache_entries(cache)
    assert names(found) == ["aaaaaa", "little", "bbbbbb", "cccccc"]
    assert [(entry.kind, entry.bytes, entry.files, entry.in_use) for entry in found] == [
        ("menus", 1000, 2, False), ("zoo", 500, 1, False), ("menus", 1000, 2, False), ("menus", 1000, 2, False),
    ]  # fmt: skip
    assert [round((time.time() - entry.used) / DAY) for entry in found] == [30, 25, 20, 10]
    assert isinstance(found[0], CacheEntry)
    assert cache_entries(cache / "none") == []


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (None, ["aaaaaa", "little", "bbbbbb", "cccccc"]),
        (3500, ["aaaaaa", "little", "bbbbbb", "cccccc"]),
        (3499, ["little", "bbbbbb", "cccccc"]),
        (2000, ["bbbbbb", "cccccc"]),
        (1, []),
    ],
)
def test_the_least_recently_used_goes_until_the_rest_is_within_the_limit(cache, limit, kept):
    before = left(cache)
    assert names(trim(cache, limit)) == [name for name in before if name not in kept]
    assert left(cache) == kept


def test_what_this_process_uses_stays(cache):
    use(cache, "a" * 24)
    assert left(cache) == ["little", "bbbbbb", "cccccc", "aaaaaa"]  # used just now
    assert [entry.in_use for entry in cache_entries(cache)] == [False, False, False, True]
    assert names(clean(cache, everything=True)) == ["little", "bbbbbb", "cccccc"]
    assert left(cache) == ["aaaaaa"]


def test_what_another_process_uses_stays_until_it_ends(cache):
    script = f"from pathlib import Path\nfrom autocompress.cache import use\nuse(Path({str(cache)!r}), 'b' * 24)\n"
    using = f"{script}print('used', flush=True)\ninput()\n"
    process = subprocess.Popen([sys.executable, "-c", using], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"used\n"
    assert names(clean(cache, everything=True)) == ["aaaaaa", "little", "cccccc"]
    process.communicate(b"\n")
    assert os.listdir(cache / "in-use") == []
    assert names(clean(cache, everything=True)) == ["bbbbbb"]


def test_marks_of_dead_processes_are_removed(cache):
    (cache / "in-use").mkdir()
    dead, elsewhere = f"{'a' * 24}.{this_machine()}-{2**22 + 1}", f"{'b' * 24}.00000000-1"
    for name in (dead, elsewhere):
        (cache / "in-use" / name).touch()
    assert [entry.in_use for entry in cache_entries(cache)] == [False, False, True, False]
    assert os.listdir(cache / "in-use") == [elsewhere]  # on another machine, where nobody can look
    os.utime(cache / "in-use" / elsewhere, (1, 1))
    assert [entry.in_use for entry in cache_entries(cache)] == [False, False, False, False]


def test_cleaning_by_age_and_of_leftovers(cache):
    leftover = cache / "menus" / ("c" * 24) / f".a.{this_machine()}-{2**22 + 1}-0.tmp"
    leftover.touch()
    assert names(clean(cache, older_than=22 * DAY)) == ["aaaaaa", "little"]
    assert not leftover.exists()
    assert names(clean(cache, older_than=365 * DAY)) == []


def test_without_an_age_what_is_above_the_limit_goes(cache, monkeypatch):
    monkeypatch.setenv("AUTOCOMPRESS_CACHE_LIMIT", "3kB")
    assert names(clean(cache)) == ["aaaaaa"]


def test_the_limit(monkeypatch):
    monkeypatch.delenv("AUTOCOMPRESS_CACHE_LIMIT", raising=False)
    assert cache_limit() == 100_000_000_000
    monkeypatch.setenv("AUTOCOMPRESS_CACHE_LIMIT", "20GB")
    assert cache_limit() == 20_000_000_000
    monkeypatch.setenv("AUTOCOMPRESS_CACHE_LIMIT", "none")
    assert cache_limit() is None
    monkeypatch.setenv("AUTOCOMPRESS_CACHE_LIMIT", "much")
    with pytest.raises(InputError) as error:
        cache_limit()
    assert str(error.value) == (
        "`AUTOCOMPRESS_CACHE_LIMIT` must be a number of bytes such as 500MB or 4GB, got 'much'."
    )


@pytest.mark.parametrize("text", ["30", "d", "-1d", "1.5d", "30 days", ""])
def test_wrong_ages(text):
    with pytest.raises(InputError) as error:
        parse_age(text)
    assert str(error.value) == (
        f"`older-than` must be a number of hours, days or weeks such as 12h, 30d or 4w, got {text!r}."
    )
