"""Zeros around an image that a convolution alone reads, as the convolution's own padding.

Networks that pad unevenly, as those from TensorFlow do, have an operator for it, since PyTorch's convolutions take one
number an axis. ONNX's take two. ONNX Runtime has no integer kernel for an uneven Pad between integer convolutions of
uint8 tensors: it turns them into floats and back. EfficientNet-Lite0 spent a fifth of its time there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from autocompress.models.onnx.reading import all_nodes

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, NodeProto

_Makers = Mapping[str, "NodeProto"]  # by the name of a value


def join_pads_(graph: GraphProto) -> None:
    """Let every convolution pad for itself what a Pad with zeros makes for it alone.

    Between the two may be QuantizeLinear and DequantizeLinear: a zero is a zero before and behind them. Where the Pad's
    input is rounded on the same range already, they go as well.

    Args:
        graph: graph whose constants are initializers; it is changed.
    """
    from onnx import numpy_helper

    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, int] = defaultdict(int)
    for name in [name for node in all_nodes(graph) for name in node.input] + [value.name for value in graph.output]:
        readers[name] += 1
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.dims != [0]}
    gone: list[NodeProto] = []
    for conv in [node for node in graph.node if node.op_type == "Conv"]:
        chain = _chain(conv, makers, readers)
        if chain and (pads := _zeros_around(chain[-1], constants)) is not None:
            _pad_more_(conv, pads)
            gone += _without_pad_(conv, chain, makers, constants)
    kept = [node for node in graph.node if not any(node is each for each in gone)]
    del graph.node[:]
    graph.node.extend(kept)


def _chain(conv: NodeProto, makers: _Makers, readers: Mapping[str, int]) -> list[NodeProto]:
    """From a convolution back to the Pad before it: [Pad], or [DequantizeLinear, QuantizeLinear, Pad]; else nothing.

    Nothing else reads what they make.
    """
    chain: list[NodeProto] = []
    name = conv.input[0]
    for wanted in ("DequantizeLinear", "QuantizeLinear", "Pad"):
        node = makers.get(name)
        if node is None or readers[name] > 1 or not (node.op_type == wanted or (node.op_type == "Pad" and not chain)):
            return []
        chain.append(node)
        if node.op_type == "Pad":
            return chain
        name = node.input[0]
    return []


def _zeros_around(pad: NodeProto, constants: Mapping[str, np.ndarray]) -> list[int] | None:
    """The zeros that a Pad puts before and behind every axis of images, in ONNX's order; None: it does otherwise."""
    from onnx import helper

    mode = [helper.get_attribute_value(each) for each in pad.attribute if each.name == "mode"]
    value = constants.get(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else 0
    pads = constants.get(pad.input[1])
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


def _without_pad_(
    conv: NodeProto, chain: list[NodeProto], makers: _Makers, constants: Mapping[str, np.ndarray]
) -> list[NodeProto]:
    """The nodes that nobody needs when the Pad at the end of a chain is gone, after others read what it read."""
    pad = chain[-1]
    if len(chain) == 1:
        conv.input[0] = pad.input[0]
        return [pad]
    dequantize, quantize, _ = chain
    before = makers.get(pad.input[0])
    if before is not None and before.op_type == "DequantizeLinear":
        pairs = zip(before.input[1:], quantize.input[1:], strict=False)
        if len(before.input) == len(quantize.input) and all(_are_equal(a, b, constants) for a, b in pairs):
            conv.input[0] = pad.input[0]
            return [pad, quantize, dequantize]
    quantize.input[0] = pad.input[0]
    return [pad]


def _are_equal(first: str, second: str, constants: Mapping[str, np.ndarray]) -> bool:
    """Whether two names stand for the same constant."""
    if first == second:
        return True
    a, b = constants.get(first), constants.get(second)
    return a is not None and b is not None and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
