"""The zero-shot walk: the environment's own price episode, within every budget, at any depth, for any kind of layer."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from autocompress.policies.files import SavedPolicy
from autocompress.policies.network import PricePolicy, nearest_kinds, observations_of, walk
from autocompress.policies.use import decided
from autocompress.progress import Silent
from autocompress.searchers.prices import PRICE_LIMIT
from autocompress_envs.environment import LayerLabelingEnv
from autocompress_envs.observation import KINDS
from autocompress_envs.problem import Labeling, Outcome, Problem
from autocompress_envs.solver import InfeasibleBudgetError, Solver
from autocompress_envs.testing import TOY_LIMITS, random_problem, toy_problem

NOTHING_MEASURED = Outcome(0.1, 0.9, 0.9, {})
PREVIOUS = slice(32, 35)  # the previous action, as documented at `Observation`


class Notes(Silent):
    def __init__(self):
        self.told = []

    def note(self, text):
        self.told.append(text)


def grown(network="layer", members=2, seed=0):
    """A policy whose prices differ from layer to layer."""
    policy, generator = PricePolicy(network, members, 16, seed=seed).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)
    return policy


def halfway(problem, resource="size", share=0.25):
    """Limits between the smallest plan and the one of least error."""
    blank, solver = np.zeros(len(problem.layers), dtype=np.int64), Solver(problem, {resource: 10**15})
    smallest = solver.reach.smallest(Labeling(blank, blank, blank), 0)[resource]
    return {resource: int(smallest + share * (problem.resources(solver.solve())[resource] - smallest))}


def with_choices(seed, kind):
    rng = np.random.default_rng(seed)
    while True:
        problem = random_problem(rng, 7, kind)
        if len(problem.layers[0].weight_bits) >= 3:
            return problem


def with_kinds(problem, kinds):
    layers = tuple(replace(layer, kind=kind) for layer, kind in zip(problem.layers, kinds, strict=True))
    return Problem(layers, problem.costs)


@pytest.mark.parametrize("kind", ["chain", "residual", "concat", "depthwise", "element"])
def test_the_walk_is_a_price_episode_of_the_environment(kind):
    """Layer by layer through `step`, the previous action hidden from the policy as in its training."""
    changed = 0
    for seed in range(3):
        problem = with_choices(seed, kind)
        limits, policy = halfway(problem), grown(seed=seed)
        env = LayerLabelingEnv(problem, lambda plan: NOTHING_MEASURED, limits, "price", price_scale=PRICE_LIMIT)
        observation, _ = env.reset()
        prices, done = [], False
        while not done:
            assert (observation[PREVIOUS] != 0).any() == bool(prices)
            seen = torch.from_numpy(observation.copy())[None, None]
            seen[..., PREVIOUS] = 0.0
            with torch.inference_mode():
                prices.append(policy(seen)[0, 0].numpy())
            observation, _, done, _, info = env.step(prices[-1] / PRICE_LIMIT)
        found = walk(policy, problem, limits)
        np.testing.assert_allclose(found.prices, np.array(prices), atol=1e-5)
        assert found.labeling.key() == info["labeling"].key()
        changed += found.labeling.key() != env.reference.key()
    assert changed >= 1


@pytest.mark.parametrize("network", ["layer", "sequence"])
def test_every_walk_meets_its_budget(network):
    rng, walks = np.random.default_rng(11), 0
    while walks < 25:
        problem = random_problem(rng, int(rng.integers(3, 9)))
        names = rng.choice(["size", "macs", "bitops", "memory"], rng.integers(1, 3), replace=False)
        limits = {name: halfway(problem, name, rng.uniform(0.02, 0.7))[name] for name in map(str, names)}
        try:
            found = walk(grown(network, 1, walks), problem, limits)
        except InfeasibleBudgetError:
            assert len(limits) > 1
            continue
        amounts = problem.resources(found.labeling)
        assert {name: amounts[name] for name, limit in limits.items() if amounts[name] > limit} == {}
        assert found.prices.shape == (len(problem.layers), 2)
        assert 0 < np.abs(found.prices).max() <= PRICE_LIMIT
        walks += 1


def test_a_budget_that_no_plan_meets_is_refused():
    problem, _ = toy_problem()
    with pytest.raises(InfeasibleBudgetError) as caught:
        walk(grown(), problem, {"bitops": 255})
    assert str(caught.value) == (
        "`bitops` budget must be at least 256 bit operations (the smallest plan of this network), got 255; "
        "raise it or allow fewer bits or more sparsity."
    )


@pytest.mark.parametrize("network", ["layer", "sequence"])
@pytest.mark.parametrize("depth", [1, 2, 5, 60])
def test_networks_of_any_depth(network, depth):
    problem = random_problem(np.random.default_rng(depth), 60, "element")
    costs = problem.costs
    by_layer = {
        name: getattr(costs, name)[:depth]
        for name in ("fan_in_const", "fan_in_coef", "out_const", "out_coef", "positions", "has_bias")
    }
    tensors = {"tensor_const": costs.tensor_const[: depth + 1], "tensor_coef": costs.tensor_coef[: depth + 1]}
    shallow = Problem(
        problem.layers[:depth],
        replace(
            costs,
            **by_layer,
            **tensors,
            tensor_readers=costs.tensor_readers[: depth + 1, :depth],
            alive=costs.alive[:depth, : depth + 1],
        ),
    )
    limits = halfway(shallow)
    found = walk(grown(network), shallow, limits)
    assert found.prices.shape == (depth, 2)
    assert shallow.resources(found.labeling)["size"] <= limits["size"]
    again = walk(grown(network), shallow, limits)
    assert np.array_equal(again.prices, found.prices)
    assert again.labeling.key() == found.labeling.key()


def test_the_layer_network_sees_one_layer_and_the_sequence_network_all():
    """Another first layer changes the last one's price only through attention."""
    seen = torch.rand(1, 5, 46, generator=torch.Generator().manual_seed(0))
    other = seen.clone()
    other[0, 0] = 0.5
    moved = {}
    for network in ("layer", "sequence"):
        policy = grown(network)
        with torch.inference_mode():
            moved[network] = (policy(seen) - policy(other)).abs().amax(-1)[0].tolist()
    assert moved["layer"][0] > 1e-2
    assert moved["layer"][1:] == [0.0] * 4
    assert min(moved["sequence"]) > 1e-4


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (["conv", "depthwise", "linear"], {}),
        (["conv", "linear"], {"depthwise": "conv"}),
        (["depthwise", "linear"], {"conv": "depthwise"}),
        (["linear"], {"conv": "linear", "depthwise": "linear"}),
        (["conv"], {"depthwise": "conv", "linear": "conv"}),
        (["depthwise"], {"conv": "depthwise", "linear": "depthwise"}),
        ([], {}),
    ],
)
def test_nearest_kinds(known, expected):
    problem = random_problem(np.random.default_rng(0), 7, "depthwise")
    assert {layer.kind for layer in problem.layers} == set(KINDS)
    assert nearest_kinds(problem, known) == expected


