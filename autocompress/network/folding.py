"""Folding batch norms into the layers before them, and back."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.network.structure import Network


def fold_batch_norms(model: nn.Module, network: Network) -> nn.Module:
    """A copy of `model` in eval mode that computes the same without the norms that its layers can absorb.

    Args:
        model: model that `network` was traced from; it is not changed.
        network: trace, which holds the norm of every layer.

    Returns:
        The copy. Folded norms are `nn.Identity` there, or just the activation where a norm module had one
        inside.
    """
    return fold_norms(model, {layer.name: layer.norm for layer in network.layers if layer.norm is not None})


def fold_norms(model: nn.Module, norm_of: Mapping[str, str]) -> nn.Module:
    """As `fold_batch_norms`, from the names of the norms by layer name."""
    folded = copy.deepcopy(model).eval()
    modules = dict(folded.named_modules())
    replacements: dict[nn.Module, nn.Module] = {}
    for layer, norm in norm_of.items():
        _absorb_(modules[layer], modules[norm])
        replacements[modules[norm]] = _rest_of(modules[norm])
    replace_modules_(folded, replacements)
    return folded


def unfold_batch_norms(model: nn.Module, network: Network, folded: nn.Module) -> nn.Module:
    """A copy of `model` that computes what `folded` does: its norms do no more than add the bias.

    Args:
        model: model that `network` was traced from; it is not changed.
        network: trace, which holds the norm of every layer.
        folded: result of `fold_batch_norms`, whose weights may have changed since, but not their shapes.
    """
    result = copy.deepcopy(model)
    norm_of = {layer.name: layer.norm for layer in network.layers}
    inside = tuple(f"{name}." for name in norm_of)
    others = {name: tensor for name, tensor in folded.state_dict().items() if not name.startswith(inside)}
    result.load_state_dict(others, strict=False)
    with torch.no_grad():
        for name, norm in norm_of.items():
            layer, source = result.get_submodule(name), folded.get_submodule(name)
            _put_(layer, None if norm is None else result.get_submodule(norm), source)
    return result


def _put_(layer: Any, norm: Any, source: Any) -> None:
    """Write a folded layer's weight into the layer, and its bias into the norm where there is one."""
    layer.weight.copy_(source.weight)
    if norm is None:
        if layer.bias is not None:
            layer.bias.copy_(source.bias)
        return
    if layer.bias is not None:
        layer.bias.zero_()
    norm.running_mean.copy_(-source.bias)
    norm.running_var.fill_(1 - norm.eps)
    if norm.weight is not None:
        norm.weight.fill_(1.0)
        norm.bias.zero_()


def is_foldable(norm: nn.Module) -> bool:
    """Whether a norm in eval mode is a fixed scale and shift, and all else that it does is known."""
    has_statistics = getattr(norm, "running_mean", None) is not None
    return has_statistics and (type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) or _has_activation(norm))


def _has_activation(norm: nn.Module) -> bool:
    """Whether it is timm's BatchNormAct2d: batch norm, then `drop`, then `act`. timm is optional."""
    return type(norm).__name__ == "BatchNormAct2d" and type(norm).__module__.startswith("timm.")


def _absorb_(layer: Any, norm: Any) -> None:
    """y = (Wx + b - mean) * scale + shift, with scale = weight / sqrt(variance + eps), in double precision."""
    with torch.no_grad():
        scale = torch.rsqrt(norm.running_var.double() + norm.eps)
        scale = scale * _values(norm.weight, scale, 1.0)
        weight, dtype = layer.weight, layer.weight.dtype
        bias = (_values(layer.bias, scale, 0.0) - norm.running_mean.double()) * scale + _values(norm.bias, scale, 0.0)
        scaled = weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1))
    layer.weight = nn.Parameter(scaled.to(dtype), requires_grad=weight.requires_grad)
    layer.bias = nn.Parameter(bias.to(dtype), requires_grad=weight.requires_grad)


def _values(parameter: Tensor | None, like: Tensor, default: float) -> Tensor:
    """The parameter in double precision; where there is none, a tensor of the default."""
    return torch.full_like(like, default) if parameter is None else parameter.double()


def _rest_of(norm: Any) -> nn.Module:
    """The module that is left of a norm without its scale and shift."""
    if _has_activation(norm):
        return nn.Sequential(OrderedDict(drop=norm.drop, act=norm.act))
    return nn.Identity()


def linear_of(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """A linear layer of these very parameters, (rows, columns) and (rows,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
    return layer


def replace_modules_(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Swap modules wherever they are registered: one module may stand under several names."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in replacements:
                setattr(parent, name, replacements[child])
