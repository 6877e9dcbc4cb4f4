"""Terminal rewards, by name: how good one measured plan is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autocompress_envs.problem import Outcome

KL_FLOOR = 1e-4  # nats: differences below it earn next to nothing
HAQ_SCALE = 0.1  # reward per percentage point of accuracy (HAQ, equation 5)
BALANCED_PRICE = 0.2  # accuracy that the whole of a resource is worth: a tenth of the bytes is worth two points
GALEN_BETA = -3.0  # reward per relative miss of a target (Galen)


@dataclass(frozen=True)
class RewardContext:
    """Numbers of the task that a reward may compare an outcome with.

    Attributes:
        original_accuracy: task metric of the uncompressed network in [0, 1], NaN where unknown.
        original: amounts by resource of the uncompressed network.
        limits: absolute upper bounds of the episode by resource.
    """

    original_accuracy: float
    original: Mapping[str, int]
    limits: Mapping[str, int]


RewardFunction = Callable[[Outcome, RewardContext], float]
"""Function that computes the reward of one measured plan; higher is better. It may raise a ValueError."""


@dataclass(frozen=True)
class Reward:
    """Entry of the registry of rewards.

    Attributes:
        function: function that computes the reward.
        needs_labels: whether the reward reads the outcome's accuracy; true by default.
        needs_original_accuracy: whether it reads `RewardContext.original_accuracy`; false by default.
    """

    function: RewardFunction
    needs_labels: bool = True
    needs_original_accuracy: bool = False


def kl(outcome: Outcome, context: RewardContext) -> float:
    """-log10(KL + 1e-4): 4 for a perfect plan, about 1 at a tenth of a nat, about 0 at one nat."""
    return -math.log10(outcome.kl + KL_FLOOR)


def accuracy(outcome: Outcome, context: RewardContext) -> float:
    """The outcome's task metric itself, in [0, 1]."""
    return _accuracy(outcome)


def amc_error(outcome: Outcome, context: RewardContext) -> float:
    """R_Err = -Error (AMC, He et al. 2018), with the error 1 - accuracy in [0, 1]."""
    return -(1.0 - _accuracy(outcome))


def amc_flops(outcome: Outcome, context: RewardContext) -> float:
    """R_FLOPs = -Error * ln(FLOPs) (AMC, He et al. 2018), with multiply-accumulates for the FLOPs."""
    return -(1.0 - _accuracy(outcome)) * math.log(outcome.resources["macs"])


def haq(outcome: Outcome, context: RewardContext) -> float:
    """0.1 * (accuracy - original accuracy), both in percent (HAQ, Wang et al. 2019, equation 5).

    Raises:
        ValueError: the original accuracy is not known.
    """
    if math.isnan(context.original_accuracy):
        raise ValueError(
            "`reward` haq needs the original network's accuracy, got NaN; measure it with labels, or use `kl`."
        )
    return HAQ_SCALE * 100.0 * (_accuracy(outcome) - context.original_accuracy)


def galen(outcome: Outcome, context: RewardContext) -> float:
    """accuracy - 3 * sum over the limited resources of |amount / limit - 1|.

    The absolute reward of TuNAS (Bender et al. 2020) as Galen uses it (Krieger et al. 2022, arXiv 2212.07818,
    with latency as the only cost). Amounts below the limit are punished as well.
    """
    misses = [abs(outcome.resources[name] / limit - 1.0) for name, limit in context.limits.items()]
    return _accuracy(outcome) + GALEN_BETA * sum(misses)


def balanced(outcome: Outcome, context: RewardContext) -> float:
    """What a plan keeps of its accuracy, less a price on what it takes: for users who have no hard budget.

    accuracy - `BALANCED_PRICE` * mean over the limited resources of amount / original; without labels, exp(-KL) stands
    for the accuracy: the geometric mean of the share of its probability that the original's outputs keep.
    """
    kept = math.exp(-outcome.kl) if math.isnan(outcome.accuracy) else _accuracy(outcome)
    shares = [outcome.resources[name] / context.original[name] for name in context.limits]
    return kept - BALANCED_PRICE * sum(shares) / len(shares)


def balanced_prices(kept: Sequence[float], shares: Sequence[float]) -> list[tuple[float, float] | None]:
    """The prices at which each of several plans has the highest reward of the kind of `balanced`.

    Plans below the concave hull of the others have none: at every price, some other plan is as good or better.

    >>> balanced_prices([0.9, 0.84, 0.85, 0.6], [0.4, 0.3, 0.2, 0.1])
    [(0.0, 0.25), None, (0.25, 2.5), (2.5, inf)]

    Args:
        kept: accuracy of each plan, in [0, 1].
        shares: amount of the resource that each takes, divided by that of the original.

    Returns:
        The lowest and the highest price of each; infinity where there is no highest; None where there is no price.
    """
    found: list[tuple[float, float] | None] = []
    for own, share in zip(kept, shares, strict=True):
        low, high = 0.0, math.inf
        for other, others in zip(kept, shares, strict=True):
            if others < share:
                high = min(high, (own - other) / (share - others))
            elif others > share:
                low = max(low, (other - own) / (others - share))
            elif other > own:
                high = -math.inf
        low, high = round(low, 6), round(high, 6)
        found.append((low, high) if low < high else None)
    return found


REWARDS: dict[str, Reward] = {
    "kl": Reward(kl, needs_labels=False),
    "accuracy": Reward(accuracy),
    "amc_error": Reward(amc_error),
    "amc_flops": Reward(amc_flops),
    "haq": Reward(haq, needs_original_accuracy=True),
    "galen": Reward(galen),
    "balanced": Reward(balanced, needs_labels=False),
}
"""Rewards by name; more may be added under other names."""


def compute(name: str, outcome: Outcome, context: RewardContext) -> float:
    """The named reward of one measured plan.

    Args:
        name: name in `REWARDS`.
        outcome: measurements of the plan.
        context: numbers of the task to compare with.

    Raises:
        ValueError: the outcome holds a KL divergence that is negative or not finite, or no accuracy where the
            reward needs one; or the reward is not finite.
    """
    if not math.isfinite(outcome.kl) or outcome.kl < 0:
        raise ValueError(f"`kl` of an outcome must be finite and at least 0, got {outcome.kl}; check the evaluation.")
    reward = float(REWARDS[name].function(outcome, context))
    if not math.isfinite(reward):
        raise ValueError(f"`reward` {name} must give finite numbers, got {reward}.")
    return reward


def _accuracy(outcome: Outcome) -> float:
    """The outcome's accuracy, or a ValueError where it is none."""
    if not 0.0 <= outcome.accuracy <= 1.0:
        raise ValueError(f"The reward needs an accuracy in [0, 1], got {outcome.accuracy}; use `kl` without labels.")
    return outcome.accuracy
