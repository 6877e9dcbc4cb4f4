"""Multiply-accumulates without a layer's weight, costed by hand, and budgets that count them."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.job.results import Inspection
from autocompress.menus import MenuSettings, build_menus
from autocompress.network import Network, trace
from autocompress.report.tables import print_inspection
from autocompress.searchers.solvers.exact import solve_exactly
from autocompress_envs import InfeasibleBudgetError, LayerLabelingEnv
from autocompress_envs.problem import Labeling, Outcome, Problem
from autocompress_envs.problem.tables import RESOURCES, Tables
from autocompress_envs.solver import Solver
from autocompress_envs.testing import all_labelings, all_resources, toy_problem

TOKENS, WIDTH, HEADS, HEAD_WIDTH, OUTPUTS = 5, 12, 3, 4, 7


class Attention(nn.Module):
    """Input 5x12, 3 heads of 4 channels; values are `value_width` channels wide."""

    def __init__(self, is_fused: bool, value_width: int) -> None:
        super().__init__()
        self.is_fused = is_fused
        self.q, self.k, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, value_width)
        self.head = nn.Linear(value_width, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        if self.is_fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(2, 3) / HEAD_WIDTH**0.5).softmax(3) @ v  # (N, 3, 5, value_width / 3)
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


def macs(network: Network, bits: int = 32) -> tuple[int, int]:
    """Multiply-accumulates and bit operations of the unpruned network with `bits` for weights and inputs."""
    each = np.full(len(network.layers), bits)
    totals = network.costs.resources(network.costs.group_width, each, each)
    return int(totals["macs"]), int(totals["bitops"])


def test_attention_by_hand() -> None:
    network = trace(Attention(is_fused=False, value_width=24), torch.zeros(1, TOKENS, WIDTH))
    layers = 5 * (2 * 12 * 12 + 12 * 24) + 24 * 7
    assert sum(layer.macs for layer in network.layers) == layers
    # q·kᵀ: 5 x 5 pairs of positions with 4 products for each of 3 heads; ·v: the same pairs with 8.
    assert network.fixed_operators == {"aten.bmm": 3 * 25 * 4 + 3 * 25 * 8}
    assert network.unknown_operators == {}
    assert macs(network) == (layers + 900, (layers + 900) * 1024)
    assert macs(network, 8) == (layers + 900, layers * 64 + 900 * 1024)  # no label makes the products narrower


@pytest.mark.parametrize(("value_width", "name"), [(12, "scaled_dot_product"), (24, "bmm")])
def test_scaled_dot_product_attention_counts_the_same(value_width: int, name: str) -> None:
    """One operator in PyTorch where values are as wide as queries, two products where they are not."""
    x = torch.zeros(1, TOKENS, WIDTH)
    fused, plain = (trace(Attention(is_fused, value_width), x) for is_fused in (True, False))
    assert list(fused.fixed_operators.values()) == [3 * 25 * (4 + value_width // 3)]
    assert name in next(iter(fused.fixed_operators))
    assert macs(fused) == macs(plain)
    assert fused.unknown_operators == {}


def test_transposed_convolution() -> None:
    """Every input pixel multiplies every weight of its channel."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), nn.Flatten(), nn.Linear(6 * 8 * 8, 2)
    )
    network = trace(model, torch.zeros(1, 3, 4, 4))
    assert network.fixed_operators == {"aten.convolution": 16 * 4 * 3 * 4}
    assert macs(network)[0] == 16 * 12 + 16 * 48 + 384 * 2


def test_operators_without_a_formula_stay_unknown() -> None:
    class Vector(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.mv(x, x.new_ones(3))[:, None]

    network = trace(nn.Sequential(Vector(), nn.Linear(1, 4), nn.Linear(4, 2)), torch.zeros(1, 3))
    assert network.unknown_operators == {"aten.mv": 1}
    assert network.fixed_operators == {}


def test_networks_of_layers_only_have_none() -> None:
    network = trace(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 2)), torch.zeros(1, 1, 2, 2))
    assert (network.fixed_operators, network.costs.fixed_macs) == ({}, 0)


