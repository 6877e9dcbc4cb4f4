"""A network of your own: train it, compress it to a seventh of its bytes, and run what comes out."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import autocompress


class Net(nn.Module):
    """Any module will do; this one has three convolutions."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(32, 10)

    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))


def data():
    """(inputs, labels) for training and for test, as tensors. Labels may be None."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    return (images[:1400], labels[:1400]), (images[1400:], labels[1400:])


def net():
    """The trained network. In your own file, load your checkpoint here."""
    torch.manual_seed(0)
    model, (inputs, labels) = Net(), data()[0]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(8):
        for batch in torch.randperm(len(inputs)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval()


def main():
    """Compress the network, and run what comes out."""
    result = autocompress.search(net(), data(), budget="size=0.15", episodes=30, out="runs/own")
    before, after = result.original_outcome, result.outcome
    print(f"{before.resources['size']:,} bytes, {before.accuracy:.1%} right, before")
    print(f"{after.resources['size']:,} bytes, {after.accuracy:.1%} right, after")

    small = autocompress.load("runs/own")  # a plain nn.Module, from model.safetensors alone
    images, _ = data()[1]
    print("first answers:", small(images[:5]).argmax(1).tolist())


if __name__ == "__main__":
    main()
