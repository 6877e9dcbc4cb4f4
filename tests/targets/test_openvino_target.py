"""OpenVINO as a target: one file that it loads itself, its labels, and the kernels that it has."""

import importlib.util

import numpy as np
import pytest
import torch
from lowering_toys import Residual, toy

from autocompress.errors import ExportError, InputError
from autocompress.job.options import request
from autocompress.targets.graph.lowering import lower
from autocompress.targets.kernels.fitting import kernel_types
from autocompress.targets.openvino import session as openvino_session
from autocompress.targets.target import TARGETS

MISSING = "openvino, the extra of that name, is not installed"


def test_what_is_timed_is_what_is_run():
    pytest.importorskip("openvino", reason=MISSING)
    target = TARGETS.find("openvino")
    compressed, x = toy(Residual, (4, 8))
    lowered = lower(compressed, x, integer=True)
    session = target.runtime.load(target.write(lowered), 2)
    with torch.no_grad():
        expected = lowered.graph(x)
    got = session.run(x)
    assert float((got - expected).abs().max()) <= 0.1 * float(expected.std())
    assert np.allclose(np.array(session.prepared(x[:8])()[0]), got[:8].numpy(), atol=1e-2)


def test_integer_kernels_take_eight_bits_alone():
    """Weights of 4 bits that read 8 run in the kernel of rounded inputs; in ONNX Runtime they run as integers."""
    weights, inputs = np.array([4, 8, 16, 4, 8, 32]), np.array([8, 8, 8, 32, 32, 32])
    assert kernel_types(weights, inputs, (8,)).tolist() == [2, 0, 2, 1, 1, 3]
    assert kernel_types(weights, inputs, range(1, 9)).tolist() == [0, 0, 2, 1, 1, 3]
    assert TARGETS.find("openvino").runtime.integer_bits == (8,)


def test_labels_that_are_not_legal_are_refused_before_anything_is_loaded():
    pytest.importorskip("openvino", reason=MISSING)
    with pytest.raises(InputError) as caught:
        request(options={"target": "openvino", "weight_bits": (2, 8)})
    assert str(caught.value) == (
        "`weight_bits` must be among 4, 8, 16, 32 for the target openvino, got 2; choose others or --target packed."
    )


def test_a_damaged_file_is_one_line():
    pytest.importorskip("openvino", reason=MISSING)
    with pytest.raises(InputError, match=r"\A`path` must be a file that OpenVINO loads, got 4 bytes: [^\n]+\Z"):
        openvino_session.open_openvino(b"none")


def test_what_openvino_does_not_read_is_refused(monkeypatch):
    pytest.importorskip("openvino", reason=MISSING)
    compressed, x = toy(Residual, (8, 8))
    monkeypatch.setattr(openvino_session, "for_openvino", lambda content: b"none")
    with pytest.raises(ExportError, match=r"\AOpenVINO must be able to read the network, got [^\n]+\Z"):
        openvino_session.write_openvino_onnx(lower(compressed, x, integer=True))


def test_the_missing_extra_is_named_before_anything_is_loaded(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else found(name))
    with pytest.raises(InputError) as caught:
        request(options={"target": "openvino"})
    assert str(caught.value) == "`target` openvino needs the extra openvino: pip install 'autocompress[openvino]'."
