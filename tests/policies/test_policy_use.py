"""Which policy a search begins with, what it evaluates first, and a search that evaluates nothing at all."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from policy_toys import grown

import autocompress
from autocompress.errors import InputError
from autocompress.job.load import load, load_splits
from autocompress.job.options import request, search_request
from autocompress.job.prepare import build_evaluator, prepare
from autocompress.policies.files import load_policy, save_policy
from autocompress.policies.labeling import PolicyInSearch
from autocompress.policies.network import LabelPolicy
from autocompress.policies.use import effects_with_progress
from autocompress.progress import Silent
from autocompress.run.journal import read_journal
from autocompress.searchers.agents import AGENTS
from autocompress.searchers.base import SearchSettings, Task
from autocompress.searchers.explorers import EXPLORERS
from autocompress.searchers.model_based import search as model_based
from autocompress.searchers.model_based.first_order import ALONE, FirstOrderModel, predicted_best_plan
from autocompress.searchers.prices import PriceBelief
from autocompress.searchers.search import run_search
from autocompress.searchers.simple_plans import simple_plans
from autocompress_envs import LabelingEnv
from autocompress_envs.labeling.observation import KINDS
from autocompress_envs.problem.loss_parts import LossParts
from autocompress_envs.solver import Solver
from autocompress_envs.testing import TOY_LIMITS, fair_coins, random_problem, toy_problem

QUICK = {
    "model": "autocompress.models.small_nets:SmallVgg", "model_args": {"widths": [[12], [12], [12]], "channels": 1},
    "data": "digits", "search_samples": 64, "calibration_samples": 64, "sparsity_levels": 4, "dtype": "float32",
    "recalibration_samples": 64, "target": "packed",
}  # fmt: skip
BEGINNERS = ["labeling", "model-based", "anchored-ppo", "anchored-td3", "posterior-ppo", "posterior-td3"]
ONLY = "only the agents labeling and model-based, and agents that act by prices around an explorer's, begin with one."
# conv2's bits weigh e times as much, fc's as little as 1 / e: see test_envs_environment, where this finds the optimum
PRICES = np.array([[0.0, 0.0], [0.0, 2.0], [0.0, -1.0]])


class Watcher(Silent):
    def __init__(self):
        self.stages, self.notes, self.steps = [], [], []

    def stage(self, text):
        self.stages.append(text)

    def note(self, text):
        self.notes.append(text)

    def step(self, step):
        self.steps.append(step)


def chosen(**options):
    return search_request(options=options).policy


def refusal(call, *given, **named):
    with pytest.raises(InputError) as caught:
        call(*given, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A policy with prices of its own, that has never seen a linear layer."""
    policy = grown(LabelPolicy(1, 16), seed=3, scale=0.15)
    folder = tmp_path_factory.mktemp("policies") / "mine"
    save_policy(folder, policy, {"kinds": ["conv"]})
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def quick(cache):
    return {**QUICK, "cache": cache, "budget": "size=0.2"}


@pytest.fixture(scope="module")
def zero_shot(quick, mine, tmp_path_factory):
    """A search without evaluations, shared: (result, watcher)."""
    watcher = Watcher()
    out = tmp_path_factory.mktemp("runs") / "zero"
    return autocompress.search(episodes=0, policy=str(mine), out=out, progress=watcher, **quick), watcher


@pytest.fixture(scope="module")
def job(quick):
    """The same network, data and menus: (job, config)."""
    asked = request(quick["model"], None, quick)
    return prepare(load(asked, load_splits(asked), Silent()), asked.menus, asked.config, Silent()), asked.config


@pytest.mark.parametrize("agent", BEGINNERS)
def test_agents_that_act_by_prices_begin_with_the_default_policy(agent):
    saved = chosen(agent=agent)
    assert saved.name == "default"
    assert saved.record == load_policy("default").record
    assert set(saved.record["kinds"]) <= set(KINDS)


def test_every_agent_either_begins_with_one_or_does_not():
    beginning = [name for name, spec in AGENTS.items() if chosen(agent=name, action=spec.actions[0]) is not None]
    assert sorted(beginning) == sorted(BEGINNERS)


