"""The policy's network: what it must not depend on, what it says before it has learned, and what it can learn."""

import numpy as np
import pytest
import torch
from policy_toys import grown, observations

from autocompress.policies.labeling import PolicyInSearch, _stacked, nearest_kinds
from autocompress.policies.network import LabelPolicy, masked
from autocompress.searchers.model_based.labeling import MultiplierPolicy
from autocompress_envs import LabelingEnv
from autocompress_envs.labeling.observation import KINDS, LAYER_NAMES
from autocompress_envs.problem import Labeling
from autocompress_envs.testing import TOY_LIMITS, cancelling_toy, random_problem, toy_problem


def says(policy, seen):
    with torch.inference_mode():
        return policy(seen)


def test_an_untrained_policy_says_what_the_solvers_multiplier_says():
    seen = observations(3)
    said = says(LabelPolicy(2, 16).eval(), seen)
    assert torch.allclose(said.logits, seen["base"])
    assert not said.values.any()
    assert not said.prices.any()
    problem, sketch, _, limits = cancelling_toy([1, -1, -1, 1])
    env = LabelingEnv(problem, None, limits, sketch)
    mine = PolicyInSearch(LabelPolicy(), problem).plans([env], None)[0]
    assert mine.key() == MultiplierPolicy().plans([env], None)[0].key()


def test_rows_that_are_not_there_change_nothing():
    policy, seen = grown(LabelPolicy(1, 16)), observations(3)
    before = says(policy, seen)
    other = {name: values.clone() for name, values in seen.items()}
    flags = [LAYER_NAMES.index(f"is_{name}") for name in ("present", "next", "labelled")]
    kept = other["layers"][:, 3:, flags]
    other["layers"][:, 3:] = 5.0
    other["layers"][:, 3:, flags] = kept
    after = says(policy, other)
    assert torch.allclose(before.logits, after.logits, atol=1e-6)
    assert torch.allclose(before.values, after.values, atol=1e-6)
    assert torch.allclose(before.prices[:, :3], after.prices[:, :3], atol=1e-6)


def test_the_order_of_options_only_reorders_their_scores():
    policy, seen = grown(LabelPolicy(2, 16)), observations(2)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    other = {**seen, "options": seen["options"][:, order], "base": seen["base"][:, order]}
    assert torch.allclose(says(policy, other).logits, says(policy, seen).logits[:, order], atol=1e-6)


def test_members_are_averaged():
    policy, seen = grown(LabelPolicy(3, 16)), observations(2)
    with torch.inference_mode():
        each = [member.logits for member in policy.each(seen)]
    assert torch.allclose(says(policy, seen).logits, torch.stack(each).mean(0), atol=1e-6)
    assert float((each[0] - each[1]).abs().max()) > 0.1


def test_seeds_make_weights_and_leave_the_generator_alone():
    before = torch.random.get_rng_state()
    first, again, other = (LabelPolicy(1, 8, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_plans_of_a_policy_meet_the_budget_and_drawn_ones_follow_the_seed():
    problem = random_problem(np.random.default_rng(4), 8, "residual")
    limits = {"size": int(0.5 * problem.original()["size"])}
    env = LabelingEnv(problem, None, limits)
    policy = PolicyInSearch(grown(LabelPolicy(1, 16), scale=0.1), problem)
    drawn = [policy.plans([env.twin() for _ in range(4)], np.random.default_rng(seed)) for seed in (0, 0, 1)]
    keys = [[plan.key() for plan in plans] for plans in drawn]
    assert keys[0] == keys[1]
    assert keys[0] != keys[2]
    assert len(set(keys[0])) > 1
    assert all(problem.resources(plan)["size"] <= limits["size"] for plans in drawn for plan in plans)


def test_imitation_makes_a_plan_likelier_and_leaves_the_original_policy_alone():
    problem, _ = toy_problem()
    env = LabelingEnv(problem, None, TOY_LIMITS)
    original = LabelPolicy(1, 16)
    policy = PolicyInSearch(original, problem)
    none = np.zeros(3, dtype=np.int64)
    plan = Labeling(none, none, none)  # 2 bits everywhere: what nobody would choose

    def likelihood():
        episode = env.follow(plan)
        with torch.inference_mode():
            logits = masked(policy._policy(policy._tensors(episode.observed)).logits, torch.from_numpy(episode.masks))
        return float(logits.log_softmax(1)[range(3), episode.actions].sum())

    before = likelihood()
    for _ in range(10):
        policy.imitate(env.follow(plan))
    assert likelihood() > before + 0.1
    assert all(torch.equal(a, b) for a, b in zip(original.parameters(), LabelPolicy(1, 16).parameters(), strict=True))


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (KINDS, {}),
        ((), {}),
        (("conv",), {"linear": "conv"}),
        (("depthwise", "embedding"), {"conv": "depthwise", "linear": "depthwise"}),
    ],
)
def test_unknown_kinds_are_shown_as_the_nearest_known_ones(known, expected):
    problem, _ = toy_problem()  # conv, conv, linear
    assert nearest_kinds(problem, known) == expected
    env = LabelingEnv(problem, None, TOY_LIMITS)
    policy = PolicyInSearch(LabelPolicy(1, 8), problem, known)
    first = LAYER_NAMES.index("is_conv")
    shown = policy._tensors(_stacked([env.reset()[0]]))["layers"][0, :, first : first + len(KINDS)]
    wanted = [expected.get(layer.kind, layer.kind) for layer in problem.layers]
    assert [KINDS[int(row.argmax())] for row in shown] == wanted
    assert shown.sum(1).tolist() == [1.0] * 3
