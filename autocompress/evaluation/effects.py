"""First-order effects: what every label does to the network's outputs, by the chain rule and without a plan evaluated.

A label changes the weights of its layer by dW. To first order the network's log-probabilities then move by

    effect[k] = Σ_t  (∂ log p_k / ∂ y_t)ᵀ dW x_t        for each of K classes, t over the layer's positions,

and the effects of several layers add up (`menus.responses`). The derivatives come from one backward pass for each
class, and serve all labels of all layers: that is what makes effects cheap.

The expected losses of the menus are the expected size of such a move, one layer at a time. Effects have a sign as well:
they say which layers pull the same way. Where plans run with their layers renormalized, labels do here
(`menus.renormalized`). Rounding a layer's input has no effect here: its error is noise that changes with all that came
before, and is left to the expected losses.

Far from the original, effects on it are no longer true, since layers read what others have already disturbed. Effects
around a plan (`effects_around`) are therefore taken on the network with that plan's weights, and only of labels next to
the plan's own: the step from a first-order expansion to sequential linear programming (Griffith & Stewart 1961).

The way through: `_changes` or `_changes_around` list every dW with its place in the result; `_taken` asks for their
responses, class by class, and puts them in their places.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from autocompress.evaluation.renormalize import Affine
from autocompress.evaluation.stitch import LayerChoice, resolve, untie_
from autocompress.menus.changes import Changes
from autocompress.menus.menus import Menus
from autocompress.menus.renormalized import renormalization, renormalized, renormalized_change
from autocompress.menus.responses import responses
from autocompress.network.structure import Layer
from autocompress.samples import Inputs
from autocompress_envs.labeling.sketch import Sketch
from autocompress_envs.problem import FloatArray, IntArray, Labeling

NEAR = 2  # positions on the menu, to either side of a plan's label, for which effects around it are computed
CLASSES_AROUND = 4  # classes whose derivatives are taken there: the 3 likeliest of every sample, and all others as one
_PASSES_A_CLASS = 4  # forward passes that a class takes as long as, by the clock on ResNet-20 and ResNet-56

Pooled = Callable[[int, Tensor], Tensor]
"""From (number of the first sample, logits (n, classes) or rows (n, P, C)) to log-probabilities (n, K)."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Effects:
    """Changes of the log-probabilities of K classes on N samples, to first order, by layer and label.

    Attributes:
        pruning: (L, S, N, K) effects of S sparsities. With granularity `channel` they stand at the owner of each group,
            summed over all layers that read the group; otherwise at the layer whose weights are removed. Zeros where
            there is nothing to choose.
        rounding: (L, B * A, N, K) effects of B formats of weights, nothing removed, the same for all A activation
            bit-widths; option b * A + a is format b with activation width a. A shorter menu's last one stands for those
            beyond it.
        passes: work that computing them took, in forward passes of the network over these samples.
    """

    pruning: npt.NDArray[np.float32]
    rounding: npt.NDArray[np.float32]
    passes: float = 0.0

    @property
    def samples(self) -> int:
        """N, the number of samples."""
        return int(self.pruning.shape[2])

    def sketch(self, probabilities: FloatArray) -> Sketch:
        """The effects in few dimensions, as the environment shows them.

        Args:
            probabilities: (N, K) predictions of the original, on these samples first.
        """
        return Sketch.of(self.pruning, self.rounding, probabilities[: self.samples])

    def first(self, count: int) -> Effects:
        """The effects on the first `count` samples alone."""
        return replace(self, pruning=self.pruning[:, :, :count], rounding=self.rounding[:, :, :count])


@dataclass(frozen=True)
class _Change:
    """A change dW of one layer's parameters, and where in `Effects` its effect is added.

    Attributes:
        make: function that gives (rows, d + 1) float32 dW, the bias last.
        part: `pruning` or `rounding`.
        row: position on the layers' axis.
        options: positions on the options' axis; all get the same effect.
    """

    make: Callable[[], Tensor]
    part: str
    row: int
    options: slice


def first_order_effects(
    folded: nn.Module,
    menus: Menus,
    inputs: Inputs,
    pooled: Pooled,
    progress: Progress | None = None,
    *,
    is_renormalized: bool = False,
) -> Effects:
    """The effects of all labels around the original, on the samples `inputs`.

    Args:
        folded: original network with its norms folded, in the dtype and on the device to compute with; it is not
            changed.
        menus: menus of the network.
        inputs: (N, …) samples, at least one.
        pooled: function to log-probabilities.
        progress: observer that is called with (samples done, samples in all).
        is_renormalized: whether plans run with their layers renormalized, as labels are then here.
    """
    changes = {layer.name: _changes(menus, layer, is_renormalized) for layer in menus.network.layers}
    return _taken(folded, menus, changes, inputs, pooled, None, progress)


