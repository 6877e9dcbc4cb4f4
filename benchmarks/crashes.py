"""Kills, signals and full disks in the middle of every command; each must end in the undisturbed run's plan and bytes.

python benchmarks/crashes.py --kills 100                       # all of it: about an hour on two quiet cores
python benchmarks/crashes.py --kills 15 --signals 2 --disks 1  # a look: about ten minutes
python benchmarks/crashes.py --commands search compare         # some commands alone

Everything runs on the embedded digits network, in processes of their own, from an empty cache each. Moments are drawn
over the whole duration of the undisturbed run. `search` is fine-tuned too. After each disturbance the command is
repeated with `--resume`, where it has that option; before there is a folder, as it was. Disks are full by a small tmpfs
in a mount namespace of its own where that is permitted (root on Linux), else by a limit on the size of files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The command line, with what it else picks by a measurement of speed: picks differ, and with them the last bits.
PICKED = """
from autocompress.__main__ import main
from autocompress.evaluation import evaluator
from autocompress.policy_training import zoo
evaluator.fastest_batch = lambda *arguments: 128
evaluator.fastest_dtype = lambda *arguments: "float32"
zoo._fastest_dtype = lambda *arguments: "float32"
main()
"""
PROGRAM = [sys.executable, "-c", PICKED]
QUICK = ["--search-samples", "256", "--calibration-samples", "128", "--dtype", "float32"]
SUITE = """
base: {model: digits, data: digits, target: packed, search_samples: 256, calibration_samples: 128, dtype: float32}
budgets: [size=0.12]
methods: [uniform, solver, local]
seeds: 1
episodes: 12
test: false
"""
RECIPE = """
networks:
- {name: little, model: "autocompress.models.small_nets:SmallResNet", data: digits, epochs: 3, augmentation: none,
   model_args: {blocks: [1], width: 8, channels: 1}}
tasks:
- {name: joint, resource: size, low: 0.3, high: 0.9, options: {target: packed, sparsity_levels: 4}}
data: {digits: digits}
budgets: 3
episodes: 4
search_samples: 128
fitting: {steps: 60, members: 1}
"""


@dataclass
class Command:
    """A command of the suite.

    Attributes:
        name: name of the command.
        first: arguments of a start, by the folder that it writes.
        again: arguments after a disturbance.
        prepare: makes the folder from the one that a finished search left; None: the command begins from nothing.
        results: what has to be the same, by name, from the folder.
    """

    name: str
    first: Callable[[Path], list[str]]
    again: Callable[[Path], list[str]]
    results: Callable[[Path], dict[str, str]]
    prepare: Callable[[Path], None] | None = None


@dataclass
class Row:
    """A line of the table: what happened to a command under one kind of disturbance."""

    disturbed: int = 0
    same: int = 0
    before_folder: int = 0
    leftovers: int = 0
    peak_megabytes: float = 0.0
    faults: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kill -9 at random moments, over all commands together")
    parser.add_argument("--signals", type=int, default=10, help="SIGTERM and SIGHUP, likewise")
    parser.add_argument("--disks", type=int, default=3, help="full disks for each of run, cache and temporary folder")
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=COMMANDS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crashes-") as folder:
        rows = disturb(Path(folder), options, random.Random(options.seed))
    faults = print_table(rows)
    sys.exit(1 if faults else 0)


def disturb(folder: Path, options: argparse.Namespace, draw: random.Random) -> dict[tuple[str, str], Row]:
    """Run everything; returns the table's rows by command and disturbance."""
    (folder / "suite.yaml").write_text(SUITE)
    (folder / "recipe.yaml").write_text(RECIPE)
    names = options.commands
    clean, seconds, rows = {}, {}, {}
    for name in dict.fromkeys(["search", *names]):  # finetune and export go on from a search
        command, out = COMMANDS[name], folder / f"clean-{name}"
        seconds[name], row = clean_run(folder, command, out)
        clean[name] = command.results(out)
        rows[name, "none"] = row
        print(f"{name}: undisturbed in {seconds[name]:.1f} s, {len(clean[name])} results to compare", flush=True)
    jobs = [(names[number % len(names)], "kill -9") for number in range(options.kills)]
    jobs += [(names[number % len(names)], ("SIGTERM", "SIGHUP")[number % 2]) for number in range(options.signals)]
    jobs += [
        ("search", f"full {where}") for where in ("run", "cache", "temporary folder") for _ in range(options.disks)
    ]
    for number, (name, how) in enumerate(jobs):
        row = rows.setdefault((name, how), Row())
        place = folder / f"disturbed-{number}"
        place.mkdir()
        one(folder, place, COMMANDS[name], how, seconds[name], clean[name], row, draw)
        shutil.rmtree(place, ignore_errors=True)
        print(
            f"{number + 1} of {len(jobs)}: {name}, {how}: {row.faults[-1] if row.faults else 'as expected'}", flush=True
        )
    return rows


