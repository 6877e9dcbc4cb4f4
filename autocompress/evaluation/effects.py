"""First-order effects: what every label does to the network's outputs, by the chain rule and without a plan evaluated.

A label changes the weights of its layer by dW and so the layer's output y by

    dy = dW x,

which is exact on every sample: the layer is run once on its input x with dW in the place of its weights. To first order
the network's log-probabilities then move by

    effect[k] = Σ_j  ∂ log p_k / ∂ y_j · dy_j        for each of K classes, j over the elements of y,

and the effects of several layers add up. The derivatives come from one backward pass for each class, and serve all
labels of all layers: that is what makes effects cheap.

The expected losses of the menus are the expected size of such a move, one layer at a time, under Kronecker-factored
statistics (Martens & Grosse 2015). Effects have a sign as well: they say which layers pull the same way. Rounding a
layer's input has no effect here: its error is noise that changes with all that came before, and is left to the expected
losses.

Far from the original, effects on it are no longer true, since layers read what others have already disturbed. Effects
around a plan (`effects_around`) are therefore taken on the network with that plan's weights, and only of labels next to
the plan's own: the step from a first-order expansion to sequential linear programming (Griffith & Stewart 1961).

The way through: `_changes` or `_changes_around` list every dW with its place in the result; `_Sweep.of` runs one batch
(forward, K backward passes, every dW once) and adds up the effects; `_Sweep.over` does so batch by batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call

from autocompress.evaluation.stitch import LayerChoice, full_weight, resolve, untie_
from autocompress.menus.menus import Menus
from autocompress.menus.variants import Variant
from autocompress.network.structure import Layer
from autocompress_envs.problem import IntArray, Labeling

NEAR = 2  # positions on the menu, to either side of a plan's label, for which effects around it are computed
CLASSES_AROUND = 4  # classes whose derivatives are taken there: the 3 likeliest of every sample, and all others as one
_MOST_SAMPLES, _MOST_BYTES = 64, 1_000_000_000  # bounds of a batch: samples, and bytes of their derivatives


@dataclass(frozen=True, eq=False)
class Effects:
    """Changes of the log-probabilities of K classes on N samples, to first order, by layer and label.

    Attributes:
        pruning: (L, S, N, K) effects of S sparsities. With granularity `channel` they stand at the owner of each group,
            summed over all layers that read the group; otherwise at the layer whose weights are removed. Zeros where
            there is nothing to choose.
        rounding: (L, B * A, N, K) effects of B weight bit-widths, nothing removed, the same for all A activation
            bit-widths; option b * A + a is weight width b with activation width a.
        passes: work that computing them took, in forward passes of the network over the samples.
    """

    pruning: npt.NDArray[np.float32]
    rounding: npt.NDArray[np.float32]
    passes: float = 0.0

    @property
    def samples(self) -> int:
        """N, the number of samples."""
        return int(self.pruning.shape[2])

    def first(self, count: int) -> Effects:
        """The effects on the first `count` samples alone."""
        return replace(self, pruning=self.pruning[:, :, :count], rounding=self.rounding[:, :, :count])


@dataclass(frozen=True)
class _Change:
    """A change dW of one layer's parameters, and where in `Effects` its effect is added.

    Attributes:
        parameters: changes of `weight` and `bias`, in the module's shapes.
        part: `pruning` or `rounding`.
        row: position on the layers' axis.
        options: positions on the options' axis; all get the same effect.
    """

    parameters: Mapping[str, Tensor]
    part: str
    row: int
    options: slice


def first_order_effects(
    folded: nn.Module, menus: Menus, batches: tuple[Tensor, ...], pooled: Callable[[int, Tensor], Tensor]
) -> Effects:
    """The effects of all labels around the original, on the samples of `batches`.

    Args:
        folded: original network with its norms folded, in the dtype and on the device to compute with; it is not
            changed.
        menus: menus of the network.
        batches: inputs (n, …) in the network's dtype, at least one batch.
        pooled: function from (number of the first sample, outputs (n, classes)) to log-probabilities (n, K).
    """
    changes = {layer.name: _changes(menus, layer, folded.get_submodule(layer.name)) for layer in menus.network.layers}
    return _Sweep(folded, menus, changes, None).over(batches, pooled)


def effects_around(
    folded: nn.Module,
    menus: Menus,
    labeling: Labeling,
    batches: tuple[Tensor, ...],
    pooled: Callable[[int, Tensor], Tensor],
    far: Effects,
) -> Effects:
    """The effects of labels in the place of a plan's own: the plan's labels have effect 0.

    Labels at most `NEAR` positions away on the menu are computed on the network with the plan's weights. For all
    others the difference of effects around the original stands in: far[label] - far[label of the plan].

    Args:
        folded: original network with its norms folded, as in `first_order_effects`; it is not changed.
        menus: menus of the network.
        labeling: plan around which the effects are computed.
        batches: inputs (n, …), as in `first_order_effects`.
        pooled: function to log-probabilities, as in `first_order_effects`.
        far: effects around the original, on the same samples.
    """
    model, changes = copy.deepcopy(folded), {}
    for layer, choice in zip(menus.network.layers, resolve(menus, labeling), strict=True):
        module = model.get_submodule(layer.name)
        untie_(module)
        variant = menus.variant(layer, choice.reads, choice.sparsity, choice.weight_bits)
        own = _full(menus, layer, choice.reads, variant)
        changes[layer.name] = _changes_around(menus, layer, choice, own, module)
        for name, parameter in module.named_parameters():
            parameter.data = torch.empty_like(parameter).copy_(own[name].reshape(parameter.shape))
    near = _Sweep(model, menus, changes, CLASSES_AROUND).over(batches, pooled)
    bits, activations = labeling.weight_bits, len(menus.settings.activation_bits)
    return Effects(
        _completed(near.pruning, far.pruning, labeling.sparsity, 1),
        _completed(near.rounding, far.rounding, bits * activations, activations),
        near.passes,
    )


def _completed(
    near: npt.NDArray[np.float32], far: npt.NDArray[np.float32], own: IntArray, each: int
) -> npt.NDArray[np.float32]:
    """(L, O, N, K) effects around a plan: `near` of options near the plan's own, differences of `far` elsewhere.

    Args:
        near: (L, O, N, K) effects on the network with the plan's weights, of options near its own.
        far: (L, O, N, K) effects around the original, of all options.
        own: (L,) the plan's options.
        each: number of neighbouring options that are one position on the menu.
    """
    positions = np.arange(near.shape[1]) // each  # (O,)
    is_near = np.abs(positions - own[:, None] // each) <= NEAR  # (L, O)
    of_plan = far[np.arange(len(own)), own]  # (L, N, K)
    differences = far - of_plan[:, None]  # (L, O, N, K)
    return np.where(is_near[:, :, None, None], near, differences)


class _Sweep:
    """Computes the effects of changes, batch by batch.

    Args:
        model: network whose weights the changes are added to; it is run, not changed.
        menus: menus of the network.
        changes: changes of every layer, by layer name.
        classes: largest number of classes whose derivatives are taken; None: all.
    """

    def __init__(
        self, model: nn.Module, menus: Menus, changes: Mapping[str, Sequence[_Change]], classes: int | None
    ) -> None:
        layers, settings = menus.network.layers, menus.settings
        self._model, self._changes, self._classes = model, changes, classes
        self._modules: dict[str, Any] = {layer.name: model.get_submodule(layer.name) for layer in layers}
        macs = sum(layer.macs for layer in layers)
        self._changed = sum(layer.macs * len(changes[layer.name]) for layer in layers) / macs
        sparsities = max(len(each.sparsities) for each in menus.problem().layers)
        bits = len(settings.weight_bits) * len(settings.activation_bits)
        self._shapes = {"pruning": (len(layers), sparsities), "rounding": (len(layers), bits)}

    def over(self, batches: tuple[Tensor, ...], pooled: Callable[[int, Tensor], Tensor]) -> Effects:
        """The effects on the samples of `batches`, which are split so that derivatives fit in memory."""
        at_once = self._samples_at_once(batches[0][:1], pooled)
        found, first = [], 0
        for batch in (part for whole in batches for part in whole.split(at_once)):
            found.append(self.of(batch, lambda outputs, first=first: pooled(first, outputs)))  # type: ignore[misc]
            first += len(batch)
        pruning, rounding = (torch.cat([each[part] for each in found], 2).numpy() for part in ("pruning", "rounding"))
        classes = min(pruning.shape[3], self._classes or pruning.shape[3])
        return Effects(pruning, rounding, passes=1 + classes + self._changed)

    def _samples_at_once(self, sample: Tensor, pooled: Callable[[int, Tensor], Tensor]) -> int:
        """The number of samples whose derivatives fit in memory at once, from a run of one `sample` (1, …)."""
        calls, outputs = _recorded(self._model, self._modules, sample)
        outputs_of_layers = [output for _, output in chain(*calls.values())]
        if any(len(output) != 1 for output in outputs_of_layers):
            return 1  # the first axis is not the samples'
        elements = sum(output.numel() for output in outputs_of_layers)
        held = elements * sample.element_size() * pooled(0, outputs).shape[1]
        return min(_MOST_SAMPLES, max(1, _MOST_BYTES // held))

    def of(self, batch: Tensor, pooled: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Both parts of `Effects`, (L, S, n, K) and (L, B * A, n, K), for a batch of n samples."""
        recorded, outputs = _recorded(self._model, self._modules, batch)
        log_probabilities = pooled(outputs)
        totals = {part: torch.zeros(*shape, *log_probabilities.shape) for part, shape in self._shapes.items()}
        calls = [(name, inputs, output) for name, each in recorded.items() for inputs, output in each]
        kept, belongs = _likeliest(log_probabilities, self._classes)  # (n, classes), (n, K)
        by_class = _derivatives(kept, [output for _, _, output in calls])
        for index, (name, inputs, _) in enumerate(calls):
            changes = self._changes[name]
            if not changes:
                continue
            moved = [functional_call(self._modules[name], dict(change.parameters), (inputs,)) for change in changes]
            found = _products([of_all[index] for of_all in by_class], moved, len(batch))  # (n, classes, changes)
            every = found.gather(1, belongs[:, :, None].expand(-1, -1, len(changes))).cpu()  # (n, K, changes)
            for change, effect in zip(changes, every.unbind(2), strict=True):
                totals[change.part][change.row, change.options] += effect
        return totals


