"""Fitting a policy to episodes: the prices that explain which plans turned out better than others.

For plans of one network under one budget the measured loss is taken to be

    log KL(plan) = b + log sum over layers of exp(price(observation)) part(plan) + noise

with the loss parts of the plan and an offset b of the network and the budget, for only ratios of prices change a plan.
The solver inside the price environment then acts optimally under the prices: the policy is a model of the reward that
all networks share, and its own planner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autocompress.policies.network import PricePolicy
from autocompress.policy_training.episodes import Budgeted
from autocompress.policy_training.recipe import Fitting

_NOISE = 0.1  # of log KL near the best plan, and
_FORGIVENESS = 0.5  # additional noise per nat of log KL above the best: the model need only be right near it


@dataclass(frozen=True)
class _Task:
    """All episodes of one network and kind of budget: B budgets, at most E episodes each, padded by weight 0."""

    observations: Tensor  # (B, L, F)
    parts: Tensor  # (B, E, L, 2)
    log_losses: Tensor  # (B, E)
    weights: Tensor  # (B, E)


def fit(tasks: Sequence[Sequence[Budgeted]], settings: Fitting, progress: Callable[[int, float], None]) -> PricePolicy:
    """A policy for all tasks.

    Args:
        tasks: the episodes of every network and kind of budget; all count the same.
        settings: how.
        progress: told the step and the loss now and then.
    """
    prepared = [_prepared(task) for task in tasks]
    policy = PricePolicy(settings.network, settings.members, seed=settings.seed)
    seen = torch.cat([task.observations.flatten(0, 1) for task in prepared])
    policy.mean.copy_(seen.mean(0))
    policy.deviation.copy_(
        seen.std(0, correction=min(1, len(seen) - 1)).clamp_min(0.02)
    )  # what hardly varies must not be blown up elsewhere
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
    """Mean squared error of log KL within budgets, in units of the noise, and the prices' size; over all members."""
    prices = policy.each(task.observations)  # (M, B, L, 2)
    expected = (task.parts * prices.exp()[:, :, None]).sum((-1, -2)).clamp_min(1e-12).log()  # (M, B, E)
    residual = task.log_losses - expected
    offset = (residual * task.weights).sum(-1, keepdim=True) / task.weights.sum(-1, keepdim=True)
    error = (task.weights * (residual - offset) ** 2).sum((-1, -2)) / (task.weights > 0).sum()
    return error.mean() + settings.shrinkage * (prices**2).mean()


def _prepared(task: Sequence[Budgeted]) -> _Task:
    most = max(len(under.losses) for under in task)
    layers = len(task[0].observations)
    parts = torch.zeros(len(task), most, layers, 2)
    log_losses, weights = torch.zeros(len(task), most), torch.zeros(len(task), most)
    for index, under in enumerate(task):
        count = len(under.losses)
        measured = np.log(np.maximum(under.losses, 1e-9))
        parts[index, :count] = torch.from_numpy(under.parts).float()
        parts[index, count:] = parts[index, :1]
        log_losses[index, :count] = torch.from_numpy(measured).float()
        noise = _NOISE**2 + (_FORGIVENESS * (measured - measured.min())) ** 2
        weights[index, :count] = torch.from_numpy(1.0 / noise).float()
    observations = np.stack([under.observations for under in task])
    return _Task(torch.from_numpy(observations).float(), parts, log_losses, weights)
