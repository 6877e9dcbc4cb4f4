"""Small networks with everything that makes stitching hard, and ways to count what a model really holds."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.evaluation.stitch import resolve
from autocompress.menus import Menus, MenuSettings, build_menus
from autocompress.network import fold_batch_norms, trace
from autocompress_envs import Labeling, Problem


class Concat(nn.Module):
    """Input 2x4x4: a norm behind a concatenation belongs to two groups, and no layer absorbs it."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(2, 6, 1)
        self.right = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(10)
        self.join = nn.Conv2d(10, 8, 3, stride=2, padding=1, bias=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(torch.cat([self.left(x), self.right(x)], 1)))
        return 2 * self.head(torch.relu_(self.join(x)).flatten(1))


class InvertedResidual(nn.Module):
    """Input 2x4x4: expansion, depthwise, squeeze-and-excite, projection, shortcut, as in MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.Hardswish())
        self.expand = nn.Sequential(nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(inplace=True))
        self.depthwise = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12))
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.project = nn.Sequential(nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        y = y * self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))).sigmoid()
        x = x + self.project(y)
        return 6 * self.head(x.mean((2, 3)))


class Sequence(nn.Module):
    """Input 2x9: one dimension, grouped convolution, a norm on features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 6, 3, padding=1)
        self.grouped = nn.Conv1d(6, 6, 3, padding=1, groups=2, bias=False)
        self.norm = nn.BatchNorm1d(6)
        self.hidden = nn.Linear(54, 7)
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.grouped(torch.relu(self.conv(x)))))
        return 3 * self.head(torch.relu(self.hidden(x.flatten(1))))


class Tied(nn.Module):
    """Input 6: two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "concat": (Concat, (2, 4, 4)),
    "inverted residual": (InvertedResidual, (2, 4, 4)),
    "sequence": (Sequence, (2, 9)),
}


def network(name: str, samples: int = 24) -> tuple[nn.Module, Tensor]:
    """In eval mode, its norms not the identity; and inputs."""
    torch.manual_seed(1)
    build, shape = NETWORKS[name]
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low, high in [
                (module.weight, 0.5, 1.5), (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 1.5),
            ]:  # fmt: skip
                tensor.data.uniform_(low, high)
    return model, torch.randn(samples, *shape)


def menus_of(model: nn.Module, x: Tensor, **options: object) -> Menus:
    given: dict[str, object] = {"weight_bits": (1, 3, 8, 16, 32), "activation_bits": (4, 8, 32), "sparsity_levels": 4}
    settings = MenuSettings(**given | options)  # type: ignore[arg-type]
    return build_menus(model, trace(model, x[:1]), x, settings, data_fingerprint="", jobs=1)


def original_labels(problem: Problem) -> Labeling:
    """Nothing removed, the most bits."""
    layers = problem.layers
    return Labeling(
        np.zeros(len(layers), np.int64),
        np.array([len(layer.weight_bits) - 1 for layer in layers]),
        np.array([len(layer.activation_bits) - 1 for layer in layers]),
    )


def random_labels(problem: Problem, rng: np.random.Generator) -> Labeling:
    layers = problem.layers
    return Labeling(
        np.array([rng.integers(len(layer.sparsities)) for layer in layers]),
        np.array([rng.integers(len(layer.weight_bits)) for layer in layers]),
        np.array([rng.integers(len(layer.activation_bits)) for layer in layers]),
    )


def masked(model: nn.Module, menus: Menus, labeling: Labeling) -> nn.Module:
    """The same weights in a network that keeps its shapes: columns of removed channels are 0, so nobody reads them."""
    copied = fold_batch_norms(copy.deepcopy(model), menus.network).requires_grad_(False)
    for layer, choice in zip(menus.network.layers, resolve(menus, labeling), strict=True):
        variant = menus.variants(layer, choice.reads, choice.sparsity)[choice.weight_bits]
        module = copied.get_submodule(layer.name)
        weight = torch.zeros(layer.rows, layer.fan_in)
        weight[:, variant.columns] = variant.weight()
        module.weight.copy_(weight.view_as(module.weight))
        if module.bias is not None:
            module.bias.copy_(variant.bias)
    return copied


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def counted_macs(model: nn.Module, layers: list[str], x: Tensor) -> int:
    """One multiply-accumulate for every weight and output position, as seen by hooks."""
    total = 0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        total += module.weight.numel() * output[0].numel() // module.weight.shape[0]

    handles = [model.get_submodule(name).register_forward_hook(count) for name in layers]
    outputs(model, x[:1])
    for handle in handles:
        handle.remove()
    return total


def counted_bytes(model: nn.Module, menus: Menus, labeling: Labeling) -> int:
    """Packed weights, scales, biases, input ranges and norms; without the file's header."""
    total = 0
    names = {layer.name for layer in menus.network.layers}
    for position, name in enumerate(layer.name for layer in menus.network.layers):
        module = model.get_submodule(name)
        bits = menus.settings.weight_bits[labeling.weight_bits[position]]
        total += -(-module.weight.numel() * bits // 8) + 4 * len(module.weight) * (bits < 16)
        total += 0 if module.bias is None else 4 * len(module.bias)
        total += 8 * (menus.settings.activation_bits[labeling.activation_bits[position]] < 32)
    for name, module in model.named_modules():
        if name not in names:
            held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            total += sum(4 * tensor.numel() for tensor in held if tensor.is_floating_point())
    return total
