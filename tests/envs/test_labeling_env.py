"""Version 1 of the environment: budgets hold, what is shown is what is counted, and the toys' optima are known."""

import gymnasium
import numpy as np
import pytest
from envs_toys import ranked, with_energy, with_kernels
from gymnasium.utils.env_checker import check_env
from slow_labeling import SlowEnv

from autocompress_envs import LabelingEnv, Sketch
from autocompress_envs.labeling.forecast import Forecast, positions_of
from autocompress_envs.labeling.observation import BOUND, CONTEXT_NAMES, LAYER_NAMES, OPTION_NAMES
from autocompress_envs.problem import Labeling, Outcome
from autocompress_envs.problem.tables import Tables
from autocompress_envs.rewards import KL_FLOOR
from autocompress_envs.solver import InfeasibleBudgetError
from autocompress_envs.solver.feasibility import Reach
from autocompress_envs.testing import TOY_LIMITS, cancelling_toy, layer_errors, random_problem, toy_problem


def additive(problem):
    """An `evaluate` whose divergence is the sum of the layers' expected losses."""
    return lambda plan: Outcome(float(layer_errors(problem, plan).sum()), 0.5, 0.5, problem.resources(plan))


def random_env(seed, count=8):
    """A random problem with random effects, under a limit or two between the cheapest plan and the original."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, count)
    tables = Tables(problem)
    pruning = rng.normal(0, 0.1, (count, tables.errors.shape[1], 5))
    rounding = rng.normal(0, 0.1, (count, tables.errors.shape[2] * tables.errors.shape[3], 5))
    original = problem.original()
    while True:
        share = rng.uniform(0.3, 0.9)
        limits = {name: int(share * original[name]) for name in rng.choice(["size", "macs", "bitops"], 2, False)}
        try:
            return LabelingEnv(problem, additive(problem), limits, Sketch(pruning, rounding)), rng
        except InfeasibleBudgetError:
            continue


def limited_env(rng, kind, names):
    """A random problem of one kind with low ranks and timed kernels, and random effects, under the named limits."""
    while True:
        problem = with_energy(with_kernels(ranked(random_problem(rng, 7, kind), rng), rng))
        tables, original = Tables(problem), problem.original()
        pruning = rng.normal(0, 0.1, (7, tables.errors.shape[1], 3))
        rounding = rng.normal(0, 0.1, (7, tables.errors.shape[2] * tables.errors.shape[3], 3))
        blank = Labeling(*np.zeros((3, 7), dtype=np.int64))
        least = Reach(tables, {name: 10**15 for name in names}).smallest(blank, 0)
        limits = {name: int(least[name] + rng.uniform(0.1, 0.7) * (original[name] - least[name])) for name in names}
        try:
            return LabelingEnv(problem, additive(problem), limits, Sketch(pruning, rounding))
        except InfeasibleBudgetError:
            continue


def played(env, choose):
    """The rewards, the observations and the last info of an episode."""
    seen, _ = env.reset()
    rewards, observed, done = [], [seen], False
    while not done:
        seen, reward, done, truncated, info = env.step(choose(seen, env.action_masks()))
        rewards.append(reward)
        observed.append(seen)
        assert not truncated
    return rewards, observed, info


@pytest.mark.parametrize("seed", range(12))
def test_random_episodes_meet_every_budget_and_show_bounded_numbers(seed):
    env, rng = random_env(seed)
    for _ in range(5):
        _, observed, info = played(env, lambda seen, mask: int(rng.choice(np.flatnonzero(mask))))
        resources = env.problem.resources(info["labeling"])
        assert all(resources[name] <= limit for name, limit in env.limits.items())
        assert info["outcome"].resources == resources
        for each in observed:
            assert env.observation_space.contains(each)
            assert all(np.isfinite(part).all() and np.abs(part).max() <= BOUND for part in each.values())


@pytest.mark.parametrize("seed", range(4))
def test_costs_losses_and_divergences_that_are_shown_are_those_of_the_whole_plans(seed):
    """Each option of a layer, put into the labels so far and the reference's rest, and counted by itself."""
    env, rng = random_env(seed)
    tables, count = Tables(env.problem), len(env.problem.layers)
    column = {name: OPTION_NAMES.index(name) for name in OPTION_NAMES}
    seen, _ = env.reset()
    plan = [part.copy() for part in (env.reference.sparsity, env.reference.weight_bits, env.reference.activation_bits)]
    whole = env.forecast.plan_value(positions_of(tables, env.reference))
    for layer in range(count):
        reference = Labeling(*(part.copy() for part in plan))
        before = env.problem.resources(reference)
        for option in range(int(tables.counts[layer].prod())):
            labels = np.unravel_index(option, tuple(tables.counts[layer]))
            other = Labeling(*(part.copy() for part in plan))
            for part, value in zip((other.sparsity, other.weight_bits, other.activation_bits), labels, strict=True):
                part[layer] = value
            row, resources = seen["options"][option], env.problem.resources(other)
            for name, limit in env.limits.items():
                change = count * (resources[name] - before[name]) / limit
                assert row[column[f"{name}_change"]] == pytest.approx(np.arcsinh(change), abs=1e-5)
            slack = count * (1 - max(resources[name] / limit for name, limit in env.limits.items()))
            assert row[column["slack"]] == pytest.approx(np.arcsinh(slack), abs=1e-5)
            rise = env.forecast.plan_value(positions_of(tables, other)) - env.forecast.plan_value(
                positions_of(tables, reference)
            )
            assert row[column["divergence_change"]] == pytest.approx(np.arcsinh(count * rise / whole), abs=1e-4)
        chosen = int(rng.choice(np.flatnonzero(env.action_masks())))
        for part, value in zip(plan, np.unravel_index(chosen, tuple(tables.counts[layer])), strict=True):
            part[layer] = value
        seen, *_ = env.step(chosen)
    assert env.forecast.value() == pytest.approx(env.forecast.plan_value(positions_of(tables, Labeling(*plan))))


