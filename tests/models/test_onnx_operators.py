"""Every operator against ONNX Runtime: tiny graphs with attributes and opsets varied, batches of 1 and 3 samples."""

import numpy as np
import pytest
from onnx_graphs import graph, node, numbers, whole

from autocompress.models.onnx import load_onnx

IMAGE, WIDE, ROWS = ("N", 4, 6, 7), ("N", 4, 9), ("N", 5)


def case(kind, shape=IMAGE, constants=(), opset=17, outputs="y", kinds=None, more=(), **attributes):
    """One node: inputs x, then `more` inputs of other shapes, then constants."""
    return kind, shape, tuple(constants), opset, outputs, kinds, tuple(more), attributes


POSITIVE = {"low": 0.2, "high": 2.0}
CASES = {
    # layers
    "conv": case("Conv", constants=[numbers(3, 4, 3, 3), numbers(3)], pads=[1, 1, 1, 1]),
    "conv, no bias": case("Conv", constants=[numbers(3, 4, 3, 3)], strides=[2, 1], dilations=[1, 2]),
    "conv, uneven pads": case("Conv", constants=[numbers(3, 4, 3, 3)], pads=[0, 1, 2, 0]),
    "conv, same upper": case("Conv", constants=[numbers(3, 4, 3, 2)], strides=[2, 2], auto_pad="SAME_UPPER"),
    "conv, same lower": case("Conv", constants=[numbers(3, 4, 3, 2)], strides=[2, 2], auto_pad="SAME_LOWER"),
    "conv, valid": case("Conv", constants=[numbers(3, 4, 3, 2)], auto_pad="VALID"),
    "conv, groups": case("Conv", constants=[numbers(6, 2, 3, 3)], group=2),
    "conv, depthwise": case("Conv", constants=[numbers(4, 1, 3, 3), numbers(4)], group=4, pads=[1, 1, 1, 1]),
    "conv, 1 axis": case("Conv", WIDE, [numbers(3, 4, 3)], pads=[2, 0]),
    "conv, 3 axes": case("Conv", ("N", 2, 4, 5, 6), [numbers(3, 2, 2, 2, 2)]),
    "conv, opset 9": case("Conv", constants=[numbers(3, 4, 3, 3)], opset=9),
    "transposed": case("ConvTranspose", constants=[numbers(4, 3, 3, 3), numbers(3)], strides=[2, 2], pads=[1, 1, 1, 1]),
    "transposed, output padding": case(
        "ConvTranspose", constants=[numbers(4, 3, 3, 3)], strides=[2, 2], output_padding=[1, 1]
    ),
    "transposed, uneven": case("ConvTranspose", constants=[numbers(4, 3, 3, 3)], strides=[2, 2], pads=[0, 1, 1, 0]),
    "transposed, groups": case("ConvTranspose", constants=[numbers(4, 2, 3, 3)], group=2),
    "transposed, same": case("ConvTranspose", constants=[numbers(4, 3, 3, 3)], strides=[2, 2], auto_pad="SAME_UPPER"),
    "transposed, output shape": case(
        "ConvTranspose", constants=[numbers(4, 3, 3, 3)], strides=[2, 2], output_shape=[12, 14]
    ),
    "gemm": case("Gemm", ROWS, [numbers(5, 3), numbers(3)]),
    "gemm, transposed": case("Gemm", ROWS, [numbers(3, 5), numbers(3)], transB=1, beta=0.5),
    "gemm, alpha": case("Gemm", ROWS, [numbers(3, 5), numbers(1, 3)], transB=1, alpha=2.0),
    "gemm, no bias": case("Gemm", ROWS, [numbers(5, 3)]),
    "matmul": case("MatMul", WIDE, [numbers(9, 3)]),
    "matmul, batch of matrices": case("MatMul", WIDE, [numbers(4, 9, 3)]),
    "matmul, two inputs": case("MatMul", ("N", 3, 4), more=[("N", 4, 2)]),
    "einsum": case("Einsum", ("N", 3, 4), more=[("N", 4, 2)], equation="bij, bjk -> bik"),
    "lstm": case("LSTM", (5, "N", 3), [numbers(1, 16, 3), numbers(1, 16, 4), numbers(1, 32)], hidden_size=4),
    "lstm, both": case(
        "LSTM", (5, "N", 3), [numbers(2, 16, 3), numbers(2, 16, 4)], outputs="y h c",
        hidden_size=4, direction="bidirectional",
    ),
    "gru": case(
        "GRU", (5, "N", 3), [numbers(1, 12, 3), numbers(1, 12, 4), numbers(1, 24)], hidden_size=4,
        linear_before_reset=1,
    ),
    "rnn": case("RNN", (5, "N", 3), [numbers(1, 4, 3), numbers(1, 4, 4), numbers(1, 8)], hidden_size=4),
    # norms
    "batch norm": case(
        "BatchNormalization", constants=[numbers(4), numbers(4), numbers(4), numbers(4, **POSITIVE)], epsilon=1e-3
    ),
    "batch norm, rows": case(
        "BatchNormalization", ROWS, [numbers(5), numbers(5), numbers(5), numbers(5, **POSITIVE)], opset=9
    ),
    "instance norm": case("InstanceNormalization", constants=[numbers(4), numbers(4)], epsilon=1e-3),
    "layer norm": case("LayerNormalization", WIDE, [numbers(9), numbers(9)], epsilon=1e-3),
    "layer norm, two axes": case("LayerNormalization", WIDE, [numbers(4, 9)], axis=1),
    "group norm": case("GroupNormalization", constants=[numbers(4), numbers(4)], num_groups=2, opset=21),
    "group norm, by group": case("GroupNormalization", constants=[numbers(2), numbers(2)], num_groups=2, opset=18),
    "rms norm": case("RMSNormalization", WIDE, [numbers(9)], opset=23, epsilon=1e-3),
    "lp normalization": case("LpNormalization", WIDE, axis=1, p=1),
    "lrn": case("LRN", size=3, alpha=0.1, beta=0.5, bias=2.0),
    "mean variance": case("MeanVarianceNormalization", opset=13, axes=[0, 2, 3][1:]),
    # pools
    "max pool": case("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "max pool, ceil": case("MaxPool", kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1),
    "max pool, uneven": case("MaxPool", kernel_shape=[3, 3], pads=[0, 1, 2, 1]),
    "max pool, same": case("MaxPool", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    "max pool, dilated": case("MaxPool", WIDE, kernel_shape=[2], dilations=[2]),
    "average pool": case("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "average pool, with pads": case("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "average pool, uneven": case("AveragePool", kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
    "average pool, uneven, with pads": case("AveragePool", kernel_shape=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1),
    "average pool, same": case("AveragePool", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    "average pool, ceil": case("AveragePool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, opset=19),
    "lp pool": case("LpPool", kernel_shape=[2, 2], strides=[2, 2], p=2),
    "global average": case("GlobalAveragePool"),
    "global average, 1 axis": case("GlobalAveragePool", WIDE),
    "global max": case("GlobalMaxPool"),
    # reductions
    "mean": case("ReduceMean", axes=[2, 3], keepdims=0),
    "mean, axes as an input": case("ReduceMean", constants=[whole(-1, -2)], opset=18),
    "sum": case("ReduceSum", constants=[whole(1)], keepdims=0),
    "sum, opset 11": case("ReduceSum", axes=[1], opset=11),
    "sum, no axes": case("ReduceSum", constants=[whole()], noop_with_empty_axes=1),
    "max": case("ReduceMax", axes=[1, 3]),
    "min": case("ReduceMin", axes=[-1], keepdims=0),
    "product": case("ReduceProd", axes=[1, 2]),
    "l1": case("ReduceL1", axes=[1]),
    "l2": case("ReduceL2", axes=[1, 2], keepdims=0),
    "sum of squares": case("ReduceSumSquare", axes=[1]),
    "log of sum of exponentials": case("ReduceLogSumExp", axes=[3]),
    "argmax": case("ArgMax", axis=1, keepdims=0),
    "argmin": case("ArgMin", axis=-1),
    "top k": case("TopK", ROWS, [whole(2)], outputs="y i"),
    "cumulative sum": case("CumSum", ROWS, [whole(1)[0]], exclusive=1, reverse=1),
    # shapes
    "flatten": case("Flatten"),
    "flatten, axis 2": case("Flatten", axis=2),
    "reshape": case("Reshape", constants=[whole(0, 2, 2, -1)]),
    "reshape, merged": case("Reshape", constants=[whole(-1, 4, 42)]),
    "transpose": case("Transpose", perm=[0, 2, 3, 1]),
    "squeeze": case("Squeeze", ("N", 1, 3, 1), [whole(1, 3)]),
    "squeeze, opset 11": case("Squeeze", ("N", 1, 3, 1), axes=[3], opset=11),
    "unsqueeze": case("Unsqueeze", WIDE, [whole(-1, 1)]),
    "unsqueeze, opset 11": case("Unsqueeze", WIDE, axes=[2], opset=11),
    "concat": case("Concat", WIDE, more=[("N", 2, 9)], axis=1),
    "expand": case("Expand", ("N", 1, 3), [whole(1, 4, 1)]),
    "tile": case("Tile", WIDE, [whole(1, 2, 3)]),
    "pad": case("Pad", constants=[whole(0, 0, 1, 2, 0, 0, 0, 1), np.float32(0.5)]),
    "pad, channels": case("Pad", constants=[whole(0, 1, 0, 0, 0, 2, 0, 0)]),
    "pad, reflect": case("Pad", constants=[whole(0, 0, 1, 2, 0, 0, 0, 1)], mode="reflect"),
    "pad, edge": case("Pad", WIDE, [whole(0, 0, 2, 0, 0, 1)], mode="edge"),
    "pad, opset 9": case("Pad", pads=[0, 0, 1, 1, 0, 0, 1, 1], value=1.5, opset=9),
    "pad, axes": case("Pad", constants=[whole(1, 2), np.float32(0), whole(3)], opset=18),
    "depth to space": case("DepthToSpace", blocksize=2),
    "depth to space, crd": case("DepthToSpace", blocksize=2, mode="CRD"),
    "space to depth": case("SpaceToDepth", ("N", 2, 4, 6), blocksize=2),
    "triangle": case("Trilu", upper=0),
    "identity": case("Identity"),
    "dropout": case("Dropout"),
    # parts
    "slice": case("Slice", constants=[whole(1, -3), whole(3, 2**62), whole(2, 3), whole(1, 2)]),
    "slice, backwards": case("Slice", WIDE, [whole(-1), whole(-(2**62)), whole(2), whole(-2)]),
    "slice, opset 9": case("Slice", starts=[1], ends=[5], axes=[3], opset=9),
    "slice, half of the channels": case("Slice", constants=[whole(2), whole(4), whole(1)]),
    "split": case("Split", constants=[whole(1, 3)], outputs="y z", axis=1),
    "split, equal": case("Split", outputs="y z", axis=1, opset=11),
    "split, into 3": case("Split", WIDE, outputs="y z w", axis=2, num_outputs=3, opset=18),
    "gather, one": case("Gather", constants=[whole(-1)[0]], axis=1),
    "gather, some": case("Gather", constants=[whole(3, 0, -2)], axis=1),
    "gather, a run": case("Gather", constants=[whole(1, 2)], axis=1),
    "gather, a matrix": case("Gather", constants=[np.array([[0, 1], [2, 3]])], axis=1),
    "gather elements": case("GatherElements", ROWS, more=[("N", 2)], kinds={"x1": "int64"}, axis=1),
    "one of two": case("Where", ROWS, more=[("N", 5), ("N", 5)], kinds={"x": "bool"}),
    # resizing
    "upsample, opset 9": case("Upsample", constants=[np.array([1, 1, 2, 2], np.float32)], opset=9),
    "resize, opset 10": case("Resize", constants=[np.array([1, 1, 2, 3], np.float32)], opset=10),
    "resize to sizes": case(
        "Resize", constants=[None, None, whole(3, 4, 9, 5)], mode="linear", shape=(3, 4, 6, 7),
        coordinate_transformation_mode="half_pixel",
    ),
    **{
        f"resize, {mode}, {coordinates}, {scale}": case(
            "Resize", constants=[None, np.array([1, 1, scale, scale], np.float32)], mode=mode,
            coordinate_transformation_mode=coordinates, **more,
        )
        for mode, coordinates, scale, more in [
            ("nearest", "asymmetric", 2, {"nearest_mode": "floor"}),
            ("nearest", "half_pixel", 2, {}),
            ("nearest", "half_pixel", 1.5, {"nearest_mode": "round_prefer_ceil"}),
            ("nearest", "align_corners", 2, {"nearest_mode": "ceil"}),
            ("nearest", "tf_half_pixel_for_nn", 2, {"nearest_mode": "floor"}),
            ("nearest", "pytorch_half_pixel", 0.5, {}),
            ("linear", "half_pixel", 2, {}),
            ("linear", "half_pixel", 0.6, {}),
            ("linear", "pytorch_half_pixel", 3, {}),
            ("linear", "align_corners", 2, {}),
            ("linear", "asymmetric", 2, {}),
            ("cubic", "half_pixel", 2, {}),
            ("cubic", "align_corners", 2, {}),
        ]
    },
    # pointwise
    "softmax": case("Softmax", axis=1),
    "softmax, opset 11": case("Softmax", axis=1, opset=11),
    "softmax, last axis, opset 11": case("Softmax", axis=-1, opset=11),
    "log softmax": case("LogSoftmax", axis=-1),
    "clip": case("Clip", constants=[np.float32(-0.3), np.float32(0.5)]),
    "clip, above": case("Clip", constants=[None, np.float32(0.5)]),
    "clip, opset 9": case("Clip", min=0.0, max=6.0, opset=9),
    "prelu": case("PRelu", constants=[numbers(4, 1, 1)]),
    "prelu, one": case("PRelu", constants=[numbers(1)]),
    "prelu, by position": case("PRelu", constants=[numbers(4, 6, 7)]),
    "elu": case("Elu", alpha=0.7),
    "celu": case("Celu", alpha=0.7),
    "selu": case("Selu", alpha=1.5, gamma=1.2),
    "leaky relu": case("LeakyRelu", alpha=0.2),
    "thresholded relu": case("ThresholdedRelu", alpha=0.3),
    "hard sigmoid": case("HardSigmoid"),
    "hard sigmoid of 1/6": case("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hard swish": case("HardSwish"),
    "gelu": case("Gelu", opset=20),
    "gelu, tanh": case("Gelu", opset=20, approximate="tanh"),
    "mish": case("Mish", opset=18),
    "mod": case("Mod", ROWS, [np.float32(0.4)], fmod=1),
    "power": case("Pow", ROWS, [np.float32(2)]),
    "cast": case("Cast", ROWS, to=6),
    "not": case("Not", ROWS, kinds={"x": "bool"}),
    "and": case("And", ROWS, more=[("N", 5)], kinds={"x": "bool", "x1": "bool"}),
    **{kind: case(kind, ROWS) for kind in (
        "Abs", "Neg", "Exp", "Floor", "Ceil", "Round", "Sign", "Erf", "Sin", "Cos", "Relu", "Sigmoid", "Tanh",
        "Softplus", "Softsign", "Reciprocal", "Sqrt", "Log", "Atan",
    )},
    **{f"{kind} of two": case(kind, WIDE, more=[("N", 1, 9)]) for kind in (
        "Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum",
    )},
    **{f"{kind} of channels": case(kind, constants=[numbers(1, 4, 1, 1, **POSITIVE)]) for kind in (
        "Add", "Sub", "Mul", "Div", "Max", "Min",
    )},
    **{f"{kind} of a number": case(kind, constants=[np.float32(0.3)]) for kind in (
        "Add", "Sub", "Mul", "Div", "Max", "Min",
    )},
    **{kind: case(kind, ROWS, more=[("N", 5)]) for kind in (
        "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual",
    )},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operator_computes_what_onnx_runtime_does(name, tmp_path):
    kind, shape, constants, opset, outputs, kinds, more, attributes = CASES[name]
    inputs = {"x": shape, **{f"x{position}": each for position, each in enumerate(more, 1)}}
    stored = {f"c{position}": array for position, array in enumerate(constants) if array is not None}
    names = [f"c{position}" if array is not None else "" for position, array in enumerate(constants)]
    built = node(kind, " ".join([*inputs, *names]), outputs, **attributes)
    (tmp_path / "net.onnx").write_bytes(
        graph([built], inputs, outputs.split(), stored, opset, kinds=kinds).SerializeToString()
    )
    network = load_onnx(tmp_path / "net.onnx")
    assert network.difference <= 2e-6
    assert network.output_names == tuple(outputs.split())
