"""Small networks, the digits network with its menus, and networks compressed by hand."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.data import Data, from_tensors, load_data
from autocompress.execute.compressed import Compressed, LayerWeights, from_menus, write_weights_
from autocompress.menus import Menus, MenuSettings, build_menus
from autocompress.menus.activations import calibrate_range
from autocompress.menus.rounding import code_range
from autocompress.models import load_model
from autocompress.network import fold_batch_norms, trace
from autocompress.plan import Label, Plan
from autocompress_envs import Labeling


class Mixed(nn.Module):
    """Input 4x4x4: a concatenation with a norm that nobody absorbs, a depthwise layer, a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.join = nn.Conv2d(12, 8, 1, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(torch.cat([self.left(x), self.right(x)], 1)))
        x = torch.relu_(self.join(x))
        x = x + self.point(torch.relu(self.depthwise(x)))
        return 4 * self.head(x.mean((2, 3)))


class Twice(nn.Module):
    """Input 8: one layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.same(torch.relu(self.same(x)))))


class Tied(nn.Module):
    """Input 8: two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class Circular(nn.Module):
    """Input 4x4x4: padding that is an operator of its own, and padding by name."""

    def __init__(self) -> None:
        super().__init__()
        self.round = nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular")
        self.same = nn.Conv2d(8, 8, 2, padding="same")
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return 4 * self.head(torch.relu(self.same(torch.relu(self.round(x)))).mean((2, 3)))


class Branching(nn.Module):
    """Input 8: Python decides by values."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(x)
        return self.head(x) if x.sum() > 0 else self.head(-x)


NETWORKS = {
    "mixed": (Mixed, (4, 4, 4)),
    "twice": (Twice, (8,)),
    "tied": (Tied, (8,)),
    "circular": (Circular, (4, 4, 4)),
    "branching": (Branching, (8,)),
}


def network(name: str, samples: int = 48) -> tuple[nn.Module, Tensor]:
    """In eval mode, its norms not the identity; and inputs."""
    torch.manual_seed(1)
    build, shape = NETWORKS[name]
    model = build().eval()
    draw_norms_(model)
    return model, torch.randn(samples, *shape)


def draw_norms_(model: nn.Module) -> None:
    """Norms that are not the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                tensor.data.uniform_(-0.5, 0.5)


def menus_of(model: nn.Module, x: Tensor, **options: object) -> Menus:
    given: dict[str, object] = {"weight_bits": (1, 3, 8, 16, 32), "activation_bits": (4, 8, 32), "sparsity_levels": 4}
    settings = MenuSettings(**given | options)  # type: ignore[arg-type]
    return build_menus(model, trace(model, x[:1]), x, settings, data_fingerprint="", jobs=1)


def labels(
    menus: Menus, sparsity: float, bits: int, activation_bits: int, **others: tuple[float, int, int]
) -> Labeling:
    """The same label everywhere, as far as the layer's menu goes; some layers by name have another."""
    rows = []
    for layer in menus.network.layers:
        wanted = others.get(layer.name, (sparsity, bits, activation_bits))
        offered = menus.sparsities(layer)
        rows.append((
            offered.index(wanted[0]) if wanted[0] in offered else 0,
            menus.settings.weight_bits.index(wanted[1]),
            menus.settings.activation_bits.index(wanted[2]),
        ))  # fmt: skip
    return Labeling(*np.array(rows, dtype=np.int64).T)


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


@dataclass(frozen=True, eq=False)
class Digits:
    model: nn.Module
    folded: nn.Module
    menus: Menus
    data: Data

    def compressed(self, sparsity: float, bits: int, activation_bits: int) -> tuple[Compressed, Labeling]:
        labeling = labels(self.menus, sparsity, bits, activation_bits)
        return from_menus(self.menus, labeling, self.folded), labeling


