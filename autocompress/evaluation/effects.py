"""First-order effects: what every label does to the network's outputs, by the chain rule and without a plan evaluated.

A label changes its layer's output by dy, known exactly on every sample: the layer is run once with the change of its
weights. The derivatives J of the outputs by y come from one backward pass for each of the K classes. To first order the
log-probabilities move by J dy, and the moves of several layers add up. The layer errors of the menus are the expected
size of such a move under Kronecker-factored statistics (Martens & Grosse 2015), one layer at a time; the moves
themselves also say which layers pull the same way. Inputs that are rounded have no such effect of their own: what moved
before is rounded elsewhere, so their errors are noise, which is left to the layer errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call

from autocompress.evaluation.stitch import full_weight
from autocompress.menus.menus import Menus
from autocompress.menus.variants import Variant
from autocompress.network.structure import Layer

_MOST_SAMPLES, _MOST_BYTES = 64, 1_000_000_000  # whose derivatives are held at once


@dataclass(frozen=True, eq=False)
class Effects:
    """Changes of the log-probabilities of K classes on N samples, to first order.

    Attributes:
        pruning: (L, S, N, K) of the sparsities of every group's owner, summed over the layers that read the group; of
            the layer's own sparsities where granularity is not `channel`. Zeros where there is nothing to choose.
        rounding: (L, B * A, N, K) of weight bits, unpruned, the same for all activation bits.
    """

    pruning: npt.NDArray[np.float32]
    rounding: npt.NDArray[np.float32]

    @property
    def samples(self) -> int:
        """N."""
        return int(self.pruning.shape[2])

    def first(self, count: int) -> Effects:
        """On the first samples alone."""
        return Effects(self.pruning[:, :, :count], self.rounding[:, :, :count])


@dataclass(frozen=True)
class _Change:
    """Of a layer's parameters, and the cells of the effects that it adds to."""

    parameters: Mapping[str, Tensor]
    part: str
    row: int
    options: slice


def first_order_effects(
    folded: nn.Module, menus: Menus, batches: tuple[Tensor, ...], pooled: Callable[[int, Tensor], Tensor]
) -> Effects:
    """The effects of all labels on the samples of `batches`.

    Args:
        folded: the network with its norms folded, in the dtype and on the device to compute with; not changed.
        menus: of the network.
        batches: inputs in the network's dtype.
        pooled: log-probabilities (n, K) from outputs (n, classes); told the first sample's number.
    """
    sweep = _Sweep(folded, menus)
    at_once = sweep.samples_at_once(batches[0][:1], pooled)
    found, first = [], 0
    for batch in (part for whole in batches for part in whole.split(at_once)):
        found.append(sweep.of(batch, lambda outputs, first=first: pooled(first, outputs)))  # type: ignore[misc]
        first += len(batch)
    pruning, rounding = (torch.cat([each[part] for each in found], 2).numpy() for part in ("pruning", "rounding"))
    return Effects(pruning, rounding)


