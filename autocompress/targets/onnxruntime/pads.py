"""Zeros around an image that a convolution alone reads, as the convolution's own padding.

Networks that pad unevenly, as those from TensorFlow do, have an operator for it, since PyTorch's convolutions take one
number an axis. ONNX's take two. ONNX Runtime has no integer kernel for an uneven Pad between integer convolutions of
uint8 tensors: it turns them into floats and back. EfficientNet-Lite0 spent a fifth of its time there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from autocompress.models.onnx.reading import all_nodes

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

_ROUNDED = ("DequantizeLinear", "QuantizeLinear", "Pad")
_Tensors = Mapping[str, "TensorProto"]  # initializers by name
_Makers = Mapping[str, "NodeProto"]  # by the name of a value


def join_pads_(graph: GraphProto) -> None:
    """Let every convolution pad for itself what a Pad with zeros makes for it alone.

    Between the two may be QuantizeLinear and DequantizeLinear: a zero is a zero before and behind them. Where the Pad's
    input is rounded on the same range already, they go as well.

    Args:
        graph: graph whose constants are initializers; it is changed.
    """
    if not any(node.op_type == "Pad" for node in graph.node):
        return
    makers = {name: node for node in graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    readers = Counter(name for node in all_nodes(graph) for name in node.input)
    readers.update(value.name for value in graph.output)
    gone: list[NodeProto] = []
    for conv in [node for node in graph.node if node.op_type == "Conv"]:
        chain = _chain(conv, ("Pad",), makers, readers) or _chain(conv, _ROUNDED, makers, readers)
        if chain and (pads := _zeros_around(chain[-1], tensors)) is not None:
            _pad_more_(conv, pads)
            gone += _without_pad_(conv, chain, makers, tensors)
    kept = [node for node in graph.node if not any(node is each for each in gone)]
    del graph.node[:]
    graph.node.extend(kept)


def _chain(conv: NodeProto, kinds: Sequence[str], makers: _Makers, readers: Mapping[str, int]) -> list[NodeProto]:
    """The nodes of these kinds from a convolution's input back, where nothing else reads what they make; else none."""
    chain: list[NodeProto] = []
    name = conv.input[0]
    for kind in kinds:
        node = makers.get(name)
        if node is None or node.op_type != kind or readers[name] > 1:
            return []
        chain.append(node)
        name = node.input[0]
    return chain


def _zeros_around(pad: NodeProto, tensors: _Tensors) -> list[int] | None:
    """The zeros that a Pad puts before and behind every axis of images, in ONNX's order; None: it does otherwise."""
    from onnx import helper

    mode = [helper.get_attribute_value(each) for each in pad.attribute if each.name == "mode"]
    value = _constant(pad.input[2], tensors) if len(pad.input) > 2 and pad.input[2] else np.array(0)
    pads = _constant(pad.input[1], tensors)
    if mode not in ([], [b"constant"]) or value is None or value != 0 or pads is None or any(pad.input[3:]):
        return None
    amounts: list[int] = pads.tolist()
    half = len(amounts) // 2
    of_images = [amounts[start + axis] for start in (0, half) for axis in range(2, half)]
    return of_images if sum(map(abs, amounts)) == sum(of_images) else None  # no other axes, and nothing is cut off


def _pad_more_(conv: NodeProto, amounts: list[int]) -> None:
    """Add to a convolution's own padding."""
    from onnx import helper

    own = next((each for each in conv.attribute if each.name == "pads"), None)
    before = [0] * len(amounts) if own is None else list(own.ints)
    if own is not None:
        conv.attribute.remove(own)
    conv.attribute.append(helper.make_attribute("pads", [a + b for a, b in zip(before, amounts, strict=True)]))


def _without_pad_(conv: NodeProto, chain: list[NodeProto], makers: _Makers, tensors: _Tensors) -> list[NodeProto]:
    """The nodes that nobody needs when the Pad at the end of a chain is gone, after others read what it read."""
    pad = chain[-1]
    if len(chain) == 1:
        conv.input[0] = pad.input[0]
        return [pad]
    dequantize, quantize, _ = chain
    before = makers.get(pad.input[0])
    if before is not None and before.op_type == "DequantizeLinear":
        pairs = zip(before.input[1:], quantize.input[1:], strict=False)
        if len(before.input) == len(quantize.input) and all(_are_equal(a, b, tensors) for a, b in pairs):
            conv.input[0] = pad.input[0]
            return [pad, quantize, dequantize]
    quantize.input[0] = pad.input[0]
    return [pad]


def _are_equal(first: str, second: str, tensors: _Tensors) -> bool:
    """Whether two names stand for the same constant."""
    a, b = _constant(first, tensors), _constant(second, tensors)
    return a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b)


def _constant(name: str, tensors: _Tensors) -> np.ndarray | None:
    """A constant by its name; None where the name is a value's that the graph computes."""
    from onnx import numpy_helper

    return numpy_helper.to_array(tensors[name]) if name in tensors else None
