"""The fifth step of training a policy: it learns the expert's labels, the value of what comes, and prices.

One lesson is one batch of a network's layers. Its loss is

    mean over layers of  - log p(the expert's option)  +  VALUE (value - return)^2
    + PRICE [ mean over evaluated plans near the budget of w (log KL - b - log sum exp(price) part)^2 + SHRINKAGE mean
    price^2 ]

with the offset b of each lesson left free, because only ratios of prices change a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.policies.network import LabelPolicy, Scores, masked
from autocompress.policy_training.lessons import Lesson
from autocompress.policy_training.recipe import Fitting

_VALUE = 0.5
_PRICE = 0.1
_LEAST_DEVIATION = 0.05  # of a column that hardly varies in the zoo: it may vary on other networks
_CLIP = 1.0  # largest norm of a gradient


def imitate(
    lessons: Sequence[Lesson], settings: Fitting, told: Callable[[int, Mapping[str, float]], None] = lambda s, m: None
) -> LabelPolicy:
    """A policy that has learned all lessons.

    Args:
        lessons: lessons of all networks.
        settings: settings of the fit.
        told: function that is called after every step with its number, from 0, and its losses by name.

    Returns:
        The policy, in eval mode.
    """
    policy = LabelPolicy(settings.members, settings.width, settings.seed)
    _normalise_(policy, lessons)
    optimizer = torch.optim.AdamW(policy.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.steps)
    rng = np.random.default_rng(settings.seed)
    for step in range(settings.steps):
        chosen = rng.permutation(len(lessons))[: settings.batch]
        parts = [_losses(policy, lessons[number], settings) for number in chosen]
        losses = {name: torch.stack([each[name] for each in parts]).mean() for name in parts[0]}
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.parameters(), _CLIP)
        optimizer.step()
        schedule.step()
        told(step, {name: float(loss.detach()) for name, loss in losses.items()})
    return policy.eval()


def tensors_of_lesson(lesson: Lesson) -> dict[str, Tensor]:
    """Observations of a lesson as tensors, with the leading axis L."""
    return {name: torch.from_numpy(values) for name, values in lesson.observed.items()}


def _losses(policy: LabelPolicy, lesson: Lesson, settings: Fitting) -> dict[str, Tensor]:
    """The parts of a lesson's loss, each a scalar, mean over members."""
    masks, actions = torch.from_numpy(lesson.masks), torch.from_numpy(lesson.actions)
    returns = torch.from_numpy(lesson.returns).float()
    found = []
    for said in policy.each(tensors_of_lesson(lesson)):
        label = F.cross_entropy(masked(said.logits, masks), actions)
        value = _VALUE * F.smooth_l1_loss(said.values, returns)
        found.append(torch.stack([label, value, _PRICE * _price_loss(said, lesson, settings.shrinkage)]))
    label, value, price = torch.stack(found).mean(0)
    return {"label": label, "value": value, "price": price}


def _price_loss(said: Scores, lesson: Lesson, shrinkage: float) -> Tensor:
    """How far prices are from explaining the measured divergences of plans near the budget."""
    count = lesson.parts.shape[1]
    prices = said.prices[0, :count]  # (L, 2), before the first layer
    if not len(lesson.log_losses):
        return shrinkage * (prices**2).mean()
    parts, weights = torch.from_numpy(lesson.parts).float(), torch.from_numpy(lesson.weights).float()
    expected = (parts * prices.exp()).sum((1, 2)).clamp_min(1e-12).log()  # (E,)
    residual = torch.from_numpy(lesson.log_losses).float() - expected
    offset = (residual * weights).sum() / weights.sum()
    return (weights * (residual - offset) ** 2).mean() + shrinkage * (prices**2).mean()


def _normalise_(policy: LabelPolicy, lessons: Iterable[Lesson]) -> None:
    """Set the policy's means and deviations to those of all lessons' observations; rows of zeros don't count."""
    for part in ("layers", "options", "context"):
        rows = [lesson.observed[part].reshape(-1, lesson.observed[part].shape[-1]) for lesson in lessons]
        stacked = np.concatenate([each[(each != 0).any(1)] for each in rows])
        policy.get_buffer(f"mean_{part}").copy_(torch.from_numpy(stacked.mean(0)))
        deviation = np.maximum(stacked.std(0), _LEAST_DEVIATION)
        policy.get_buffer(f"deviation_{part}").copy_(torch.from_numpy(deviation))