@cache
def digits(granularity: str = "channel") -> Digits:
    """The trained digits network; 200 samples to judge on and 160 to calibrate with."""
    data = load_data("digits", search_samples=200, calibration_samples=160)
    model = load_model("digits", num_classes=10)
    inputs, _ = data.calibration()
    options = {"weight_bits": (2, 8, 32), "activation_bits": (4, 8, 32), "sparsity_levels": 2}
    menus = menus_of(model, inputs, granularity=granularity, **options)
    return Digits(model, fold_batch_norms(model, menus.network), menus, data)


def unlabeled(data: Data, samples: int = 300) -> Data:
    """The first samples without their labels."""
    inputs, _ = data.train.load(range(samples))
    return from_tensors((inputs, None), None, name="unlabeled", search_samples=100, calibration_samples=60)


class Plain(nn.Module):
    """Input 2x4x4: two layers, a norm that nobody absorbs, a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.gain = nn.Parameter(torch.tensor([1.5]))
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gain * self.norm(torch.relu(self.conv(x))).flatten(1))


def by_hand(
    bits: int, activation_bits: int = 32, granularity: str = "channel", sparsity: float = 0.0
) -> tuple[Compressed, Tensor]:
    """`Plain` rounded to nearest, with single weights removed at random; and inputs."""
    torch.manual_seed(3)
    model, x = Plain().eval(), torch.randn(16, 2, 4, 4)
    inputs = {"conv": x, "head": torch.randn(64, 64).abs()}
    layers = {}
    for name, sample in inputs.items():
        module = model.get_submodule(name)
        found = None if activation_bits == 32 else calibrate_range(sample.flatten().sort().values, activation_bits)
        weight = module.weight.detach().clone()
        kept = torch.ones_like(weight) if sparsity == 0 else _kept(weight, granularity, sparsity)
        values, scale = _rounded(weight * kept, kept, bits)
        layers[name] = LayerWeights(values, scale, module.bias.detach().clone(), bits, sparsity, found)
        write_weights_(model, name, layers[name])
    label = Label(sparsity, bits, activation_bits)
    return Compressed(model, layers, Plan(dict.fromkeys(layers, label), granularity)), x


def _kept(weight: Tensor, granularity: str, sparsity: float) -> Tensor:
    kept = torch.ones(weight.numel())
    if granularity == "element":
        kept[torch.randperm(weight.numel())[: int(sparsity * weight.numel())]] = 0
    else:
        kept = kept.view(-1, 4)
        kept[:, 1::2] = 0
    return kept.view_as(weight)


def _rounded(weight: Tensor, kept: Tensor, bits: int) -> tuple[Tensor, Tensor | None]:
    if bits >= 16:
        return (weight.half().float() if bits == 16 else weight), None
    flat = weight.flatten(1)
    scale = flat.abs().mean(1) if bits == 1 else flat.abs().amax(1) / code_range(bits)[1]
    scaled = weight / scale.view(-1, *[1] * (weight.ndim - 1))
    codes = torch.where(scaled < 0, -1.0, 1.0) if bits == 1 else scaled.round().clamp(*code_range(bits))
    return (codes * kept).to(torch.int8), scale


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def same(one: Compressed, other: Compressed) -> bool:
    """Bit for bit."""
    fields = ("values", "scale", "bias")
    pairs = [(one.layers[name], other.layers[name]) for name in one.layers]
    return (
        one.plan == other.plan
        and list(one.layers) == list(other.layers)
        and all(_equal(getattr(a, field), getattr(b, field)) for a, b in pairs for field in fields)
        and all((a.bits, a.sparsity, a.input_range) == (b.bits, b.sparsity, b.input_range) for a, b in pairs)
        and same_state(one.model.state_dict(), other.model.state_dict())
    )


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and torch.equal(one, other)


def levels(rows: Tensor) -> Sequence[int]:
    """Different values in every row."""
    return [len(row.unique()) for row in rows.flatten(1)]
