"""Long work for an assistant: each job is a process of its own, known by a handle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autocompress.errors import InputError
from autocompress.files import regular_file
from autocompress.run.journal import read_journal
from autocompress.run.names import JOURNAL

_LAST = 8  # lines of progress that are told
_PATIENCE = 20.0  # seconds for a job to end by itself when the server does


@dataclass
class Work:
    """A job that was begun.

    Attributes:
        handle: its name.
        kind: command that it runs.
        process: its process.
        folder: folder of its output.
        run: folder of the run that it makes; None where it makes none.
        began: when it began, in seconds of the monotonic clock.
        ended: when it was seen to have ended; None while it runs.
    """

    handle: str
    kind: str
    process: subprocess.Popen[bytes]
    folder: Path
    run: Path | None
    began: float
    ended: float | None = None

    @property
    def state(self) -> str:
        """`running`, `done` or `failed`."""
        code = self.process.poll()
        if code is not None and self.ended is None:
            self.ended = time.monotonic()
        return "running" if code is None else "failed" if code else "done"


@dataclass
class Jobs:
    """The jobs of a server, one at a time.

    Attributes:
        root: folder that they run in.
    """

    root: Path
    _works: dict[str, Work] = field(default_factory=dict)
    _scratch: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="autocompress-mcp-")
    )

    def start(self, kind: str, arguments: Sequence[str], run: Path | None) -> Work:
        """Begin a job.

        Args:
            kind: command of `autocompress`.
            arguments: its arguments, the command included.
            run: folder of the run that it makes; None where it makes none.

        Raises:
            InputError: another job is running.
        """
        for work in self._works.values():
            if work.state == "running":
                raise InputError(f"one job runs at a time, and {work.handle} is at work; ask for its status, and wait.")
        handle = f"{kind}-{1 + sum(work.kind == kind for work in self._works.values())}"
        folder = Path(self._scratch.name) / handle
        folder.mkdir()
        command = [sys.executable, "-m", "autocompress", *arguments, "--format", "json"]
        with (folder / "out").open("wb") as out, (folder / "progress").open("wb") as progress:
            process = subprocess.Popen(command, cwd=self.root, stdin=subprocess.DEVNULL, stdout=out, stderr=progress)
        self._works[handle] = Work(handle, kind, process, folder, run, time.monotonic())
        return self._works[handle]

    def find(self, handle: str) -> Work:
        """The job of that handle. Raises InputError where there is none."""
        if handle not in self._works:
            raise InputError(f"`handle` must be one of {', '.join(self._works) or 'none so far'}, got {handle!r}.")
        return self._works[handle]

    def all(self) -> list[Work]:
        """All jobs, the first one first."""
        return list(self._works.values())

    def close(self) -> None:
        """End the job that runs, as Ctrl-C does, and remove the outputs."""
        for work in self._works.values():
            if work.state == "running":
                work.process.send_signal(signal.SIGINT)
                try:
                    work.process.wait(_PATIENCE)
                except subprocess.TimeoutExpired:
                    work.process.kill()
                    work.process.wait()
        self._scratch.cleanup()


def told(work: Work) -> dict[str, Any]:
    """How a job stands, as plain data: its progress, and its result or error once it has ended."""
    state = work.state
    progress = (work.folder / "progress").read_text(errors="replace").splitlines()
    data: dict[str, Any] = {
        "handle": work.handle,
        "kind": work.kind,
        "state": state,
        "seconds": round((work.ended or time.monotonic()) - work.began, 1),
        "progress": [line for line in progress if not line.startswith("autocompress: ")][-_LAST:],
    }
    if work.run is not None and regular_file(work.run / JOURNAL):
        data["search"] = _search(work.run)
    if state == "done":
        data["result"] = json.loads((work.folder / "out").read_bytes())
    elif state == "failed":
        said = [line for line in progress if line.startswith("autocompress: ")]
        data["error"] = said[-1].removeprefix("autocompress: ") if said else "; ".join(progress[-_LAST:])
    return data


def _search(run: Path) -> dict[str, Any]:
    """Plans evaluated so far, and the best one of them."""
    entries = []
    with suppress(InputError):  # it is being written
        entries = read_journal(run / JOURNAL)[1]
    best = next((entry for entry in reversed(entries) if entry.best), None)
    found: dict[str, Any] = {"evaluated": len(entries), "best": None}
    if best is not None:
        found["best"] = {"evaluation": best.index + 1, "kl": best.kl, "resources": dict(best.resources)}
    return found
