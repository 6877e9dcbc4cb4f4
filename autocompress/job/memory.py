"""Memory of a job: what it will take at the peak, told before the work begins, and the least that it can do with."""

from __future__ import annotations

import os

import torch

from autocompress.budget import format_bytes
from autocompress.data import Data
from autocompress.errors import InputError
from autocompress.evaluation import measured_at_once, samples_that_fit
from autocompress.evaluation.number_format import BATCHES, CPU
from autocompress.evaluation.renormalize import renormalizing_samples
from autocompress.execute.following import LEAST_HELD
from autocompress.execute.layer_site import LEAST_SAMPLES
from autocompress.execute.recalibrate import fitting_bytes
from autocompress.job.options import Request
from autocompress.memory import memory_left, memory_limit, resident_bytes
from autocompress.menus import MenuSettings
from autocompress.menus.calibration import largest_moment, means_bytes
from autocompress.menus.responses import MOST_BYTES, pass_bytes
from autocompress.network import Network
from autocompress.progress import Progress

_MENU_BYTES_PER_ENTRY = 60  # of H, for each thread that builds menus
_CALIBRATION_BYTES = 64_000_000  # of unfolded inputs
_COPIES_OF_RENORMALIZED = 3  # of the activations of all samples: convolutions re-order what they read and give
_COPIES_OF_WEIGHTS = 4  # the original, the base, the copy that is evaluated, the one that is finished


def check_memory(
    network: Network, data: Data, input_bytes: int, device: torch.device, asked: Request, watcher: Progress
) -> None:
    """Tell the memory that the job will take on the host at its peak. What a GPU holds does not count.

    Args:
        network: trace of the network.
        data: data of the job.
        input_bytes: bytes of one input sample.
        device: device that networks run on.
        asked: the job that was asked for.
        watcher: observer that is told in one line.

    Raises:
        InputError: the limit is lower than the least that the job can do with.
    """
    options, memory, on_host = asked.config, asked.config.memory_bytes(), device.type != "cuda"
    samples = min(options.recalibration_samples, len(data.train))
    held = resident_bytes() + _COPIES_OF_WEIGHTS * 4 * sum(layer.parameters for layer in network.layers)
    search = 2 * len(data.search_indices) * input_bytes  # as they are, and in the format of the evaluation
    recalibration = min(samples, LEAST_SAMPLES) * input_bytes if samples else 0

    means = len(data.calibration_indices) * means_bytes(network)
    responses = _responses_bytes(network, asked.menus) if on_host else 0
    renormalized = min(renormalizing_samples(network), len(data.calibration_indices)) if on_host else 0
    renormalization = _COPIES_OF_RENORMALIZED * renormalized * network.activation_bytes

    def peak(batch: int, followed: int, threads: int) -> int:
        stages = [
            search + max(2 * batch * network.activation_bytes, renormalization),
            threads * _MENU_BYTES_PER_ENTRY * largest_moment(network) + min(_CALIBRATION_BYTES, search) + means,
            search + responses,
        ]
        if samples:
            values = 2 * min(followed, samples) * network.activation_bytes if on_host else 0  # of both networks
            stages.append(recalibration + search + values + fitting_bytes(network))
        return held + max(stages)

    least = peak(1, LEAST_HELD, 1)
    limit = held + memory_limit(None) if memory is None else memory
    if limit < least and memory is not None:
        raise InputError(
            f"`memory` must be at least {format_bytes(least)} for this network and data, got {options.memory}; "
            "raise --memory, or take smaller images or fewer samples."
        )
    in_runtime = measured_at_once(network, memory, CPU)
    batch = samples_that_fit(network, memory, BATCHES[-1]) if on_host else in_runtime
    threads = (menu_threads(network, options.jobs, memory) or os.cpu_count() or 1) if on_host else 1
    expected = min(limit, peak(batch, LEAST_SAMPLES, threads))
    watcher.stage(f"memory: about {format_bytes(expected)} at the peak, of {format_bytes(limit)} allowed")


def _responses_bytes(network: Network, settings: MenuSettings) -> int:
    """Bytes that expected losses and first-order effects take, about: changes that are held at once, and a pass.

    Layers with a single position take their changes one by one.
    """
    changes = len(settings.sparsities()) * len(settings.weight_bits) * (1 + len(settings.ranks))
    spread = sum(layer.parameters for layer in network.layers if layer.positions > 1)
    return min(MOST_BYTES["cpu"], 4 * changes * spread) + pass_bytes(network.layers, CPU)


def menu_threads(network: Network, jobs: int | None, memory: int | None) -> int | None:
    """Number of threads that build menus, as far as a limit on memory allows.

    Args:
        network: trace of the network.
        jobs: number of threads that was asked for; None: one for each core.
        memory: most bytes that the process may hold in all; None: nobody says, and the menus look for themselves.
    """
    if memory is None:
        return jobs
    fitting = memory_left(memory) // (_MENU_BYTES_PER_ENTRY * largest_moment(network))
    return max(1, min(jobs or os.cpu_count() or 1, fitting))