@pytest.mark.parametrize(
    "options",
    [
        {"policy": "none"},
        {"policy": "none", "agent": "posterior-ppo"},
        {"method": "local"},
        {"method": "solver", "policy": "none"},
        {"agent": "ppo"},
        {"agent": "ppo", "action": "label"},
        {"agent": "maskable-ppo", "action": "discrete"},
    ],
)
def test_searches_without_a_policy(options):
    assert chosen(**options) is None


def test_a_policy_of_ones_own(mine):
    assert chosen(policy=str(mine)).name == "mine"
    assert chosen(policy=str(mine / "policy.json"), agent="posterior-ppo", episodes=0).record["kinds"] == ["conv"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "local", "policy": "default"},
            f"`policy` must be left out or none with the method local, agent labeling and action auto, "
            f"got default: {ONLY}",
        ),
        (
            {"agent": "ppo", "policy": "default"},
            f"`policy` must be left out or none with the method rl, agent ppo and action auto, got default: {ONLY}",
        ),
        (
            {"agent": "sac", "action": "label", "policy": "x"},
            f"`policy` must be left out or none with the method rl, agent sac and action label, got x: {ONLY}",
        ),
        (
            {"policy": "none", "episodes": 0},
            "`episodes` must be at least 1 without a policy, got 0; pass --policy default.",
        ),
        ({"policy": "nowhere/at/all"}, "`policy` must be default or an existing folder or file, got nowhere/at/all."),
    ],
)
def test_what_is_refused(options, message):
    assert refusal(chosen, **options) == message


def test_search_refuses_before_anything_is_loaded(tmp_path):
    """The model does not exist, and is not looked for."""
    options = {"model": "nowhere.py:net", "data": "digits", "budget": "size=0.1", "out": tmp_path / "run"}
    message = refusal(autocompress.search, **options, method="local", policy="default")
    assert message.startswith("`policy` must be left out or none with the method local")
    assert not (tmp_path / "run").exists()


def evaluated_by(agent, prices, episodes=4):
    """Plans (weight bits) in the order of evaluation."""
    problem, evaluate = toy_problem()
    task = Task(problem, dict(TOY_LIMITS), evaluate, 1.0, fair_coins(4), prices)
    settings = SearchSettings(agent=agent, episodes=episodes)
    seen = []
    run_search(task, settings, observe=lambda each: seen.append(each.labeling.weight_bits.tolist()))
    return seen


@pytest.mark.parametrize("agent", [name for name in BEGINNERS if name != "labeling"])
def test_the_policys_plan_comes_first_and_the_solvers_second(agent):
    """The solver's is (2, 2, 4) bits, at 0.76 nats; the prices lead to (2, 4, 2), the optimum at 0.512."""
    assert evaluated_by(agent, PRICES, episodes=2) == [[0, 1, 0], [0, 0, 1]]
    assert evaluated_by(agent, None, episodes=1) == [[0, 0, 1]]


@pytest.mark.parametrize("agent", ["model-based", "posterior-ppo"])
def test_a_policy_that_is_the_solver_costs_no_evaluation(agent):
    """What comes first is evaluated once; how soon the model plans after it is another matter."""
    assert evaluated_by(agent, np.zeros((3, 2)), episodes=2) == evaluated_by(agent, None, episodes=2)


def test_agents_without_an_explorer_are_not_steered():
    """`chosen_policy` gives them no prices; the first plan of a search without prices is the solver's."""
    assert evaluated_by("ppo", None, episodes=1) == [[0, 0, 1]]


@pytest.mark.parametrize("name", EXPLORERS)
def test_explorers_begin_at_the_policys_prices(name):
    """Their knowledge before any trial, up to a common offset; and only where a price has anything to weigh."""
    problem = random_problem(np.random.default_rng(2), 8, "residual")
    expected = np.random.default_rng(0).normal(size=(8, 2))
    explorer = EXPLORERS[name](problem, np.random.default_rng(0), expected)
    active = LossParts(problem).active
    prices = explorer.knowledge()[:, :2]
    assert active.sum() > 8
    apart = (prices - expected)[active]
    np.testing.assert_allclose(apart, apart.mean(), atol=1e-6)
    plain = EXPLORERS[name](problem, np.random.default_rng(0), None).knowledge()[:, :2]
    assert np.abs(plain).max() < 1e-9
    proposed = np.mean([explorer.propose().prices[active] for _ in range(300)], axis=0)
    assert np.corrcoef(proposed, expected[active])[0, 1] > 0.98


