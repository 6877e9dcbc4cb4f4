"""Available memory: the machine's, or what a container leaves of it; and what a limit leaves."""

import math
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from autocompress import memory
from autocompress.memory import available_bytes, give_back, memory_left, memory_limit, resident_bytes, samples_at_once

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


def test_the_limit_is_what_was_asked_for_or_seventy_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1_000)
    assert (memory_limit(None), memory_limit(50), memory_limit(5_000)) == (700, 50, 5_000)


@pytest.mark.parametrize(("limit", "left"), [(None, 700), (1_000, 600), (400, 0), (100, 0)])
def test_what_is_left(monkeypatch: pytest.MonkeyPatch, limit: int | None, left: int) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1_000)
    monkeypatch.setattr(memory, "resident_bytes", lambda: 400)
    assert memory_left(limit) == left


def test_resident_bytes_grow_with_what_is_held() -> None:
    before = resident_bytes()
    held = bytearray(b"1") * 100_000_000  # in one piece: what is freed may stay with the process
    assert 90_000_000 < resident_bytes() - before < 200_000_000
    assert len(held) == 100_000_000


@pytest.mark.parametrize(
    ("bytes_a_sample", "limit", "most", "expected"),
    [(10, 100, 64, 10), (10, 99, 64, 9), (10, 9, 64, 1), (10, 0, 64, 1), (0, 100, 64, 64), (10, 10_000, 64, 64)],
)
def test_samples_at_once(bytes_a_sample: int, limit: int, most: int, expected: int) -> None:
    assert samples_at_once(bytes_a_sample, limit, most) == expected


_FREED = """
import torch
from autocompress.memory import give_back, resident_bytes

held = [(torch.ones(16_000), torch.ones(10)) for _ in range(5_000)]  # 320 MB
small = [piece for _, piece in held]
full = resident_bytes()
del held
kept = resident_bytes()
give_back()
print(full - kept, full - resident_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux' C library keeps what is freed")
def test_freed_memory_is_given_back() -> None:
    """Small pieces between large ones that were freed keep all of these with the process.

    In a process of its own: where large pieces land here depends on what other tests freed before.
    """
    ran = subprocess.run([sys.executable, "-c", _FREED], capture_output=True, text=True, check=True, timeout=100)
    by_itself, asked_for = map(int, ran.stdout.split())
    assert by_itself < 50_000_000
    assert asked_for > 250_000_000


def test_memory_is_given_back_at_most_every_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, now = [], iter([100.0, 100.0, 104.9, 105.0, 105.0])
    monkeypatch.setattr(memory, "_given_back", -math.inf)
    monkeypatch.setattr(memory, "_glibc", lambda name: {"malloc_trim": calls.append}[name])
    monkeypatch.setattr(memory.time, "monotonic", lambda: next(now))
    for _ in range(3):
        give_back()
    assert calls == [0, 0]


_REUSED = """
import torch
from autocompress.memory import give_back, resident_bytes, reusing_freed

def left():
    before = resident_bytes()
    torch.ones(50_000_000)  # 200 MB, freed at once
    return resident_bytes() - before

@reusing_freed()
def job():
    with reusing_freed():
        pass
    held = left()
    before = resident_bytes()
    give_back()
    return held, before - resident_bytes(), left()

print(left(), *job(), left())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux' C library gives large pieces back at once")
def test_freed_memory_is_used_again_within_a_job() -> None:
    """Kept within, one in another as well, and given back where that is asked for; before and behind as ever."""
    ran = subprocess.run([sys.executable, "-c", _REUSED], capture_output=True, text=True, check=True, timeout=100)
    before, held, given_back, held_again, behind = map(int, ran.stdout.split())
    assert held > 150_000_000 < given_back
    assert held_again > 150_000_000
    assert max(before, behind) < 50_000_000