def clean_run(folder: Path, command: Command, out: Path) -> tuple[float, Row]:
    """A run that nothing disturbs; seconds, and its row."""
    row = Row()
    if command.prepare is not None:
        command.prepare(out)
    started = time.monotonic()
    code, text = run(command.first(out), environment(folder / "cache"), row)
    if code != 0:
        raise SystemExit(f"{command.name} failed undisturbed:\n{text}")
    return time.monotonic() - started, row


def one(
    folder: Path,
    place: Path,
    command: Command,
    how: str,
    seconds: float,
    clean: dict[str, str],
    row: Row,
    draw: random.Random,
) -> None:
    """One disturbance, and going on after it."""
    out, cache = place / "out", place / "cache"
    if command.prepare is not None:
        command.prepare(out)
    if command.name in ("finetune", "export") or draw.random() < 0.5:  # half of the others build their menus
        shutil.copytree(folder / "cache", cache, dirs_exist_ok=True)
    row.disturbed += 1
    if how.startswith("full"):
        code, text = run_on_full_disk(command.first(out), place, how.removeprefix("full "), row, draw)
        expected = (0, 1)
    else:
        moment = draw.uniform(0.0, seconds)
        number = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP}[how]
        code, text = run(command.first(out), environment(cache), row, kill=(moment, number))
        expected = (0, -9) if how == "kill -9" else (0, 130, -number)
    if code not in expected or "Traceback" in text:
        row.faults.append(f"exit code {code}: {text.strip()[-300:]}")
    if code == 0 and not how.startswith("full"):
        row.disturbed -= 1  # it had ended before
        return
    code, text = run(command.again(out), environment(cache), row)
    if code == 2 and not out.exists():  # killed before the folder: the same command again
        row.before_folder += 1
        code, text = run(command.first(out), environment(cache), row)
    if code != 0:
        row.faults.append(f"did not go on, exit code {code}: {text.strip()[-300:]}")
        return
    differing = {name for name, value in command.results(out).items() if clean.get(name) != value}
    differing |= set(clean) - set(command.results(out))
    row.same += not differing
    if differing:
        row.faults.append(f"other results: {', '.join(sorted(differing))}")
    row.leftovers += len(leftovers(place))


def leftovers(place: Path) -> list[Path]:
    """Temporary files, locks and options of runs that have yet to begin, which nobody removed."""
    names = (".*.tmp", ".lock", "*.next.yaml")
    return [path for name in names for path in place.rglob(name)]


def environment(cache: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "AUTOCOMPRESS_CACHE": str(cache), **more}


def run(
    arguments: Sequence[str],
    variables: dict[str, str],
    row: Row,
    kill: tuple[float, int] | None = None,
    program: Sequence[str] = PROGRAM,
    file_bytes: int | None = None,
) -> tuple[int, str]:
    """Run a command; its exit code and its standard error. The row hears of the peak memory.

    Args:
        arguments: arguments of the command.
        variables: its environment.
        row: row of the table.
        kill: seconds after which it gets a signal, and the signal.
        program: what runs it.
        file_bytes: largest size of a file that it may write.
    """

    def limit() -> None:
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*program, *arguments], env=variables, stdout=subprocess.DEVNULL, stderr=errors, preexec_fn=limit
        )
        if kill is not None:
            try:
                process.wait(kill[0])
            except subprocess.TimeoutExpired:
                process.send_signal(kill[1])
        _, status, used = os.wait4(process.pid, 0) if process.returncode is None else (0, 0, None)
        code = process.returncode if process.returncode is not None else os.waitstatus_to_exitcode(status)
        process.returncode = code
        if used is not None:
            row.peak_megabytes = max(row.peak_megabytes, used.ru_maxrss / 1024)
        errors.seek(0)
        return code, errors.read()


