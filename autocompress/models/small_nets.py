"""Small image networks of five families, which train from scratch in minutes; policies are trained on them.

He et al. 2016 (residual), Simonyan & Zisserman 2015 (plain), Sandler et al. 2018 (inverted residuals with depthwise
convolutions), Hu et al. 2018 (the same with squeeze-and-excitation), Tolstikhin et al. 2021 (MLP-Mixer); all much
narrower than published. `small_sequences` has transformers, and networks for speech.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.models.digits_net import DigitsBlock


class SmallResNet(nn.Module):
    """Stages of residual blocks of two 3x3 convolutions, with 1x1 convolutions where the shape changes.

    Args:
        blocks: number of blocks of every stage; each stage after the first halves the edge.
        width: channels of the first stage; each stage after it has twice as many.
        channels: channels of the input.
        num_classes: width of the output.
    """

    def __init__(self, blocks: Sequence[int] = (1, 1, 1), width: int = 16, channels: int = 3, num_classes: int = 10):
        super().__init__()
        self.stem = _convolution(channels, width, 3)
        stages, inputs = [], width
        for stage, count in enumerate(blocks):
            outputs = width << stage
            for block in range(count):
                stages.append(DigitsBlock(inputs, outputs, stride=2 if stage and not block else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*stages)
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, channels, H, W)."""
        return _classified(self.blocks(F.relu(self.stem(x))), self.linear)


class SmallVgg(nn.Module):
    """3x3 convolutions one after another, with 2x2 max-pooling between stages.

    Args:
        widths: channels of every convolution, one sequence for each stage.
        channels: channels of the input.
        hidden: width of the linear layer before the last; 0 leaves it out.
        num_classes: width of the output.
    """

    def __init__(
        self,
        widths: Sequence[Sequence[int]] = ((16, 16), (32, 32), (64, 64)),
        channels: int = 3,
        hidden: int = 0,
        num_classes: int = 10,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for number, stage in enumerate(widths):
            if number:
                layers.append(nn.MaxPool2d(2))
            for width in stage:
                layers += [_convolution(channels, width, 3), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU()) if hidden else nn.Sequential()
        self.linear = nn.Linear(hidden or channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, channels, H, W)."""
        x = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        logits: Tensor = self.linear(self.hidden(x))
        return logits


class SqueezeExcite(nn.Module):
    """Weights of the channels from their means (Hu et al. 2018).

    Args:
        channels: channels of the input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, max(4, channels // 4), 1)
        self.expand = nn.Conv2d(max(4, channels // 4), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) of (N, channels, H, W)."""
        weights: Tensor = self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        return x * weights.sigmoid()


class InvertedResidual(nn.Module):
    """A 1x1 convolution that widens, a 3x3 one that filters every channel, and a 1x1 one that narrows."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, excite: bool = False) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = _convolution(inputs, inner, 1)
        self.filter = _convolution(inner, inner, 3, stride, groups=inner)
        self.excite = SqueezeExcite(inner) if excite else nn.Identity()
        self.project = _convolution(inner, outputs, 1)
        self.adds = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.excite(F.relu(self.filter(F.relu(self.expand(x))))))
        return x + out if self.adds else out


class SmallMobileNet(nn.Module):
    """Stages of inverted residuals.

    Args:
        blocks: number of blocks of every stage; each stage after the first halves the edge.
        width: channels between the blocks of the first stage; each stage after it has twice as many.
        expansion: factor by which a block widens its channels.
        stride: stride of the first convolution.
        channels: channels of the input.
        num_classes: width of the output.
        excite: whether every block weighs its channels by squeeze-and-excitation. Default: false.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (2, 2, 2),
        width: int = 16,
        expansion: int = 3,
        stride: int = 2,
        channels: int = 3,
        num_classes: int = 10,
        excite: bool = False,
    ):
        super().__init__()
        self.stem = _convolution(channels, width, 3, stride)
        stages, inputs = [], width
        for stage, count in enumerate(blocks):
            outputs = width << stage
            for block in range(count):
                stages.append(InvertedResidual(inputs, outputs, 2 if stage and not block else 1, expansion, excite))
                inputs = outputs
        self.blocks = nn.Sequential(*stages)
        self.head = _convolution(inputs, 2 * inputs, 1)
        self.linear = nn.Linear(2 * inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, channels, H, W)."""
        return _classified(F.relu(self.head(self.blocks(F.relu(self.stem(x))))), self.linear)


class MixerBlock(nn.Module):
    """A perceptron over the patches and another one over the channels, each beside a shortcut."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.patches1, self.patches2 = nn.Linear(patches, 2 * patches), nn.Linear(2 * patches, patches)
        self.channels1, self.channels2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.patches2(F.gelu(self.patches1(self.norm1(x).transpose(1, 2))))
        x = x + mixed.transpose(1, 2)  # (N, patches, width)
        out: Tensor = x + self.channels2(F.gelu(self.channels1(self.norm2(x))))
        return out


class SmallMixer(nn.Module):
    """MLP-Mixer.

    Args:
        depth: number of blocks.
        width: channels of a patch inside the network.
        edge: edge of the square images in pixels.
        patch: edge of a patch in pixels, which divides that of the images.
        channels: channels of the input.
        num_classes: width of the output.
    """

    def __init__(
        self, depth: int = 4, width: int = 64, edge: int = 32, patch: int = 4, channels: int = 3, num_classes: int = 10
    ):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, patch, stride=patch)
        self.blocks = nn.Sequential(*(MixerBlock((edge // patch) ** 2, width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, channels, edge, edge)."""
        x = self.stem(x).flatten(2).transpose(1, 2)  # (N, patches, width)
        logits: Tensor = self.linear(self.norm(self.blocks(x)).mean(1))
        return logits


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A padded convolution without bias, and its batch norm."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def _classified(features: Tensor, linear: nn.Linear) -> Tensor:
    """Logits (N, num_classes) of feature maps (N, C, H, W): their means through the linear layer."""
    logits: Tensor = linear(F.adaptive_avg_pool2d(features, 1).flatten(1))
    return logits
