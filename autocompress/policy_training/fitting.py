"""The fourth step of training a policy: it is fitted so that its prices explain the losses of all episodes.

The model of the measured loss of a plan, for one network under one budget, is

    log KL(plan) = b + log sum over layers and kinds of exp(log price(observation)) part(plan) + noise

where the parts split the plan's expected loss by layer and kind (pruning, rounding). The offset b belongs to
the network and the budget; it is left free because only ratios of prices change a plan. So the policy is a
model of the reward that all networks share, and the solver in the price environment finds the best plan under
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autocompress.policies.network import PricePolicy
from autocompress.policy_training.episodes import EpisodesUnderBudget
from autocompress.policy_training.recipe import Fitting

_NOISE = 0.1  # standard deviation of log KL at the best plan
_FORGIVENESS = 0.5  # added deviation per unit of log KL above the best: the model need only be right near the best plan


@dataclass(frozen=True)
class _Task:
    """The episodes of one network in one task: B budgets, up to E episodes each, padded with the weight 0."""

    observations: Tensor  # (B, L, F)
    parts: Tensor  # (B, E, L, 2)
    log_losses: Tensor  # (B, E)
    weights: Tensor  # (B, E)


def fit(
    tasks: Sequence[Sequence[EpisodesUnderBudget]], settings: Fitting, progress: Callable[[int, float], None]
) -> PricePolicy:
    """Fit one policy to the episodes of all networks and tasks.

    Args:
        tasks: episodes of each pair of network and task, grouped by budget; all pairs have the same weight.
        settings: settings of the fit.
        progress: function that is called after every step with the step's number, from 0, and its loss.

    Returns:
        The policy, in eval mode.
    """
    prepared = [_prepared(task) for task in tasks]
    policy = PricePolicy(settings.network, settings.members, seed=settings.seed)
    seen = torch.cat([task.observations.flatten(0, 1) for task in prepared])
    policy.mean.copy_(seen.mean(0))
    deviation = seen.std(0, correction=min(1, len(seen) - 1))
    policy.deviation.copy_(deviation.clamp_min(0.02))  # a feature that hardly varies here may vary on other networks
    optimizer = torch.optim.AdamW(policy.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.steps)
    rng = np.random.default_rng(settings.seed)
    for step in range(settings.steps):
        chosen = rng.permutation(len(prepared))[: settings.batch]
        loss = torch.stack([_loss(policy, prepared[index], settings) for index in chosen.tolist()]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        progress(step, float(loss.detach()))
    return policy.eval()


def _loss(policy: PricePolicy, task: _Task, settings: Fitting) -> Tensor:
    """The loss of one task: squared error of log KL in units of its noise, and shrinkage of the log prices.

    The offset of every budget is the weighted mean of its residuals. The mean is over members, budgets and
    episodes.
    """
    prices = policy.each(task.observations)  # (M, B, L, 2)
    expected = (task.parts * prices.exp()[:, :, None]).sum((-1, -2)).clamp_min(1e-12).log()  # (M, B, E)
    residual = task.log_losses - expected
    offset = (residual * task.weights).sum(-1, keepdim=True) / task.weights.sum(-1, keepdim=True)
    error = (task.weights * (residual - offset) ** 2).sum((-1, -2)) / (task.weights > 0).sum()
    return error.mean() + settings.shrinkage * (prices**2).mean()


def _prepared(task: Sequence[EpisodesUnderBudget]) -> _Task:
    """The episodes of one network in one task as tensors; the weight is 1 / variance of its log KL."""
    most = max(len(one_budget.losses) for one_budget in task)
    layers = len(task[0].observations)
    parts = torch.zeros(len(task), most, layers, 2)
    log_losses, weights = torch.zeros(len(task), most), torch.zeros(len(task), most)
    for index, one_budget in enumerate(task):
        count = len(one_budget.losses)
        measured = np.log(np.maximum(one_budget.losses, 1e-9))
        parts[index, :count] = torch.from_numpy(one_budget.parts).float()
        parts[index, count:] = parts[index, :1]
        log_losses[index, :count] = torch.from_numpy(measured).float()
        noise = _NOISE**2 + (_FORGIVENESS * (measured - measured.min())) ** 2
        weights[index, :count] = torch.from_numpy(1.0 / noise).float()
    observations = np.stack([one_budget.observations for one_budget in task])
    return _Task(torch.from_numpy(observations).float(), parts, log_losses, weights)
