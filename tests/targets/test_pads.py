"""Zeros around images in ONNX files: convolutions pad for themselves, and compute what the graph computes."""

from collections import Counter

import onnx
import pytest
import torch
from lowering_toys import compress
from torch import nn
from torch.nn.functional import pad

from autocompress.targets.graph.lowering import lower
from autocompress.targets.onnxruntime.file import write_onnx
from autocompress.targets.onnxruntime.session import open_session

UNEVEN = (0, 1, 0, 1)  # left, right, above, below: as TensorFlow pads where a stride is 2


class Padded(nn.Module):
    """Input 2x9x9: two convolutions and a head; `pads` are put around the input and around the first one's output."""

    def __init__(self, pads, *, mode="constant", value=0.0, of_layer=0, shared=False):
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, stride=2, padding=of_layer)
        self.second, self.head = nn.Conv2d(8, 8, 3, stride=2, padding=of_layer), nn.Linear(8, 5)
        self.pads, self.settings, self.shared = pads, {"mode": mode, "value": value}, shared

    def around(self, x):
        return x if self.pads is None else pad(x, self.pads, **self.settings)

    def forward(self, x):
        around = self.around(torch.relu(self.first(self.around(x))))
        y = torch.relu(self.second(around)).mean((2, 3))
        return self.head(y + around.amax((2, 3)) if self.shared else y)


def written(model, activation_bits=8):
    torch.manual_seed(0)
    compressed, x = compress(model.eval(), torch.randn(64, 2, 9, 9), (8,), (activation_bits,))
    lowered = lower(compressed, x, integer=True)
    content = write_onnx(lowered)
    with torch.no_grad():
        expected = lowered.graph(x)
    assert float((open_session(content).run(x) - expected).abs().max()) <= 0.02 * float(expected.std())
    return content


def operators(content):
    return Counter(node.op_type for node in onnx.load_from_string(content).graph.node)


def pads_of(content):
    convolutions = [node for node in onnx.load_from_string(content).graph.node if node.op_type == "Conv"]
    return [[list(each.ints) for each in node.attribute if each.name == "pads"] for node in convolutions]


@pytest.mark.parametrize("activation_bits", [8, 32])
@pytest.mark.parametrize("of_layer", [0, 1])
def test_convolutions_pad_for_themselves(activation_bits, of_layer):
    content = written(Padded(UNEVEN, of_layer=of_layer), activation_bits)
    own = [of_layer, of_layer, of_layer + 1, of_layer + 1]  # above, left, below, right
    assert operators(content)["Pad"] == 0
    assert pads_of(content) == [[own], [own]]
    roundings = ("QuantizeLinear", "DequantizeLinear")
    plain = operators(written(Padded(None, of_layer=of_layer), activation_bits))
    assert [operators(content)[each] for each in roundings] == [plain[each] for each in roundings]


def test_one_side_alone_is_padded_where_it_was():
    assert pads_of(written(Padded((2, 0, 0, 1)))) == [[[0, 2, 1, 0]]] * 2


def test_integer_kernels_are_found_on_either_side(tmp_path):
    open_session(written(Padded(UNEVEN)), optimized=tmp_path / "optimized.onnx")
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert found["QLinearConv"] == 2
    assert found["DequantizeLinear"] <= 1  # behind the last layer


@pytest.mark.parametrize(
    "settings",
    [
        {"pads": UNEVEN, "value": 0.5},
        {"pads": UNEVEN, "mode": "replicate", "value": None},
        {"pads": (0, 1, -1, 1)},
        {"pads": UNEVEN, "shared": True},
    ],
    ids=["a half", "the edge", "rows are cut off", "somebody else reads it"],
)
def test_what_a_convolution_cannot_do_stays(settings):
    content = written(Padded(**settings))
    left = 1 if settings.get("shared") else 2
    assert operators(content)["Pad"] == left


def test_channels_stay_padded():
    class Wider(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(6, 8, 3), nn.Linear(8, 5)

        def forward(self, x):
            return self.head(self.second(pad(torch.relu(self.first(x)), (0, 1, 0, 1, 1, 1))).mean((2, 3)))

    assert operators(written(Wider()))["Pad"] == 1
