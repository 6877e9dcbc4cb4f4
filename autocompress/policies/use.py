"""Which policy a search begins with, and what it says of a network before any evaluation.

`chosen_policy` finds the policy of the options. `PolicySays` asks it for prices, for the copy that labels layers in a
search, and for the plan that is the result with `--episodes 0`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from autocompress.config import SearchOptions
from autocompress.errors import InputError
from autocompress.evaluation import Evaluator
from autocompress.evaluation.effects import Effects
from autocompress.policies.files import DEFAULT, SavedPolicy, load_policy
from autocompress.policies.labeling import PolicyInSearch, nearest_kinds
from autocompress.progress import Progress
from autocompress.searchers.agents import begins_with_policy
from autocompress.searchers.base import LabelingPolicy, SearchSettings
from autocompress.searchers.model_based.first_order import ALONE, SAMPLES, FirstOrderModel, predicted_best_plan
from autocompress.searchers.model_based.planning import Planner
from autocompress.searchers.search import Searcher
from autocompress_envs.labeling.environment import LabelingEnv
from autocompress_envs.problem import FloatArray, Labeling, Problem

NONE = "none"
_DRAWS = 16  # plans that the policy draws without an evaluation, beside its likeliest one


def chosen_policy(options: SearchOptions, settings: SearchSettings, searcher: Searcher) -> SavedPolicy | None:
    """The policy of the options; where none is named, the shipped one if the agent can begin with a policy.

    Args:
        options: `policy`, `method`, `agent`, `action` and `episodes` are read.
        settings: settings of the search that the options lead to.
        searcher: search method that the options name.

    Returns:
        The policy, or None where the search begins without one.

    Raises:
        InputError: the method or the agent can't begin with the named policy, the policy can't be read, or
            `episodes` is 0 and there is no policy.
    """
    able = searcher.has_agent and begins_with_policy(settings)
    named = options.policy or (DEFAULT if able else NONE)
    if named != NONE and not able:
        raise InputError(
            f"`policy` must be left out or none with the method {options.method}, agent {options.agent} and action "
            f"{options.action}, got {named}: only the agents labeling and model-based, and agents that act by prices "
            "around an explorer's, begin with one."
        )
    if named == NONE and not options.episodes:
        how = "pass --policy default" if able else "only agents that begin with a policy need none"
        raise InputError(f"`episodes` must be at least 1 without a policy, got 0; {how}.")
    return None if named == NONE else load_policy(named)


@dataclass(frozen=True)
class PolicySays:
    """What a policy says of one network under one budget, before any evaluation.

    Attributes:
        prices: (L, 2) log prices of pruning and of rounding every layer.
        labeling: plan of its likeliest labels.
        copy: function that gives a fresh copy of the policy that labels layers and may learn.
        environment: environment of the network under the budget, which evaluates nothing.
    """

    prices: FloatArray
    labeling: Labeling
    copy: Callable[[], LabelingPolicy]
    environment: LabelingEnv


def policy_says(
    saved: SavedPolicy,
    problem: Problem,
    limits: Mapping[str, int],
    probabilities: FloatArray,
    effects: Effects | None,
    watcher: Progress,
) -> PolicySays:
    """What a policy says of a network under a budget.

    Args:
        saved: policy that is asked.
        problem: the network in numbers.
        limits: absolute upper bounds by resource.
        probabilities: (N, K) predictions of the original.
        effects: first-order effects of all labels around the original, on the first of the same samples; None for
            unknown ones.
        watcher: observer that is told of layers of a kind that the policy was not trained on.

    Raises:
        InfeasibleBudgetError: no plan meets the limits.
    """
    known = saved.record.get("kinds", [])
    for kind, stand_in in nearest_kinds(problem, known).items():
        count = sum(layer.kind == kind for layer in problem.layers)
        watcher.note(f"the policy was not trained on {kind} layers; it takes the {count} here for {stand_in} layers")
    env = LabelingEnv(problem, None, limits, None if effects is None else effects.sketch(probabilities))
    policy = PolicyInSearch(saved.policy, problem, known)
    (labeling,) = policy.plans([env], None)
    return PolicySays(policy.prices(env), labeling, lambda: PolicyInSearch(saved.policy, problem, known), env)


def zero_shot_plan(
    saved: SavedPolicy,
    problem: Problem,
    limits: Mapping[str, int],
    evaluator: Evaluator,
    watcher: Progress,
    *,
    descends: bool = True,
) -> Labeling:
    """The plan that a policy leads to without any evaluation of a plan.

    The policy labels the layers in the environment once by its likeliest labels, and draws `_DRAWS` further plans. The
    one that first-order effects and the policy's prices expect to lose least is where a descent in that same model
    begins.

    Args:
        saved: policy that labels.
        problem: the network in numbers.
        limits: absolute upper bounds by resource.
        evaluator: evaluator of the network, which takes the first-order effects.
        watcher: observer that is told of unknown layer kinds and of the effects.
        descends: whether a descent follows; else the likeliest labels are the plan. Default: true.
    """
    effects = effects_with_progress(evaluator, watcher, samples=SAMPLES)
    probabilities = evaluator.probabilities
    says = policy_says(saved, problem, limits, probabilities, effects, watcher)
    if not descends:
        return says.labeling
    drawn = says.copy().plans([says.environment.twin() for _ in range(_DRAWS)], np.random.default_rng(0))
    by_effects = predicted_best_plan(problem, limits, probabilities, effects, says.prices, counting=ALONE)
    plans = [says.labeling, *drawn, by_effects]
    model = FirstOrderModel(problem, probabilities, effects, says.prices, counting=ALONE)
    codes = np.stack([model.encoding.encode(plan) for plan in plans])
    best = codes[int(model.predict(codes)[0].argmin())]
    met = np.concatenate([best[None], Planner(problem, limits, model).descend(best)])
    return model.encoding.decode(met[int(model.predict(met)[0].argmin())])


def effects_with_progress(
    evaluator: Evaluator, watcher: Progress, around: Labeling | None = None, samples: int | None = None
) -> Effects:
    """First-order effects of an evaluator's network, by `Evaluator.effects`; the watcher is told beforehand.

    They take as long as a dozen evaluations and more, where they are not known already; then nothing is told.

    Args:
        evaluator: evaluator of the network.
        watcher: observer that is told that effects are being taken.
        around: plan around which the effects are taken; None: the original network.
        samples: number of samples that they are taken on; None: as many as are worth their time.
    """
    if around is None and evaluator.knows_effects(samples):
        return evaluator.effects(None, samples)
    if around is None:
        watcher.stage("first-order effects: what every label does to the outputs, before a plan is evaluated")
    else:
        watcher.stage("first-order effects around the best plan: what labels next to its own do to the outputs")
    return evaluator.effects(around, samples, lambda done, total: watcher.advance(done, total, "first-order effects"))
