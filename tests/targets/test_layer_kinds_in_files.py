"""Files of recurrent layers, transposed convolutions, convolutions along three axes and tied weights.

Outputs of a file equal PyTorch's to 1e-6 of their largest; weights are stored as integers of their own width.
"""

import io
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from autocompress.execute.compressed import Compressed, uncompressed, write_weights_
from autocompress.menus.rounding import code_range
from autocompress.network import fold_batch_norms, trace
from autocompress.network.layered import layered
from autocompress.plan import Label, Plan
from autocompress.targets.graph.lowering import Lowered, lower
from autocompress.targets.onnxruntime.file import write_onnx
from autocompress.targets.onnxruntime.session import open_session
from autocompress.targets.openvino.ir import run_openvino, write_openvino
from autocompress.targets.packed.file import load_packed, pack
from autocompress.targets.pt2.archive import write_pt2

RECURRENT = {"gru": nn.GRU, "lstm": nn.LSTM, "tanh": nn.RNN, "relu": partial(nn.RNN, nonlinearity="relu")}


class Sequences(nn.Module):
    """Input (6, 4): a recurrent layer, of which the last outputs or the last states go to the head."""

    def __init__(self, kind: str, of_states: bool, **settings: object) -> None:
        super().__init__()
        self.body = RECURRENT[kind](4, 5, **settings)
        self.is_lstm, self.of_states = kind == "lstm", of_states
        directions = 1 + bool(self.body.bidirectional)
        self.count = directions * self.body.num_layers
        self.first = nn.Linear(4, 5 * self.count)
        self.head = nn.Linear(5 * (self.count if of_states else directions), 3)

    def forward(self, x: Tensor) -> Tensor:
        given = x if self.body.batch_first else x.transpose(0, 1)
        if not self.of_states:
            outputs, _ = self.body(given)
            return self.head(outputs[:, -1] if self.body.batch_first else outputs[-1])
        first = self.first(x[:, 0]).view(-1, self.count, 5).transpose(0, 1).contiguous()
        _, last = self.body(given, (first, 2 * first) if self.is_lstm else first)
        last = last[1] if self.is_lstm else last
        return self.head(last.transpose(0, 1).flatten(1))


def rounded(model: nn.Module, x: Tensor, bits: tuple[int, ...]) -> Compressed:
    """A network with its weights rounded to nearest, its layers having these bits in turn."""
    model = layered(model.eval())
    network = trace(model, x[:1])
    made = uncompressed(fold_batch_norms(model, network), network)
    layers = dict(made.layers)
    for number, (name, layer) in enumerate(made.layers.items()):
        width = bits[number % len(bits)]
        if width < 16:
            low, high = code_range(width)
            scale = layer.values.flatten(1).abs().amax(1) / high
            codes = layer.values / scale.view(-1, *[1] * (layer.values.ndim - 1))
            layers[name] = replace(layer, values=codes.round().clamp(low, high).to(torch.int8), scale=scale, bits=width)
        else:
            values = layer.values.half().float() if width == 16 else layer.values
            layers[name] = replace(layer, values=values, bits=width)
        write_weights_(made.model, name, layers[name])
    labels = {name: Label(weight_bits=layer.bits) for name, layer in layers.items()}
    return Compressed(made.model, layers, Plan(labels, "channel", network.fingerprint))


def check_files(made: Compressed, x: Tensor, folder: Path) -> onnx.ModelProto:
    """The ONNX file, after ONNX Runtime, the packed file and the PT2 archive gave PyTorch's outputs."""
    with torch.no_grad():
        expected = made.model(x)
    lowered = lower(made, x, integer=True)
    content = write_onnx(lowered)
    (folder / "model.safetensors").write_bytes(pack(lowered))
    archive = torch.export.load(io.BytesIO(write_pt2(lowered))).module()
    tolerance = 1e-6 * float(expected.abs().max())
    for outputs in (open_session(content).run(x), load_packed(folder / "model.safetensors").graph(x), archive(x)):
        assert (torch.as_tensor(outputs) - expected).abs().max() <= tolerance
    return onnx.load_from_string(content)


