"""Networks with residual branches, compressed by their menus with some of the branches gone."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.execute.compressed import Compressed, from_menus
from autocompress.menus import Menus, MenuSettings, build_menus
from autocompress.network import Network, fold_batch_norms, trace
from autocompress.targets.graph.lowering import Lowered, lower
from autocompress_envs.problem import Labeling


class Blocks(nn.Module):
    """Input 2x8x8: two residual blocks, of which one adds in place, and a convolution behind."""

    bias = True

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.head = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        self.conv1, self.conv2 = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1, bias=self.bias)
        self.conv3, self.conv4 = nn.Conv2d(8, 10, 3, padding=1), nn.Conv2d(10, 8, 1, bias=self.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.conv2(torch.relu(self.conv1(x))))
        y = self.conv4(torch.sigmoid(self.conv3(x)))
        y += x
        x = torch.relu(self.last(torch.relu_(y)))
        return 4 * self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Unbiased(Blocks):
    """The same, the last layers of the branches without bias."""

    bias = False


class Inverted(nn.Module):
    """Input 2x8x8: expansion, depthwise, squeeze-and-excite, projection; norms are folded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.head = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        self.expand, self.project = nn.Conv2d(8, 16, 1, bias=False), nn.Conv2d(16, 8, 1, bias=False)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for width in (16, 16, 8)])
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.norms[1](self.depthwise(torch.relu(self.norms[0](self.expand(x))))))
        y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = torch.relu(self.last(torch.relu(x + self.norms[2](self.project(y)))))
        return 4 * self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Wave(nn.Module):
    """Input 2x12: a branch of one-dimensional convolutions, one of them padded by name; one of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(2, 8, 3, padding=1), nn.Linear(8, 5)
        self.conv1, self.conv2 = nn.Conv1d(8, 12, 3, padding=1), nn.Conv1d(12, 8, 3, padding="same")
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))) + x).mean(2)
        return 4 * self.head(torch.relu(x + self.down(torch.relu(self.up(x)))))


class Tokens(nn.Module):
    """Input 4x12: a branch of linear layers on every token."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(12, 8), nn.Linear(8, 5)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(nn.functional.gelu(self.up(x)))
        return 4 * self.head(torch.relu(x).mean(1))


class Pair(nn.Module):
    """Input 2x8x8: a sum of two branches and of nothing else, as in cells that were searched for."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.head = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        self.a1, self.a2 = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.b1, self.b2 = nn.Conv2d(8, 10, 1), nn.Conv2d(10, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.a2(torch.relu(self.a1(x))) + self.b2(torch.relu(self.b1(x))))
        return 4 * self.head(torch.relu(self.last(x)).mean((2, 3)))


class PairOfVectors(nn.Module):
    """Input 12: the same of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(12, 8), nn.Linear(8, 5)
        self.a1, self.a2, self.b1, self.b2 = (
            nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 10), nn.Linear(10, 8)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.a2(torch.relu(self.a1(x))) + self.b2(torch.relu(self.b1(x)))))


class Halved(Unbiased):
    """Sums that take half of a branch without bias, and half of the rest."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.add(x, self.conv2(torch.relu(self.conv1(x))), alpha=0.5)
        x = torch.add(self.conv4(torch.relu(self.conv3(x))), x, alpha=0.5)
        return self.head(self.last(x).mean((2, 3)))


class PairInside(Pair):
    """A sum of two branches, read by a convolution that pads, all of it a branch of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.leave = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.sigmoid(self.a2(torch.relu(self.a1(x))) + self.b2(torch.relu(self.b1(x))))
        x = torch.relu(x + self.leave(y))
        return 4 * self.head(torch.relu(self.last(x)).mean((2, 3)))


SHAPES: dict[type[nn.Module], tuple[int, ...]] = {
    Blocks: (2, 8, 8), Unbiased: (2, 8, 8), Inverted: (2, 8, 8), Wave: (2, 12), Pair: (2, 8, 8), PairOfVectors: (12,),
    Halved: (2, 8, 8), PairInside: (2, 8, 8), Tokens: (4, 12),
}  # fmt: skip
OWNERS: dict[type[nn.Module], tuple[str, ...]] = {
    Blocks: ("conv1", "conv3"), Unbiased: ("conv1", "conv3"), Inverted: ("expand",), Wave: ("conv1", "up"),
}  # fmt: skip
EMPTY: dict[type[nn.Module], set[str]] = {
    Blocks: {"conv1", "conv2", "conv3", "conv4"}, Unbiased: {"conv1", "conv2", "conv3", "conv4"},
    Inverted: {"expand", "depthwise", "squeeze", "excite", "project"}, Wave: {"conv1", "conv2", "up", "down"},
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Toy:
    model: nn.Module
    network: Network
    menus: Menus
    x: Tensor

    def labeling(self, gone: tuple[str, ...], bits: int, activation_bits: int, kept: int | None = None) -> Labeling:
        """The branches of some owners gone, or with `kept` channels left; every layer with the same bits."""
        problem, settings = self.menus.problem(), self.menus.settings
        sparsity = np.zeros(len(problem.layers), np.int64)
        for row, layer in enumerate(problem.layers):
            if layer.name in gone:
                sparsity[row] = layer.kept.tolist().index(kept or 0)
        return Labeling(
            sparsity,
            np.full_like(sparsity, settings.weight_bits.index(bits)),
            np.full_like(sparsity, settings.activation_bits.index(activation_bits)),
        )

    def compressed(
        self, gone: tuple[str, ...], bits: int = 8, activation_bits: int = 8, kept: int | None = None
    ) -> Compressed:
        labeling = self.labeling(gone, bits, activation_bits, kept)
        return from_menus(self.menus, labeling, fold_batch_norms(self.model, self.network))


@cache
def lowered(kind: type[nn.Module], integer: bool, kept: int | None = None) -> Lowered:
    """Without its branches, or with `kept` channels left in each; shared, so nobody changes it."""
    given = toy(kind)
    return lower(given.compressed(OWNERS[kind], 8, 8 if integer else 4, kept), given.x, integer=integer)


@cache
def toy(kind: type[nn.Module]) -> Toy:
    """The network in eval mode, its norms not the identity, with menus; and 200 samples."""
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(200, *SHAPES[kind])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                tensor.data.uniform_(-0.5, 0.5)
    network = trace(model, x[:1])
    levels = 16 if kind is Blocks else 1  # down to one channel, or whole branches only
    settings = MenuSettings(
        weight_bits=(2, 8), activation_bits=(4, 8, 32), sparsity_levels=levels, remove_branches=True
    )
    return Toy(model, network, build_menus(model, network, x[:32], settings, data_fingerprint="", jobs=1), x)