def effects_around(
    folded: nn.Module,
    menus: Menus,
    labeling: Labeling,
    inputs: Inputs,
    pooled: Pooled,
    far: Effects,
    progress: Progress | None = None,
    affine: Mapping[str, Affine] | None = None,
) -> Effects:
    """The effects of labels in the place of a plan's own: the plan's labels have effect 0.

    Labels at most `NEAR` positions away on the menu are computed on the network with the plan's weights. For all
    others the difference of effects around the original stands in: far[label] - far[label of the plan].

    Args:
        folded: original network with its norms folded, as in `first_order_effects`; it is not changed.
        menus: menus of the network.
        labeling: plan around which the effects are computed.
        inputs: (N, …) samples, as in `first_order_effects`.
        pooled: function to log-probabilities, as in `first_order_effects`.
        far: effects around the original, on the same samples.
        progress: observer that is called with (samples done, samples in all).
        affine: affine maps that renormalization puts behind the plan's layers, by name, of all their channels. None:
            plans run without it, and labels have their weights as they are.
    """
    model, changes = copy.deepcopy(folded), {}
    for layer, choice in zip(menus.network.layers, resolve(menus, labeling), strict=True):
        module = model.get_submodule(layer.name)
        untie_(module)
        own = _weights(menus, layer, choice.reads, choice.sparsity, choice.weight_bits)
        behind = (affine or {}).get(layer.name) or Affine.identity(layer.rows)
        changes[layer.name] = _changes_around(menus, layer, choice, own, None if affine is None else behind)
        for name, values in {"weight": behind.weight(own[:, :-1]), "bias": behind.bias(own[:, -1])}.items():
            if (parameter := getattr(module, name, None)) is not None:
                parameter.data = torch.empty_like(parameter).copy_(values.reshape(parameter.shape))
    near = _taken(model, menus, changes, inputs, pooled, CLASSES_AROUND, progress)
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


def _taken(
    model: nn.Module,
    menus: Menus,
    changes: Mapping[str, Sequence[_Change]],
    inputs: Inputs,
    pooled: Pooled,
    classes: int | None,
    progress: Progress | None,
) -> Effects:
    """The effects of changes.

    Args:
        model: network whose weights the changes are added to; it is run, not changed.
        menus: menus of the network.
        changes: changes of every layer, by layer name.
        inputs: (N, …) samples.
        pooled: function to log-probabilities.
        classes: largest number of classes whose derivatives are taken; None: all.
        progress: observer that is called with (samples done, samples in all).
    """
    belongs: dict[int, Tensor] = {}  # by first sample of a batch, (n, K) the derivative that serves each class

    def functions(first: int, outputs: Tensor) -> list[Tensor]:
        kept, belongs[first] = _likeliest(pooled(first, outputs), classes)
        return [of_class.sum() for of_class in kept.unbind(1)]

    asked = [_asked(layer, changes[layer.name]) for layer in menus.network.layers]
    found = responses(model, asked, inputs, functions, progress=progress)
    served = torch.cat([belongs[first] for first in sorted(belongs)]).cpu()  # (N, K)
    settings = menus.settings
    sparsities = max(len(each.sparsities) for each in menus.problem().layers)
    formats = max(len(menus.formats(layer)) for layer in menus.network.layers)
    options = {"pruning": sparsities, "rounding": formats * len(settings.activation_bits)}
    shape = (len(menus.network.layers), *served.shape)
    totals = {part: torch.zeros(shape[0], count, *shape[1:]) for part, count in options.items()}
    for layer in menus.network.layers:
        by_class = found[layer.name]  # (N, classes, changes)
        every = by_class.gather(1, served[:, :, None].expand(-1, -1, by_class.shape[2]))  # (N, K, changes)
        for change, effect in zip(changes[layer.name], every.unbind(2), strict=True):
            totals[change.part][change.row, change.options] += effect
    taken = int(served.max()) + 1
    return Effects(totals["pruning"].numpy(), totals["rounding"].numpy(), passes=1 + _PASSES_A_CLASS * taken)


def _asked(layer: Layer, changes: Sequence[_Change]) -> Changes:
    def weights() -> Iterator[Tensor]:
        return (change.make() for change in changes)

    return Changes(layer, len(changes), weights)


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


