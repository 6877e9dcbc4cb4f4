"""Available memory: the machine's, or what a container leaves of it."""

from pathlib import Path

import psutil
import pytest

from autocompress.memory import available_bytes

MACHINE = 1_000_000


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: found._replace(available=MACHINE))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, MACHINE),
        ({"memory.max": "max\n", "memory.current": "70000\n"}, MACHINE),
        ({"memory.max": "100000\n"}, MACHINE),
        ({"memory.max": "100000\n", "memory.current": "70000\n"}, 30_000),
        ({"memory.max": "2000000\n", "memory.current": "70000\n"}, MACHINE),
        ({"memory.max": "100000\n", "memory.current": "100001\n"}, 0),
        (
            {"memory.max": "100000\n", "memory.current": "70000\n", "memory.stat": "anon 5\ninactive_file 20000\n"},
            50_000,
        ),
    ],
)
def test_available_bytes(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert available_bytes(tmp_path) == expected


def test_the_real_container_is_read() -> None:
    assert 0 <= available_bytes() <= MACHINE
