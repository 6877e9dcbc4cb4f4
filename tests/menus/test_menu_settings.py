"""Settings: sparsities on offer, and every rule's whole message."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from autocompress.errors import InputError
from autocompress.menus import MenuSettings
from autocompress.menus.plan_checks import with_widths_of
from autocompress.network import trace
from autocompress.plan import Label, Plan

MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({"criterion": "best"}, "`criterion` must be one of activation, l1, l2, obs, random, taylor, got 'best'."),
    ({"quantizer": "int"}, "`quantizer` must be one of binary, fixed-point, gptq, mse, nearest, got 'int'."),
    ({"granularity": "4:2"}, "`granularity` must be channel, element or n:m with n < m, got '4:2'."),
    ({"granularity": "row"}, "`granularity` must be channel, element or n:m with n < m, got 'row'."),
    (
        {"weight_bits": (4, 3)},
        "`weight_bits` must be ascending and each one of [1, 2, 3, 4, 5, 6, 7, 8, 16, 32], got [4, 3].",
    ),
    ({"weight_bits": ()}, "`weight_bits` must be ascending and each one of [1, 2, 3, 4, 5, 6, 7, 8, 16, 32], got []."),
    ({"activation_bits": (3,)}, "`activation_bits` must be ascending and each one of [4, 5, 6, 7, 8, 32], got [3]."),
    (
        {"quantizer": "binary", "weight_bits": (1, 4)},
        "`weight_bits` must be among 1, 16 and 32 with the quantizer binary, got [1, 4].",
    ),
    ({"sparsity_levels": 0}, "`sparsity_levels` must be 1 to 64, got 0."),
    ({"sparsity_levels": 65}, "`sparsity_levels` must be 1 to 64, got 65."),
    ({"damping": 0.0}, "`damping` must be in (0, 1), got 0.0."),
    ({"damping": 1.0}, "`damping` must be in (0, 1), got 1.0."),
    ({"fisher_draws": 0}, "`fisher_draws` must be at least 1, got 0."),
]


@pytest.mark.parametrize(("options", "message"), MESSAGES)
def test_messages(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        MenuSettings(**options)


def test_sparsities() -> None:
    assert MenuSettings(sparsity_levels=4).sparsities() == (0.0, 0.25, 0.5, 0.75)
    assert MenuSettings(sparsity_levels=1).sparsities() == (0.0,)
    assert MenuSettings(granularity="element", sparsity_levels=2).sparsities() == (0.0, 0.5)
    assert MenuSettings(granularity="1:4", sparsity_levels=8).sparsities() == (0.0, 0.75)
    assert MenuSettings(granularity="2:4", sparsity_levels=1).sparsities() == (0.0,)


def test_channels_are_left_in_eighths_or_in_steps_that_kernels_like():
    exact, stepped = MenuSettings(steps_from=None), MenuSettings(steps_from=16)
    assert exact.channels(96) == [96, 84, 72, 60, 48, 36, 24, 12]
    assert stepped.channels(96) == [96, 80, 64, 48, 32, 16]
    assert stepped.channels(40) == [40, 32, 24, 16, 8]
    assert stepped.channels(20) == [20, 16, 12, 8, 4]
    assert stepped.channels(12) == exact.channels(12)
    for width in range(1, 300):
        found = stepped.channels(width)
        assert MenuSettings().channels(width) == (found if width >= 64 else exact.channels(width))
        assert found == sorted(set(found), reverse=True)
        assert found[0] == width
        assert found[-1] >= 1
        step = 16 if width >= 96 else 8 if width >= 32 else 4 if width >= 16 else 1
        assert all(count % step == 0 for count in found[1:])


def test_one_level_leaves_all_channels():
    assert MenuSettings(sparsity_levels=1, steps_from=16).channels(96) == [96]


@pytest.mark.parametrize(
    ("kept", "steps"), [(96, 64), (80, 64), (84, None), (0, 64)], ids=["all", "a step", "an exact eighth", "none"]
)
def test_a_plan_brings_the_steps_that_it_was_made_with(kept, steps):
    """84 of 96 channels are 7/8: on the menu where channels are left in exact shares."""
    network = trace(nn.Sequential(nn.Linear(8, 96), nn.ReLU(), nn.Linear(96, 4)), torch.zeros(1, 8))
    plan = Plan({"0": Label(1 - kept / 96, 8, 8), "2": Label(0.0, 8, 8)}, "channel")
    assert with_widths_of(plan, network, MenuSettings()).steps_from == steps


def test_a_latency_runs_plan_brings_steps_of_all_widths():
    """28 of 40 channels are no eighth, and no multiple of 8: nothing offers them. 24 are a multiple of 8."""
    network = trace(nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 4)), torch.zeros(1, 8))
    for kept, steps in ((24, 16), (28, 64), (35, 64)):
        plan = Plan({"0": Label(1 - kept / 40, 8, 8), "2": Label(0.0, 8, 8)}, "channel")
        assert with_widths_of(plan, network, MenuSettings()).steps_from == steps
