"""Train the digits network and write the weights that the package ships.

    OMP_NUM_THREADS=1 python benchmarks/train_digits.py [--out FILE]

Deterministic on one thread of one machine; takes about a minute. Trains on the training part of the digits only.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from autocompress.data.arrays import digits_tensors
from autocompress.models.digits_net import DIGITS_WEIGHTS, DigitsNet

EPOCHS, BATCH, PEAK_LEARNING_RATE, WEIGHT_DECAY, SEED = 60, 64, 0.1, 5e-4, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DIGITS_WEIGHTS, help="where the weights go (%(default)s)")
    out = parser.parse_args().out
    start = time.monotonic()
    x_train, y_train, x_test, y_test = digits_tensors()
    model = train(x_train, y_train)
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    save_file(state, out)
    print(f"train {accuracy(model, x_train, y_train):.2%}  test {accuracy(model, x_test, y_test):.2%}")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {time.monotonic() - start:.0f} s, {out}")


def train(x: Tensor, y: Tensor, epochs: int = EPOCHS) -> DigitsNet:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = DigitsNet()
    steps = epochs * (len(x) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            loss = F.cross_entropy(model(shifted(x[batch])), y[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model.eval()


def shifted(x: Tensor) -> Tensor:
    """Each image moved by -1, 0 or 1 pixels in both directions."""
    padded = F.pad(x, (1, 1, 1, 1))  # (N, 1, 10, 10)
    tops, lefts = torch.randint(0, 3, (2, len(x), 1, 1))
    rows, columns = tops + torch.arange(8).view(1, 8, 1), lefts + torch.arange(8).view(1, 1, 8)
    return padded[torch.arange(len(x)).view(-1, 1, 1), 0, rows, columns].unsqueeze(1)


@torch.no_grad()
def accuracy(model: DigitsNet, x: Tensor, y: Tensor) -> float:
    return float((model(x).argmax(1) == y).float().mean())


if __name__ == "__main__":
    main()
