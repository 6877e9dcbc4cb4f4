"""A recurrent regressor, trained here: how much of its R² is left at a fifth of its bytes.

python benchmarks/regressor.py                      # about 5 minutes on one thread
python benchmarks/regressor.py --kind LSTM --budget size=0.15

A GRU of two layers reads 60 noisy samples of two added waves and tells both frequencies and the amplitude of the first.
It is compressed with calibration only; 1,000 new waves are the test split.
"""

from __future__ import annotations

import argparse
import math
import resource
import time

import torch
from torch import Tensor, nn

import autocompress

STEPS, WIDTH = 60, 64


class Regressor(nn.Module):
    """A recurrent network of two layers, and three numbers from its last state."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(1, WIDTH, num_layers=2, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def waves(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy waves (count, 60, 1), and (count, 3) their frequencies in cycles and the first one's amplitude."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, generator=generator)

    time_of = torch.arange(STEPS) / STEPS
    slow, fast, size = uniform(1, 4), uniform(6, 12), uniform(0.5, 2)
    first = size * torch.sin(2 * math.pi * (slow * time_of + uniform(0, 1)))
    second = torch.sin(2 * math.pi * (fast * time_of + uniform(0, 1)))
    noise = 0.1 * torch.randn(count, STEPS, generator=generator)
    return (first + second + noise)[:, :, None], torch.cat([slow, fast, size], 1)


def trained(kind: str, epochs: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """The network and the data that it was trained on."""
    torch.manual_seed(0)
    model, (x, y) = Regressor(kind), waves(8000, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * 63)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(128):
            loss = ((model(x[rows]) - y[rows]).square() / y.var(0)).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval(), (x, y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="GRU", choices=["GRU", "LSTM", "RNN"])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--budget", default="size=0.2")
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--out", default="runs/regressor")
    options = parser.parse_args()
    started = time.perf_counter()
    model, train = trained(options.kind, options.epochs)
    seconds = time.perf_counter() - started
    result = autocompress.search(
        model, (train, waves(1000, 2)), options.budget, episodes=options.episodes, out=options.out, force=True
    )
    before, after = result.metrics["r2"]
    in_runtime = result.verification.runtime.closeness.metrics["r2"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(
        f"{options.kind}: trained in {seconds:.0f} s, R² {before:.4f}; at "
        f"{100 * result.outcome.resources['size'] / result.original_outcome.resources['size']:.2f} % of the bytes "
        f"{after:.4f} in PyTorch, {in_runtime:.4f} in ONNX Runtime, divergence "
        f"{result.outcome.kl:.5f}, verified: {result.verification.passed}, "
        f"{time.perf_counter() - started - seconds:.0f} s, peak {peak:.1f} GB"
    )


if __name__ == "__main__":
    main()
