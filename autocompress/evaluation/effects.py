"""First-order effects: what every label does to the network's outputs, by the chain rule and without a plan evaluated.

A label changes its layer's output by dy, known exactly on every sample: the layer is run once with the change of its
weights. The derivatives J of the outputs by y come from one backward pass for each of the K classes. To first order the
log-probabilities move by J dy, and the moves of several layers add up. The layer errors of the menus are the expected
size of such a move under Kronecker-factored statistics (Martens & Grosse 2015), one layer at a time; the moves
themselves also say which layers pull the same way.
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

from autocompress.evaluation.stitch import full_weight
from autocompress.menus.menus import Menus
from autocompress.network.structure import Layer

_MOST_SAMPLES, _MOST_BYTES = 64, 1_000_000_000  # whose derivatives are held at once


@dataclass(frozen=True, eq=False)
class Effects:
    """Changes of the log-probabilities of K classes on N samples, to first order.

    Attributes:
        pruning: (L, S, N, K) of the sparsities of every group's owner, summed over the layers that read the group; of
            the layer's own sparsities where granularity is not `channel`. Zeros where there is nothing to choose.
        rounding: (L, B * A, N, K) of weight and activation bits, unpruned.
    """

    pruning: npt.NDArray[np.float32]
    rounding: npt.NDArray[np.float32]

    def first(self, count: int) -> Effects:
        """On the first samples alone."""
        return Effects(self.pruning[:, :, :count], self.rounding[:, :, :count])


@dataclass(frozen=True)
class _Change:
    """Of a layer's parameters, or of its input; and the cell of the effects that it adds to."""

    part: str
    row: int
    option: int
    parameters: Mapping[str, Tensor] | None
    rounded: Callable[[Tensor], Tensor] | None = None


def first_order_effects(
    folded: nn.Module, menus: Menus, batches: tuple[Tensor, ...], pooled: Callable[[int, Tensor], Tensor]
) -> Effects:
    """The effects of all labels on the samples of `batches`.

    Args:
        folded: the network with its norms folded, in the dtype and on the device to compute with; not changed.
        menus: of the network.
        batches: inputs in the network's dtype.
        pooled: log-probabilities (n, K) float32 from outputs (n, classes); told the first sample's number.
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
        elements = sum(output.numel() for _, output in chain(*calls.values()))
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
            slope = torch.stack([of_all[index].flatten(1) for of_all in by_class], 1)  # (n, K, outputs of the layer)
            for change in self._changes[name]:
                moved = _moved(self._modules[name], change, inputs).flatten(1)
                totals[change.part][change.row, change.option] += torch.bmm(slope, moved[:, :, None])[:, :, 0].cpu()
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


def _moved(module: nn.Module, change: _Change, inputs: Tensor) -> Tensor:
    """What a change does to the layer's output."""
    with torch.no_grad():
        if change.parameters is not None:
            moved: Tensor = torch.func.functional_call(module, dict(change.parameters), (inputs,))
            return moved
        assert change.rounded is not None
        rounded: Tensor = module(change.rounded(inputs)) - module(inputs)
        return rounded


def _changes(menus: Menus, layer: Layer, module: Any) -> list[_Change]:
    """All that labels do to a layer."""
    row, most = menus.network.layer_index()[layer.name], len(menus.settings.weight_bits) - 1
    unpruned = menus.variants(layer, {read: menus.network.groups[read].width for read in menus.reads(layer)})
    weights = [_full(menus, layer, {}, variant, module) for variant in unpruned]
    original = {name: tensor.detach().float().cpu() for name, tensor in module.named_parameters()}
    activations = len(menus.settings.activation_bits)
    changes = [
        _Change("rounding", row, bits * activations + choice, _difference(weight, original, module))
        for bits, weight in enumerate(weights)
        for choice in range(activations)
    ]
    for choice, found in enumerate(menus.ranges[layer.name]):
        if found is not None:
            changes += [
                _Change("rounding", row, bits * activations + choice, None, found.apply) for bits in range(most + 1)
            ]
    for position in range(max(1, len(menus.reads(layer)))):
        owner = _owner(menus, layer, position)
        for option, (kept, sparsity, _) in enumerate(menus.table_cells(layer, position)):
            if option:
                variant = menus.variant(layer, kept, sparsity, most)
                change = _difference(_full(menus, layer, kept, variant, module), weights[most], module)
                changes.append(_Change("pruning", owner, option, change))
    return changes


def _owner(menus: Menus, layer: Layer, position: int) -> int:
    """Of the sparsity that the rows of an error table stand for."""
    index, reads = menus.network.layer_index(), menus.reads(layer)
    return index[menus.network.groups[reads[position]].owner] if reads else index[layer.name]


def _full(menus: Menus, layer: Layer, kept: Mapping[int, int], variant: Any, module: Any) -> dict[str, Tensor]:
    """Parameters in the original's shape, zeros where channels are removed; all rows stay."""
    flat = torch.zeros(layer.weight_shape[0], layer.fan_in)
    flat[:, menus.kept_columns(layer, kept) if menus.reads(layer) else slice(None)] = full_weight(
        layer, variant
    ).flatten(1)
    return {"weight": flat.view(layer.weight_shape), "bias": variant.bias}


def _difference(new: Mapping[str, Tensor], old: Mapping[str, Tensor], module: Any) -> dict[str, Tensor]:
    """`new` less `old` as the module holds its parameters."""
    return {
        name: (new[name].view_as(parameter) - old[name].view_as(parameter)).to(parameter)
        for name, parameter in module.named_parameters()
    }
