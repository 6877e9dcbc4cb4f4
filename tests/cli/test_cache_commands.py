"""`autocompress cache list` and `cache clean`."""

import json
import os
import time

import pytest
from typer.testing import CliRunner

from autocompress.cache import use
from autocompress.cli.main import app


def invoke(*arguments):
    return CliRunner().invoke(app, ["cache", *map(str, arguments)])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    monkeypatch.delenv("AUTOCOMPRESS_CACHE_LIMIT", raising=False)
    for name, days in (("a" * 24, 40), ("b" * 24, 3)):
        folder = tmp_path / "menus" / name
        folder.mkdir(parents=True)
        (folder / "statistics.safetensors").write_bytes(b"x" * 2500)
        for path in (folder / "statistics.safetensors", folder):
            os.utime(path, (time.time() - days * 24 * 3600 - 60,) * 2)
    return tmp_path


def test_the_list(cache):
    use(cache, "b" * 24)
    done = invoke("list")
    assert (done.exit_code, done.stderr) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "menus/" in line]
    assert rows == [
        [f"menus/{'a' * 24}", "3 kB", "1", "40 days ago", ""],
        [f"menus/{'b' * 24}", "3 kB", "1", "just now", "in use"],
    ]
    assert done.stdout.splitlines()[-1] == "2 entries, 5 kB; the limit is 100.0 GB (AUTOCOMPRESS_CACHE_LIMIT)"
    data = json.loads(invoke("list", "--format", "json").stdout)
    assert (data["cache"], data["limit_bytes"], data["bytes"]) == (str(cache), 100_000_000_000, 5000)
    assert [entry["in_use"] for entry in data["entries"]] == [False, True]


def test_cleaning(cache):
    assert invoke("clean").stdout == f"{cache}: removed 0 entries, 0 B; kept 2 entries, 5 kB\n"
    assert invoke("clean", "--older-than", "30d").stdout == f"{cache}: removed 1 entry, 3 kB; kept 1 entry, 3 kB\n"
    use(cache, "b" * 24)
    expected = f"{cache}: removed 0 entries, 0 B; kept 1 entry, 3 kB, 1 in use\n"
    assert invoke("clean", "--all").stdout == expected
    assert json.loads(invoke("clean", "--all", "--format", "json").stdout)["kept"]["bytes"] == 2500


def test_cleaning_a_cache_that_is_not_there(tmp_path):
    assert invoke("clean", "--all", "--cache", tmp_path / "none").stdout == (
        f"{tmp_path / 'none'}: removed 0 entries, 0 B; kept 0 entries, 0 B\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_limit_is_kept_when_menus_are_built(cache, monkeypatch):
    monkeypatch.setenv("AUTOCOMPRESS_CACHE_LIMIT", "6kB")
    done = CliRunner().invoke(app, ["inspect", "--calibration-samples", "64", "--sparsity-levels", "2"])
    assert done.exit_code == 0
    assert done.stderr.splitlines()[-1].endswith(
        f"the cache {cache} was above its limit of 6 kB (AUTOCOMPRESS_CACHE_LIMIT), so the least recently used 5 kB "
        "went"
    )
    assert [len(path.name) for path in (cache / "menus").iterdir()] == [24]  # what this process uses stays


@pytest.mark.parametrize(
    ("arguments", "variable", "message"),
    [
        (
            ["clean", "--older-than", "soon"],
            "1GB",
            "`older-than` must be a number of hours, days or weeks such as 12h, 30d or 4w, got 'soon'.",
        ),
        (["list"], "-1", "`AUTOCOMPRESS_CACHE_LIMIT` must be a number of bytes such as 500MB or 4GB, got '-1'."),
    ],
)
def test_wrong_input_is_one_line(arguments, variable, message, cache, monkeypatch):
    monkeypatch.setenv("AUTOCOMPRESS_CACHE_LIMIT", variable)
    done = invoke(*arguments)
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", f"autocompress: {message}\n")
