"""Predicted time for a job: variants of its network are timed, and `latency` becomes a resource like the others."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from autocompress.job.prepare import Job
from autocompress.job.timing import Timer
from autocompress.menus import Menus
from autocompress.progress import Progress
from autocompress.targets.kernels import Fit, LayerShapes, Measured, draw_variants, fit_kernels
from autocompress.targets.timing import VARIANT, PairedTiming, TimeLimit, threads_in_words
from autocompress.version import __version__
from autocompress_envs.problem import CostModel, IntArray, KernelCosts, Labeling, Problem
from autocompress_envs.problem.tables import Tables

VARIANTS = (32, 48, 64)
"""Numbers of whole networks that are timed: more where fewer don't predict each other well enough."""
WELL = {0.5: 0.02, 0.9: 0.06}
"""By share of the networks, the largest error at which they do."""


def timed(job: Job, limit: TimeLimit, watcher: Progress) -> Job:
    """The job with `latency` among its resources, as the timed variants predict it, and with the widths that pay.

    Times are kept beside the menus, by machine, version of the runtime, batch and threads: the same search again, or a
    resumed one, has the same costs.

    Args:
        job: network with its menus.
        limit: limit of time, of which batch and threads count.
        watcher: observer that is told of stages and notes.
    """
    timer = Timer(job, limit)
    name = f"times-{timing_key(job, timer, limit)}"
    found = job.menus.store.tensors(name, lambda: _measure(job, timer, limit, watcher))
    labelings = [Labeling(*rows) for rows in found["labelings"].numpy()]
    original = int(found["original"].item())
    if found["waiting"].item() > 0:
        watcher.note(
            f"the machine was busy while {int(found['waiting'].item())} of {len(labelings)} variants were timed; "
            "ratios to the original are used, which hold"
        )
    fit = _fit(job, timer, labelings, found["ratios"].numpy() * original)
    watcher.note(
        f"latency: the original takes {original / 1e6:.3f} ms in {timer.where[1]} at batch {limit.batch}, "
        f"{threads_in_words(limit.threads)}; predicted from {fit}"
    )
    return _with_kernels(job, fit, original, watcher)


