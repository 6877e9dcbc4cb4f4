"""Which executor does the work: processes of this machine, or a Ray cluster."""

from __future__ import annotations

from typing import Any

import torch

from autocompress.workers.processes import Processes
from autocompress.workers.ray_tasks import RayTasks
from autocompress.workers.tasks import Executor, Make


def executor_of(
    make: Make,
    arguments: tuple[Any, ...],
    tasks: int,
    jobs: int | None,
    cluster: str | None,
    *,
    on_gpu: bool,
) -> Executor:
    """Where tasks are done; processes divide PyTorch's threads between them, a task of Ray has one.

    Args:
        make: function of the arguments and the number of threads that makes what a worker runs.
        arguments: its arguments but the last.
        tasks: number of tasks.
        jobs: number of processes, or most tasks at once in a cluster. None: 1, or as many as the cluster has CPUs.
        cluster: address of a Ray cluster; None: processes of this machine.
        on_gpu: whether a task of Ray takes a GPU.
    """
    if cluster is not None:
        return RayTasks(cluster, jobs, make, (*arguments, 1), int(on_gpu))
    count = min(jobs or 1, max(tasks, 1))
    return Processes(count, make, (*arguments, max(1, torch.get_num_threads() // count)))
