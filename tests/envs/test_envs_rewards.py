"""Reward numbers by hand."""

from __future__ import annotations

import math

import pytest

from autocompress_envs.problem import Outcome
from autocompress_envs.rewards import REWARDS, RewardContext, compute

CONTEXT = RewardContext(0.9, {"macs": 2_000, "size": 400}, {"macs": 800, "size": 100})


def outcome(kl: float = 0.0999, accuracy: float = 0.8) -> Outcome:
    return Outcome(kl, accuracy, 0.85, {"macs": 1_000, "size": 90})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kl", 1.0),  # -log10(0.0999 + 0.0001)
        ("accuracy", 0.8),
        ("amc_error", -0.2),
        ("amc_flops", -0.2 * 6.907755278982137),  # ln 1,000
        ("haq", -1.0),  # 0.1 x (80 - 90)
        ("galen", 0.8 - 3 * (0.25 + 0.1)),  # |1,000 / 800 - 1| + |90 / 100 - 1|
        ("balanced", 0.8 - 0.2 * (0.5 + 0.225) / 2),  # 1,000 / 2,000 and 90 / 400 of the original
    ],
)
def test_values(name: str, value: float) -> None:
    assert compute(name, outcome(), CONTEXT) == pytest.approx(value, abs=1e-12)


def test_every_reward_is_tested() -> None:
    assert sorted(REWARDS) == ["accuracy", "amc_error", "amc_flops", "balanced", "galen", "haq", "kl"]


def test_perfect_plan_earns_four() -> None:
    assert compute("kl", outcome(kl=0.0), CONTEXT) == pytest.approx(4.0)


@pytest.mark.parametrize("name", sorted(REWARDS))
@pytest.mark.parametrize("kl", [math.nan, math.inf, -0.001])
def test_broken_divergence_is_an_error(name: str, kl: float) -> None:
    with pytest.raises(ValueError, match="kl") as caught:
        compute(name, outcome(kl=kl), CONTEXT)
    assert str(caught.value) == f"`kl` of an outcome must be finite and at least 0, got {kl}; check the evaluation."


@pytest.mark.parametrize("name", ["accuracy", "amc_error", "amc_flops", "haq", "galen"])
def test_missing_accuracy_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="accuracy") as caught:
        compute(name, outcome(accuracy=math.nan), CONTEXT)
    assert str(caught.value) == "The reward needs an accuracy in [0, 1], got nan; use `kl` without labels."


def test_kl_needs_no_accuracy() -> None:
    assert compute("kl", outcome(accuracy=math.nan), CONTEXT) == pytest.approx(1.0)


def test_balanced_takes_the_divergence_for_the_accuracy_where_there_are_no_labels() -> None:
    found = compute("balanced", outcome(kl=0.5, accuracy=math.nan), CONTEXT)
    assert found == pytest.approx(math.exp(-0.5) - 0.2 * (0.5 + 0.225) / 2)


def test_haq_needs_the_original_accuracy() -> None:
    with pytest.raises(ValueError, match="haq") as caught:
        compute("haq", outcome(), RewardContext(math.nan, {}, {}))
    assert str(caught.value) == (
        "`reward` haq needs the original network's accuracy, got NaN; measure it with labels, or use `kl`."
    )
