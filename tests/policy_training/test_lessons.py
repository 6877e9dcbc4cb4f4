"""Experience, the expert's lessons, and what is learned from them, on networks whose outputs are known exactly."""

import numpy as np
import pytest
import torch

from autocompress.errors import InputError
from autocompress.evaluation.effects import Effects
from autocompress.policies.labeling import PolicyInSearch
from autocompress.policies.network import LabelPolicy
from autocompress.policy_training.experience import MOST_LOSS, BudgetRange, explore, plan_at
from autocompress.policy_training.experience_files import load_experience, save_experience
from autocompress.policy_training.imitation import imitate
from autocompress.policy_training.lessons import best_known, lessons, model_environment_of
from autocompress.policy_training.recipe import Fitting, Reinforcement
from autocompress.policy_training.reinforcement import Zoo, harshness, reinforce, variety
from autocompress_envs.labeling.many import ManyNetworks
from autocompress_envs.problem import Labeling, Outcome
from autocompress_envs.solver import Solver
from autocompress_envs.testing import cancelling_toy, fair_coins, toy_problem

SIGNS = ([1, 1, -1, -1], [1, -1, -1, 1], [-1, 1, 1, -1])


def explored(signs, seed=0):
    """The experience of a toy whose layers move the outputs of one fair coin forwards or backwards."""
    problem, sketch, _, _ = cancelling_toy(signs)
    moves = sketch.rounding[:, :, 0]  # half of the squared length of a sum is a divergence

    def evaluate(plan):
        moved = moves[np.arange(len(signs)), plan.weight_bits].sum()
        logits = np.array([[moved, -moved]])
        shift = logits - np.log(np.exp(logits).mean(1, keepdims=True))
        kl = float(-(0.5 * shift).sum())
        return Outcome(kl, 0.5, 0.5, problem.resources(plan), shift.astype(np.float16))

    shifts = np.stack([moves, -moves], axis=-1)[:, :, None].astype(np.float32)  # (L, 2, N = 1, K = 2)
    effects = Effects(np.zeros((len(signs), 1, 1, 2), dtype=np.float32), shifts, 1.0)
    ranges = [BudgetRange("bitops", 0.4, 0.7)]
    found = explore(problem, evaluate, fair_coins(1), effects, ranges, 3, 5, seed)
    assert found is not None
    return found, evaluate


@pytest.fixture(scope="module")
def toys():
    return [explored(signs) for signs in SIGNS]


def test_every_budgets_first_plan_is_the_solvers_and_all_plans_are_measured(toys):
    for experience, evaluate in toys:
        assert len(experience.budgets) == 3
        keys = [plan_at(experience.labelings, number).key() for number in range(len(experience.losses))]
        assert len(set(keys)) == len(keys) <= 15
        for limits in experience.budgets:
            assert Solver(experience.problem, limits).solve().key() in keys
            fitting = experience.within(limits)
            assert (np.diff(experience.losses[fitting]) >= 0).all()
            for number in fitting:
                plan = plan_at(experience.labelings, int(number))
                assert experience.problem.resources(plan)["bitops"] <= limits["bitops"]
        for number, loss in enumerate(experience.losses):
            assert evaluate(plan_at(experience.labelings, number)).kl == pytest.approx(loss)


def test_budgets_lie_between_the_cheapest_and_the_dearest_plan(toys):
    problem = toys[0][0].problem
    least, most = (BudgetRange("bitops", 0, 1).at(problem, share)["bitops"] for share in (0.0, 1.0))
    assert (least, most) == (4 * 16 * 2 * 8, 4 * 16 * 8 * 8)
    assert BudgetRange("bitops", 0, 1).at(problem, 0.5)["bitops"] == 4 * 16 * 4 * 8  # the geometric mean


def test_networks_that_only_guess_teach_nothing(toys):
    experience, _ = toys[0]

    def evaluate(plan):
        return Outcome(MOST_LOSS + 0.1, 0.1, 0.1, experience.problem.resources(plan), np.zeros((1, 2), np.float16))

    given = experience.problem, evaluate, experience.probabilities, experience.effects
    assert explore(*given, [BudgetRange("bitops", 0.4, 0.7)], 2, 3, 0) is None


def test_experience_comes_back_from_its_file(toys, tmp_path):
    experience, _ = toys[1]
    save_experience(tmp_path / "a.npz", "this", experience)
    is_there, found = load_experience(tmp_path / "a.npz", "this")
    assert is_there
    assert found.budgets == experience.budgets
    assert (found.losses == experience.losses).all()
    assert (found.shifts == experience.shifts).all()
    assert (found.effects.rounding == experience.effects.rounding).all()
    limits = experience.budgets[0]
    assert Solver(found.problem, limits).solve().key() == Solver(experience.problem, limits).solve().key()
    plan = plan_at(experience.labelings, 0)
    assert found.problem.resources(plan) == experience.problem.resources(plan)
    assert found.output_model().losses == pytest.approx(experience.output_model().losses)
    assert load_experience(tmp_path / "a.npz", "another") == (False, None)
    assert load_experience(tmp_path / "none.npz", "this") == (False, None)
    save_experience(tmp_path / "empty.npz", "this", None)
    assert load_experience(tmp_path / "empty.npz", "this") == (True, None)


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"PK" + raw[7:]])
def test_damaged_files_are_one_line(toys, tmp_path, damage):
    file = tmp_path / "a.npz"
    save_experience(file, "this", toys[0][0])
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError) as caught:
        load_experience(file, "this")
    assert str(caught.value).startswith(f"{file} must hold experience, got a damaged file: ")
    assert str(caught.value).endswith("; remove it.")


