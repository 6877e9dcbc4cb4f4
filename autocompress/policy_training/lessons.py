"""The fourth step of training a policy: lessons, episodes of an expert in the environment.

The expert is the planner in the model of the outputs that has learned from all evaluations of the network
(`experience`): it compares thousands of plans under a budget, and knows the plans that were measured. A lesson is one
plan of the expert, walked layer by layer through the environment, which sees first-order effects around the original
only. So a policy learns to see, from what is known before any evaluation, what is known after many (expert iteration:
Anthony et al. 2017).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autocompress.policy_training.experience import STARTS, Experience, plan_at
from autocompress.searchers.model_based.output_model import OutputModel
from autocompress.searchers.model_based.planning import Planner
from autocompress_envs.labeling.environment import LabelingEnv
from autocompress_envs.labeling.observation import Arrays
from autocompress_envs.labeling.sketch import Sketch
from autocompress_envs.problem import BoolArray, FloatArray, IntArray, Labeling, Outcome
from autocompress_envs.problem.loss_parts import LossParts
from autocompress_envs.problem.tables import Tables
from autocompress_envs.solver import Solver

_NEAR = 0.7  # evaluated plans that cost at least this share of the budget say what prices are right under it
_NOISE = 0.1  # standard deviation of log KL at the best plan
_FORGIVENESS = 0.5  # added deviation per unit of log KL above the best: prices need only be right near the best plan


@dataclass(frozen=True, eq=False)
class Lesson:
    """One plan of the expert under one budget.

    Attributes:
        observed: observations before each of the L layers, by part, with the leading axis L.
        masks: (L, O) legal options.
        actions: (L,) the expert's options.
        returns: (L,) what is still to be earned before each layer, in decades of divergence.
        parts: (E, L, 2) expected losses of evaluated plans near the budget, split into pruning and rounding.
        log_losses: (E,) natural logarithms of their measured divergences.
        weights: (E,) 1 / variance of these logarithms.
    """

    observed: Arrays
    masks: BoolArray
    actions: IntArray
    returns: FloatArray
    parts: FloatArray
    log_losses: FloatArray
    weights: FloatArray


def lessons(experience: Experience) -> Iterator[Lesson]:
    """The lessons of one network with one kind of menu, one for each of its budgets."""
    sketch, model = experience.effects.sketch(experience.probabilities), experience.output_model()
    for limits in experience.budgets:
        yield lesson(experience, limits, sketch, model)


def lesson(experience: Experience, limits: Mapping[str, int], sketch: Sketch, model: OutputModel) -> Lesson:
    """The lesson under one budget.

    Args:
        experience: what was measured of the network.
        limits: absolute upper bounds by resource, under which at least one plan was evaluated.
        sketch: its effects, as the environment shows them.
        model: its model of the outputs; the expansion point is moved.
    """
    plan, _ = best_known(experience, limits, model)
    env = model_environment_of(experience, limits, sketch, model)
    walked = env.follow(plan)
    returns = np.cumsum(walked.rewards[::-1])[::-1]
    return Lesson(walked.observed, walked.masks, walked.actions, returns.copy(), *_priced(experience, limits))


def best_known(experience: Experience, limits: Mapping[str, int], model: OutputModel) -> tuple[Labeling, float]:
    """The best plan within limits that the planner finds, and its divergence as far as it is known, in nats."""
    fitting = experience.within(limits)
    model.expand_around(int(fitting[0]))
    planner = Planner(experience.problem, limits, model)
    starts = [model.codes[number] for number in fitting[:STARTS]]
    met = [found for start in starts if len(found := planner.descend(start, 1.0))]
    best, loss = plan_at(experience.labelings, int(fitting[0])), float(experience.losses[fitting[0]])
    if met:
        codes = np.concatenate(met)
        expected = model.predict(codes, 1.0)[0]
        if expected.min() < loss:
            best, loss = model.encoding.decode(codes[int(expected.argmin())]), float(expected.min())
    return best, max(loss, 0.0)


def model_environment_of(
    experience: Experience,
    limits: Mapping[str, int],
    sketch: Sketch,
    model: OutputModel,
    most_layers: int | None = None,
    most_options: int | None = None,
) -> LabelingEnv:
    """The environment of a network whose outcomes are what its model of the outputs predicts, the expected loss
    included.

    Args:
        experience: what was measured of the network.
        limits: absolute upper bounds by resource.
        sketch: its effects.
        model: its model of the outputs, expanded around a plan near the limits.
        most_layers: rows of the environment's `layers`. Default: None, for the network's own.
        most_options: rows of its `options`. Default: None, for the network's own.
    """
    problem = experience.problem

    def predicted(labeling: Labeling) -> Outcome:
        kl = float(model.predict(model.encoding.encode(labeling)[None], 1.0)[0][0])
        return Outcome(max(kl, 0.0), math.nan, math.nan, problem.resources(labeling))

    return LabelingEnv(problem, predicted, limits, sketch, most_layers=most_layers, most_options=most_options)


def _priced(
    experience: Experience, limits: Mapping[str, int]
) -> tuple[FloatArray, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Parts, log losses and weights of the evaluated plans that cost nearly as much as a budget allows."""
    split = LossParts(experience.problem)
    amounts = Tables(experience.problem).amounts(experience.labelings, limits)
    shares = np.max([amounts[name] / limit for name, limit in limits.items()], axis=0)
    near = [n for n in experience.within(limits) if shares[n] >= _NEAR]
    if len(near) < 2:  # one plan alone says nothing of prices
        reference = split(Solver(experience.problem, limits).solve())
        return reference[None][:0], np.zeros(0), np.zeros(0)
    parts = np.stack([split(plan_at(experience.labelings, int(n))) for n in near])
    logs = np.log(np.maximum(experience.losses[near], 1e-9))
    weights = 1.0 / (_NOISE**2 + (_FORGIVENESS * (logs - logs.min())) ** 2)
    return parts, logs, weights
