"""Translations of ONNX's operators, one function each, by kind."""

from autocompress.models.onnx.building import Untranslatable
from autocompress.models.onnx.operators.indexing import INDEXING
from autocompress.models.onnx.operators.layers import LAYERS
from autocompress.models.onnx.operators.pointwise import POINTWISE
from autocompress.models.onnx.operators.pooling import POOLING
from autocompress.models.onnx.operators.resizing import RESIZING
from autocompress.models.onnx.operators.shapes import SHAPES
from autocompress.models.onnx.operators.sizes import HOST, is_arithmetic, shape, size
from autocompress.models.onnx.translation import Handler, Operation

OF_TENSORS: dict[str, Handler] = {
    **POINTWISE,
    **LAYERS,
    **POOLING,
    **SHAPES,
    **INDEXING,
    **RESIZING,
    "Shape": shape,
    "Size": size,
}
OF_CONSTANTS = frozenset({"Constant", "DequantizeLinear"})  # operators that are computed only where all is constant


def handle(op: Operation) -> None:
    """Translate a node: by Python's numbers where it computes with sizes only, else over tensors."""
    if op.node.op_type in OF_CONSTANTS:
        raise Untranslatable("values that depend on the network's input")
    handlers = HOST if is_arithmetic(op) else OF_TENSORS
    handlers[op.node.op_type](op)