def test_shaped_returns_are_the_reward_and_how_much_was_expected_of_the_solvers_plan():
    env, rng = random_env(3)
    bare = LabelingEnv(env.problem, additive(env.problem), env.limits, env._sketch, shaping=False)
    actions = []

    def choose(seen, mask):
        actions.append(int(rng.choice(np.flatnonzero(mask))))
        return actions[-1]

    rewards, _, info = played(env, choose)
    queue = iter(actions)
    plain, _, again = played(bare, lambda seen, mask: next(queue))
    assert again["labeling"].key() == info["labeling"].key()
    assert plain[:-1] == [0.0] * (len(plain) - 1)
    assert plain[-1] == pytest.approx(-np.log10(info["outcome"].kl + KL_FLOOR))
    reference = env.forecast.plan_value(positions_of(Tables(env.problem), env.reference))
    assert sum(rewards) == pytest.approx(plain[-1] + np.log10(reference + KL_FLOOR))


def test_the_forecast_is_half_the_squared_length_of_all_effects_and_the_expected_losses():
    problem, sketch, _, _ = cancelling_toy([1, 1, -1, -1])
    tables = Tables(problem)
    none = np.zeros(4, dtype=np.int64)
    forecast = Forecast(tables, sketch, Labeling(none, none + 1, none))  # 8 bits everywhere: nothing is lost
    assert forecast.value() == pytest.approx(0.0)
    expected = []
    for option in (0, 0, 0, 1):  # forwards, forwards, backwards, nowhere
        forecast.add(option)
        expected.append(forecast.value())
    lost = 0.01 * np.cumsum([1, 1.001, 1.002, 0])
    moved = 0.05 * np.array([1, 4, 1, 1])
    assert expected == pytest.approx(moved + lost + lost**2)


