"""Names of modules and parameters, made of the names in an ONNX file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from torch import nn

_TENSOR_ENDINGS = re.compile(r"^(?P<owner>.+)\.(weight|bias)([_.].*)?$")
_MARKS = re.compile(r"[^0-9A-Za-z_]+")


def layer_path(tensors: Sequence[str], scope: str, node: str, kind: str) -> str:
    """Dotted path of a layer's module, from the names that the file has for it.

    A tensor's name says it best where it ends in `.weight` or `.bias`; otherwise the exporter's note; otherwise the
    node's name, in which PyTorch's older exporter repeats the path at every level.

    >>> layer_path(["val_12", "layer1.0.fc1.bias"], "", "node_MatMul_7", "MatMul")
    'layer1.0.fc1'
    >>> layer_path(["val_12", "val_13"], "layer1.0.fc1", "node_MatMul_7", "MatMul")
    'layer1.0.fc1'
    >>> layer_path(["onnx::Conv_193"], "", "/layer1/layer1.0/conv1/Conv", "Conv")
    'layer1.0.conv1'
    >>> layer_path(["model/dense/MatMul/ReadVariableOp:0"], "", "model/dense/MatMul", "MatMul")
    'model.dense'
    >>> layer_path(["W"], "", "", "Gemm")
    'W'

    Args:
        tensors: names of the weight and of the bias, if there is one.
        scope: path of the module that the exporter has noted; may be empty.
        node: name of the node; may be empty.
        kind: the node's operator.
    """
    found = [match["owner"] for name in tensors if (match := _TENSOR_ENDINGS.match(name))]
    if found or scope:
        return clean_path([*found, scope][0])
    parts: list[str] = []
    for part in node.strip("/").split("/"):
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    if len(parts) > 1 and re.fullmatch(rf"{kind}(_\d+)?", parts[-1]):
        parts.pop()
    return clean_path(".".join(parts)) or clean_path(tensors[0]) or kind


def clean_path(name: str) -> str:
    """A name as a dotted path of identifiers and numbers; empty where nothing is left.

    >>> clean_path("/blocks/blocks.0/attn::qkv:0")
    'blocks.blocks.0.attn_qkv_0'
    """
    parts = (_MARKS.sub("_", part).strip("_") for part in re.split(r"[./]", name))
    return ".".join(part for part in parts if part)


def free_path(root: nn.Module, path: str) -> str:
    """The path itself where a module or tensor can be put there; else one with `_2`, `_3`, … behind what is taken.

    Args:
        root: network that the path is in.
        path: dotted path.
    """
    *parents, last = path.split(".")
    module, parts = root, []
    for part in parents:
        parts.append(next(choice for choice in _choices(part) if _is_container(module, choice)))
        module = module._modules.get(parts[-1]) or nn.Module()
    parts.append(next(choice for choice in _choices(last) if not hasattr(module, choice)))
    return ".".join(parts)


def _choices(name: str) -> Iterator[str]:
    return itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))


def _is_container(parent: nn.Module, name: str) -> bool:
    """Whether a module of that name only holds others, or can be made."""
    return type(parent._modules.get(name)) is nn.Module or not hasattr(parent, name)


def container(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds the last part of a free path, made where it is missing, and that last part."""
    *parents, last = path.split(".")
    module = root
    for part in parents:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    return module, last
