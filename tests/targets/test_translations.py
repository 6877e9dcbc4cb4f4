"""The exporter's table of translations is made once, and the files are those of a table made anew."""

from contextlib import nullcontext

import torch
from lowering_toys import Plain, toy
from torch.onnx._internal.exporter._registration import ONNXRegistry

from autocompress.targets.graph.lowering import lower
from autocompress.targets.onnxruntime import exporter
from autocompress.targets.onnxruntime.file import write_onnx
from autocompress.targets.onnxruntime.translations import kept_translations


def test_the_table_is_made_once_and_files_are_the_same(monkeypatch):
    compressed, x = toy(Plain, (4, 8), (8, 32))
    lowered = lower(compressed, x, integer=True)
    kept = [write_onnx(lowered) for _ in range(2)]
    monkeypatch.setattr(exporter, "kept_translations", nullcontext)
    assert kept == [write_onnx(lowered)] * 2


def test_other_exports_are_left_alone():
    before = ONNXRegistry.__dict__["from_torchlib"]
    with kept_translations():
        first, second = (ONNXRegistry().from_torchlib(opset_version=21) for _ in range(2))
        assert ONNXRegistry.__dict__["from_torchlib"] is not before
    assert ONNXRegistry.__dict__["from_torchlib"] is before
    assert first is not second
    name = torch.ops.aten.relu.default.name()
    assert first.functions[name] == second.functions[name]
    first.register_op(torch.ops.aten.relu.default, lambda x: x)  # one export's own translations are not the next one's
    assert len(first.functions[name]) == len(second.functions[name]) + 1
