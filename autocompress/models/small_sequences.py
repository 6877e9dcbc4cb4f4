"""Small networks for sequences and patches, which train from scratch in minutes; policies are trained on them.

Encoders of images (Dosovitskiy et al. 2021) and of texts (Devlin et al. 2019), residual convolutions and gated
recurrent units for speech (Tang & Lin 2018; Cho et al. 2014); all much narrower than published.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EncoderBlock(nn.Module):
    """Self-attention and a feed-forward network, each behind a norm and beside a shortcut.

    Args:
        width: features of a position.
        heads: heads of the attention, a divisor of `width`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.inner1, self.inner2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) of (N, T, width)."""
        normed = self.norm1(x)
        q, k, v = (self._split(part(normed)) for part in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (N, T, width)
        x = x + self.out(mixed)
        out: Tensor = x + self.inner2(F.gelu(self.inner1(self.norm2(x))))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """(N, heads, T, width / heads) of (N, T, width)."""
        split: Tensor = x.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return split


class SmallVit(nn.Module):
    """Vision transformer whose classifier reads the mean of all patches.

    Args:
        depth: number of blocks.
        width: features of a patch.
        heads: heads of every attention, a divisor of `width`.
        edge: edge of the square images in pixels.
        patch: edge of a patch in pixels, which divides that of the images.
        channels: channels of the input.
        num_classes: width of the output.
    """

    def __init__(
        self,
        depth: int = 4,
        width: int = 64,
        heads: int = 4,
        edge: int = 32,
        patch: int = 4,
        channels: int = 3,
        num_classes: int = 10,
    ):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, patch, stride=patch)
        self.places = nn.Parameter(0.02 * torch.randn(1, (edge // patch) ** 2, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, channels, edge, edge)."""
        x = self.stem(x).flatten(2).transpose(1, 2) + self.places  # (N, patches, width)
        logits: Tensor = self.linear(self.norm(self.blocks(x)).mean(1))
        return logits


class SmallTextEncoder(nn.Module):
    """Encoder of token numbers whose classifier reads the mean of all positions.

    Args:
        words: tokens that the table of embeddings holds.
        length: positions of an input.
        depth: number of blocks.
        width: features of a position.
        heads: heads of every attention, a divisor of `width`.
        num_classes: width of the output.
    """

    def __init__(
        self,
        words: int = 2048,
        length: int = 32,
        depth: int = 2,
        width: int = 64,
        heads: int = 4,
        num_classes: int = 2,
    ):
        super().__init__()
        self.table = nn.Embedding(words, width)
        self.places = nn.Parameter(0.02 * torch.randn(1, length, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (N, num_classes) of tokens (N, length), int64."""
        logits: Tensor = self.linear(self.norm(self.blocks(self.table(tokens) + self.places)).mean(1))
        return logits


class SmallSpeechNet(nn.Module):
    """Residual convolutions along time over the coefficients of a spectrum.

    Args:
        depth: number of residual blocks of two convolutions.
        width: channels.
        coefficients: coefficients of a frame of the input.
        num_classes: width of the output.
    """

    def __init__(self, depth: int = 3, width: int = 48, coefficients: int = 40, num_classes: int = 12):
        super().__init__()
        self.stem = _along_time(coefficients, width, stride=2)
        self.first = nn.ModuleList(_along_time(width, width) for _ in range(depth))
        self.second = nn.ModuleList(_along_time(width, width) for _ in range(depth))
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of frames (N, 1, T, coefficients)."""
        x = F.relu(self.stem(x.squeeze(1).transpose(1, 2)))  # (N, width, T / 2)
        for first, second in zip(self.first, self.second, strict=True):
            x = F.relu(x + second(F.relu(first(x))))
        logits: Tensor = self.linear(x.mean(2))
        return logits


class SmallRecurrent(nn.Module):
    """Gated recurrent units over the coefficients of a spectrum; the classifier reads the mean over time.

    Args:
        depth: number of recurrent layers.
        width: units of a layer.
        coefficients: coefficients of a frame of the input.
        num_classes: width of the output.
    """

    def __init__(self, depth: int = 2, width: int = 64, coefficients: int = 40, num_classes: int = 12):
        super().__init__()
        self.stem = nn.Linear(coefficients, width)
        self.recurrent = nn.GRU(width, width, depth, batch_first=True)
        self.hidden = nn.Linear(width, width)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of frames (N, 1, T, coefficients)."""
        states, _ = self.recurrent(F.relu(self.stem(x.squeeze(1))))  # (N, T, width)
        logits: Tensor = self.linear(F.relu(self.hidden(states.mean(1))))
        return logits


def _along_time(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A padded convolution of five frames without bias, and its batch norm."""
    return nn.Sequential(
        nn.Conv1d(inputs, outputs, 5, stride, padding=2, bias=False),
        nn.BatchNorm1d(outputs),
    )
