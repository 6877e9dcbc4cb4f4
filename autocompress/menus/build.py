"""Building the menus: fold batch norms, calibrate, rank every group's channels, make the variants, judge them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.borrowed import single_threaded
from autocompress.cache import MENUS, use
from autocompress.memory import available_bytes
from autocompress.menus.activations import ActivationRange, calibrate_range
from autocompress.menus.algebra import diagonal_blocks
from autocompress.menus.calibration import calibrate, largest_moment
from autocompress.menus.criteria import Consumer, channel_order
from autocompress.menus.judged_menus import judged_menus
from autocompress.menus.low_rank import can_be_cut
from autocompress.menus.menus import Menus
from autocompress.menus.settings import MenuSettings
from autocompress.menus.statistics import Statistics
from autocompress.menus.store import Store, content_key
from autocompress.menus.variants import LayerSource
from autocompress.network.folding import fold_batch_norms
from autocompress.network.structure import Group, Layer, Network
from autocompress.samples import Inputs
from autocompress_envs.problem import FloatArray

Progress = Callable[[int, int, str], None]

_BYTES_PER_ENTRY = 60  # a thread holds about seven copies of H in double precision at its peak
_EAGER_WEIGHTS = 700_000_000  # where there is more to store, most variants are built when first asked for


def build_menus(
    model: nn.Module,
    network: Network,
    calibration_inputs: Inputs,
    settings: MenuSettings,
    *,
    data_fingerprint: str,
    judging_inputs: Inputs | None = None,
    cache: Path | None = None,
    jobs: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Menus:
    """The menus of every layer, built or read from the cache.

    Memory at the peak is about 60 bytes for every entry of the largest H (fan-in squared) for each thread,
    plus 64 MB for calibration. As many threads run as fit into half of the memory that is available.

    Args:
        model: trained network; it is not changed.
        network: trace of the model.
        calibration_inputs: (N, …) float32, a few hundred samples.
        settings: labels on offer, and how their weights are made.
        data_fingerprint: text that identifies the calibration data, for the cache's key.
        judging_inputs: (M, …) float32 samples, none of them among the calibration samples, that the labels' expected
            losses are judged on; of a large network the first are enough (`fisher.gradient_samples`). None: the losses
            are those that the calibration samples' moments expect, which are too low wherever a layer has few of them.
        cache: folder of the cache; None keeps the menus in a temporary folder for this process only.
        jobs: most threads, at least 1; None takes one per core.
        device: device that statistics, weights and losses are computed on.
        progress: observer that is called with (done, total, what) from this thread; `what` is `calibration`,
            `channel orders`, `menus` or `expected losses`.

    Raises:
        InputError: the network's outputs on the calibration data are not finite.
    """
    report = progress or (lambda done, total, what: None)
    key = content_key(model, network, data_fingerprint, settings)
    store = Store(None if cache is None else cache / MENUS / key)
    if cache is not None:
        use(cache, key)
    folded = fold_batch_norms(model, network).to(device)
    folded.requires_grad_(False)
    statistics = _statistics(folded, network, calibration_inputs, settings, store, report)
    modules = dict(folded.named_modules())
    sources = {
        layer.name: LayerSource.of(layer, modules[layer.name], statistics[layer.name]) for layer in network.layers
    }
    with single_threaded(), ThreadPoolExecutor(_threads(network, jobs, device)) as pool:
        orders = _orders(network, sources, statistics, settings, store, pool, device)
        ranges = {layer.name: _ranges(layer, statistics[layer.name], settings) for layer in network.layers}
        errors = {name: _range_errors(sources[name], ranges[name]) for name in ranges}
        eager = settings.granularity != "channel" or _stored_weights(network, settings) <= _EAGER_WEIGHTS
        menus = Menus(network, settings, sources, orders, ranges, errors, store, eager, device=device)
        _build_variants(menus, pool, report)
    return menus if judging_inputs is None else judged_menus(menus, folded, judging_inputs, report)


def _threads(network: Network, jobs: int | None, device: str) -> int:
    """Number of threads: as many as asked for, as far as memory allows, and at least 1; on a GPU it is 1."""
    if torch.device(device).type == "cuda":
        return 1
    by_memory = available_bytes() // 2 // (_BYTES_PER_ENTRY * largest_moment(network))
    return max(1, min(jobs or os.cpu_count() or 1, by_memory))


def _statistics(
    folded: nn.Module, network: Network, inputs: Inputs, settings: MenuSettings, store: Store, report: Progress
) -> dict[str, Statistics]:
    """Every layer's statistics by its name; read from the store, or calibrated and stored in one file."""

    def build() -> dict[str, Tensor]:
        found = calibrate(
            folded,
            network,
            inputs,
            draws=settings.fisher_draws,
            seed=settings.seed,
            progress=lambda done, total: report(done, total, "calibration"),
        )
        return {f"{name}:{field}": tensor for name, entry in found.items() for field, tensor in vars(entry).items()}

    tensors = store.tensors("statistics", build)
    fields = Statistics.__dataclass_fields__
    return {
        layer.name: Statistics(**{field: tensors[f"{layer.name}:{field}"] for field in fields})
        for layer in network.layers
    }


