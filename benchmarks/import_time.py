"""Seconds of imports in whole commands on the embedded default, beyond those of `import torch`.

python benchmarks/import_time.py
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROW = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \| +(\S+)")  # of -X importtime: own and cumulative microseconds


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        search = ["search", "digits", "--budget", "size=0.12", "--episodes", "2", "--out", str(run), "--force"]
        imports_of(["-m", "autocompress", *search])  # fills the menu cache, and leaves a run to verify
        commands = {
            "import autocompress.api": ["-c", "import autocompress.api"],
            "inspect": ["-m", "autocompress", "inspect", "digits"],
            "evaluate": ["-m", "autocompress", "evaluate", "digits", "--plan", str(run / "plan.yaml")],
            "verify": ["-m", "autocompress", "verify", str(run)],
            "search": ["-m", "autocompress", *search],
        }
        for name, command in commands.items():
            for _ in range(2):
                total, torch, wall = imports_of(command)
                print(
                    f"{name}: {total - torch:.2f} s over torch ({torch:.2f} s); whole command {wall:.1f} s", flush=True
                )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"peak memory of a command: {peak:,.0f} MiB")


def imports_of(arguments: list[str]) -> tuple[float, float, float]:
    """(seconds of all imports, of those that `import torch` brings, of the whole command)."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=False)
    wall = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{arguments} ended with {done.returncode}: {done.stderr[-500:]}")
    rows = [(int(own), int(whole), name) for own, whole, name in ROW.findall(done.stderr)]
    torch = max(whole for _, whole, name in rows if name == "torch")
    return sum(own for own, _, _ in rows) / 1e6, torch / 1e6, wall


if __name__ == "__main__":
    main()
