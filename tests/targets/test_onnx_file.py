"""ONNX files: packed at their real width, small, and in ONNX Runtime the same answers from integer kernels."""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from lowering_toys import SHAPES, Concat, Depthwise, Plain, Residual, Tokens, compress, toy
from onnx import TensorProto
from torch import nn
from torch.export import ExportedProgram

from autocompress.data import load_data
from autocompress.errors import ExportError, InputError
from autocompress.execute.compressed import Compressed, from_menus, write_weights_
from autocompress.menus import MenuSettings, build_menus
from autocompress.models import load_model
from autocompress.network import fold_batch_norms, trace
from autocompress.plan import Plan
from autocompress.targets.graph.lowering import lower
from autocompress.targets.onnxruntime.file import write_onnx
from autocompress.targets.onnxruntime.session import open_session
from autocompress.targets.timing import Effort, time_pair
from autocompress_envs.problem import Labeling

RESIDUAL_KERNELS = {"QLinearConv": 3, "QLinearAdd": 2, "QLinearGlobalAveragePool": 1, "QGemm": 1, "Conv": 0, "Gemm": 0}
MIXED = (1, 2, 3, 4, 5, 8, 16, 32)


def kernels(content, tmp_path):
    open_session(content, optimized=tmp_path / "optimized.onnx")
    return Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)


def initializers(content):
    return onnx.load_from_string(content).graph.initializer


def assert_agrees(content, lowered, x, tolerance, agreement=0.99):
    """`tolerance` of the outputs' standard deviation: a value between two steps may round the other way."""
    session = open_session(content)
    got = torch.cat([session.run(x[:1]), session.run(x[1:8]), session.run(x[8:])])
    with torch.no_grad():
        expected = lowered.graph(x)
    assert float((got - expected).abs().max()) <= tolerance * float(expected.std())
    assert float((got.argmax(1) == expected.argmax(1)).double().mean()) >= agreement


@pytest.mark.parametrize("kind", SHAPES)
def test_onnx_runtime_answers_like_the_graph(kind):
    for weight_bits, activation_bits in ((MIXED, (8, 8, 32)), ((4, 2, 8), (8,))):
        compressed, x = toy(kind, weight_bits, activation_bits)
        lowered = lower(compressed, x, integer=True)
        content = write_onnx(lowered)
        assert_agrees(content, lowered, x, 0.1, agreement=0.98)  # nobody trained it: many answers are near ties
        onnx.checker.check_model(onnx.load_from_string(content), full_check=True)


class Masked(Plain):
    """Two comparisons in one mask on the outputs: by an operator that ONNX knows under another name, or not at all."""

    def __init__(self, known: bool) -> None:
        super().__init__()
        self.known = known

    def forward(self, x):
        x = super().forward(x)
        mask = (x > -0.5).__and__(x < 0.5) if self.known else (x > -0.5).__xor__(x < 0.5)
        return torch.where(mask, x, 2 * x)


@pytest.mark.parametrize("known", [True, False])
def test_a_program_is_traced_anew_only_where_an_operator_is_decomposed(known, monkeypatch):
    torch.manual_seed(0)
    compressed, x = compress(Masked(known).eval(), torch.randn(300, 12), (32,), (32,))
    lowered, decompose, decomposed = lower(compressed, x, integer=True), ExportedProgram.run_decompositions, []

    def counted(program, *arguments):
        decomposed.append(program)
        return decompose(program, *arguments)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", counted)
    content = write_onnx(lowered)
    assert len(decomposed) == (not known)
    assert_agrees(content, lowered, x, 1e-4)


def test_float_layers_are_exact():
    """ONNX Runtime would run them with 8-bit weights if their biases were plain tensors."""
    for kind in (Plain, Concat):
        compressed, x = toy(kind, (16, 32), (8,))
        lowered = lower(compressed, x, integer=True)
        got = open_session(write_onnx(lowered)).run(x)
        with torch.no_grad():
            expected = lowered.graph(x)
        assert float((got - expected).abs().median()) <= 1e-6 * float(expected.std())


@pytest.mark.parametrize("weight_bits", [4, 32])
def test_a_last_layer_without_bias(weight_bits):
    """A bias of zeros is left out of the graph; random networks have one behind their last layer."""
    torch.manual_seed(0)
    model = Plain().eval()
    torch.nn.init.zeros_(model[4].bias)
    compressed, x = compress(model, torch.randn(300, 12), (weight_bits,))
    lowered = lower(compressed, x, integer=True)
    assert_agrees(write_onnx(lowered), lowered, x, 0.1, agreement=0.98)


