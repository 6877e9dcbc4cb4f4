"""A small residual network for scikit-learn's 8x8 digits; its trained weights are part of the package."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

DIGITS_WEIGHTS = Path(__file__).with_name("digits_net.safetensors")


class DigitsBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: the input itself, or a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))  # (N, outputs, H / stride, W / stride)
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """One block with 16 channels on 8x8 and two with 32 channels on 4x4: 38,266 parameters.

    Args:
        num_classes: width of the output.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(DigitsBlock(16, 16, stride=1))
        self.layer2 = nn.Sequential(DigitsBlock(16, 32, stride=2), DigitsBlock(32, 32, stride=1))
        self.linear = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, 1, 8, 8) with pixels in [0, 1]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))  # (N, 32, 4, 4)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N, 32)
        logits: Tensor = self.linear(x)
        return logits