def _products(derivatives: Sequence[Tensor], moved: Sequence[Tensor], count: int) -> Tensor:
    """J dy of `count` samples: (n, classes, changes) float32.

    Args:
        derivatives: by class, derivatives by a layer's output, in the output's shape.
        moved: by change, what it adds to the layer's output (dy), in the output's shape.
        count: number of samples, n.
    """
    slopes = torch.stack([each.reshape(count, -1) for each in derivatives], 1)  # J: (n, classes, elements)
    added = torch.stack([each.reshape(count, -1) for each in moved], 1).transpose(1, 2)  # dy: (n, elements, changes)
    return torch.bmm(slopes, added).float()


def _likeliest(log_probabilities: Tensor, classes: int | None) -> tuple[Tensor, Tensor]:
    """Log-probabilities of every sample's likeliest classes, and of all others as one class.

    A class beyond the likeliest is given the effect of all others together: what moves them moves them alike.

    Args:
        log_probabilities: (n, K).
        classes: number of classes that are left; None: all K.

    Returns:
        (n, classes) log-probabilities, the likeliest class first where not all are left, and (n, K) the position among
        them of each class.
    """
    count = log_probabilities.shape[1]
    if classes is None or classes >= count:
        return log_probabilities, torch.arange(count, device=log_probabilities.device).expand(
            len(log_probabilities), -1
        )
    order = log_probabilities.detach().argsort(1, descending=True)
    ordered = log_probabilities.gather(1, order)
    rest = ordered[:, classes - 1 :].logsumexp(1, keepdim=True)
    return torch.cat([ordered[:, : classes - 1], rest], 1), order.argsort(1).clamp(max=classes - 1)