def test_a_row_that_is_all_bias_keeps_it():
    """ONNX Runtime stores a bias in 32 bits, in steps of input scale times weight scale: too fine a scale clips it."""
    compressed, x = toy(Residual, (4,), (8,))
    layers, model = dict(compressed.layers), compressed.model
    for name in ("inner", "head"):
        layer = layers[name]
        scale, bias = layer.scale.clone(), layer.bias.clone()
        scale[0], bias[0] = 1e-12, 1.5
        layers[name] = replace(layer, scale=scale, bias=bias)
        write_weights_(model, name, layers[name])
    lowered = lower(Compressed(model, layers, compressed.plan), x, integer=True)
    assert lowered.layers["inner"].values[0].abs().max() == 0
    assert lowered.layers["inner"].bias[0] == pytest.approx(1.5, rel=1e-6)
    assert torch.equal(lowered.layers["inner"].values[1:], layers["inner"].values[1:])
    assert_agrees(write_onnx(lowered), lowered, x, 0.1, agreement=0.98)


def test_weights_are_stored_at_their_width():
    """12 x 16 at 3 bits as INT4, 16 x 16 at 1 bit as INT2, 16 x 5 at 5 bits as INT8."""
    compressed, x = toy(Plain, (3, 1, 5))
    content = write_onnx(lower(compressed, x, integer=True))
    stored = {tensor.data_type: tensor for tensor in initializers(content) if len(tensor.dims) == 2}
    assert {kind: len(tensor.raw_data) for kind, tensor in stored.items()} == {
        TensorProto.INT4: 12 * 16 // 2,
        TensorProto.INT2: 16 * 16 // 4,
        TensorProto.INT8: 16 * 5,
    }
    for kind, layer in zip(
        (TensorProto.INT4, TensorProto.INT2, TensorProto.INT8), compressed.layers.values(), strict=True
    ):
        codes = onnx.numpy_helper.to_array(stored[kind]).astype(np.int8)
        assert np.array_equal(codes, layer.values.numpy())
    proto = onnx.load_from_string(content)
    assert (proto.ir_version, proto.opset_import[0].version) == (13, 25)


def test_float_labels_are_stored_as_float16_and_float32():
    compressed, x = toy(Plain, (16, 32, 8))
    content = write_onnx(lower(compressed, x, integer=True))
    sizes = {tensor.data_type: len(tensor.raw_data) for tensor in initializers(content) if len(tensor.dims) == 2}
    assert sizes == {TensorProto.FLOAT16: 12 * 16 * 2, TensorProto.FLOAT: 16 * 16 * 4, TensorProto.INT8: 16 * 5}
    proto = onnx.load_from_string(content)
    assert (proto.ir_version, proto.opset_import[0].version) == (10, 21)


def test_layer_that_runs_twice_is_stored_once_and_turned_for_the_product():
    compressed, x = toy(Tokens, (8,))
    content = write_onnx(lower(compressed, x, integer=True))
    stored = [
        tensor for tensor in initializers(content) if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 2
    ]
    assert sorted(tuple(tensor.dims) for tensor in stored) == [(5, 16), (12, 16), (16, 16)]
    codes = [onnx.numpy_helper.to_array(tensor) for tensor in stored]
    assert any(np.array_equal(each, compressed.layers["again"].values.numpy().T) for each in codes)


@pytest.mark.parametrize(
    ("kind", "bits", "expected"),
    [
        (Residual, 8, RESIDUAL_KERNELS),
        (Residual, 4, RESIDUAL_KERNELS),
        (Residual, 2, RESIDUAL_KERNELS),
        (Depthwise, 4, {"QLinearConv": 5, "QLinearAdd": 1, "QGemm": 1, "Conv": 0, "Gemm": 0}),
        (Concat, 8, {"QLinearConv": 3, "QGemm": 1, "Conv": 0, "Gemm": 0}),
        # ONNX Runtime leaves the product in float32 whose activation is not rounded before the addition.
        (Tokens, 4, {"MatMulIntegerToFloat": 1, "QLinearMatMul": 1, "QGemm": 1, "MatMul": 1, "Gemm": 0}),
        (Plain, 2, {"QGemm": 3, "Gemm": 0}),
    ],
)  # fmt: skip
def test_integer_kernels_run(kind, bits, expected, tmp_path):
    compressed, x = toy(kind, (bits,))
    found = kernels(write_onnx(lower(compressed, x, integer=True)), tmp_path)
    assert {name: found[name] for name in expected} == expected


