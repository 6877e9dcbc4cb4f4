"""The near side of a runner: the script goes out over a command's standard input, one line comes back."""

from __future__ import annotations

import base64
import inspect
import json
import math
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from autocompress.errors import InputError
from autocompress.samples import Inputs, Samples, cast, tensors_of
from autocompress.targets.runner import script
from autocompress.targets.timing import Effort, Machine, PairedTiming, Waiting
from autocompress.targets.timing.paired import PATIENCE, timing_of_rounds

PACKAGES = ("onnxruntime", "openvino")
"""Packages of the runtimes that the script knows how to load a file in."""

START_SECONDS = 120.0
"""Seconds that a runner may take besides timing: to connect, to receive the files, and to load them."""

_LAST = 200  # characters of a runner's last words in a message


@dataclass(frozen=True)
class Runner:
    """A command that runs Python on another machine, from the program on its standard input.

    Attributes:
        command: the command, such as `ssh pi@board python3 -`; it is split as a shell would, and no shell runs.
    """

    command: str

    def __post_init__(self) -> None:
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise InputError(f"`runner` must be a command, got {self.command!r}: {error}.") from error
        if not words:
            raise InputError("`runner` must be a command such as 'ssh pi@board python3 -', got none.")

    def where(self, package: str) -> tuple[Machine, str]:
        """The machine over there, and the version of the runtime's package.

        Args:
            package: name of the package.

        Raises:
            InputError: the runner does not answer, or has no such package.
        """
        found = self._answer({"package": package}, START_SECONDS)
        return Machine.of(found["machine"]), str(found["version"])

    def time(
        self, package: str, files: tuple[bytes, bytes], batch: Inputs, effort: Effort, threads: int
    ) -> PairedTiming:
        """The times of two files over there, in turns.

        Args:
            package: package of the runtime.
            files: file of the original, and of the compressed network.
            batch: (N, …) inputs that both are given.
            effort: how much it may take.
            threads: number of threads that one operator may use.

        Raises:
            InputError: the runner does not answer, or can't run the files.
        """
        taken = tensors_of(cast(batch.detach(), "cpu", torch.float32))
        request = {
            "package": package,
            "files": [base64.b64encode(content).decode() for content in files],
            "names": list(batch.names) if isinstance(batch, Samples) else None,
            "inputs": [_packed(tensor.contiguous().numpy()) for tensor in taken],
            "threads": threads,
            "effort": {**asdict(effort), "most_seconds": PATIENCE * effort.seconds},
        }
        found = self._answer(request, START_SECONDS + 2 * PATIENCE * effort.seconds)
        rounds = [
            (np.asarray(first, np.float64) / 1e9, np.asarray(second, np.float64) / 1e9, bool(is_clean))
            for first, second, is_clean in found["rounds"]
        ]
        machine, load = Machine.of(found["machine"]), found["waiting"]["load"]
        waiting = Waiting(float(found["waiting"]["share"]), math.nan if load is None else float(load), machine.cores)
        return timing_of_rounds(rounds, effort, waiting, machine)

    def _answer(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to a request. A runner that dies without one is tried a second time."""
        program = f"{inspect.getsource(script)}\n\nmain({json.dumps(json.dumps(request))})\n"
        last = ""
        for _ in range(2):
            output, last = self._run(program, seconds)
            found = _found(output)
            if found is None:
                continue
            if "error" in found:
                raise InputError(
                    f"`runner` must have Python 3.8, NumPy and {request['package']}, and run the files, got "
                    f"{found['error']} from {self.command!r}."
                )
            return found
        raise InputError(f"`runner` must answer, got none from {self.command!r} in two tries: {last}")

    def _run(self, program: str, seconds: float) -> tuple[str, str]:
        """What the command printed, and how it ended, in words."""
        try:
            process = subprocess.Popen(
                shlex.split(self.command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise InputError(
                f"`runner` must be a command that can be run, got {self.command!r}: {error.strerror}."
            ) from error
        with process:
            try:
                output, errors = process.communicate(program.encode(), timeout=seconds)
            except subprocess.TimeoutExpired:
                raise InputError(
                    f"`runner` must answer within {seconds:g} seconds, got none from {self.command!r}, which was ended."
                ) from None
            finally:
                _end(process)
        words = errors.decode(errors="replace").strip().splitlines() or ["no message"]
        return output.decode(errors="replace"), f"exit code {process.returncode}, {words[-1][:_LAST]}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command that still runs, with what it has started."""
    if process.poll() is not None:
        return
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:  # Windows
        process.kill()
    process.wait()


def _found(output: str) -> dict[str, Any] | None:
    """The answer in what was printed, whatever else was; None where there is none."""
    for line in reversed(output.splitlines()):
        _, marker, text = line.partition(script.MARKER)
        if marker:
            try:
                found, _ = json.JSONDecoder().raw_decode(text)  # noise may follow on the line
            except ValueError:
                continue
            if isinstance(found, dict):
                return found
    return None


def _packed(values: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(values.tobytes()).decode()
    return {"dtype": str(values.dtype), "shape": list(values.shape), "data": data}