def _derivatives(log_probabilities: Tensor, outputs: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """By class and call of a layer: derivatives of every sample's log-probability, in the shape of the call's output.

    One backward pass a class gives them for all n samples at once, since a sample's log-probability does not depend on
    another sample: the derivative of the sum over samples holds each sample's own.
    """
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
    """(input, output) of every call of the layers, by layer name, and the network's outputs (n, classes).

    The calls' outputs are part of the autograd graph, so that derivatives by them can be taken.
    """
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
    """All changes that labels make to a layer's parameters, from those of the original.

    Rounding is a change from the original's weights; pruning is a change from the unpruned weights of the most bits,
    so that the two add up.
    """
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


def _changes_around(
    menus: Menus, layer: Layer, choice: LayerChoice, own: Mapping[str, Tensor], module: nn.Module
) -> list[_Change]:
    """All changes that labels near a plan's make to a layer's parameters, from `own`, those under the plan.

    One choice is changed at a time: the layer's bits, its own sparsity, or the channels of one group that it reads.
    """
    row, activations = menus.network.layer_index()[layer.name], len(menus.settings.activation_bits)
    changes = []

    def add(part: str, row: int, options: slice, kept: Mapping[int, int], sparsity: float, bits: int) -> None:
        new = _full(menus, layer, kept, menus.variant(layer, kept, sparsity, bits))
        changes.append(_Change(_difference(new, own, module), part, row, options))

    for bits in _others(choice.weight_bits, len(menus.settings.weight_bits)):
        options = slice(bits * activations, (bits + 1) * activations)
        add("rounding", row, options, choice.reads, choice.sparsity, bits)
    if menus.settings.granularity != "channel":
        sparsities = menus.sparsities(layer)
        for option in _others(sparsities.index(choice.sparsity), len(sparsities)):
            add("pruning", row, slice(option, option + 1), {}, sparsities[option], choice.weight_bits)
    for position, read in enumerate(choice.reads):
        counts, owner = menus.kept_options(menus.network.groups[read]), _owner(menus, layer, position)
        for option in _others(counts.index(choice.reads[read]), len(counts)):
            kept = {**choice.reads, read: counts[option]}
            add("pruning", owner, slice(option, option + 1), kept, choice.sparsity, choice.weight_bits)
    return changes


def _others(own: int, count: int) -> list[int]:
    """The options at most `NEAR` positions from a plan's `own`, without it, of `count` options."""
    return [option for option in range(max(0, own - NEAR), min(count, own + NEAR + 1)) if option != own]


def _owner(menus: Menus, layer: Layer, position: int) -> int:
    """The number of the layer whose sparsity changes the `position`-th group that a layer reads: the group's owner.

    Where the layer reads no group, its own number.
    """
    index, reads = menus.network.layer_index(), menus.reads(layer)
    return index[menus.network.groups[reads[position]].owner] if reads else index[layer.name]


def _full(menus: Menus, layer: Layer, kept: Mapping[int, int], variant: Variant) -> dict[str, Tensor]:
    """`weight` (rows, fan-in) and `bias` (rows,) of a variant in the original's shape, zeros at removed columns."""
    flat = torch.zeros(layer.weight_shape[0], layer.fan_in)
    columns = menus.kept_columns(layer, kept) if menus.reads(layer) else slice(None)
    flat[:, columns] = full_weight(layer, variant).flatten(1)
    return {"weight": flat, "bias": variant.bias}


def _difference(new: Mapping[str, Tensor], old: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """`new` minus `old`, in the shapes, dtype and device of the module's parameters."""
    return {
        name: (new[name].reshape(parameter.shape) - old[name].reshape(parameter.shape)).to(parameter)
        for name, parameter in module.named_parameters()
    }
