"""The contract suites: every built-in entry passes its own, and broken entries are refused with the rule."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.data import load_data
from autocompress.errors import InputError
from autocompress.menus import CRITERIA, QUANTIZERS
from autocompress.menus.quantizers import nearest
from autocompress.menus.rounding import Rounded
from autocompress.models import DigitsNet
from autocompress.searchers import base
from autocompress.searchers.agents import AGENTS
from autocompress.searchers.base import REWARDS
from autocompress.searchers.search import SEARCHERS
from autocompress.targets import TARGETS
from autocompress.testing import (
    ContractError,
    check_agent,
    check_criterion,
    check_data,
    check_model,
    check_quantizer,
    check_reward,
    check_searcher,
    check_target,
)
from autocompress_envs.problem import Labeling


@pytest.fixture(autouse=True)
def few_repeats(monkeypatch):
    monkeypatch.setattr(base, "MOST_REPEATS", 8)  # the toy has few plans; quick tests need not see all of them


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria(name):
    check_criterion(**vars(CRITERIA[name]))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_quantizers(name):
    check_quantizer(QUANTIZERS[name].round, QUANTIZERS[name].bits)


@pytest.mark.parametrize("name", sorted(set(SEARCHERS) - {"rl"}))
def test_searchers(name):
    check_searcher(**vars(SEARCHERS[name]))


@pytest.mark.parametrize("name", AGENTS)
def test_agents(name):
    check_agent(**vars(AGENTS[name]))


@pytest.mark.parametrize("name", REWARDS)
def test_rewards(name):
    check_reward(**vars(REWARDS[name]))


@pytest.mark.parametrize("name", TARGETS)
def test_targets(name):
    try:
        TARGETS[name].check_installed()
    except InputError as error:
        pytest.skip(str(error))
    check_target(TARGETS[name])


def digits(place, count=1437):
    data = load_data("digits")
    inputs, labels = data.train.load(range(count))
    return (inputs, labels), (inputs[:9], labels[:9])


def test_data_and_models():
    check_data(digits)
    check_data(digits, "anywhere", count=30)
    check_model(DigitsNet, torch.zeros(4, 1, 8, 8))


def refusal(check, *given, **named):
    with pytest.raises(ContractError) as caught:
        check(*given, **named)
    return str(caught.value)


def l1(consumers, generator):
    return CRITERIA["l1"].channels(consumers, generator)


def spoiled(consumers, generator):
    for consumer in consumers:
        consumer.weight.mul_(0)
    return l1(consumers, generator)


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (lambda c, g: l1(c, g).tolist(), "A criterion must return a tensor, got list."),
        (lambda c, g: l1(c, g).int(), "The order must be int64 (1,), got torch.int32 of shape (1,)."),
        (lambda c, g: l1(c, g)[1:], "The order must be int64 (1,), got torch.int64 of shape (0,)."),
        (lambda c, g: 0 * l1(c, g), "The order must hold each of the channels 0 to 5 once, got [0, 0, 0, 0, 0, 0]."),
        (spoiled, "The consumers must stay as they are, got 2 changed tensors."),
    ],
)
def test_broken_criteria(criterion, message):
    assert refusal(check_criterion, criterion) == message


def test_a_criterion_that_draws_from_the_global_generator():
    message = refusal(check_criterion, lambda c, g: torch.randperm(len(c[0].columns)))
    assert message.startswith("The order must be the same for the same generator, got [")


def test_broken_scores_of_single_weights():
    assert refusal(check_criterion, l1, lambda c, g: c.weight.abs().sum(1)) == (
        "The scores must have the weight's shape (4, 6), got (4,)."
    )
    assert refusal(check_criterion, l1, lambda c, g: c.weight.abs().log() - math.inf).startswith(
        "The scores must be finite, got [["
    )


def changed(**changes):
    """The quantizer `nearest`, with some of what it returns replaced."""

    def rounding(given, bits):
        results = nearest(given, bits)
        return [dataclasses.replace(each, **{name: act(each) for name, act in changes.items()}) for each in results]

    return rounding


@pytest.mark.parametrize(
    ("rounding", "message"),
    [
        (lambda given, bits: nearest(given, bits)[:1], "There must be one result for each of [2, 4], got 1."),
        (changed(codes=lambda r: r.codes.int()), "Codes must be int8 at 2 bits, got torch.int32."),
        (changed(codes=lambda r: 2 * r.codes), "Codes must lie within -2 to 1 at 2 bits, got -4 to 2."),
        (changed(scale=lambda r: -r.scale), "Scales must be above 0 at 2 bits"),
        (
            changed(scale=lambda r: r.scale[..., None]),
            "Codes, scale and bias must have the shapes [(2, 3, 100), (2, 3), (2, 3)] at 2 bits, "
            "got [(2, 3, 100), (2, 3, 1), (2, 3)].",
        ),
        (
            changed(codes=lambda r: r.codes.clamp(max=0) | -2, scale=lambda r: r.scale + 1),
            "A row of zeros must stay 0 at 2 bits",
        ),
    ],
)
def test_broken_quantizers(rounding, message):
    assert refusal(check_quantizer, rounding, (2, 4)).startswith(message)


def test_a_quantizer_that_forgets_pruned_weights():
    def dense(given, bits):
        return [
            Rounded((each.codes | (given.weight[..., :-1] == 0)).to(torch.int8), each.scale, each.bias)
            for each in nearest(given, bits)
        ]

    assert refusal(check_quantizer, dense, (4,)).startswith(("Pruned weights must get", "A row of zeros must stay 0"))


def plan(task, bits):
    layers = len(task.problem.layers)
    none = np.zeros(layers, dtype=np.int64)
    return Labeling(none, none + bits, none)


def test_broken_searchers():
    assert refusal(check_searcher, lambda task, settings, recorder: task.evaluate(plan(task, 0))) == (
        "A searcher must evaluate at least one plan, got none."
    )
    assert refusal(check_searcher, lambda task, settings, recorder: recorder(plan(task, 2))) == (
        "A searcher must evaluate a plan within {'size': 204}, got none."
    )

    def beside(task, settings, recorder):
        recorder(plan(task, 0))
        task.evaluate(plan(task, 0))

    assert refusal(check_searcher, beside) == (
        "Every plan must be evaluated by calling the recorder, got one measured twice."
    )
    calls = []

    def other_every_time(task, settings, recorder):
        calls.append(1)
        recorder(plan(task, 0))
        if len(calls) % 2:
            recorder(plan(task, 1))

    assert refusal(check_searcher, other_every_time) == (
        "The same seed must lead to the same plans in the same order, got others."
    )


def test_broken_agents():
    assert refusal(check_agent, SEARCHERS["solver"].search, actions=("guess",)) == (
        "`actions` must be some of price, label and discrete, got ('guess',)."
    )
    assert AGENTS.from_outside() == ()


@pytest.mark.parametrize(
    ("reward", "options", "message"),
    [
        (lambda o, c: o.accuracy, {}, "A reward must be finite, got [nan, nan, nan]."),
        (lambda o, c: o.kl, {}, "A better plan must not earn less, got [0.01, 0.5, 3.0]."),
        (lambda o, c: c.original_accuracy, {"needs_labels": True}, "A reward must be finite, got [nan, nan, nan]."),
    ],
)
def test_broken_rewards(reward, options, message):
    assert refusal(check_reward, reward, **options) == message


class Dropout(nn.Module):
    """Input (N, 4): other outputs every time."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x) + torch.rand(1)


def test_broken_networks():
    inputs = torch.ones(4, 4)
    assert refusal(check_model, Dropout, inputs) == (
        "Outputs must be the same for the same inputs in eval mode, got others."
    )
    with pytest.raises(InputError, match=r"^`model` must run at least one convolution, Linear, Embedding, GRU"):
        check_model(nn.Flatten, inputs[:, None, None])
    first, second = nn.Linear(4, 3), nn.Linear(4, 3)
    made = iter((first, second))
    assert refusal(check_model, lambda: next(made), inputs) == (
        "A network must have the same weights whenever it is built, got others."
    )


def test_broken_data():
    def load(place, least):
        return ((torch.rand(9, 3), torch.arange(9) % 2 + least),) * 2

    check_data(load, least=0)
    with pytest.raises(InputError, match=r"label"):
        check_data(load, least=-1)


def test_broken_targets():
    packed = TARGETS["packed"]
    counter = iter(range(1000))
    restless = dataclasses.replace(
        packed, name="restless", write=lambda lowered: b"%04d" % next(counter) + packed.write(lowered)
    )
    assert refusal(check_target, restless).startswith("The same network must give the same bytes, got ")
