"""Networks whose expected losses are judged, and the divergences that labels really cause."""

import copy
from typing import Any

import numpy as np
import torch
from menu_toys import seeded
from torch import Tensor, nn

from autocompress.menus import Menus, MenuSettings, build_menus
from autocompress.menus.variants import Variant
from autocompress.network import fold_batch_norms, trace
from autocompress.network.structure import Layer


class Pool(nn.Module):
    """Input 3x8x8: a global pool, before which all positions pull the outputs the same way."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return 8 * self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


def maps(samples: int, seed: int) -> Tensor:
    """Nearly the same at all positions of a sample."""
    generator = seeded(seed)
    return torch.randn(samples, 3, 1, 1, generator=generator) + 0.1 * torch.randn(samples, 3, 8, 8, generator=generator)


class Wide(nn.Module):
    """Input 60: a head of 400 inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(60, 400), nn.Linear(400, 5)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.head(torch.relu(self.body(x)))


def rows(samples: int, seed: int) -> Tensor:
    return torch.randn(samples, 60, generator=seeded(seed))


def menus_of(model: nn.Module, x: Tensor, judging: Tensor | None = None, **options: Any) -> Menus:
    build = {key: options.pop(key) for key in ("cache", "progress") if key in options}
    network = trace(model.eval(), x[:1])
    settings = MenuSettings(**{"activation_bits": (8, 32), "sparsity_levels": 1, **options})
    return build_menus(model, network, x, settings, data_fingerprint="", jobs=1, judging_inputs=judging, **build)


def divergence(model: nn.Module, changed: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        p, q = (each(x).double().log_softmax(1) for each in (model, changed))
    return float((p.exp() * (p - q)).sum(1).mean())


def with_variant(model: nn.Module, menus: Menus, layer: Layer, variant: Variant) -> nn.Module:
    """The network with one layer's weights changed, zeros at removed columns."""
    changed = copy.deepcopy(fold_batch_norms(model, menus.network)).requires_grad_(False)
    module = changed.get_submodule(layer.name)
    weight = torch.zeros(layer.rows, layer.fan_in)
    weight[:, variant.columns] = variant.weight()
    module.weight.copy_(weight.view_as(module.weight))
    if module.bias is not None:
        module.bias.copy_(variant.bias)
    return changed


def measured(model: nn.Module, menus: Menus, name: str, x: Tensor) -> np.ndarray:
    """(V,) divergence of each variant of the layer's first table."""
    layer = menus.network.layers[menus.network.layer_index()[name]]
    variants = [variant for _, variant in menus.table_variants(layer, 0)]
    return np.array([divergence(model, with_variant(model, menus, layer, each), x) for each in variants])
