"""The suite: damages files, reads them in child processes, and counts what came of it. See `benchmarks/hostile.py`."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
CLEAN_SECONDS = 240


@dataclass
class Row:
    """What came of the inputs of one kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    peak_bytes: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def run(inputs: int, seed: int, names: list[str] | None, seconds: float, folder: Path) -> dict[str, Row]:
    """Damage and read until there were that many inputs, or no time is left.

    Args:
        inputs: number of inputs over all kinds.
        seed: seed of the mutations.
        names: kinds; None: all.
        seconds: most seconds for the inputs alone.
        folder: empty folder for everything.
    """
    clean = folder / "clean"
    clean.mkdir()
    make = [sys.executable, str(HERE / "hostile_files.py"), str(clean)]
    subprocess.run(make, check=True, timeout=CLEAN_SECONDS, stdout=subprocess.DEVNULL)
    os.environ["AUTOCOMPRESS_CACHE"], os.environ["XDG_STATE_HOME"] = str(clean / "cache"), str(clean / "state")
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # the others reserve a gigabyte at once
    import torch

    torch.set_num_threads(1)
    from hostile_child import REFUSED, answer
    from hostile_kinds import kinds
    from hostile_tools import tools

    _more(clean)
    job = tools(clean).job
    assert job is not None
    chosen = [kind for kind in kinds(clean) if not names or kind.name in names]
    expected, rows, started = {}, {kind.name: Row() for kind in chosen}, time.monotonic()
    for kind in chosen:
        found = answer(lambda kind=kind: kind.read(_copy(clean, kind, folder)))
        if found.outcome == REFUSED or found.outcome not in ("same",):
            raise SystemExit(f"{kind.name}: the clean file gives {found.outcome}: {found.detail}")
        expected[kind.name] = found.detail
        said = _says(kind, _copy(clean, kind, folder))
        if isinstance(said, str) and said != found.detail:
            raise SystemExit(f"{kind.name}: the other reader finds something else in the clean file")
    print(f"clean files of {len(chosen)} kinds read in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    draws = {kind.name: random.Random(f"{seed} {kind.name}") for kind in chosen}
    begun = time.monotonic()
    for kind in _turns(chosen, inputs):
        if time.monotonic() - begun > seconds:
            break
        one(kind, clean, folder, draws[kind.name], expected[kind.name], rows[kind.name])
    return rows


def _turns(chosen, inputs):
    """Kinds in turn, each as often as its weight says."""
    credit = {kind.name: 0.0 for kind in chosen}
    share = sum(kind.weight for kind in chosen)
    for _ in range(inputs):
        for kind in chosen:
            credit[kind.name] += kind.weight / share
        kind = max(chosen, key=lambda each: credit[each.name])
        credit[kind.name] -= 1
        yield kind


def one(kind, clean: Path, folder: Path, draw: random.Random, expected: str, row: Row) -> None:
    """One input: damage, read, compare, count."""
    from hostile_child import FAULTS, REBUILT, SAID, SAME, TRACEBACK, WRONG, answer
    from hostile_mutations import MARK

    place = _copy(clean, kind, folder)
    files = sorted(file for pattern in kind.files for file in place.glob(pattern) if file.is_file())
    assert files, kind.name
    target = draw.choice(files)
    others = [file.read_bytes() for file in files if file != target][:20]
    mutation = draw.choice(kind.mutators)(target.read_bytes(), draw, others)
    target.write_bytes(mutation.content)
    found = answer(lambda: kind.read(place))
    outcome = found.outcome
    if outcome == SAME:
        if found.detail == expected:
            outcome = REBUILT if found.rebuilt else SAME
        else:
            is_said = mutation.sealed or _says(kind, place) in (True, found.detail)
            outcome = SAID if is_said and found.detail != "not finite" else WRONG
    if Path(MARK).exists():
        Path(MARK).unlink()
        outcome, found.detail = TRACEBACK, "code of the file ran"
    row.outcomes[outcome] += 1
    row.peak_bytes, row.seconds = max(row.peak_bytes, found.peak_bytes), row.seconds + found.seconds
    if outcome in FAULTS:
        row.faults.append(f"{kind.name}, {target.name}, {mutation.name}: {outcome}: {found.detail}")
        kept = os.environ.get("HOSTILE_KEEP")
        if kept:
            shutil.copytree(place, Path(kept) / f"{kind.name}-{len(row.faults)}", dirs_exist_ok=True)


def _says(kind, place: Path):
    """What another reader finds, where there is one; it has not to take what is hostile."""
    try:
        return kind.says and kind.says(place)
    except Exception:
        return None


def _copy(clean: Path, kind, folder: Path) -> Path:
    """A fresh copy of a kind's clean files."""
    place = folder / "place"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(clean / kind.source, place)
    return place


def _more(clean: Path) -> None:
    """Files that only this process can make: what it remembers to have run, and the lock of a dead process."""
    from autocompress.job.trust import NamedFunction, remember

    remember([NamedFunction("model", "nets.py:small", {})])
    (clean / "functions").mkdir()
    shutil.copy(clean / "state" / "autocompress" / "functions", clean / "functions" / "functions")
    (clean / "lock").mkdir()
    holder = {
        "process": 2**22 + 1, "started": 1.0, "host": "here", "machine": _machine(), "task": "search",
        "since": "2026-11-26 00:00:00", "locks_file": True,
    }  # fmt: skip
    (clean / "lock" / ".lock").write_text(json.dumps(holder))


def _machine() -> str:
    from autocompress.files import this_machine

    return this_machine()


def print_table(rows: dict[str, Row]) -> int:
    """Print a line for every kind, then every fault; returns the number of faults."""
    from hostile_child import FAULTS, OUTCOMES

    print(f"\n| kind of file | inputs | {' | '.join(OUTCOMES)} | peak memory |")
    print("| --- | --- | " + "--- | " * len(OUTCOMES) + "--- |")
    total = Row()
    for name, row in [*rows.items(), ("all", total)]:
        counts = " | ".join(str(row.outcomes[outcome]) for outcome in OUTCOMES)
        print(f"| {name} | {sum(row.outcomes.values())} | {counts} | {row.peak_bytes / 1e6:.0f} MB |")
        if row is not total:
            total.outcomes += row.outcomes
            total.peak_bytes = max(total.peak_bytes, row.peak_bytes)
    faults = [fault for row in rows.values() for fault in row.faults]
    print(f"\n{sum(total.outcomes[each] for each in FAULTS)} faults")
    for fault in faults:
        print(f"- {fault}")
    return len(faults)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="kinds of files alone, as the table names them")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="most seconds for the inputs alone")
    parser.add_argument("--json", type=Path, help="file for the counts as data")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        rows = run(options.inputs, options.seed, options.kinds, options.seconds, Path(folder))
    if options.json:
        options.json.write_text(
            json.dumps({name: {"outcomes": dict(row.outcomes), "faults": row.faults} for name, row in rows.items()})
        )
    sys.exit(1 if print_table(rows) else 0)


if __name__ == "__main__":
    main()