def test_a_sketch_keeps_lengths_and_angles():
    """Effects of 30 labels on 20 samples of 5 classes: in 30 dimensions all, in 8 the most that 8 can keep."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(5), 20)
    rounding = rng.normal(0, 0.1, (10, 3, 20, 5)).astype(np.float32)
    pruning = np.zeros((10, 1, 20, 5), dtype=np.float32)
    rows = rounding.reshape(30, 20, 5).astype(float)
    centred = rows - (rows * probabilities).sum(-1, keepdims=True)
    metric = np.einsum("ank,bnk,nk->ab", centred, centred, probabilities) / 20
    full = Sketch.of(pruning, rounding, probabilities, 30).rounding.reshape(30, -1)
    assert full @ full.T == pytest.approx(0.49 * metric, abs=1e-6)
    few = Sketch.of(pruning, rounding, probabilities, 8).rounding.reshape(30, -1)
    kept = np.sort(np.linalg.eigvalsh(0.49 * metric))[-8:].sum()
    assert np.trace(few @ few.T) == pytest.approx(kept, rel=1e-5)


def test_a_plan_that_is_given_stays_legal_where_only_some_other_mixture_completes_its_labels():
    for seed in range(20):
        env, _ = random_env(100 + seed)
        plan = env.reference
        env.reset(options={"plan": plan})
        for option in positions_of(Tables(env.problem), plan):
            assert env.action_masks()[option]
            *_, info = env.step(int(option))
        assert info["labeling"].key() == plan.key()


def test_a_twin_runs_beside_its_original():
    env, _ = random_env(5)
    twin = env.twin()
    first, _ = env.reset()
    env.step(int(np.flatnonzero(env.action_masks())[0]))
    other, _ = twin.reset()
    assert all((first[name] == other[name]).all() for name in first)
    assert (twin.action_masks() == env.twin().action_masks()).all()
    with pytest.raises(ValueError, match="`step` must follow `reset`: no episode is running"):
        env.twin().step(0)


def test_rows_beyond_the_network_are_zeros():
    problem, evaluate = toy_problem()
    env = LabelingEnv(problem, evaluate, TOY_LIMITS, most_layers=5, most_options=9)
    seen, _ = env.reset()
    assert seen["layers"].shape == (5, len(LAYER_NAMES))
    assert seen["options"].shape == (9, len(OPTION_NAMES))
    assert seen["context"].shape == (len(CONTEXT_NAMES),)
    assert not seen["layers"][3:].any()
    assert not seen["options"][6:].any()  # two sparsities, three bit-widths
    assert not env.action_masks()[6:].any()


def test_the_solvers_plan_is_marked_and_following_it_gives_it():
    problem, evaluate = toy_problem()
    env = LabelingEnv(problem, evaluate, TOY_LIMITS)
    marked = OPTION_NAMES.index("is_reference")
    rewards, _, info = played(env, lambda seen, mask: int(seen["options"][:, marked].argmax()))
    assert info["labeling"].key() == env.reference.key()
    assert info["outcome"].kl == pytest.approx(0.76)
    # the sum of the layers is 0.26 nats, and 0.26 + 0.26^2 is expected, as what is not first order adds up faster
    assert sum(rewards) == pytest.approx(-np.log10(0.76 + KL_FLOOR) + np.log10(0.26 + 0.26**2 + KL_FLOOR))


@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gymnasiums_checker_passes(mode):
    problem, sketch, evaluate, limits = cancelling_toy([1, -1, 1, -1])
    env = gymnasium.make(
        "autocompress/LayerLabeling-v1", problem=problem, evaluate=evaluate, limits=limits, sketch=sketch,
        render_mode=mode, disable_env_checker=True,
    )  # fmt: skip
    check_env(env.unwrapped, skip_render_check=False)


def test_pictures_show_the_labels_so_far():
    problem, evaluate = toy_problem()
    env = LabelingEnv(problem, evaluate, TOY_LIMITS, render_mode="ansi")
    env.reset()
    env.step(3)  # half of the group is removed, 2 bits
    lines = env.render().splitlines()
    assert lines[0].split() == ["layer0", "█" * 16 + "░" * 16, "2", "bits,", "8", "in,", "50%", "removed"]
    assert lines[1].split() == ["layer1", "·" * 32]
    assert lines[3] == "1 of 3 layers labelled; at most bitops 512"
    pixels = LabelingEnv(problem, evaluate, TOY_LIMITS, render_mode="rgb_array")
    pixels.reset()
    before = pixels.render()
    pixels.step(3)
    after = pixels.render()
    assert before.shape == after.shape
    assert before.dtype == np.uint8
    assert (before != after).any(2).any(0).sum() == pytest.approx(after.shape[1] / 3, abs=10)  # one bar of three
    assert LabelingEnv(problem, evaluate, TOY_LIMITS).render() is None


WRONG = [
    (
        {"reward": "best"},
        "`reward` must be one of accuracy, amc_error, amc_flops, balanced, galen, haq, kl, got 'best'.",
    ),
    ({"render_mode": "human"}, "`render_mode` must be one of ansi, rgb_array, got 'human'."),
    ({"most_layers": 2}, "`most_layers` must be at least 3, the network's own, got 2."),
    ({"most_options": 5}, "`most_options` must be at least 6, the network's own, got 5."),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=[next(iter(given)) for given, _ in WRONG])
def test_wrong_arguments(given, message):
    problem, evaluate = toy_problem()
    with pytest.raises(ValueError, match=r"^`") as caught:
        LabelingEnv(problem, evaluate, TOY_LIMITS, **given)
    assert str(caught.value) == message


KINDS = ["chain", "residual", "concat", "depthwise", "element"]
LIMITED = [
    ("size",),
    ("bitops", "size"),
    ("memory",),
    ("size", "memory"),
    ("latency", "macs"),
    ("size", "memory", "bitops"),
    ("energy", "size"),
    ("memory", "latency", "energy"),
]


@pytest.mark.parametrize("names", LIMITED, ids="-".join)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_counted_label_by_label_is_what_is_counted_from_nothing(kind, names):
    """Random walks on problems with low ranks and timed kernels: the same masks, and the same observations."""
    rng = np.random.default_rng([KINDS.index(kind), LIMITED.index(names)])
    for _ in range(2):
        env = limited_env(rng, kind, names)
        slow = SlowEnv(env)
        assert env._observer.multiplier == pytest.approx(slow.multiplier, rel=1e-9)
        for _ in range(3):
            seen, wanted, done = env.reset()[0], slow.reset(), False
            while not done:
                assert (env.action_masks() == slow.action_masks()).all()
                for name, part in wanted.items():
                    assert np.abs(seen[name] - part).max(initial=0) < 2e-6, name
                action = int(rng.choice(np.flatnonzero(env.action_masks())))
                wanted = slow.step(action)
                seen, _, done, _, info = env.step(action)
            for name, part in wanted.items():
                assert np.abs(seen[name] - part).max(initial=0) < 2e-6, name
            assert info["labeling"].key() == slow.actions.finish().key()


@pytest.mark.parametrize("seed", range(3))
def test_following_a_plan_is_its_episode(seed):
    env, rng = random_env(seed)
    rewards, observed, info = played(env, lambda seen, mask: int(rng.choice(np.flatnonzero(mask))))
    episode = env.follow(info["labeling"])
    assert episode.labeling is info["labeling"]
    assert episode.outcome == info["outcome"]
    assert episode.rewards.tolist() == rewards
    assert (episode.actions == positions_of(Tables(env.problem), info["labeling"])).all()
    assert episode.masks[range(len(rewards)), episode.actions].all()
    for name, parts in episode.observed.items():
        assert (parts == np.stack([each[name] for each in observed[:-1]])).all()


def test_without_an_evaluation_the_outcome_is_what_is_expected():
    env, rng = random_env(5)
    bare = LabelingEnv(env.problem, None, env.limits, env._sketch)
    _, _, info = played(bare, lambda seen, mask: int(rng.choice(np.flatnonzero(mask))))
    value = bare.forecast.plan_value(positions_of(Tables(env.problem), info["labeling"]))
    assert info["outcome"].kl == bare.twin(env.expected).follow(info["labeling"]).outcome.kl == value
    assert info["outcome"].resources == env.problem.resources(info["labeling"])
    assert np.isnan([info["outcome"].accuracy, info["outcome"].agreement]).all()


def test_wrong_resets_and_steps():
    problem, evaluate = toy_problem()
    env = LabelingEnv(problem, evaluate, TOY_LIMITS)
    dear = Labeling(*(np.array([0, 0, 0]), np.array([2, 2, 2]), np.array([0, 0, 0])))
    for options, message in (
        ({"seed": 1}, "`options` must hold nothing but budget and plan, got seed."),
        ({"plan": dear}, f"`plan` must be within the limits {TOY_LIMITS}, got {problem.resources(dear)}."),
    ):
        with pytest.raises(ValueError, match=r"^`") as caught:
            env.reset(options=options)
        assert str(caught.value) == message
    env.reset()
    for action, message in (
        (6, "`action` must be in the layer's menu of 6 labels, got 6."),
        (2, "`action` must leave every budget within reach, got 2 at layer 0; see `action_masks`."),
    ):
        with pytest.raises(ValueError, match=r"^`") as caught:
            env.step(action)
        assert str(caught.value) == message
