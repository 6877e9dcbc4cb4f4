"""Which policy a search begins with, and the plan that it writes there.

`chosen_policy` finds the policy of the options. `policy_plan` asks it for prices and the plan that follows
from them; searches begin from these prices. `zero_shot_plan` adds the first-order effects: with `--episodes
0` that plan is the result.
"""

from __future__ import annotations

from collections.abc import Mapping

from autocompress.config import SearchOptions
from autocompress.errors import InputError
from autocompress.evaluation import Evaluator
from autocompress.evaluation.effects import Effects
from autocompress.policies.files import DEFAULT, SavedPolicy, load_policy
from autocompress.policies.network import PolicyPlan, nearest_kinds, plan_in_one_pass
from autocompress.progress import Progress
from autocompress.searchers.agents import begins_with_policy
from autocompress.searchers.base import SearchSettings
from autocompress.searchers.model_based.first_order import SAMPLES, predicted_best_plan
from autocompress.searchers.search import Searcher
from autocompress_envs.problem import Labeling, Problem

NONE = "none"


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
            f"{options.action}, got {named}: only agents that act by prices around an explorer's begin with one."
        )
    if named == NONE and not options.episodes:
        how = "pass --policy default" if able else "only agents that begin with a policy need none"
        raise InputError(f"`episodes` must be at least 1 without a policy, got 0; {how}.")
    return None if named == NONE else load_policy(named)


def zero_shot_plan(
    saved: SavedPolicy, problem: Problem, limits: Mapping[str, int], evaluator: Evaluator, watcher: Progress
) -> Labeling:
    """The plan that a policy leads to without any evaluation of a plan.

    It is the predicted best plan under the policy's prices and the network's first-order effects.

    Args:
        saved: policy that sets the prices.
        problem: the network in numbers.
        limits: absolute upper bounds by resource.
        evaluator: evaluator of the network, which takes the first-order effects.
        watcher: observer that is told of unknown layer kinds and of the effects.
    """
    found = policy_plan(saved, problem, limits, watcher)
    effects = effects_with_progress(evaluator, watcher, samples=SAMPLES)
    return predicted_best_plan(problem, limits, evaluator.probabilities, effects, found.prices)


def effects_with_progress(
    evaluator: Evaluator, watcher: Progress, around: Labeling | None = None, samples: int | None = None
) -> Effects:
    """First-order effects of an evaluator's network, by `Evaluator.effects`; the watcher is told beforehand.

    They take as long as a dozen evaluations and more.

    Args:
        evaluator: evaluator of the network.
        watcher: observer that is told that effects are being taken.
        around: plan around which the effects are taken; None: the original network.
        samples: number of samples that they are taken on; None: as many as are worth their time.
    """
    if around is None:
        watcher.stage("first-order effects: what every label does to the outputs, before a plan is evaluated")
    else:
        watcher.stage("first-order effects around the best plan: what labels next to its own do to the outputs")
    return evaluator.effects(around, samples, lambda done, total: watcher.advance(done, total, "first-order effects"))


def policy_plan(saved: SavedPolicy, problem: Problem, limits: Mapping[str, int], watcher: Progress) -> PolicyPlan:
    """The prices of a policy and the plan that follows from them, by one forward pass over all layers.

    Args:
        saved: policy that sets the prices.
        problem: the network in numbers.
        limits: absolute upper bounds by resource.
        watcher: observer that is told of layers of a kind that the policy was not trained on.

    Raises:
        InfeasibleBudgetError: no plan meets the limits.
    """
    seen = saved.record.get("kinds", [])
    for kind, stand_in in nearest_kinds(problem, seen).items():
        count = sum(layer.kind == kind for layer in problem.layers)
        watcher.note(f"the policy was not trained on {kind} layers; it takes the {count} here for {stand_in} layers")
    return plan_in_one_pass(saved.policy, problem, limits, seen)
