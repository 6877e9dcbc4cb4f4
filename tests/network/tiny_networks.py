"""Networks small enough to cost by hand."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def chain() -> nn.Sequential:
    """Input 1x4x4."""
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, bias=False),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Conv2d(2, 3, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 2),
    )


class Residual(nn.Module):
    """Input 1x4x4."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        x = x + self.norm2(self.conv2(y))
        return self.head(x.mean((2, 3)))


class Concat(nn.Module):
    """Input 2x3x3; the norm follows the concatenation, so no layer can absorb it."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(2, 3, 1)
        self.right = nn.Conv2d(2, 4, 1)
        self.norm = nn.BatchNorm2d(7)
        self.join = nn.Conv2d(7, 5, 1)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        joined = self.norm(torch.cat([self.left(x), self.right(x)], 1))
        return self.head(self.join(joined).mean((2, 3)))


def depthwise() -> nn.Sequential:
    """Input 2x4x4."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU6(),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU6(),
        nn.Conv2d(4, 3, 1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 2),
    )


class OptionA(nn.Module):
    """The parameter-free shortcut of the CIFAR ResNets (He et al. 2016): every second pixel, zero-padded channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.conv1 = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x = F.relu(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + y)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Hooked(nn.Module):
    """conv a, then `between`, then conv b, then the mean and a linear layer: a frame for what breaks groups."""

    def __init__(self, between: nn.Module, width: int = 4) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, width, 3, padding=1)
        self.between = between
        self.b = nn.Conv2d(width, 6, 3, padding=1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.between(self.a(x))).mean((2, 3)))


def shake_norms(model: nn.Module) -> nn.Module:
    """Give every batch norm statistics and parameters that are not the identity; evaluation mode."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.uniform_(-0.5, 0.5, generator=generator)
    return model.eval()