def _changes(menus: Menus, layer: Layer, is_renormalized: bool) -> list[_Change]:
    """All changes that labels make to a layer's parameters, from those of the original.

    Rounding is a change from the original's weights. Pruning is a change from the unpruned weights of the most bits, so
    that the two add up; where pruned weights are not rounded beforehand, a change from the original's weights.
    """
    row, activations = _label_row(menus, layer), len(menus.settings.activation_bits)
    source = menus.sources[layer.name]
    full = {read: menus.network.groups[read].width for read in menus.reads(layer)}
    bits = len(menus.formats(layer))
    change = partial(renormalized_change, source) if is_renormalized else source.change

    def rounded(position: int) -> Tensor:
        return change(menus.variants(layer, full)[position])

    def pruned(kept: Mapping[int, int], sparsity: float) -> Tensor:
        if not menus.eager:
            return change(menus.pruned(layer, kept))
        return change(menus.variant(layer, kept, sparsity, bits - 1)) - rounded(bits - 1)

    changes = [_Change(partial(rounded, each), "rounding", row, _flat(each, bits, activations)) for each in range(bits)]
    for position in range(max(1, len(menus.reads(layer)))):
        owner = _owner(menus, layer, position)
        for option, (kept, sparsity, _) in enumerate(menus.table_cells(layer, position)):
            if option:
                changes.append(_Change(partial(pruned, kept, sparsity), "pruning", owner, slice(option, option + 1)))
    return changes


def _changes_around(
    menus: Menus, layer: Layer, choice: LayerChoice, own: Tensor, affine: Affine | None
) -> list[_Change]:
    """All changes that labels near a plan's make to a layer's parameters, from `own` (rows, d + 1), those of the plan.

    One choice is changed at a time: the layer's bits, its own sparsity, or the channels of one group that it reads.
    Where the plan's layers are renormalized (`affine`), so is each label, and scaled beyond that as the plan's is: it
    reads what the layers before it made of their inputs.
    """
    row, activations = _label_row(menus, layer), len(menus.settings.activation_bits)
    changes, source = [], menus.sources[layer.name]
    own_scale, own_renormalized = renormalization(source, own)[0], renormalized(source, own)  # once for all labels

    def change(kept: Mapping[int, int], sparsity: float, bits: int) -> Tensor:
        other = _weights(menus, layer, kept, sparsity, bits)
        if affine is None:
            return other - own
        return (affine.scale / own_scale)[:, None] * (renormalized(source, other) - own_renormalized)

    def add(part: str, row: int, options: slice, kept: Mapping[int, int], sparsity: float, bits: int) -> None:
        changes.append(_Change(partial(change, kept, sparsity, bits), part, row, options))

    formats = len(menus.formats(layer))
    for bits in _others(choice.weight_bits, formats):
        add("rounding", row, _flat(bits, formats, activations), choice.reads, choice.sparsity, bits)
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


def _label_row(menus: Menus, layer: Layer) -> int:
    """The number of the layer whose label a layer has: its own, or that of the layer that it is tied to."""
    index = menus.network.layer_index()[layer.name]
    return menus.leaders().get(index, index)


def _flat(position: int, count: int, activations: int) -> slice:
    """The options of one format of `count`, at all activation bits; the last one also stands for those beyond it."""
    return slice(position * activations, None if position + 1 == count else (position + 1) * activations)


def _others(own: int, count: int) -> list[int]:
    """The options at most `NEAR` positions from a plan's `own`, without it, of `count` options."""
    return [option for option in range(max(0, own - NEAR), min(count, own + NEAR + 1)) if option != own]


def _owner(menus: Menus, layer: Layer, position: int) -> int:
    """The number of the layer whose sparsity changes the `position`-th group that a layer reads: the group's owner.

    Where the layer reads no group, its own number.
    """
    index, reads = menus.network.layer_index(), menus.reads(layer)
    return index[menus.network.groups[reads[position]].owner] if reads else index[layer.name]


def _weights(menus: Menus, layer: Layer, kept: Mapping[int, int], sparsity: float, bits: int) -> Tensor:
    """(rows, d + 1) weights and bias of a label in the original's shape, zeros at removed columns.

    Where not all variants are built, pruning and rounding are taken from two that are, and added up.
    """
    source = menus.sources[layer.name]
    if menus.eager:
        return source.change(menus.variant(layer, kept, sparsity, bits)) + source.weight.float()
    full = {read: menus.network.groups[read].width for read in menus.reads(layer)}
    weights = source.weight.float() + source.change(menus.variants(layer, full)[bits])
    if kept != full:
        pruned = menus.pruned(layer, kept)
        weights += source.change(pruned)
        removed = torch.ones(layer.fan_in, dtype=torch.bool)
        removed[pruned.columns] = False
        weights[:, :-1][:, removed] = 0
    return weights
