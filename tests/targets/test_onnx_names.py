"""Weights find their places in an ONNX file by name: no tensor of the network is taken for one of them.

A fresh norm's weights are ones, and the exporter merges equal tensors. Each network here has a norm as wide as a layer.
"""

import pytest
import torch
from lowering_toys import compress
from torch import Tensor, nn

from autocompress.targets.graph.lowering import lower
from autocompress.targets.onnxruntime.file import write_onnx
from autocompress.targets.onnxruntime.session import open_session

# Root mean square difference of outputs, in their standard deviation. Where inputs are rounded, a value that lies
# between two steps may round the other way. Where none is, ONNX Runtime's product with 8-bit weights rounds itself.
TOLERANCE, TOLERANCE_UNROUNDED = 0.001, 0.01


class WithLayerNorm(nn.Sequential):
    """Input 12."""

    def __init__(self) -> None:
        norms = nn.LayerNorm(16), nn.LayerNorm(16)
        super().__init__(
            nn.Linear(12, 16), norms[0], nn.ReLU(), nn.Linear(16, 16), norms[1], nn.ReLU(), nn.Linear(16, 5)
        )


class WithGroupNorm(nn.Sequential):
    """Input 2x8x8."""

    def __init__(self) -> None:
        first = nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU()
        second = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU()
        super().__init__(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


class Encoder(nn.Module):
    """Input 4x12: two transformer layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(12, 16), nn.Linear(16, 5)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(x)).mean(1))


class Numbered(nn.Module):
    """Input 12: adds constants of 1, 2, 3 … in the widths of its layers' outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        for number in range(4):
            self.register_buffer(f"wide_{number}", torch.full((16,), float(number)))
            self.register_buffer(f"narrow_{number}", torch.full((5,), float(number)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x) * self.wide_1 + self.wide_2)
        x = torch.relu(self.second(x) * self.wide_2 - self.wide_3 + self.wide_0)
        return self.head(x) * self.narrow_3 + self.narrow_1 + self.narrow_2


NETWORKS = {WithLayerNorm: (12,), WithGroupNorm: (2, 8, 8), Encoder: (4, 12), Numbered: (12,)}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(8, 8), (2, 8), (4, 32), (16, 32)])
def test_onnx_runtime_answers_like_the_graph(kind, weight_bits, activation_bits):
    torch.manual_seed(0)
    compressed, x = compress(kind().eval(), torch.randn(300, *NETWORKS[kind]), (weight_bits,), (activation_bits,))
    lowered = lower(compressed, x, integer=True)
    got = open_session(write_onnx(lowered)).run(x)
    with torch.no_grad():
        expected = lowered.graph(x)
    difference = float((got - expected).square().mean().sqrt() / expected.std())
    assert difference <= (TOLERANCE if activation_bits == 8 else TOLERANCE_UNROUNDED)
    assert float((got.argmax(1) == expected.argmax(1)).double().mean()) >= 0.99