def test_the_belief_returns_to_the_policys_prices_where_nothing_is_measured():
    """Two prices, one plan that says only how far they are apart from the loss: parts (1, 0) lost e nats.

    The first price is then known up to the common offset, which is free: it takes the second along, and what the policy
    said of their difference stands.
    """
    belief = PriceBelief(np.array([[True, True]]), np.array([[0.5, -0.7]]))
    assert belief.mean.tolist() == [0.5, -0.7]
    belief.add(np.array([[1.0, 0.0]]), float(np.exp(1.0)))
    assert belief.mean[0] == pytest.approx(1.0, abs=0.01)
    assert belief.mean[0] - belief.mean[1] == pytest.approx(1.2, abs=0.01)


def test_the_policy_labels_first_and_every_evaluation_is_an_episode(mine):
    """Of a search of ten evaluations on the toy: the policy's plan after the simple ones, and the steps are counted."""
    problem, evaluate = toy_problem()
    known = ["conv"]
    task = Task(
        problem, dict(TOY_LIMITS), evaluate, 1.0, fair_coins(4), PRICES,
        policy=lambda: PolicyInSearch(load_policy(mine).policy, problem, known),
    )  # fmt: skip
    seen = []
    run_search(task, SearchSettings(episodes=10), observe=seen.append)
    env = LabelingEnv(problem, None, TOY_LIMITS)
    (plan,) = PolicyInSearch(load_policy(mine).policy, problem, known).plans([env], None)
    simple = [each.key() for each in simple_plans(problem, dict(TOY_LIMITS))[:3]]
    keys = [each.labeling.key() for each in seen]
    assert keys[: len(simple)] == simple
    assert plan.key() in keys[: len(simple) + 2]
    assert [each.steps for each in seen[: len(simple)]] == [3 * (index + 1) for index in range(len(simple))]
    assert all(later.steps >= earlier.steps + 3 for earlier, later in pairwise(seen))


def test_without_evaluations_the_plan_is_the_best_that_policy_and_effects_expect(zero_shot, job, mine):
    result, watcher = zero_shot
    evaluator = build_evaluator(*job)
    given = result.problem, result.limits, evaluator.probabilities, evaluator.effects()
    env = LabelingEnv(given[0], None, given[1], given[3].sketch(given[2]))
    policy = PolicyInSearch(load_policy(mine).policy, result.problem, ["conv"])
    prices, (labels,) = policy.prices(env), policy.plans([env], None)
    model = FirstOrderModel(result.problem, *given[2:], prices, counting=ALONE)
    others = (
        predicted_best_plan(*given, prices, counting=ALONE),
        labels,
        Solver(*given[:2]).solve(),
    )
    expected = [float(model.predict(model.encoding.encode(each)[None])[0][0]) for each in (result.labeling, *others)]
    assert expected[0] <= min(expected[1:]) + 1e-12
    assert evaluator.evaluations == 0
    assert result.outcome.resources["size"] <= result.limits["size"]
    assert result.meets_budget
    assert watcher.steps == []
    *others, note = watcher.notes  # the network never learned, which is told too
    assert [each[:25] for each in others] == ["the original is right on "]
    assert note == "the policy was not trained on linear layers; it takes the 1 here for conv layers"


def test_effects_that_are_known_are_not_told_again(job):
    evaluator, watcher = build_evaluator(*job), Watcher()
    first = effects_with_progress(evaluator, watcher)
    assert effects_with_progress(evaluator, watcher) is first
    assert effects_with_progress(evaluator, watcher, samples=16) is first
    assert watcher.stages == ["first-order effects: what every label does to the outputs, before a plan is evaluated"]