def timing_key(job: Job, timer: Timer, limit: TimeLimit) -> str:
    """Digest of what times depend on besides the network and its menus."""
    content = [
        timer.where[0].data(),
        timer.where[1],
        job.target.name,
        limit.batch,
        limit.threads,
        VARIANTS,
        __version__,
        torch.__version__,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _measure(job: Job, timer: Timer, limit: TimeLimit, watcher: Progress) -> dict[str, Tensor]:
    """Times of variants: `labelings` (V, 3, L), `ratios` (V,) to the original, `original` ns, `waiting` networks."""
    watcher.stage(
        f"timing variants of the network in {timer.where[1]}, batch {limit.batch}, "
        f"{threads_in_words(limit.threads)}, in turns with the original"
    )
    labelings = draw_variants(job.problem, VARIANTS[-1])
    timings: list[PairedTiming] = []
    for number in VARIANTS:
        for labeling in labelings[len(timings) : number]:
            timings.append(timer.time(labeling, VARIANT))
            watcher.advance(len(timings), min(number, len(labelings)), "timed variants")
        ratios = np.array([timing.ratio.median for timing in timings])
        if _fit(job, timer, labelings[: len(timings)], ratios).is_within(WELL):
            break
    rows = [np.stack([each.sparsity, each.weight_bits, each.activation_bits]) for each in labelings[: len(timings)]]
    nanoseconds = round(1e9 * float(np.median([timing.original.median.median for timing in timings])))
    return {
        "labelings": torch.from_numpy(np.stack(rows)),
        "ratios": torch.from_numpy(ratios),
        "original": torch.tensor([max(1, nanoseconds)]),
        "waiting": torch.tensor([sum(timing.waiting.is_busy for timing in timings)]),
    }


def _fit(job: Job, timer: Timer, labelings: list[Labeling], times: np.ndarray) -> Fit:
    """Kernel costs from the times of variants, in any unit."""
    return fit_kernels(_shapes(job), _measured(job, labelings, times), timer.runtime.integer_bits)


def _shapes(job: Job) -> LayerShapes:
    layers = job.network.layers
    return LayerShapes(
        tuple(layer.kind for layer in layers),
        np.array([int(np.prod(layer.weight_shape[2:], dtype=np.int64)) for layer in layers], np.int64),
        job.problem.costs.positions,
    )


def _measured(job: Job, labelings: list[Labeling], times: np.ndarray) -> Measured:
    """The variants in widths and bits."""
    tables, plans = Tables(job.problem), [job.menus.plan(labeling) for labeling in labelings]
    kept = tables.kept_channels(np.stack([labeling.sparsity for labeling in labelings]))
    fan_in, out = job.problem.costs.widths(kept)
    bits = np.array(
        [[(label.weight_bits, label.activation_bits) for label in plan.labels.values()] for plan in plans]
    )  # (V, L, 2)
    return Measured(fan_in, out, bits[..., 0], bits[..., 1], np.asarray(times))


def _with_kernels(job: Job, fit: Fit, original: int, watcher: Progress) -> Job:
    """The job whose cost model has kernels, and whose menus offer the widths that pay."""
    menus = with_costs(job.menus, replace(job.menus.network.costs, kernels=fit.costs))
    widths = widths_that_pay(menus)
    left_out = sum(len(_options(job.menus, owner)) - len(kept) for owner, kept in widths.items())
    if left_out:
        watcher.note(f"{left_out} widths in {len(widths)} channel groups are not offered: wider ones are as fast")
    menus = menus.only(widths)
    amounts = {**job.original, "latency": original}
    return replace(job, menus=menus, network=menus.network, problem=menus.problem(), original=amounts)


def with_costs(menus: Menus, costs: CostModel) -> Menus:
    """The same menus with another cost model."""
    return replace(menus, network=replace(menus.network, costs=costs))


def scaled(job: Job, factor: float) -> Job:
    """The job with all predicted times multiplied by a factor."""
    kernels = job.menus.network.costs.kernels
    assert kernels is not None, "the job was timed"
    times = {name: getattr(kernels, name) * factor for name in ("per_layer", "per_column", "per_row", "per_weight")}
    kernels = KernelCosts(**{**vars(kernels), **times, "fixed": int(np.ceil(kernels.fixed * factor))})
    menus = with_costs(job.menus, replace(job.menus.network.costs, kernels=kernels))
    return replace(job, menus=menus, network=menus.network, problem=menus.problem())


def _options(menus: Menus, owner: str) -> list[int]:
    group = next(group for group in menus.network.groups if group.owner == owner)
    return menus.kept_options(group)


def widths_that_pay(menus: Menus) -> dict[str, tuple[int, ...]]:
    """For every group with widths that don't pay, those that do: channels that stay, descending, by owner's name.

    A width pays where the network is faster with it than with any wider one, in some format that is on offer; all other
    groups keep their channels meanwhile. Kernels that want multiples of four or eight channels make many widths slower
    than the next wider one.
    """
    problem = menus.problem()
    found = {}
    for index, group in enumerate(menus.network.groups):
        options = menus.kept_options(group)
        times = _times_by_width(problem, index, options)  # (formats, widths)
        pays = [np.ones(len(times), bool), *((times[:, :i].min(1) > times[:, i]) for i in range(1, len(options)))]
        kept = tuple(option for option, each in zip(options, pays, strict=True) if each.any())
        if len(kept) < len(options):
            found[group.owner] = kept
    return found


def _times_by_width(problem: Problem, group: int, options: list[int]) -> IntArray:
    """(F, W) nanoseconds of the network in each of F formats where one group keeps each of these widths."""
    costs = problem.costs
    kept = np.repeat(costs.group_width[None], len(options), axis=0)
    kept[:, group] = options
    formats = {
        (int(weights), int(activations))
        for layer in problem.layers
        for weights in layer.weight_bits
        for activations in layer.activation_bits
    }
    layers = len(problem.layers)
    rows: list[IntArray] = []
    for weights, activations in sorted(formats):
        rows.append(costs.resources(kept, np.full(layers, weights), np.full(layers, activations))["latency"])
    return np.stack(rows)
