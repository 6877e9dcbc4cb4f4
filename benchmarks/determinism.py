"""The same search with other numbers of threads and other kernels: plan, files, evaluated plans and their losses.

python benchmarks/determinism.py   # about two minutes on a quiet core

Each search is a process of its own, with an empty cache. PyTorch and OpenBLAS pick their kernels by the processor; the
variables ATEN_CPU_CAPABILITY and OPENBLAS_CORETYPE make them pick as on older ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SEARCH = [
    "search", "--budget", "size=0.12", "--episodes", "24", "--search-samples", "256", "--calibration-samples", "128",
    "--recalibration-samples", "128", "--selection-samples", "128", "--dtype", "float32", "--target", "packed",
]  # fmt: skip
PLACES = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "one thread, again": {"OMP_NUM_THREADS": "1"},
    "two threads": {"OMP_NUM_THREADS": "2"},
    "ATEN_CPU_CAPABILITY=default": {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"},
    "OPENBLAS_CORETYPE=Haswell": {"OMP_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Haswell"},
}


def main() -> None:
    print("| place | plan | model.safetensors | evaluated plans | losses, relative difference at most |")
    print("| --- | --- | --- | --- | --- |")
    reference: tuple[str, str, str, list[float]] | None = None
    same_plan = True
    with tempfile.TemporaryDirectory(prefix="determinism-") as folder:
        for number, (name, variables) in enumerate(PLACES.items()):
            found = searched(Path(folder) / str(number), variables)
            reference = reference or found
            same = [
                "same" if mine == theirs else "OTHER" for mine, theirs in zip(found[:3], reference[:3], strict=True)
            ]
            apart = max(abs(a / b - 1) for a, b in zip(found[3], reference[3], strict=False))
            same_plan &= same[0] == "same"
            print(f"| {name} | {' | '.join(same)} | {apart:.1g} |", flush=True)
    sys.exit(0 if same_plan else 1)


def searched(folder: Path, variables: dict[str, str]) -> tuple[str, str, str, list[float]]:
    """Digests of the plan, of the file and of the evaluated plans, and the losses of these."""
    out = folder / "run"
    chosen = {**os.environ, **variables, "AUTOCOMPRESS_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "autocompress", *SEARCH, "--out", str(out)]
    subprocess.run(command, env=chosen, check=True, capture_output=True)
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()[1:]]
    plan, model = (hashlib.sha256((out / name).read_bytes()).hexdigest() for name in ("plan.yaml", "model.safetensors"))
    return plan, model, json.dumps([line["labels"] for line in lines]), [line["kl"] for line in lines]


if __name__ == "__main__":
    main()
