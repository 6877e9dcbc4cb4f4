"""Small layers and moments with known properties."""

import torch
from torch import Tensor, nn

from autocompress.menus.calibration import Statistics, calibrate
from autocompress.menus.criteria import Consumer
from autocompress.network import trace

CONVOLUTIONS = {
    "plain": nn.Conv2d(3, 4, 3),
    "padding": nn.Conv2d(3, 4, 3, padding=1),
    "one by one, no bias": nn.Conv2d(3, 4, 1, bias=False),
    "stride": nn.Conv2d(3, 4, 3, stride=2, padding=1),
    "dilation": nn.Conv2d(3, 4, 3, dilation=2, padding=2),
    "uneven": nn.Conv2d(3, 4, (3, 1), stride=(1, 2), padding=(2, 0), dilation=(2, 1)),
    "groups": nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4),
}
OTHER_PADDING = {
    "same": nn.Conv2d(3, 4, 3, padding="same", dilation=2),
    "same, even kernel": nn.Conv2d(3, 4, 4, padding="same"),
    "valid": nn.Conv2d(3, 4, 3, padding="valid"),
    "reflect": nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="reflect"),
    "circular": nn.Conv2d(3, 4, (3, 5), padding=(1, 2), padding_mode="circular"),
    "replicate": nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate"),
    "sequence": nn.Conv1d(3, 4, 3, stride=2, padding=1, dilation=2),
    "sequence, circular": nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"),
    "sequence, groups": nn.Conv1d(4, 6, 3, padding=1, groups=2),
}


def images(module: nn.Module, samples: int = 5) -> Tensor:
    shape = (samples, module.in_channels, 9, 8) if isinstance(module, nn.Conv2d) else (samples, module.in_channels, 9)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    """float64."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def moment(columns: int, samples: int = 200, seed: int = 0, mean: float = 0.5) -> Tensor:
    """(columns + 1, columns + 1) second moment of correlated inputs and a 1."""
    x = randn(samples, columns, seed=seed) @ randn(columns, columns, seed=seed + 1) / columns**0.5 + mean
    x = torch.cat([x, torch.ones(samples, 1, dtype=torch.float64)], 1)
    return x.T @ x / samples


def gradient_moment(rows: int, seed: int = 0) -> Tensor:
    g = randn(3 * rows, rows, seed=seed)
    return g.T @ g / len(g)


def consumer(channels: int, taps: int, rows: int, seed: int, extra: int = 0) -> Consumer:
    """A layer that reads `channels` of the group and `extra` columns besides."""
    columns = channels * taps + extra
    return Consumer(
        randn(rows, columns + 1, seed=seed),
        moment(columns, seed=seed),
        gradient_moment(rows, seed=seed),
        torch.randperm(columns, generator=seeded(seed))[: channels * taps].view(channels, taps),
        randn(channels, seed=seed).abs(),
    )


def statistics(model: nn.Module, inputs: Tensor, **options: int) -> dict[str, Statistics]:
    return calibrate(model.eval().requires_grad_(False), trace(model, inputs), inputs, **options)


class Branches(nn.Module):
    """Input 2x4x4: a concatenation with a norm behind it, a depthwise layer, a residual; 8 layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.left = nn.Conv2d(2, 6, 1)
        self.right = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(10)
        self.join = nn.Conv2d(10, 8, 1, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(torch.cat([self.left(x), self.right(x)], 1)))
        x = torch.relu(self.join(x))
        x = x + self.point(torch.relu(self.depthwise(x)))
        return 4 * self.head(x.mean((2, 3)))


def branches() -> tuple[nn.Module, Tensor]:
    """The network in eval mode, and 24 samples."""
    return Branches().eval(), torch.randn(24, 2, 4, 4, generator=seeded(6))
