"""Stitching: putting the menus' weights of a plan into a copy of the network, with removed channels really gone.

Three steps. `resolve` turns a plan (positions on menus, one sparsity a group) into what each layer gets: the channels
left in the groups that it reads and writes, and its bits. `Stitcher` then takes the layer's weights from the menus,
whose columns are already gone, drops the rows of removed output channels (`kept_rows`), and writes them into the module
(`write_layer_`). Norms that no layer absorbed lose the same channels.

A layer that reads k of its input channels and writes r of its output channels runs with a weight (r, k, *kernel): a
pruned network costs less to evaluate, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.menus.activations import ActivationRange
from autocompress.menus.menus import Menus
from autocompress.menus.ties import label_places
from autocompress.menus.variants import Variant
from autocompress.network.slicing import scale_integers_
from autocompress.network.structure import Layer, Network
from autocompress_envs.problem import Labeling

_READY_BYTES = 1_000_000_000  # bytes of weights that are kept ready in the evaluation dtype; beyond, all are dropped


@dataclass(frozen=True)
class LayerChoice:
    """What one layer gets under a plan.

    Attributes:
        reads: number of channels left in each group that the layer reads, by group index.
        writes: number of channels left in the group that the layer writes; None: it writes none.
        sparsity: fraction of the layer's single weights that are removed (granularity `element` or `n:m`); 0 with
            `channel`.
        weight_bits: position among the formats of the layer's weights (`Menus.formats`).
        activation_bits: position among the menu's activation bit-widths.
    """

    reads: Mapping[int, int]
    writes: int | None
    sparsity: float
    weight_bits: int
    activation_bits: int

    def key(self) -> tuple[Any, ...]:
        """The values that the layer's weights depend on; layers of equal keys have equal weights."""
        return (*self.reads.values(), self.writes, self.sparsity, self.weight_bits)


def resolve(menus: Menus, labeling: Labeling) -> list[LayerChoice]:
    """What every layer gets under a plan, in the order of the network.

    With granularity `channel`, a group's sparsity stands at its owner, and all layers that read or write the group
    inherit it.

    Args:
        menus: menus of the network.
        labeling: plan, as positions on the menus.
    """
    by_channel = menus.settings.granularity == "channel"
    index = menus.network.layer_index()
    kept = []
    for group in menus.network.groups:
        level = int(labeling.sparsity[index[group.owner]]) if by_channel else 0
        kept.append(menus.kept_options(group)[level] if by_channel else group.width)
    places = label_places(len(menus.network.layers), menus.leaders())
    return [
        LayerChoice(
            reads={read: kept[read] for read in menus.reads(layer)},
            writes=None if layer.writes is None else kept[layer.writes],
            sparsity=0.0 if by_channel else menus.sparsities(layer)[labeling.sparsity[position]],
            weight_bits=int(labeling.weight_bits[places[position]]),
            activation_bits=int(labeling.activation_bits[places[position]]),
        )
        for position, layer in enumerate(menus.network.layers)
    ]


def rows_left(menus: Menus, labeling: Labeling) -> dict[str, Tensor]:
    """(k,) int64 output channels that stay under a plan, ascending, by name of the layer.

    Args:
        menus: menus of the network.
        labeling: plan, as positions on the menus.
    """
    chosen = zip(menus.network.layers, resolve(menus, labeling), strict=True)
    return {layer.name: kept_rows(menus, layer, choice) for layer, choice in chosen}


