"""Keyword spotting on Speech Commands: `res8-narrow` (Tang & Lin 2018) and MFCC of 800 test clips.

autocompress search benchmarks/keyword_spotting.py:res8_narrow --weights kws-res8-narrow-speech-commands.safetensors \
    --data benchmarks/keyword_spotting.py:speech_commands --data-args '{file: speech-commands/mfcc.safetensors}' \
    --budget size=0.15

The network has never seen these clips. The first half of them calibrates, without labels; the second half tests.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

CLASSES = ("silence", "unknown", "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
CHANNELS, POOL = 19, (4, 3)
Split = tuple[Tensor, Tensor]


class Res8Narrow(nn.Module):
    """Six convolutions in three residual pairs behind a pooled first one; input (N, 101, 40) MFCC, output (N, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(1, CHANNELS, 3, padding=1, bias=False)
        for number in range(1, 7):
            setattr(self, f"conv{number}", nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False))
            setattr(self, f"bn{number}", nn.BatchNorm2d(CHANNELS, affine=False))
        self.output = nn.Linear(CHANNELS, len(CLASSES))

    def forward(self, mfcc: Tensor) -> Tensor:
        x = skip = F.avg_pool2d(F.relu(self.conv0(mfcc.unsqueeze(1))), POOL)  # (N, 19, 25, 13)
        for number in range(1, 7):
            x = F.relu(getattr(self, f"conv{number}")(x))
            if number % 2 == 0:
                x = skip = x + skip
            x = getattr(self, f"bn{number}")(x)
        return self.output(x.mean((2, 3)))  # type: ignore[no-any-return]


def res8_narrow() -> nn.Module:
    """The network, with random weights."""
    return Res8Narrow()


def speech_commands(file: str) -> tuple[Split, Split, tuple[str, ...]]:
    """Both halves of the clips, and the names of the classes.

    Args:
        file: safetensors file with `mfcc` (N, 101, 40) and `label` (N,).
    """
    tensors = load_file(file)
    x, y = tensors["mfcc"].float(), tensors["label"].to(torch.int64)
    half = len(x) // 2
    return (x[:half], y[:half]), (x[half:], y[half:]), CLASSES
