"""Stitching: putting the menus' weights of a plan into a copy of the network, with removed channels really gone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.menus.activations import ActivationRange
from autocompress.menus.menus import Menus
from autocompress.menus.variants import Variant
from autocompress.network.structure import Layer
from autocompress_envs.problem import Labeling

_READY_BYTES = 1_000_000_000  # of weights kept ready in the evaluation dtype


@dataclass(frozen=True)
class LayerChoice:
    """One layer's part of a labelling, resolved.

    Attributes:
        reads: channels left in each group that the layer reads, by group index.
        writes: channels left in the group that the layer writes, or None.
        sparsity: of the layer's own weights (granularity `element` or `n:m`).
        weight_bits: position among the menu's weight bit-widths.
        activation_bits: position among the menu's activation bit-widths.
    """

    reads: Mapping[int, int]
    writes: int | None
    sparsity: float
    weight_bits: int
    activation_bits: int

    def key(self) -> tuple[Any, ...]:
        """What the layer's weights depend on."""
        return (*self.reads.values(), self.writes, self.sparsity, self.weight_bits)


def resolve(menus: Menus, labeling: Labeling) -> list[LayerChoice]:
    """What every layer gets, groups' sparsities handed on to the layers that inherit them."""
    by_channel = menus.settings.granularity == "channel"
    index = menus.network.layer_index()
    kept = []
    for group in menus.network.groups:
        level = int(labeling.sparsity[index[group.owner]]) if by_channel else 0
        kept.append(menus.kept_options(group)[level] if by_channel else group.width)
    return [
        LayerChoice(
            reads={read: kept[read] for read in menus.reads(layer)},
            writes=None if layer.writes is None else kept[layer.writes],
            sparsity=0.0 if by_channel else menus.sparsities(layer)[labeling.sparsity[position]],
            weight_bits=int(labeling.weight_bits[position]),
            activation_bits=int(labeling.activation_bits[position]),
        )
        for position, layer in enumerate(menus.network.layers)
    ]


class Stitcher:
    """Writes plans into one copy of the network, over and over.

    Args:
        folded: a copy with norms folded; it now belongs to the stitcher.
        menus: of the network.
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
        """Write a plan's weights into the copy and return it; valid until the next call."""
        choices = resolve(self._menus, labeling)
        for layer, choice in zip(self._menus.network.layers, choices, strict=True):
            weight, bias = self._weights(layer, choice)
            self._ranges[layer.name] = self._menus.ranges[layer.name][choice.activation_bits]
            write_layer_(self._modules[layer.name], weight, bias, layer.kind == "depthwise")
        self._write_norms_(choices)
        return self.model

    def _weights(self, layer: Layer, choice: LayerChoice) -> tuple[Tensor, Tensor]:
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
        weight, bias = runnable(full_weight(layer, variant)[rows], variant.bias[rows])
        weight = weight.to(self._device, self._dtype)
        if weight.ndim == 4:
            weight = weight.contiguous(memory_format=torch.channels_last)
        return weight, bias.to(self._device, self._dtype)

    def _write_norms_(self, choices: list[LayerChoice]) -> None:
        """A norm behind a concatenation holds channels of several groups."""
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
    """(rows, …) float32 in the shape of the layer's weight, removed input channels gone."""
    return in_layer_shape(variant.weight(), layer)


def in_layer_shape(flat: Tensor, layer: Layer) -> Tensor:
    """(r, k) weights with the axes of the layer's own: (r, input channels, *kernel)."""
    kernel = layer.weight_shape[2:]
    return flat.reshape(len(flat), flat.shape[1] // math.prod(kernel), *kernel)


def runnable(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (r, c, …) and bias (r,) as PyTorch can run them: where no channels are left, one of zeros stands in.

    PyTorch has no convolution to or from nothing. The zeros compute what is left of a removed branch: the bias of the
    layers that read it.
    """
    if weight.numel():
        return weight, bias
    shape = [max(size, 1) for size in weight.shape]
    return weight.new_zeros(shape), bias if len(bias) else bias.new_zeros(shape[0])


def kept_rows(menus: Menus, layer: Layer, choice: LayerChoice) -> Tensor:
    """(k,) output channels of the layer that stay."""
    stays = torch.ones(layer.rows, dtype=torch.bool)
    if layer.writes is not None and choice.writes is not None:
        producers = torch.from_numpy(menus.network.groups[layer.writes].producers[layer.name])
        stays[producers[menus.removed_channels(layer.writes, choice.writes)].flatten()] = False
    return stays.nonzero()[:, 0]


class InputRounding:
    """Forward pre-hook that rounds a layer's input to the range the plan gives it."""

    def __init__(self, name: str, ranges: dict[str, ActivationRange | None]) -> None:
        self._name = name
        self._ranges = ranges

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        found = self._ranges.get(self._name)
        return None if found is None else (found.apply(args[0]), *args[1:])


def untie_(module: Any) -> None:
    """Parameters of its own: layers that share theirs get different labels."""
    for field in ("weight", "bias"):
        if getattr(module, field) is not None:
            setattr(module, field, nn.Parameter(getattr(module, field).detach(), requires_grad=False))


def write_layer_(module: Any, weight: Tensor, bias: Tensor, is_depthwise: bool) -> None:
    """Put weights into a layer, which takes their shape.

    That it is depthwise is told, as one with a single channel left is like any other convolution.
    """
    module.weight.data = weight
    if module.bias is not None:
        module.bias.data = bias
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
        return
    if is_depthwise:
        module.groups = weight.shape[0]
    module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups


def _norm_tensors(norm: Any) -> dict[str, Tensor]:
    fields = ("weight", "bias", "running_mean", "running_var")
    return {field: getattr(norm, field).data.clone() for field in fields if getattr(norm, field) is not None}