def test_file_holds_little_else_than_its_tensors():
    """Measured 300 bytes a layer; the header, the interface and the graph's name take some of a small network's."""
    model = load_model("digits")
    compressed, x = compress(model, torch.rand(32, 1, 8, 8), (8,))
    lowered = lower(compressed, x, integer=True)
    content = write_onnx(lowered)
    proto = onnx.load_from_string(content)
    overhead = len(content) - sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    assert overhead <= 350 * len(compressed.layers)
    assert not proto.graph.value_info
    assert not any(node.name or node.doc_string or node.metadata_props for node in proto.graph.node)
    assert write_onnx(lowered) == content


def test_interface_names_its_batch_axis():
    compressed, x = toy(Residual, (8,))
    graph = onnx.load_from_string(write_onnx(lower(compressed, x, integer=True))).graph
    sizes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert sizes == {"input": ["batch", 2, 8, 8], "output": ["batch", 5]}
    inferred = onnx.shape_inference.infer_shapes(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)]),
        check_type=True,
        strict_mode=True,
    )
    assert len(inferred.graph.value_info) > 0


def test_plans_of_the_digits_network_agree_on_its_test_data():
    model, data = load_model("digits"), load_data("digits", calibration_samples=128, search_samples=32)
    inputs, _ = data.calibration()
    network = trace(model, inputs[:1])
    settings = MenuSettings(weight_bits=(2, 3, 4, 6, 8, 16, 32), activation_bits=(8, 32), sparsity_levels=4)
    menus = build_menus(model, network, inputs, settings, data_fingerprint=data.fingerprint)
    problem, rng, folded = menus.problem(), np.random.default_rng(0), fold_batch_norms(model, network)
    images = torch.cat([batch for batch, _ in data.test_batches()])[:300]
    for low in (1, 3):  # of the bit-widths: 3 or 4 and more
        labeling = Labeling(
            *(np.array([rng.integers(min(first, len(getattr(layer, field)) - 1), len(getattr(layer, field)))
                        for layer in problem.layers])
              for field, first in (("sparsities", 0), ("weight_bits", low), ("activation_bits", 0)))
        )  # fmt: skip
        lowered = lower(from_menus(menus, labeling, folded), inputs, integer=True)
        assert_agrees(write_onnx(lowered), lowered, images, 0.15)


def test_activations_of_other_widths_are_refused():
    compressed, x = toy(Plain, (8,), (8, 4))
    with pytest.raises(
        InputError,
        match=r"^`plan` must round activations to 8 bits or not at all for an ONNX file, got 4 bits for 2; "
        r"search with `--target onnxruntime`\.$",
    ):
        write_onnx(lower(compressed, x, integer=True))


class Unknown(nn.Module):
    def forward(self, x):
        return torch.special.i1e(x)


def test_operator_that_onnx_lacks_is_named():
    lowered = lower(Compressed(Unknown().eval(), {}, Plan({})), torch.randn(4, 3), integer=True)
    with pytest.raises(
        ExportError, match=r"^`model` must have operators that ONNX has, got [\w.:]*bessel_i1e[\w.]*\.$"
    ):
        write_onnx(lowered)


def test_export_prints_nothing(capfd):
    compressed, x = toy(Residual, (8,))
    open_session(write_onnx(lower(compressed, x, integer=True)))
    assert capfd.readouterr() == ("", "")


def test_damaged_file_is_refused_in_one_line(tmp_path):
    compressed, x = toy(Plain, (8,))
    content = write_onnx(lower(compressed, x, integer=True))
    with pytest.raises(InputError, match=r"\A`path` must be a file that ONNX Runtime loads, got 100 bytes: [^\n]+\Z"):
        open_session(content[:100])
    with pytest.raises(
        InputError, match=r"\A`path` must be a file that ONNX Runtime loads, got \S+none\.onnx: [^\n]+\Z"
    ):
        open_session(tmp_path / "none.onnx")


def test_a_session_is_timed_without_converting_its_inputs_anew():
    compressed, x = toy(Plain, (8,))
    session = open_session(write_onnx(lower(compressed, x, integer=True)))
    call = session.prepared(x[:2])
    assert torch.equal(torch.from_numpy(call()[0]), session.run(x[:2]))
    assert time_pair(session, session, x[:2], Effort(least_rounds=3, seconds=0.0)).original.p50 > 0
