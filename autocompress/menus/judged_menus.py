"""Menus whose expected losses are judged on samples that no weight was fitted to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.menus.changes import Changes
from autocompress.menus.fisher import gradient_samples
from autocompress.menus.judging import Judged, judge
from autocompress.menus.menus import Menus
from autocompress.menus.renormalized import renormalized_change
from autocompress.network.structure import Layer
from autocompress.samples import Inputs, content


def judged_menus(menus: Menus, folded: nn.Module, inputs: Inputs, report: Callable[[int, int, str], None]) -> Menus:
    """The same menus with judged losses; read from the store, or judged and stored.

    Args:
        menus: menus whose variants are built.
        folded: network with its batch norms folded, in eval mode, on the device to compute with.
        inputs: (M, …) float32 samples that no weight was fitted to; of a large network the first are taken.
        report: observer that is called with (done, total, `expected losses`).
    """
    inputs = inputs[: gradient_samples(menus.network.layer_macs, len(inputs))]
    made_from = (f"renormalized {menus.eager} ".encode(), *content(inputs))
    digest = hashlib.sha256(b"".join(made_from)).hexdigest()[:16]

    def build() -> dict[str, Tensor]:
        changes = [_changes(menus, layer) for layer in menus.network.layers]
        found = judge(
            folded,
            changes,
            inputs,
            draws=menus.settings.fisher_draws,
            seed=menus.settings.seed,
            progress=lambda done, total: report(done, total, "expected losses"),
        )
        return {
            f"{name}:{part}": torch.from_numpy(losses)
            for name, judged in found.items()
            for part, losses in vars(judged).items()
        }

    read = menus.store.tensors(f"losses-{digest}", build)
    losses = {
        layer.name: Judged(*(read[f"{layer.name}:{part}"].numpy() for part in ("weights", "roundings")))
        for layer in menus.network.layers
    }
    tables = {layer.name: list(_tables(menus, layer, losses[layer.name].weights)) for layer in menus.network.layers}
    return replace(menus, judged=tables, range_errors={name: each.roundings for name, each in losses.items()})


def _changes(menus: Menus, layer: Layer) -> Changes:
    """All changes that the layer's tables are made from, table after table."""
    positions = range(max(1, len(menus.reads(layer))))
    count = sum(_count(menus, layer, position) for position in positions)

    def weights() -> Iterator[Tensor]:
        source = menus.sources[layer.name]
        for position in positions:
            yield from (renormalized_change(source, variant) for _, variant in menus.table_variants(layer, position))

    return Changes(layer, count, weights, menus.ranges[layer.name])


def _count(menus: Menus, layer: Layer, position: int) -> int:
    """Number of the variants of a table."""
    width = len(menus.formats(layer))
    return sum(width if full else 1 for _, _, full in menus.table_cells(layer, position))


def _tables(menus: Menus, layer: Layer, losses: np.ndarray) -> Iterator[np.ndarray]:
    """(S, B) tables, from the losses of all changes."""
    first = 0
    for position in range(max(1, len(menus.reads(layer)))):
        count = _count(menus, layer, position)
        yield menus.table(layer, position, losses[first : first + count].tolist())
        first += count