def test_the_expert_finds_the_best_plan_and_its_lesson_is_an_episode_of_it(toys):
    for experience, evaluate in toys:
        model = experience.output_model()
        for limits, one in zip(experience.budgets, lessons(experience), strict=True):
            plan, loss = best_known(experience, limits, model)
            plans = [Labeling(*(np.zeros(4, int), np.array(bits), np.zeros(4, int))) for bits in np.ndindex(2, 2, 2, 2)]
            fitting = [each for each in plans if experience.problem.resources(each)["bitops"] <= limits["bitops"]]
            least = min(evaluate(each).kl for each in fitting)
            assert evaluate(plan).kl == pytest.approx(least, abs=1e-4)
            assert loss == pytest.approx(least, abs=2e-3)
            assert one.actions.tolist() == plan.weight_bits.tolist()
            assert one.masks[np.arange(4), one.actions].all()
            env = model_environment_of(experience, limits, experience.effects.sketch(experience.probabilities), model)
            assert one.returns[0] == pytest.approx(env_return(env, plan), abs=1e-5)


def env_return(env, plan):
    env.reset(options={"plan": plan})
    return sum(env.step(int(option))[1] for option in plan.weight_bits)


def test_imitation_learns_the_lessons_and_is_the_same_for_the_same_seed(toys):
    every = [one for experience, _ in toys for one in lessons(experience)]
    told = []
    settings = Fitting(steps=60, width=16, batch=4, learning_rate=5e-3)
    policy = imitate(every, settings, lambda step, losses: told.append(losses["label"]))
    assert np.mean(told[-5:]) < 0.5 * told[0]
    again = imitate(every, settings)
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters(), strict=True))
    right = []
    for experience, _ in toys:
        model, sketch = experience.output_model(), experience.effects.sketch(experience.probabilities)
        for limits, one in zip(experience.budgets, lessons(experience), strict=True):
            env = model_environment_of(experience, limits, sketch, model)
            plan = PolicyInSearch(policy, experience.problem).plans([env], None)[0]
            right.append((plan.weight_bits == one.actions).mean())
    assert np.mean(right) > 0.8


def test_many_networks_take_turns_in_one_observation_space(toys):
    env = ManyNetworks(Zoo([experience for experience, _ in toys], 0), episodes=16)
    met = []  # holds them, so that none gets the address of another
    for _ in range(70):
        seen, _ = env.reset()
        assert env.observation_space.contains(seen)
        met.append(env._env)
        done = False
        while not done:
            _, _, done, _, _ = env.step(int(np.flatnonzero(env.action_masks())[0]))
    assert len(set(map(id, met))) == 5  # 16 episodes each


def test_a_curriculum_begins_with_few_kinds_of_label_and_mild_budgets(toys):
    """12 environments of 4 layers and 16 episodes each are 768 steps; the last 4 are drawn from everything."""
    joint, _ = toy_problem()
    assert variety([toys[0][0].problem, joint]).tolist() == [0.0, 1.0]  # bits alone; pruning and bits
    assert variety([joint, joint]).tolist() == [0.0, 0.0]
    experience = [each for each, _ in toys]
    places = {tuple(limits.values()): place for each in experience for limits, place in
              zip(each.budgets, harshness(each.budgets), strict=True)}  # fmt: skip
    drawn = []
    for seed in range(8):
        zoo = Zoo(experience, seed, steps=512)
        drawn.append([places[tuple(zoo().limits.values())] for _ in range(12)])
    found = np.array(drawn)
    assert set(found[:, :4].ravel()) == {0.0}  # a place of 1/2 is admitted after a half of the steps
    assert set(found[:, 4:8].ravel()) == {0.0, 0.5}
    assert set(found[:, 8:].ravel()) == {0.0, 0.5, 1.0}


def test_reinforcement_keeps_the_shape_and_leaves_its_start_alone(toys):
    start = LabelPolicy(2, 8)
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    told = []
    settings = Reinforcement(steps=64, environments=2, rollout=16, batch=8, learning_rate=1e-2, curriculum=0.5)
    learned = reinforce(start, [each for each, _ in toys], settings, 0, lambda steps, mean: told.append((steps, mean)))
    assert [steps for steps, _ in told] == [32, 64]
    assert all(np.isfinite(mean) for _, mean in told)
    assert all(torch.equal(before[name], tensor) for name, tensor in start.state_dict().items())
    assert (len(learned.members), learned.width) == (2, 8)
    assert any(not torch.equal(before[name], tensor) for name, tensor in learned.state_dict().items())
    assert not learned.training