def test_a_kind_that_nobody_knows_is_the_first_known_one():
    problem = with_kinds(toy_problem()[0], ["attention", "conv", "linear"])
    assert nearest_kinds(problem, ["linear", "depthwise"]) == {"attention": "depthwise", "conv": "depthwise"}
    solver = Solver(problem, TOY_LIMITS)
    kinds = observations_of(solver, solver.solve(), ["linear", "depthwise"])[:, :3]
    assert kinds.tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 1]]


def test_layers_are_shown_as_the_nearest_kind_and_else_unchanged():
    problem = random_problem(np.random.default_rng(0), 7, "depthwise")
    solver = Solver(problem, halfway(problem))
    reference = solver.solve()
    as_it_is, shown = observations_of(solver, reference), observations_of(solver, reference, ["conv"])
    assert shown[:, :3].tolist() == [[1, 0, 0]] * 7
    assert np.array_equal(shown[:, 3:], as_it_is[:, 3:])
    assert as_it_is[:, :3].tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]] * 2 + [[0, 0, 1]]
    assert not as_it_is[:, PREVIOUS].any()


def test_what_is_decided_tells_of_kinds_never_seen():
    problem = random_problem(np.random.default_rng(0), 7, "depthwise")
    limits, notes, policy = halfway(problem), Notes(), grown()
    saved = SavedPolicy(policy, {"kinds": ["conv"]}, "mine")
    found = decided(saved, problem, limits, notes)
    assert notes.told == [
        "the policy was not trained on depthwise layers; it takes the 2 here for conv layers",
        "the policy was not trained on linear layers; it takes the 1 here for conv layers",
    ]
    convs = walk(policy, with_kinds(problem, ["conv"] * 7), limits)
    assert np.array_equal(found.prices, convs.prices)
    assert found.labeling.key() == convs.labeling.key()
    assert not np.array_equal(found.prices, walk(policy, problem, limits).prices)


def test_nothing_is_told_where_all_kinds_are_known():
    problem = random_problem(np.random.default_rng(0), 7, "depthwise")
    notes, policy = Notes(), grown()
    found = decided(SavedPolicy(policy, {"kinds": list(KINDS)}, "mine"), problem, halfway(problem), notes)
    assert notes.told == []
    assert np.array_equal(found.prices, walk(policy, problem, halfway(problem)).prices)