def run_on_full_disk(arguments: list[str], place: Path, where: str, row: Row, draw: random.Random) -> tuple[int, str]:
    """Run a command while the disk under its run, its cache or its temporary folder fills up."""
    folder = {"run": place / "out", "cache": place / "cache", "temporary folder": place / "tmp"}[where]
    folder.mkdir(exist_ok=True)
    kilobytes = draw.randint(4, {"run": 250, "cache": 4000, "temporary folder": 400}[where])
    variables = environment(place / "cache", TMPDIR=str(place / "tmp"))
    (place / "tmp").mkdir(exist_ok=True)
    mount = f'mount -t tmpfs -o size={kilobytes}k none "{folder}"'
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode == 0:
        # What the small disk holds at the end is what there is to go on from.
        script = f'{mount} && {{ "$@"; code=$?; cp -a "{folder}" "{folder}.kept"; exit $code; }}'
        code, text = run(arguments, variables, row, program=["unshare", "-m", "sh", "-c", script, "sh", *PROGRAM])
        shutil.copytree(f"{folder}.kept", folder, dirs_exist_ok=True)
        return code, text
    return run(arguments, variables, row, file_bytes=kilobytes * 256)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"


def of_run(*names: str) -> Callable[[Path], dict[str, str]]:
    """Digests of these files of a run, and of its journal without the seconds."""

    def results(out: Path) -> dict[str, str]:
        found = {name: digest(out / name) for name in names}
        for number, line in enumerate((out / "journal.jsonl").read_text().splitlines()[1:]):
            values = json.loads(line)
            found[f"evaluation {number}"] = json.dumps({**values, "seconds": 0, "crc32": ""}, sort_keys=True)
        return found

    return results


def of_comparison(out: Path) -> dict[str, str]:
    """What every cell found."""
    kept = ("kl", "evaluations", "plan", "trace", "agreement")
    cells: dict[str, Any] = {path.name: json.loads(path.read_text()) for path in sorted((out / "cells").glob("*.json"))}
    return {name: json.dumps({key: cell[key] for key in kept}) for name, cell in cells.items()}


def of_policy(out: Path) -> dict[str, str]:
    """Digests of the policy and of all episodes."""
    return {name: digest(out / name) for name in ("policy.safetensors", "recipe.yaml", "episodes/little--joint.npz")}


def copied_search(out: Path) -> None:
    """A copy of the finished search, which lies two folders above or beside."""
    source = next(each / "clean-search" for each in out.parents if (each / "clean-search").is_dir())
    shutil.copytree(source, out)


def near(out: Path, name: str) -> str:
    """A file of the suite, from the folder of a run."""
    return str(next(each / name for each in out.parents if (each / name).is_file()))


SEARCH = ["search", "--budget", "size=0.12", "--episodes", "8", "--finetune", "0.5", "--target", "packed"]
COMMANDS = {
    command.name: command
    for command in (
        Command(
            "search",
            lambda out: [*SEARCH, *QUICK, "--out", str(out)],
            lambda out: ["search", "--out", str(out), "--resume"],
            of_run("plan.yaml", "model.safetensors", "journal.f16"),
        ),
        Command(
            "finetune",
            lambda out: ["finetune", str(out), "--epochs", "2"],
            lambda out: ["finetune", str(out), "--epochs", "2"],
            of_run("plan.yaml", "model.safetensors"),
            copied_search,
        ),
        Command(
            "export",
            lambda out: ["export", str(out), "--format", "onnx,packed,pt2"],
            lambda out: ["export", str(out), "--format", "onnx,packed,pt2"],
            of_run("plan.yaml", "model.onnx", "model.safetensors"),
            copied_search,
        ),
        Command(
            "compare",
            lambda out: ["compare", near(out, "suite.yaml"), "--out", str(out)],
            lambda out: ["compare", near(out, "suite.yaml"), "--out", str(out), "--resume"],
            of_comparison,
        ),
        Command(
            "train-policy",
            lambda out: ["train-policy", near(out, "recipe.yaml"), "--out", str(out)],
            lambda out: ["train-policy", near(out, "recipe.yaml"), "--out", str(out), "--resume"],
            of_policy,
        ),
    )
}


def print_table(rows: dict[tuple[str, str], Row]) -> int:
    """Print a line for every command and disturbance, then every fault; returns the number of faults."""
    print("\n| command | disturbance | times | same plan and bytes | before the folder | leftovers | peak memory |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (name, how), row in rows.items():
        print(
            f"| {name} | {how} | {row.disturbed} | {row.same} | {row.before_folder} | {row.leftovers} | "
            f"{row.peak_megabytes:.0f} MB |"
        )
    faults = [f"{name}, {how}: {fault}" for (name, how), row in rows.items() for fault in row.faults]
    print(f"\n{len(faults)} faults")
    for fault in faults:
        print(f"- {fault}")
    return len(faults)


if __name__ == "__main__":
    main()
