"""What names the cache of menus: everything that they depend on, and nothing else; and the numbers of its format."""

import copy
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from menu_toys import branches, randn
from torch import Tensor, nn

from autocompress.menus import MenuSettings, build_menus, store
from autocompress.menus.store import content_key
from autocompress.network import Network, trace

SETTINGS = MenuSettings(weight_bits=(2, 4), activation_bits=(8,), sparsity_levels=3)


def test_key() -> None:
    model, x = branches()
    network = trace(model, x[:1])

    def key(changed: nn.Module = model, data: str = "d", traced: Network = network, **options: Any) -> str:
        return content_key(changed, traced, data, replace(SETTINGS, **options))

    weights, buffers, renamed = (copy.deepcopy(model) for _ in range(3))
    with torch.no_grad():
        weights.head.bias[0] += 1e-6
        buffers.norm.running_mean[0] += 1e-6
    renamed.tail = renamed.head
    others = [
        key(weights),
        key(buffers),
        key(renamed),
        key(traced=replace(network, fingerprint="other")),
        key(traced=replace(network, computation="other")),
        key(data="e"),
        key(criterion="l1"),
        key(quantizer="mse"),
        key(granularity="element"),
        key(weight_bits=(2,)),
        key(activation_bits=(7,)),
        key(sparsity_levels=2),
        key(refit=False),
        key(damping=1e-2),
        key(fisher_draws=1),
        key(seed=1),
    ]
    assert key() == key(copy.deepcopy(model).train())
    assert re.fullmatch("[0-9a-f]{24}", key())
    assert len({key(), *others}) == 17


class Twin(nn.Module):
    """Input 2x6x6: whatever its arguments, the same weights and shapes."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.options = {"activation": F.relu, "padding": "zeros", "eps": 1e-5, "shift": 0.0, "window": 3, **options}
        self.conv = nn.Conv2d(2, 4, 3, padding=1, padding_mode=self.options["padding"])
        self.norm = nn.GroupNorm(2, 4, eps=self.options["eps"])
        self.head = nn.Linear(4, 3)
        self.register_buffer("shift", torch.full((4, 1, 1), self.options["shift"]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.options["activation"](self.norm(self.conv(x)) + self.shift)
        return self.head(F.max_pool2d(x, self.options["window"], 1, self.options["window"] // 2).mean((2, 3)))


@pytest.mark.parametrize(
    "options",
    [{"activation": torch.sigmoid}, {"padding": "circular"}, {"eps": 1e-3}, {"shift": 0.5}, {"window": 1}],
    ids=lambda options: next(iter(options)),
)
def test_networks_that_compute_something_else_share_no_menus(options: dict[str, Any]) -> None:
    """Their state dicts and the architecture that tracing names are the same; the outputs are not."""
    x = randn(3, 2, 6, 6).float()
    one, other = Twin().eval(), Twin(**options).eval()
    first, second = (trace(model, x[:1]) for model in (one, other))
    assert first.fingerprint == second.fingerprint
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert not torch.allclose(one(x), other(x))
    assert content_key(one, first, "d", SETTINGS) != content_key(other, second, "d", SETTINGS)
    again = Twin().eval()
    assert content_key(again, trace(again, x[:1]), "d", SETTINGS) == content_key(one, first, "d", SETTINGS)


GOLDEN = {  # expected losses in nats of all labels of each layer, by granularity and quantizer
    ("channel", "nearest"): [0.000123387, 0.000280667, 0.0364756, 0.00103771, 0.000547572, 0.0569768],
    ("channel", "mse"): [5.56173e-05, 0.000137603, 0.00677342, 0.000359137, 0.000351667, 0.0238579],
    ("channel", "gptq"): [5.81043e-05, 0.000124178, 0.00281543, 3.03168e-05, 8.0746e-05, 0.000688029],
    ("element", "gptq"): [0.00617614, 0.00104715, 0.00535866, 0.000127134, 4.0595e-05, 0.000576234],
}


@pytest.mark.parametrize(("granularity", "quantizer"), GOLDEN)
def test_menus_of_this_format(granularity: str, quantizer: str) -> None:
    """Whoever changes these numbers or orders raises the format too, or caches on disk go on with the old menus.

    The new numbers are what the failing comparisons below print.
    """
    model, x = branches()
    settings = replace(SETTINGS, granularity=granularity, quantizer=quantizer)
    found = build_menus(model, trace(model, x[:1]), x, settings, data_fingerprint="data", jobs=1)
    assert store._FORMAT == 9
    losses = [layer.errors.sum() for layer in found.problem().layers]
    np.testing.assert_allclose(losses, GOLDEN[granularity, quantizer], rtol=1e-3)
    if granularity == "channel":
        orders = [order.tolist() for order in found.orders]
        assert orders == [[5, 3, 0, 2, 4, 1], [3, 2, 0, 1], [1, 6, 0, 3, 5, 2, 4, 7]]