class _Sweep:
    """The effects of all labels, batch by batch."""

    def __init__(self, folded: nn.Module, menus: Menus) -> None:
        layers, settings = menus.network.layers, menus.settings
        self._model = folded
        self._modules: dict[str, Any] = {layer.name: folded.get_submodule(layer.name) for layer in layers}
        self._changes = {layer.name: _changes(menus, layer, self._modules[layer.name]) for layer in layers}
        sparsities = max(len(each.sparsities) for each in menus.problem().layers)
        bits = len(settings.weight_bits) * len(settings.activation_bits)
        self._shapes = {"pruning": (len(layers), sparsities), "rounding": (len(layers), bits)}

    def samples_at_once(self, sample: Tensor, pooled: Callable[[int, Tensor], Tensor]) -> int:
        """So that their derivatives fit in memory."""
        calls, outputs = _recorded(self._model, self._modules, sample)
        outputs_of_layers = [output for _, output in chain(*calls.values())]
        if any(len(output) != 1 for output in outputs_of_layers):
            return 1  # the first axis is not the samples'
        elements = sum(output.numel() for output in outputs_of_layers)
        held = elements * sample.element_size() * pooled(0, outputs).shape[1]
        return min(_MOST_SAMPLES, max(1, _MOST_BYTES // held))

    def of(self, batch: Tensor, pooled: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Both parts of `Effects` for n samples."""
        recorded, outputs = _recorded(self._model, self._modules, batch)
        log_probabilities = pooled(outputs)
        totals = {part: torch.zeros(*shape, *log_probabilities.shape) for part, shape in self._shapes.items()}
        calls = [(name, inputs, output) for name, each in recorded.items() for inputs, output in each]
        by_class = _derivatives(log_probabilities, [output for _, _, output in calls])
        for index, (name, inputs, _) in enumerate(calls):
            changes, count = self._changes[name], len(batch)
            moved = [functional_call(self._modules[name], dict(change.parameters), (inputs,)) for change in changes]
            slope = torch.stack([of_all[index].reshape(count, -1) for of_all in by_class], 1)  # (n, K, outputs)
            change_of_outputs = torch.stack([each.reshape(count, -1) for each in moved], 1).transpose(1, 2)
            found = torch.bmm(slope, change_of_outputs).float().cpu()  # (n, K, changes)
            for change, effect in zip(changes, found.unbind(2), strict=True):
                totals[change.part][change.row, change.options] += effect
        return totals


def _derivatives(log_probabilities: Tensor, outputs: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """By class, of every sample's log-probability by the layers' outputs."""
    classes = log_probabilities.shape[1]
    return [
        torch.autograd.grad(
            log_probabilities[:, index].sum(), outputs, retain_graph=index + 1 < classes, materialize_grads=True
        )
        for index in range(classes)
    ]


def _recorded(
    model: nn.Module, modules: Mapping[str, nn.Module], batch: Tensor
) -> tuple[dict[str, list[tuple[Tensor, Tensor]]], Tensor]:
    """Inputs and outputs of every call of the layers, the outputs in the graph, and the network's outputs."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def keep(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            output = output if output.requires_grad else output.detach().requires_grad_(True)
            calls.setdefault(name, []).append((args[0].detach().clone(), output))
            return output.clone()  # an in-place activation may follow

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        with torch.enable_grad():
            return calls, model(batch).flatten(1)
    finally:
        for handle in handles:
            handle.remove()


def _changes(menus: Menus, layer: Layer, module: nn.Module) -> list[_Change]:
    """All that labels do to a layer's parameters."""
    row, activations = menus.network.layer_index()[layer.name], len(menus.settings.activation_bits)
    source = menus.sources[layer.name].weight.float()  # the module's own weights may be rounded to its dtype
    original = {"weight": source[:, :-1], "bias": source[:, -1]}
    unpruned = menus.variants(layer, {read: menus.network.groups[read].width for read in menus.reads(layer)})
    weights = [_full(menus, layer, {}, variant) for variant in unpruned]
    changes = [
        _Change(
            _difference(weight, original, module), "rounding", row, slice(bits * activations, (bits + 1) * activations)
        )
        for bits, weight in enumerate(weights)
    ]
    for position in range(max(1, len(menus.reads(layer)))):
        owner = _owner(menus, layer, position)
        for option, (kept, sparsity, _) in enumerate(menus.table_cells(layer, position)):
            if option:
                variant = menus.variant(layer, kept, sparsity, len(weights) - 1)
                change = _difference(_full(menus, layer, kept, variant), weights[-1], module)
                changes.append(_Change(change, "pruning", owner, slice(option, option + 1)))
    return changes


def _owner(menus: Menus, layer: Layer, position: int) -> int:
    """Of the sparsity that the rows of an error table stand for."""
    index, reads = menus.network.layer_index(), menus.reads(layer)
    return index[menus.network.groups[reads[position]].owner] if reads else index[layer.name]


def _full(menus: Menus, layer: Layer, kept: Mapping[int, int], variant: Variant) -> dict[str, Tensor]:
    """Parameters in the original's shape, zeros where channels are removed; all rows stay."""
    flat = torch.zeros(layer.weight_shape[0], layer.fan_in)
    columns = menus.kept_columns(layer, kept) if menus.reads(layer) else slice(None)
    flat[:, columns] = full_weight(layer, variant).flatten(1)
    return {"weight": flat, "bias": variant.bias}


def _difference(new: Mapping[str, Tensor], old: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """`new` less `old` as the module holds its parameters."""
    return {
        name: (new[name].reshape(parameter.shape) - old[name].reshape(parameter.shape)).to(parameter)
        for name, parameter in module.named_parameters()
    }
