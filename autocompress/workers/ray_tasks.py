"""Tasks of a Ray cluster (extra `distributed`): one machine, or many that share a file system.

Ray starts the workers, on which this package must be installed, and keeps them from task to task. They run in the
folder of this process, so paths mean the same on every machine only where the file system is shared.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import sys
import uuid
from collections.abc import Sequence
from typing import Any

from autocompress.errors import InputError, reason_of
from autocompress.workers.tasks import Death, Make, Result, Run

LOCAL, AUTO = "local", "auto"
_SECONDS_TO_ANSWER = 5.0  # Ray itself tries for more than a minute, and then ends the process
_loaded: dict[str, Run] = {}  # in a worker: what the tasks of one `RayTasks` run


class RayTasks:
    """Tasks in a Ray cluster, to which the context is the connection.

    Args:
        address: `local` for a cluster of this machine alone that lives as long as the context, `auto` for the one that
            runs on this machine, or host:port of another.
        count: largest number of tasks at once. Default: None, for the cluster's CPUs.
        make: function that every worker calls once, defined at the top level of a module.
        arguments: its arguments; they are pickled.
        gpus: GPUs that a task needs.

    Raises:
        InputError: Ray is not installed, the address is malformed, or the cluster can't be reached.
    """

    def __init__(self, address: str, count: int | None, make: Make, arguments: tuple[Any, ...], gpus: int = 0) -> None:
        self._ray = _connected(address)
        self.count = count or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        self._key, self._pickled = uuid.uuid4().hex, self._ray.put(pickle.dumps((make, arguments)))
        self._remote = self._ray.remote(_run).options(max_retries=0, num_gpus=gpus)

    def __enter__(self) -> RayTasks:
        return self

    def __exit__(self, *stopped_by: object) -> None:
        self._ray.shutdown()  # ends the tasks of this connection

    def submit(self, task: Any) -> _Submitted:
        """Begin a task, as soon as the cluster has a CPU for it."""
        answer = self._remote.remote(self._key, self._pickled, sys.path, os.getcwd(), task)
        return _Submitted(self._ray, task, answer)

    def with_messages(self, running: Sequence[_Submitted]) -> list[_Submitted]:
        """The tasks that have ended; waits until there is one."""
        ready, _ = self._ray.wait([each.answer for each in running])
        return [each for each in running if each.answer in ready]


class _Submitted:
    """A task in the cluster, with Ray's reference to its result."""

    def __init__(self, ray: Any, task: Any, answer: Any) -> None:
        self._ray, self.task, self.answer = ray, task, answer

    def receive(self) -> Result | Death:
        """The task's result, or how its worker ended."""
        try:
            return Result(self._ray.get(self.answer))
        except self._ray.exceptions.RayTaskError as error:
            return Death(f"the task in Ray raised {type(error.cause).__name__}: {reason_of(error.cause)}")
        except self._ray.exceptions.RayError as error:
            return Death(f"the worker in Ray ended with {type(error).__name__}")


def check_cluster(address: str | None) -> None:
    """Raise InputError unless Ray is installed and the address is known, or somebody answers there; None is none."""
    if address is None:
        return
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise InputError(
            "`cluster` needs the package ray, got none; run pip install 'autocompress[distributed]'."
        ) from error
    if address in (LOCAL, AUTO):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65_536):
        raise InputError(f"`cluster` must be {LOCAL}, {AUTO} or host:port, got {address!r}.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise _unreachable(address, error.strerror or reason_of(error)) from error


def _connected(address: str) -> Any:
    """The module `ray`, connected to a cluster."""
    check_cluster(address)
    import ray

    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _unreachable(address, reason_of(error)) from error
    return ray


def _unreachable(address: str, reason: str) -> InputError:
    return InputError(
        f"`cluster` must be the address of a Ray cluster that answers, got {address}: {reason}; start one with: "
        "ray start --head."
    )


def _run(key: str, pickled: bytes, path: list[str], folder: str, task: Any) -> Any:
    """Run a task in a worker of Ray, where modules are found as they are in the parent."""
    if key not in _loaded:
        os.chdir(folder)
        sys.path.extend(place for place in path if place not in sys.path)
        make, arguments = pickle.loads(pickled)
        _loaded.clear()
        _loaded[key] = make(*arguments)
    return _loaded[key](task, lambda content: None)