class Stitcher:
    """Writes the weights of one plan after the other into the same copy of the network.

    Args:
        folded: copy of the network with its norms folded; it now belongs to the stitcher.
        menus: menus of the network.

    Attributes:
        model: the copy, with the weights of the plan that was stitched last.
    """

    def __init__(self, folded: nn.Module, menus: Menus) -> None:
        self.model = folded
        self._menus = menus
        self._modules: dict[str, Any] = dict(folded.named_modules())
        self._dtype = next(folded.parameters()).dtype
        self._device = next(folded.parameters()).device
        norms = {name for group in menus.network.groups for name in group.norms}
        self._norm_widths = {name: int(self._modules[name].num_features) for name in norms}
        self._norm_tensors = {name: _norm_tensors(self._modules[name]) for name in norms}
        self._ready: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        self._ready_bytes = 0
        self._ranges: dict[str, ActivationRange | None] = {}
        for layer in menus.network.layers:
            untie_(self._modules[layer.name])
            self._modules[layer.name].register_forward_pre_hook(InputRounding(layer.name, self._ranges))

    def stitch_(self, labeling: Labeling) -> nn.Module:
        """Write a plan's weights into the copy.

        Args:
            labeling: plan, as positions on the menus.

        Returns:
            The copy; it has the plan's weights until the next call.
        """
        choices = resolve(self._menus, labeling)
        for layer, choice in zip(self._menus.network.layers, choices, strict=True):
            weight, bias = self._weights(layer, choice)
            self._ranges[layer.name] = self._menus.ranges[layer.name][choice.activation_bits]
            write_layer_(self._modules[layer.name], weight, bias, layer.kind == "depthwise")
        self._write_norms_(choices)
        index = self._menus.network.layer_index()
        for group in self._menus.network.groups:
            scale_integers_(self.model, group, max(choices[index[group.owner]].writes or 0, 1))
        return self.model

    def _weights(self, layer: Layer, choice: LayerChoice) -> tuple[Tensor, Tensor]:
        """Weight (r, c, *kernel) and bias (r,) in the copy's dtype; kept ready, as plans share most of theirs."""
        key = (layer.name, *choice.key())
        if key not in self._ready:
            variant = self._menus.variant(layer, choice.reads, choice.sparsity, choice.weight_bits)
            rows = kept_rows(self._menus, layer, choice)
            entry = self._prepare(layer, variant, rows)
            self._ready_bytes += sum(tensor.nbytes for tensor in entry)
            if self._ready_bytes > _READY_BYTES:
                self._ready, self._ready_bytes = {}, sum(tensor.nbytes for tensor in entry)
            self._ready[key] = entry
        return self._ready[key]

    def _prepare(self, layer: Layer, variant: Variant, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The kept rows of a variant as the copy runs them."""
        unit = stand_in(self._menus.network, layer)
        weight, bias = runnable(full_weight(layer, variant)[rows], variant.bias[rows], unit)
        weight = weight.to(self._device, self._dtype)
        if weight.ndim == 4:
            weight = weight.contiguous(memory_format=torch.channels_last)
        return weight, bias.to(self._device, self._dtype)

    def _write_norms_(self, choices: list[LayerChoice]) -> None:
        """Remove channels from the norms that no layer absorbed; one behind a concatenation reads several groups."""
        stays = {name: torch.ones(width, dtype=torch.bool) for name, width in self._norm_widths.items()}
        index = self._menus.network.layer_index()
        for group_index, group in enumerate(self._menus.network.groups):
            kept = choices[index[group.owner]].writes
            assert kept is not None, "the owner of a group writes it"
            removed = self._menus.removed_channels(group_index, kept)  # never all: branches have no norms of their own
            for name, channels in group.norms.items():
                stays[name][torch.from_numpy(channels)[removed].flatten()] = False
        for name, kept_channels in stays.items():
            norm = self._modules[name]
            norm.num_features = int(kept_channels.sum())
            for field, tensor in self._norm_tensors[name].items():
                getattr(norm, field).data = tensor[kept_channels.to(tensor.device)]


def full_weight(layer: Layer, variant: Variant) -> Tensor:
    """(rows, c, *kernel) float32 weight of a variant, c being the input channels that are left.

    Args:
        layer: structure of the layer.
        variant: weights from its menu, columns of removed input channels gone.
    """
    return in_layer_shape(variant.weight(), layer)


def in_layer_shape(flat: Tensor, layer: Layer) -> Tensor:
    """Flat weights with the axes of the layer's own weight.

    Args:
        flat: (r, k) weights, a column for each input channel and place in the kernel.
        layer: structure of the layer.

    Returns:
        (r, c, *kernel) weights, c = k / places in the kernel.
    """
    kernel = layer.weight_shape[2:]
    return flat.reshape(len(flat), flat.shape[1] // math.prod(kernel), *kernel)


def stand_in(network: Network, layer: Layer) -> tuple[int, int]:
    """Output and input channels of the zeros that stand in for a removed branch: those of one channel of the group.

    They are 1 and 1, but for heads of attention: then as many as one head has.

    Args:
        network: trace of the network.
        layer: one of its layers.
    """
    rows = 1 if layer.writes is None else network.groups[layer.writes].producers[layer.name].shape[1]
    columns = [network.groups[read].consumers[layer.name].shape[1] for read in layer.reads]
    return rows, min(columns, default=1) // math.prod(layer.weight_shape[2:]) or 1


def runnable(weight: Tensor, bias: Tensor, unit: Sequence[int] = (1, 1)) -> tuple[Tensor, Tensor]:
    """Weight and bias as PyTorch can run them: where no channel is left, channels of zeros stand in.

    PyTorch has no convolution to or from nothing. The zeros compute what is left of a removed branch: the bias of the
    layers that read it.

    Args:
        weight: (r, c, …), r or c possibly 0.
        bias: (r,).
        unit: output and input channels of zeros that stand in where there are none (`stand_in`).
    """
    if weight.numel():
        return weight, bias
    shape = [size or place for size, place in zip(weight.shape, (*unit, *weight.shape[2:]), strict=False)]
    return weight.new_zeros(shape), bias if len(bias) else bias.new_zeros(shape[0])


def kept_rows(menus: Menus, layer: Layer, choice: LayerChoice) -> Tensor:
    """(k,) int64 output channels of the layer that stay, ascending.

    Args:
        menus: menus of the network.
        layer: structure of the layer.
        choice: resolved part of a plan that is the layer's.
    """
    stays = torch.ones(layer.rows, dtype=torch.bool)
    if layer.writes is not None and choice.writes is not None:
        producers = torch.from_numpy(menus.network.groups[layer.writes].producers[layer.name])
        stays[producers[menus.removed_channels(layer.writes, choice.writes)].flatten()] = False
    return stays.nonzero()[:, 0]


class InputRounding:
    """Forward pre-hook that rounds a layer's input to the range that the plan gives it.

    Args:
        name: name of the layer.
        ranges: ranges by layer name; the entry is looked up at every call, so that another plan is another entry. None
            rounds nothing.
    """

    def __init__(self, name: str, ranges: dict[str, ActivationRange | None]) -> None:
        self._name = name
        self._ranges = ranges

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        found = self._ranges.get(self._name)
        return None if found is None else (found.apply(args[0]), *args[1:])


def untie_(module: Any) -> None:
    """Give a module parameters of its own: layers may share their biases, and get different ones.

    Args:
        module: layer whose parameters are copied into new `nn.Parameter`s.
    """
    for field in ("weight", "bias"):
        if getattr(module, field, None) is not None:
            setattr(module, field, nn.Parameter(getattr(module, field).detach(), requires_grad=False))


def write_layer_(module: Any, weight: Tensor, bias: Tensor, is_depthwise: bool) -> None:
    """Put weights into a layer, and set its numbers of channels by their shape.

    Args:
        module: linear layer, convolution or embedding.
        weight: (r, c, *kernel) weight.
        bias: (r,) bias; left out where the module has none.
        is_depthwise: whether the layer is a depthwise convolution, whose number of groups shrinks with its channels. A
            depthwise layer with one channel left looks like any other, so the module can't tell.
    """
    module.weight.data = weight
    if isinstance(module, nn.Embedding):
        return
    if module.bias is not None:
        module.bias.data = bias
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
        return
    if is_depthwise:
        module.groups = weight.shape[0]
    module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups


def _norm_tensors(norm: Any) -> dict[str, Tensor]:
    """(channels,) tensors of a norm by field, with all the original's channels."""
    fields = ("weight", "bias", "running_mean", "running_var")
    return {field: getattr(norm, field).data.clone() for field in fields if getattr(norm, field) is not None}
