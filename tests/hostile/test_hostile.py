"""A part of the suite of hostile files, as it runs in CI; all of it: `python benchmarks/hostile.py`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("limits of memory are those of Linux", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent))

PROBES = """
import sys, time
sys.path.insert(0, {folder!r})
import hostile_child
from hostile_child import Read, answer
from autocompress.errors import InputError

hostile_child.SECONDS, hostile_child.MEMORY = 1.0, 1 << 27

def refuse():
    raise InputError("`plan` must be a plan, got none.")

def two_lines():
    raise InputError("one line\\nand another")

def crash():
    raise KeyError("labels")

def hang():
    time.sleep(60)

def take():
    return Read(str(len(bytearray(1 << 28))))

def die():
    import os
    os.abort()

for read in (refuse, two_lines, crash, hang, take, die, lambda: Read("result")):
    print(answer(read).outcome)
"""


def test_every_outcome_is_told_from_the_others():
    """The suite is worth as much as what it notices."""
    script = PROBES.format(folder=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == [
        "refused", "traceback", "traceback", "hang", "over memory", "traceback", "same",
    ]  # fmt: skip


def test_a_hundred_hostile_files(tmp_path):
    suite, found = Path(__file__).parent / "hostile_suite.py", tmp_path / "found.json"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    options = ["--inputs", "100", "--seconds", "15", "--seed", "0", "--json", str(found)]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(suite), *options], env=variables, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stdout + done.stderr
    rows = json.loads(found.read_text())
    inputs = {name: sum(row["outcomes"].values()) for name, row in rows.items()}
    assert sum(inputs.values()) >= 50, time.monotonic() - started  # on the busiest machine
    assert sum(row["outcomes"].get("refused", 0) for row in rows.values()) > 0.4 * sum(inputs.values())
    assert [fault for row in rows.values() for fault in row["faults"]] == []
