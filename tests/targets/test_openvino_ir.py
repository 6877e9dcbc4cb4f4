"""OpenVINO IR: the same answers, 4-bit weights in 4 bits; without OpenVINO one clear line."""

import sys

import pytest
import torch
from lowering_toys import Plain, Residual, toy

from autocompress.errors import InputError
from autocompress.targets.graph.lowering import lower
from autocompress.targets.onnxruntime.file import write_onnx
from autocompress.targets.openvino.ir import run_openvino, write_openvino


@pytest.mark.parametrize(("kind", "bits"), [(Residual, (1, 4, 8)), (Plain, (2, 16, 32))])
def test_openvino_answers_like_the_graph(kind, bits, tmp_path):
    pytest.importorskip("openvino")
    compressed, x = toy(kind, bits)
    lowered = lower(compressed, x, integer=True)
    path, _ = write_openvino(write_onnx(lowered), tmp_path)
    got = run_openvino(path, x)
    with torch.no_grad():
        expected = lowered.graph(x)
    assert float((got - expected).abs().max()) <= 0.1 * float(expected.std())
    assert float((got.argmax(1) == expected.argmax(1)).double().mean()) >= 0.99
    assert run_openvino(path, x[:1]).shape == (1, 5)


def test_four_bit_and_two_bit_weights_take_four_bits(tmp_path):
    """528 weights: 264 bytes in 4 bits. 37 biases, 37 scales and the ranges are float32: less than 600 bytes."""
    pytest.importorskip("openvino")
    compressed, x = toy(Plain, (4, 2, 4))
    content = write_onnx(lower(compressed, x, integer=True))
    (tmp_path / "model.onnx").write_bytes(content)
    _, weights = write_openvino(tmp_path / "model.onnx", tmp_path)
    assert 264 <= weights.stat().st_size <= 264 + 600


def test_damaged_ir_is_refused_in_one_line(tmp_path):
    pytest.importorskip("openvino")
    path = tmp_path / "model.xml"
    path.write_text("<net>")
    with pytest.raises(InputError, match=r"\A`path` must be an IR that OpenVINO loads, got \S+model\.xml: [^\n]+\Z"):
        run_openvino(path, torch.zeros(1, 12))


def test_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    message = r"^`format` openvino needs the extra openvino: pip install 'autocompress\[openvino\]'\.$"
    with pytest.raises(InputError, match=message):
        write_openvino(b"", tmp_path)
    with pytest.raises(InputError, match=message):
        run_openvino(tmp_path / "model.xml", torch.zeros(1, 12))