def prunable_problem() -> Problem:
    """Two prunable groups: the 16 channels between two layers, and the 12 that q, k and v read."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, WIDTH), Attention(is_fused=True, value_width=12)
    ).eval()
    x = torch.randn(8, TOKENS, WIDTH)
    settings = MenuSettings(weight_bits=(2, 8), activation_bits=(4, 8), sparsity_levels=4)
    return build_menus(model, trace(model, x[:1]), x, settings, data_fingerprint="x").problem()


@pytest.mark.parametrize(
    ("name", "least"),
    [
        # The smallest budget that any labels meet: 4 of 16 and 3 of 12 channels, and the 600 products of
        # attention.
        ("macs", 5 * (12 * 4 + 4 * 3 + 3 * 3 * 12) + 12 * 7 + 600),
        ("bitops", (5 * (12 * 4 + 4 * 3 + 3 * 3 * 12) + 12 * 7) * 2 * 4 + 600 * 1024),
    ],
)
def test_budgets_of_a_network_with_attention_hold(name: str, least: int) -> None:
    problem = prunable_problem()
    for limit in (least, least + 500, 2 * least):
        for labeling in (Solver(problem, {name: limit}).solve(), solve_exactly(problem, {name: limit})):
            assert problem.resources(labeling)[name] <= limit
    with pytest.raises(InfeasibleBudgetError):
        Solver(problem, {name: least - 1})


def with_fixed_macs(problem: Problem, fixed: int) -> Problem:
    return replace(problem, costs=replace(problem.costs, fixed_macs=fixed))


FIXED = 1_000
ADDED = {"macs": FIXED, "bitops": FIXED * 1024, "size": 0, "memory": 0}


def test_they_add_to_every_labelling_alike() -> None:
    plain, _ = toy_problem()
    fixed = with_fixed_macs(plain, FIXED)
    before, after = (all_resources(problem, all_labelings(problem)) for problem in (plain, fixed))
    for name, added in ADDED.items():
        assert np.array_equal(after[name], before[name] + added)
    tables, labelings = Tables(fixed), all_labelings(fixed)
    assert {name: amounts.tolist() for name, amounts in tables.amounts(labelings).items()} == {
        name: amounts.tolist() for name, amounts in after.items()
    }


@pytest.mark.parametrize("limits", [{"bitops": 512}, {"size": 204, "macs": 23}, {"bitops": 512, "size": 210}])
def test_solvers_find_the_same_labels_at_limits_that_much_higher(limits: dict[str, int]) -> None:
    plain, _ = toy_problem()
    fixed = with_fixed_macs(plain, FIXED)
    higher = {name: limit + ADDED[name] for name, limit in limits.items()}
    expected = solve_exactly(plain, limits)
    assert solve_exactly(fixed, higher).key() == expected.key()
    amounts = fixed.resources(Solver(fixed, higher).solve())
    assert all(amounts[name] <= limit for name, limit in higher.items())


@pytest.mark.parametrize("name", ["macs", "bitops"])
def test_episodes_keep_within_them(name: str) -> None:
    """The labels that an episode allows at every layer are those of the same limit without the fixed part."""
    plain, _ = toy_problem()
    fixed = with_fixed_macs(plain, FIXED)
    limit = {"macs": 20, "bitops": 512}[name]
    outcome = Outcome(0.0, 1.0, 1.0, {})
    envs = [
        LayerLabelingEnv(problem, lambda labeling: outcome, {name: limit + added}, "discrete")
        for problem, added in ((plain, 0), (fixed, ADDED[name]))
    ]
    rng = np.random.default_rng(0)
    for _ in range(10):
        for env in envs:
            env.reset(seed=0)
        terminated = False
        while not terminated:
            masks = [env.action_masks() for env in envs]
            assert np.array_equal(*masks)
            action = rng.choice(np.flatnonzero(masks[0]))
            steps = [env.step(action) for env in envs]
            terminated, labeling = steps[0][2], steps[1][4].get("labeling")
        assert isinstance(labeling, Labeling)
        assert fixed.resources(labeling)[name] <= limit + ADDED[name]


def test_inspections_name_them() -> None:
    """In one line: what they are, what each costs, and what they cost together."""
    model = nn.Sequential(nn.ConvTranspose1d(5, 5, 1), Attention(is_fused=False, value_width=12))
    network = trace(model, torch.zeros(1, TOKENS, WIDTH))
    console = Console(file=io.StringIO(), width=200)
    print_inspection(console, Inspection(network, toy_problem()[0], dict.fromkeys(RESOURCES, 1), ()))
    assert console.file.getvalue().splitlines()[-1] == (  # type: ignore[attr-defined]
        "operators that can't shrink, 900 multiply-accumulates in all: aten.convolution 300, aten.bmm 600"
    )