def stored_types(file: onnx.ModelProto, axes: int) -> Counter[int]:
    """Numbers of tensors with so many axes, by type."""
    return Counter(tensor.data_type for tensor in file.graph.initializer if len(tensor.dims) == axes)


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize(
    ("of_states", "settings"),
    [
        (True, {"batch_first": True}),
        (False, {"bidirectional": True}),
        (True, {"num_layers": 2, "bidirectional": True, "bias": False}),
    ],
)
def test_recurrent_layers(kind: str, of_states: bool, settings: dict[str, object], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Sequences(kind, of_states, **settings), torch.randn(3, 6, 4)
    file = check_files(rounded(model, x, (8, 4, 2)), x, tmp_path)
    operator = {"gru": "GRU", "lstm": "LSTM"}.get(kind, "RNN")
    assert sum(node.op_type == operator for node in file.graph.node) == settings.get("num_layers", 1)
    matrices = {TensorProto.INT8, TensorProto.INT4, TensorProto.INT2}
    found = stored_types(file, 2)
    assert sum(found[each] for each in matrices) == len(trace(layered(model), x[:1]).layers)
    assert stored_types(file, 3) == {}  # no stacked matrix in floats


@pytest.mark.parametrize("bits", [16, 32])
def test_recurrent_layers_in_floats(bits: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Sequences("gru", False, bidirectional=True), torch.randn(3, 6, 4)
    check_files(rounded(model, x, (bits,)), x, tmp_path)


def test_a_strided_input_is_followed(tmp_path: Path) -> None:
    """A step that equals the samples of the exporter's example must not fix their number."""

    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.GRU(4, 5, 2, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x[:, ::2])[0].mean(1))

    torch.manual_seed(0)
    x = torch.randn(5, 9, 4)
    check_files(rounded(Strided(), x, (8,)), x, tmp_path)


def spatial(axes: int, groups: int) -> nn.Module:
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    transposed = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[axes]
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[axes]
    return nn.Sequential(
        convolution(2, 4, 3, padding=1), norm(4), nn.ReLU(), transposed(4, 6, 3, 2, 1, groups=groups), norm(6),
        nn.ReLU(), convolution(6, 3, 3), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("axes", "groups", "bits"),
    [
        *((axes, groups, (4, 2, 8)) for axes in (1, 2, 3) for groups in (1, 2)),
        (2, 1, (8,)), (3, 2, (8,)), (2, 1, (16,)), (2, 2, (32,)),
    ],
)  # fmt: skip
def test_transposed_convolutions(axes: int, groups: int, bits: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, *[5] * axes)
    file = check_files(rounded(spatial(axes, groups), x, bits), x, tmp_path)
    operators = [node.op_type for node in file.graph.node]
    assert operators.count("ConvTranspose") == 1
    if groups == 1:  # stored as ONNX wants it, with a scale for each channel on axis 1
        assert "Transpose" not in operators
    if bits == (8,):
        assert stored_types(file, axes + 2) == {TensorProto.INT8: 3}


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_recurrent_layers_in_openvino(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    torch.manual_seed(0)
    x = torch.randn(3, 6, 4)
    made = rounded(Sequences(kind, False, bidirectional=True, num_layers=2), x, (8, 4, 2))
    path, _ = write_openvino(write_onnx(lower(made, x, integer=True)), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(run_openvino(path, x), made.model(x), atol=1e-5, rtol=1e-4)


def test_transposed_convolutions_in_openvino(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    torch.manual_seed(0)
    x = torch.randn(3, 2, 5, 5)
    made = rounded(spatial(2, 2), x, (8, 4, 2))
    path, _ = write_openvino(write_onnx(lower(made, x, integer=True)), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(run_openvino(path, x), made.model(x), atol=1e-5, rtol=1e-4)


class Tied(nn.Module):
    """Tokens (6,): two linear layers of the same parameters behind a table that gives the outputs too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.table.weight
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight, self.second.bias = self.first.weight, self.first.bias

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens).mean(1)
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(20, (4, 6))
    made = rounded(Tied(), tokens, (8,))
    assert list(made.layers) == ["first"]
    lowered: Lowered = lower(made, tokens, integer=True)
    file = onnx.load_from_string(write_onnx(lowered))
    assert sorted(tuple(tensor.dims) for tensor in file.graph.initializer if len(tensor.dims) == 2) == [(8, 8), (20, 8)]
    (tmp_path / "model.safetensors").write_bytes(pack(lowered))
    again = load_packed(tmp_path / "model.safetensors")
    assert sorted(dict(again.graph.named_parameters())) == ["first.bias", "first.weight", "table.weight"]
    torch.testing.assert_close(again.graph(tokens), made.model(tokens))
    torch.testing.assert_close(torch.as_tensor(open_session(write_onnx(lowered)).run(tokens)), made.model(tokens))
