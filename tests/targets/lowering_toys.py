"""Compressed toy networks, built by hand: weights rounded to nearest, ranges from what the layers read."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autocompress.execute.compressed import Compressed, LayerWeights
from autocompress.menus.activations import calibrate_range
from autocompress.network import fold_batch_norms, trace
from autocompress.plan import Label, Plan

KERNELS = 1e-5  # of the outputs' spread: float32 sums in another order


class Residual(nn.Module):
    """Input 2x8x8: a shortcut that strides and pads, as in CIFAR ResNets; 3 convolutions, 2 additions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu_(x + self.inner(x))
        x = torch.relu(self.down(x) + nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Prunable(nn.Module):
    """Input 2x8x8: a shortcut's 8 channels form one group, those inside its block another, `down`'s a third."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.outer, self.down = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        return self.head(nn.functional.adaptive_avg_pool2d(torch.relu(self.down(x)), 1).flatten(1))


class Depthwise(nn.Module):
    """Input 2x8x8: expansion, depthwise, squeeze-and-excite, projection, shortcut, a pooling; norms are folded."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(2, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(inplace=True))
        self.depthwise = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Hardswish())
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.project = nn.Conv2d(12, 12, 1, bias=False)
        self.head = nn.Linear(12 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        y = self.depthwise(x)
        y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = nn.functional.max_pool2d(x + self.project(y), 2)
        return self.head(x.view(x.size(0), -1))


class Concat(nn.Module):
    """Input 2x4x4: a concatenation, a norm that no layer absorbs behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 6, 1), nn.Conv2d(2, 4, 3, padding=1)
        self.join = nn.Conv2d(10, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(18)
        self.head = nn.Linear(18 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), torch.relu(self.right(x))], 1)
        return self.head(torch.relu(self.norm(torch.cat([x, self.join(x)], 1))).flatten(1))


class Tokens(nn.Module):
    """Input 4x12: linear layers on every token; one of them runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.head = nn.Linear(12, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = x + torch.relu(self.again(torch.relu(self.again(x))))
        return self.head(x.mean(1))


class Plain(nn.Sequential):
    """Input 12: linear layers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5))


SHAPES: dict[type[nn.Module], tuple[int, ...]] = {
    Residual: (2, 8, 8), Depthwise: (2, 8, 8), Concat: (2, 4, 4), Tokens: (4, 12), Plain: (12,),
}  # fmt: skip


def toy(
    kind: type[nn.Module], weight_bits: Sequence[int], activation_bits: Sequence[int] = (8,)
) -> tuple[Compressed, Tensor]:
    """The network with the bit-widths dealt out in turn, and 300 samples."""
    torch.manual_seed(0)
    return compress(kind().eval(), torch.randn(300, *SHAPES[kind]), weight_bits, activation_bits)


def compress(
    model: nn.Module, inputs: Tensor, weight_bits: Sequence[int], activation_bits: Sequence[int] = (8,)
) -> tuple[Compressed, Tensor]:
    network = trace(model, inputs[:1])
    folded = fold_batch_norms(model, network).requires_grad_(False)
    read = layer_inputs(folded, [layer.name for layer in network.layers], inputs)
    layers, labels = {}, {}
    for number, layer in enumerate(network.layers):
        bits = weight_bits[number % len(weight_bits)]
        rounded = activation_bits[number % len(activation_bits)]
        module = folded.get_submodule(layer.name)
        values, scale = nearest(module.weight.data, bits)
        found = None if rounded == 32 else calibrate_range(read[layer.name], rounded)
        bias = None if module.bias is None else module.bias.data.clone()
        layers[layer.name] = LayerWeights(values, scale, bias, bits, 0.0, found)
        labels[layer.name] = Label(0.0, bits, rounded)
        module.weight.data = layers[layer.name].weight()
    return Compressed(folded, layers, Plan(labels, fingerprint=network.fingerprint)), inputs


def nearest(weight: Tensor, bits: int) -> tuple[Tensor, Tensor | None]:
    if bits >= 16:
        return (weight.half().float() if bits == 16 else weight.clone()), None
    low, high = (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    scale = weight.flatten(1).abs().amax(1) / max(high, 1)
    codes = (weight / scale.view(-1, *[1] * (weight.ndim - 1))).round().clamp(low, high)
    return codes.to(torch.int8), scale


def layer_inputs(model: nn.Module, names: Sequence[str], inputs: Tensor) -> dict[str, Tensor]:
    read: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: read[name].append(args[0]))
        for name in names
    ]
    with torch.no_grad():
        model(inputs[:64])
    for handle in handles:
        handle.remove()
    return {name: torch.cat([each.flatten() for each in seen])[:65_536] for name, seen in read.items()}


class Odds(nn.Module):
    """Input 3x12x10: one of each operator that the other toys lack."""

    def __init__(self, last=torch.log_softmax):
        super().__init__()
        self.last = last
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.even = nn.Conv2d(8, 8, 2, padding="same")
        self.line = nn.Conv1d(8, 6, 3, padding=1)
        self.norm, self.mix, self.head = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        x = nn.functional.silu(self.first(x))
        x = nn.functional.gelu(self.grouped(x)) + nn.functional.hardsigmoid(self.even(x)) * 2.0
        x = nn.functional.max_pool2d(nn.functional.leaky_relu(x, 0.2), 3, 2, 1)
        x = nn.functional.avg_pool2d(x.clamp(-0.5, 0.8), 3, 1, 1)
        a, b = x.chunk(2, 1)
        x = torch.cat([torch.tanh(a), nn.functional.elu(b)], 1) / 1.5 - x
        y = self.line(x.flatten(2)).transpose(1, 2)
        y = self.norm(y)
        y = nn.functional.scaled_dot_product_attention(self.mix(y), y, y)
        return self.last(self.head(y[:, 1]), 1)


def close(found, expected, most):
    """Whether the root mean square difference is at most so much of the spread."""
    return float((found - expected).square().mean().sqrt()) <= most * float(expected.std())
