"""Memory of a job: what it will take at the peak, told before the work begins, and the least that it can do with."""

from __future__ import annotations

import os

from autocompress.budget import format_bytes
from autocompress.config import Config
from autocompress.data import Data
from autocompress.errors import InputError
from autocompress.evaluation import samples_that_fit
from autocompress.evaluation.number_format import BATCHES
from autocompress.execute.following import LEAST_HELD
from autocompress.execute.layer_site import LEAST_SAMPLES
from autocompress.execute.recalibrate import fitting_bytes
from autocompress.memory import memory_left, memory_limit, resident_bytes
from autocompress.network import Network
from autocompress.progress import Progress

_MENU_BYTES_PER_ENTRY = 60  # of H, for each thread that builds menus
_CALIBRATION_BYTES = 64_000_000  # of unfolded inputs
_EFFECTS_BYTES = 1_000_000_000  # that first-order effects take at most
_COPIES_OF_WEIGHTS = 4  # the original, the base, the copy that is evaluated, the one that is finished


def check_memory(network: Network, data: Data, input_bytes: int, options: Config, watcher: Progress) -> None:
    """Tell the memory that the job will take at its peak.

    Args:
        network: trace of the network.
        data: data of the job.
        input_bytes: bytes of one input sample.
        options: options of the job.
        watcher: observer that is told in one line.

    Raises:
        InputError: the limit is lower than the least that the job can do with.
    """
    asked = options.memory_bytes()
    samples = min(options.recalibration_samples, len(data.train))
    held = resident_bytes() + _COPIES_OF_WEIGHTS * 4 * sum(layer.parameters for layer in network.layers)
    search = 2 * len(data.search_indices) * input_bytes  # as they are, and in the format of the evaluation
    recalibration = samples * input_bytes if samples else 0

    def peak(batch: int, followed: int, threads: int, effects: int) -> int:
        stages = [
            search + 2 * batch * network.activation_bytes,
            threads * _MENU_BYTES_PER_ENTRY * network.largest_moment + min(_CALIBRATION_BYTES, search),
            search + effects,
        ]
        if samples:
            values = 2 * min(followed, samples) * network.activation_bytes  # of both networks
            stages.append(recalibration + search + values + fitting_bytes(network))
        return held + max(stages)

    least = peak(1, LEAST_HELD, 1, 0)
    limit = held + memory_limit(None) if asked is None else asked
    if limit < least and asked is not None:
        raise InputError(
            f"`memory` must be at least {format_bytes(least)} for this network and data, got {options.memory}; "
            "raise --memory, or take smaller images or fewer samples."
        )
    batch = samples_that_fit(network, asked, BATCHES[-1])
    threads = menu_threads(network, options.jobs, asked) or os.cpu_count() or 1
    effects = min(_EFFECTS_BYTES, len(data.search_indices) * network.activation_bytes)
    expected = min(limit, peak(batch, LEAST_SAMPLES, threads, effects))
    watcher.stage(f"memory: about {format_bytes(expected)} at the peak, of {format_bytes(limit)} allowed")


def menu_threads(network: Network, jobs: int | None, memory: int | None) -> int | None:
    """Number of threads that build menus, as far as a limit on memory allows.

    Args:
        network: trace of the network.
        jobs: number of threads that was asked for; None: one for each core.
        memory: most bytes that the process may hold in all; None: nobody says, and the menus look for themselves.
    """
    if memory is None:
        return jobs
    fitting = memory_left(memory) // (_MENU_BYTES_PER_ENTRY * network.largest_moment)
    return max(1, min(jobs or os.cpu_count() or 1, fitting))
