"""Which policy a search begins with, and what it decides there."""

from __future__ import annotations

from collections.abc import Mapping

from autocompress.config import SearchOptions
from autocompress.errors import InputError
from autocompress.evaluation import Evaluator
from autocompress.evaluation.effects import Effects
from autocompress.policies.files import DEFAULT, SavedPolicy, load_policy
from autocompress.policies.network import Walk, nearest_kinds, walk
from autocompress.progress import Progress
from autocompress.searchers.agents import begins_with_policy
from autocompress.searchers.base import SearchSettings
from autocompress.searchers.model_based.foresight import SAMPLES, foreseen
from autocompress.searchers.search import Searcher
from autocompress_envs.problem import Labeling, Problem

NONE = "none"


def chosen_policy(options: SearchOptions, settings: SearchSettings, searcher: Searcher) -> SavedPolicy | None:
    """The policy of the options: the default one where none is named and the agent can begin with one.

    Raises:
        InputError: a policy is named that the method or the agent can't begin with, or can't be read; or there is
            nothing to evaluate and no policy either.
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


def planned(
    saved: SavedPolicy, problem: Problem, limits: Mapping[str, int], evaluator: Evaluator, watcher: Progress
) -> Labeling:
    """The policy's plan without an evaluation: what is foreseen under its prices, or its walk's where effects are
    not to be had."""
    found, effects = decided(saved, problem, limits, watcher), known_effects(evaluator, watcher, samples=SAMPLES)
    if effects is None:
        return found.labeling
    return foreseen(problem, limits, evaluator.probabilities, effects, found.prices)


def known_effects(
    evaluator: Evaluator, watcher: Progress, around: Labeling | None = None, samples: int | None = None
) -> Effects | None:
    """See `Evaluator.effects`; told beforehand, for they take the time of a dozen evaluations and more."""
    if around is None:
        watcher.stage("first-order effects: what every label does to the outputs, before a plan is evaluated")
    else:
        watcher.stage("first-order effects around the best plan: what labels next to its own do to the outputs")
    return evaluator.effects(around, samples)


def decided(saved: SavedPolicy, problem: Problem, limits: Mapping[str, int], watcher: Progress) -> Walk:
    """What the policy decides, by one walk over the network; tells of layers of a kind that it was not trained on."""
    seen = saved.record.get("kinds", [])
    for kind, stand_in in nearest_kinds(problem, seen).items():
        count = sum(layer.kind == kind for layer in problem.layers)
        watcher.note(f"the policy was not trained on {kind} layers; it takes the {count} here for {stand_in} layers")
    return walk(saved.policy, problem, limits, seen)
