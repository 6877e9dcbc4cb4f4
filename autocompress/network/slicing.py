"""Removing the channels of groups from a copy of a model: for real, or masked so that nobody reads them."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.network.structure import Group, IntArray

Removed = Sequence[tuple[Group, IntArray]]  # groups, each with the indices of its channels that are removed


def remove_channels(model: nn.Module, removed: Removed) -> nn.Module:
    """A copy of `model` without the channels: weight rows, weight columns and norm channels are gone.

    Args:
        model: model that the groups were traced from, with its norms folded (`fold_batch_norms`).
        removed: groups, each with the indices in [0, width) of its channels to remove; at least one must
            stay.
    """
    smaller = copy.deepcopy(model)
    modules = dict(smaller.named_modules())
    for name, columns in _gather(removed, "consumers").items():
        _drop_columns(modules[name], columns)
    for name, rows in _gather(removed, "producers").items():
        _drop_rows(modules[name], rows)
    for name, channels in _gather(removed, "norms").items():
        _drop_norm_channels(modules[name], channels)
    for group, gone in removed:
        scale_integers_(smaller, group, group.width - len(gone))
    return smaller


def scale_integers_(model: nn.Module, group: Group, kept: int) -> None:
    """Set the integers of modules that count a group's channels, such as `num_heads`, in place.

    Args:
        model: network that the group was traced from, or a smaller copy.
        group: the group.
        kept: number of channels that are left, at least 1.
    """
    for scaled in group.scaled:
        setattr(model.get_submodule(scaled.module), scaled.name, kept * scaled.per_channel)


def mask_channels(model: nn.Module, removed: Removed) -> nn.Module:
    """A copy of `model` of unchanged shapes in which no layer reads the channels: their weight columns are 0.

    Args:
        model: model that the groups were traced from, with its norms folded (`fold_batch_norms`).
        removed: groups, each with the indices in [0, width) of its channels to mask.
    """
    masked = copy.deepcopy(model)
    modules = dict(masked.named_modules())
    with torch.no_grad():
        for name, columns in _gather(removed, "consumers").items():
            layer: Any = modules[name]
            kept = torch.ones(layer.weight[0].numel(), dtype=torch.bool, device=layer.weight.device)
            kept[torch.from_numpy(columns)] = False
            layer.weight.mul_(kept.reshape(layer.weight.shape[1:]))
    return masked


def _gather(removed: Removed, members: str) -> Mapping[str, IntArray]:
    """All rows or columns of each module that are removed, of whichever group, by the module's name.

    Args:
        removed: groups with their channels to remove.
        members: `producers`, `consumers` or `norms`.
    """
    parts = defaultdict(list)
    for group, channels in removed:
        for name, indices in getattr(group, members).items():
            parts[name].append(indices[channels].ravel())
    return {name: np.concatenate(indices) for name, indices in parts.items()}


def _drop_columns(layer: Any, columns: IntArray) -> None:
    """Remove columns of the flattened weight, and so input channels, in place."""
    weight = layer.weight
    flat = weight.detach().flatten(1)
    kept = flat[:, _others(columns, flat.shape[1])]
    layer.weight = nn.Parameter(kept.reshape(weight.shape[0], -1, *weight.shape[2:]), weight.requires_grad)
    if isinstance(layer, nn.Linear):
        layer.in_features = layer.weight.shape[1]
    else:
        layer.in_channels = layer.weight.shape[1]


def _drop_rows(layer: Any, rows: IntArray) -> None:
    """Remove output channels of a layer in place."""
    kept = _others(rows, layer.weight.shape[0])
    _select(layer, ("weight", "bias"), kept)
    if isinstance(layer, nn.Linear):
        layer.out_features = len(kept)
        return
    layer.out_channels = len(kept)
    if layer.groups > 1:  # depthwise: each row reads the one channel that goes with it
        layer.in_channels = layer.groups = len(kept)


def _drop_norm_channels(norm: Any, channels: IntArray) -> None:
    """Remove channels of a norm in place."""
    kept = _others(channels, norm.num_features)
    _select(norm, ("weight", "bias", "running_mean", "running_var"), kept)
    norm.num_features = len(kept)


def _select(module: nn.Module, names: Sequence[str], kept: Tensor) -> None:
    """Keep the `kept` entries of the named parameters and buffers in place."""
    for name in names:
        tensor = getattr(module, name)
        if tensor is None:
            continue
        smaller = tensor.detach()[kept]
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(module, name, nn.Parameter(smaller, tensor.requires_grad) if is_parameter else smaller)


def _others(indices: IntArray, size: int) -> Tensor:
    """The indices in [0, size) that are not among `indices`, ascending."""
    return torch.from_numpy(np.setdiff1d(np.arange(size), indices))