def _orders(
    network: Network,
    sources: dict[str, LayerSource],
    statistics: dict[str, Statistics],
    settings: MenuSettings,
    store: Store,
    pool: ThreadPoolExecutor,
    device: str,
) -> list[Tensor]:
    """For every group its channels (n,) in the order of their removal; from the store where it has them."""
    if settings.granularity != "channel" or settings.sparsity_levels == 1:  # at most whole branches go: all at once
        return [torch.arange(group.width) for group in network.groups]

    def order(index: int) -> Tensor:
        def build() -> dict[str, Tensor]:
            consumers = _consumers(network.groups[index], sources, statistics, settings, device)
            generator = torch.Generator().manual_seed(settings.seed + index)
            return {"order": channel_order(settings.criterion, consumers, generator)}

        return store.tensors(f"order{index:03d}", build)["order"]

    return list(pool.map(order, range(len(network.groups))))


def _consumers(
    group: Group,
    sources: dict[str, LayerSource],
    statistics: dict[str, Statistics],
    settings: MenuSettings,
    device: str,
) -> list[Consumer]:
    """The layers that read a group, as criteria look at them."""
    consumers = []
    for name, columns in group.consumers.items():
        source, channels = sources[name].to(device), torch.from_numpy(columns)
        spatial = source.layer.fan_in // len(statistics[name].channel_activation)  # columns of one input channel
        activation = statistics[name].channel_activation.repeat_interleave(max(1, spatial))  # (d,)
        consumers.append(
            Consumer(
                source.weight,
                source.damped_moment(settings.damping)[0],
                source.gradient_moment.double(),
                channels.to(device),
                activation[channels].mean(1).to(device),
            )
        )
    return consumers


def _ranges(layer: Layer, found: Statistics, settings: MenuSettings) -> list[ActivationRange | None]:
    """A range for each activation bit-width on offer; None for 32 bits, and where none is rounded."""
    if layer.reads_unrounded:
        return [None] * len(settings.activation_bits)
    return [None if bits == 32 else calibrate_range(found.input_sample, bits) for bits in settings.activation_bits]


def _range_errors(source: LayerSource, ranges: Iterable[ActivationRange | None]) -> FloatArray:
    """Expected loss (A,) of rounding the layer's inputs to each of the ranges, in nats.

    Rounding adds e to an input x. Where the errors of different inputs are independent and have the variance
    ν (a range's `noise`), E[e eᵀ] = ν I in every position, so that the outputs' change W e costs ½ · ν ·
    positions · tr(G W Wᵀ).
    """
    if not any(ranges := list(ranges)):
        return np.zeros(len(ranges))
    weight = source.weight[:, :-1].view(source.layer.groups, -1, source.layer.fan_in)  # (g, r, d)
    moment = diagonal_blocks(source.gradient_moment.double(), source.layer.groups)
    gain = 0.5 * source.layer.positions * float((moment @ weight * weight).sum())
    return np.array([0.0 if found is None else gain * found.noise for found in ranges])


def _stored_weights(network: Network, settings: MenuSettings) -> int:
    """Number of weights that all variants of all tables hold together, at most."""
    levels = len(settings.sparsities())  # removed branches store nothing
    each = len(settings.weight_bits)

    def kinds(layer: Layer) -> float:
        return each * (1 + (sum(settings.ranks) if can_be_cut(layer) else 0))

    return round(sum(layer.parameters * (levels if layer.reads else 1) * kinds(layer) for layer in network.layers))


def _build_variants(menus: Menus, pool: ThreadPoolExecutor, report: Progress) -> None:
    """Fill the store with all that `Menus.problem` reads, the largest layers first, as each takes longest."""

    def build(layer: Layer, kept: dict[int, int], sparsity: float, full: bool) -> None:
        if full:
            menus.variants(layer, kept, sparsity)
        else:
            menus.pruned(layer, kept)

    layers = sorted(menus.network.layers, key=lambda layer: -layer.fan_in * layer.parameters)
    cells = [
        (layer, *cell)
        for layer in layers
        for position in range(max(1, len(menus.reads(layer))))
        for cell in menus.table_cells(layer, position)
    ]
    futures = [pool.submit(build, *cell) for cell in cells]
    try:
        for done, future in enumerate(futures, 1):
            future.result()
            report(done, len(cells), "menus")
    finally:
        for future in futures:  # after an error or Ctrl-C, so that the pool does not work through the rest first
            future.cancel()
