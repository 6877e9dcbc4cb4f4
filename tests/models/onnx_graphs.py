"""Tiny ONNX files, built node by node."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

KINDS = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
    "float16": TensorProto.FLOAT16,
}


def numbers(*shape, low=-1.0, high=1.0, seed=0):
    """Random float32 constants."""
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def whole(*values):
    """An int64 vector."""
    return np.array(values, np.int64)


def graph(nodes, inputs, outputs, constants=None, opset=17, functions=(), kinds=None):
    """A file of nodes.

    Args:
        nodes: nodes in order.
        inputs: shape by input name; strings are open axes.
        outputs: names of the outputs.
        constants: arrays by name.
        opset: version of ONNX's operators.
        functions: local functions.
        kinds: types of inputs that are not float32, by name.
    """
    values = [
        helper.make_tensor_value_info(name, KINDS[(kinds or {}).get(name, "float32")], shape)
        for name, shape in inputs.items()
    ]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    domains = [helper.make_opsetid(domain, 1) for domain in {each.domain for each in nodes} - {""}]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", values, results, stored),
        opset_imports=[helper.make_opsetid("", opset), *domains],
        functions=list(functions),
        ir_version=10,
    )
    return proto if domains else onnx.shape_inference.infer_shapes(proto)


def saved(path, *args, **kwargs):
    """A file of nodes on disk: path, as a string."""
    onnx.save(graph(*args, **kwargs), str(path))
    return str(path)


def node(kind, inputs, outputs, name=None, **attributes):
    """A node; inputs and outputs in one string, with blanks between."""
    made = outputs.split(" ")
    return helper.make_node(kind, inputs.split(" "), made, name=name or f"{kind}_{made[0]}", **attributes)