def test_without_evaluations_nothing_stands_in_the_journal(zero_shot):
    result, _ = zero_shot
    header, entries = read_journal(result.run_folder / "journal.jsonl")
    assert entries == []
    assert len(header["policy"]) == 16
    assert {path.name for path in result.run_folder.iterdir()} == {
        "README.md", "config.yaml", "journal.jsonl", "layers.json", "model.safetensors", "outcome.json", "plan.yaml",
        "report.html",
    }  # fmt: skip
    outcome = json.loads((result.run_folder / "outcome.json").read_text())
    assert (outcome["search"], outcome["evaluations"]) == (None, 0)
    assert outcome["stopped_because"] == "the policy decided alone"
    assert (result.search_outcome, result.evaluations) == (None, 0)
    assert outcome["compressed"]["resources"] == result.outcome.resources
    assert autocompress.Plan.load(result.run_folder / "plan.yaml") == result.plan


def test_a_run_without_evaluations_resumes_to_the_same_plan(zero_shot, quick, mine, tmp_path):
    folder = shutil.copytree(zero_shot[0].run_folder, tmp_path / "run")
    (folder / "outcome.json").unlink()
    again = autocompress.search(episodes=0, policy=str(mine), out=folder, resume=True, **quick)
    assert again.plan == zero_shot[0].plan
    assert again.outcome == zero_shot[0].outcome


def test_a_resumed_run_must_find_the_same_policy(zero_shot, quick, mine, tmp_path):
    """By option; and where another policy lies in its folder meanwhile, by its weights."""
    folder = shutil.copytree(zero_shot[0].run_folder, tmp_path / "run")
    options = {**quick, "episodes": 0, "out": folder, "resume": True}
    assert refusal(autocompress.search, **options) == (
        f"`policy` must be as in the run to resume, {str(mine)!r}, got None; leave it out, or choose another --out."
    )
    moved = shutil.copytree(mine, tmp_path / "mine")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace(str(mine), str(moved)))
    before = read_journal(folder / "journal.jsonl")[0]["policy"]
    save_policy(moved, LabelPolicy(1, 16, seed=5), {"kinds": ["conv"]})
    message = refusal(autocompress.search, **options, policy=str(moved))
    now = message.partition("got ")[2].partition(";")[0]
    assert message == (
        f"`resume` must find the same policy as the run in {folder}, {before}, got {now}; "
        "put it back, or start anew with --force."
    )
    assert now != before
    assert len(now) == 16


def test_a_search_begins_with_simple_plans_the_predicted_best_and_the_policys(quick, mine, tmp_path, monkeypatch):
    """9 evaluations are too few for effects around a plan."""
    monkeypatch.setattr(model_based, "FROM_EFFECTS", replace(model_based.FROM_EFFECTS, explorer_every=4))
    options = {**quick, "episodes": 9, "policy": str(mine), "selection_samples": 0}
    result = autocompress.search(out=tmp_path / "run", **options)
    entries = read_journal(tmp_path / "run" / "journal.jsonl")[1]
    evaluated = [entry.labels for entry in entries]
    simple = simple_plans(result.problem, result.limits)[:3]
    assert [evaluated.index(labels_of(plan)) for plan in simple] == [0, 1, 2]
    layers = len(result.problem.layers)
    assert [entry.steps for entry in entries[:3]] == [layers, 2 * layers, 3 * layers]
    assert all(later.steps >= earlier.steps + layers for earlier, later in pairwise(entries))
    assert result.evaluations == 9
    assert json.loads((tmp_path / "run" / "outcome.json").read_text())["search"]["kl"] == min(x.kl for x in entries)


def labels_of(labeling):
    return tuple(tuple(each.tolist()) for each in (labeling.sparsity, labeling.weight_bits, labeling.activation_bits))


def test_nothing_measured_where_the_budget_admits_no_plan(quick, mine, tmp_path):
    message = refusal(
        autocompress.search, **{**quick, "budget": "size=0.001"}, episodes=0, policy=str(mine), out=tmp_path / "run"
    )
    assert message.startswith("`size` budget must be at least ")
    assert not (tmp_path / "run").exists()
