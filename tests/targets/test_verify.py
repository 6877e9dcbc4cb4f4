"""Verification: every check passes on what the plan says, and fails alone, with its numbers, where it does not hold."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from lowering_toys import Prunable
from torch import nn

from autocompress.evaluation.measure import CLASSES, Kept
from autocompress.execute.compressed import LayerWeights, from_menus
from autocompress.menus import MenuSettings, build_menus
from autocompress.network import fold_batch_norms, trace
from autocompress.plan import Label, Plan
from autocompress.targets import verify
from autocompress.targets.graph.lowering import lower
from autocompress.targets.onnxruntime.file import write_onnx
from autocompress.targets.onnxruntime.session import open_session
from autocompress.targets.timing import Effort, Interval, Machine, PairedTiming, TimeLimit, Times, Waiting
from autocompress.targets.verify import (
    Check,
    RuntimeOutcome,
    Verification,
    check_agreement,
    check_budget,
    check_latency,
    check_layers,
    finished_resources,
    kept_channels,
    latencies,
    most_levels,
    outputs_on,
    runtime_outcome,
)
from autocompress_envs.problem import Labeling

NAMES = ["stem", "inner", "outer", "down", "head"]
BITS = (4, 2, 4, 8, 4)
MACHINE = Machine("Fast", 2, "Linux x86_64")


def outputs(rows, labels=None):
    """Outputs of a classifier, as verification keeps them."""
    seen = Kept(CLASSES)
    seen.add(rows, rows, labels)
    return seen


def finished(granularity="channel", weight_bits=BITS, sparsity=(1, 0, 0, 1, 0)):
    """The shortcut's 8 channels lose 2, `down`'s 12 lose 3."""
    torch.manual_seed(0)
    model, inputs = Prunable().eval(), torch.randn(40, 2, 8, 8)
    network = trace(model, inputs[:1])
    settings = MenuSettings(weight_bits=(2, 4, 8), granularity=granularity, sparsity_levels=4)
    menus = build_menus(model, network, inputs, settings, data_fingerprint="x", cache=None)
    bits = np.array([(2, 4, 8).index(each) for each in weight_bits])
    counts = [len(layer.sparsities) for layer in menus.problem().layers]
    labeling = Labeling(np.minimum(sparsity, np.array(counts) - 1), bits, np.zeros(5, np.int64))
    return network, from_menus(menus, labeling, fold_batch_norms(model, network)), inputs


@pytest.fixture(scope="module")
def channels():
    return finished()


@pytest.fixture(scope="module")
def elements():
    return finished("element", sparsity=(2, 2, 2, 2, 2))


def changed(compressed, name, **fields):
    return {**compressed.layers, name: replace(compressed.layers[name], **fields)}


def test_what_the_plan_says_passes(channels, elements):
    network, compressed, _ = channels
    assert check_layers(network, compressed.plan, compressed.layers) == [
        Check("channels", True, "5 layers have the plan's shapes"),
        Check("levels", True, "every row has at most 2^bits levels"),
    ]
    network, compressed, _ = elements
    assert check_layers(network, compressed.plan, compressed.layers)[2:] == [
        Check("sparsity", True, "5 layers have the plan's zeros")
    ]


def test_a_channel_too_few(channels):
    network, compressed, _ = channels
    layer = compressed.layers["down"]
    rows, columns = len(layer.values), layer.values[0].numel()
    layers = changed(compressed, "down", values=layer.values[1:], scale=layer.scale[1:], bias=layer.bias[1:])
    assert check_layers(network, compressed.plan, layers) == [
        Check("channels", False, f"down has {rows - 1} x {columns} weights, the plan says {rows} x {columns}"),
        Check("levels", True, "every row has at most 2^bits levels"),
    ]


def test_a_level_too_many(channels):
    """2 bits allow 4 levels; a fifth is one that no packed code has."""
    network, compressed, _ = channels
    layer = compressed.layers["inner"]
    values = layer.values.clone()
    values.view(len(values), -1)[0, :5] = torch.tensor([-2, -1, 0, 1, 2], dtype=torch.int8)
    assert check_layers(network, compressed.plan, changed(compressed, "inner", values=values)) == [
        Check("channels", True, "5 layers have the plan's shapes"),
        Check("levels", False, "inner has 5 levels in a row, 2 bits allow 4"),
    ]


def test_other_bits_than_the_plans(channels):
    network, compressed, _ = channels
    layers = changed(compressed, "inner", bits=3)
    levels = check_layers(network, compressed.plan, layers)[1]
    assert levels == Check("levels", False, "inner has 3 bits, the plan says 2")


def test_an_input_that_is_not_rounded_as_planned(channels):
    network, compressed, _ = channels
    levels = check_layers(network, compressed.plan, changed(compressed, "inner", input_range=None))[1]
    assert levels == Check("levels", False, "inner rounds its input to 32 bits, the plan says 8")


def test_two_failures_are_both_named(channels):
    network, compressed, _ = channels
    layers = {**changed(compressed, "inner", bits=3), "head": replace(compressed.layers["head"], bits=8)}
    levels = check_layers(network, compressed.plan, layers)[1]
    assert levels == Check("levels", False, "inner has 3 bits, the plan says 2; head has 8 bits, the plan says 4")


def test_a_zero_too_few(elements):
    """inner: half of 12 x 8 x 9 weights are removed."""
    network, compressed, _ = elements
    values = compressed.layers["inner"].values.clone()
    zeros = (values.view(-1) == 0).nonzero()[:, 0]
    values.view(-1)[zeros] = 1
    values.view(-1)[zeros[: 432 - 1]] = 0
    assert check_layers(network, compressed.plan, changed(compressed, "inner", values=values)) == [
        Check("channels", True, "5 layers have the plan's shapes"),
        Check("levels", True, "every row has at most 2^bits levels"),
        Check("sparsity", False, "inner has 431 zeros, the plan says 432"),
    ]


@pytest.mark.parametrize(
    ("rows", "bits", "sparsity", "expected"),
    [
        ([[-2, -1, 0, 1], [1, 1, 1, 1]], 2, 0.0, 4),
        ([[1, 1, 1, 1], [0, 1, 0, 1]], 2, 0.5, 2),
        ([[-1, 1, 0, 1]], 1, 0.5, 2),  # 0 is no level of its own where weights are removed
        ([[-1, 1, 0, 1]], 1, 0.0, 3),
        ([[1, 0, 0, 1]], 1, 0.5, 1),
    ],
)
def test_most_levels_by_hand(rows, bits, sparsity, expected):
    values = torch.tensor(rows, dtype=torch.int8)
    assert most_levels(LayerWeights(values, torch.ones(len(rows)), None, bits, sparsity, None)) == expected


def test_kept_channels(channels, elements):
    network, compressed, _ = channels
    assert {group.owner: group.width for group in network.groups} == {"stem": 8, "inner": 12, "down": 12}
    kept = kept_channels(network, compressed.plan)
    assert dict(zip([group.owner for group in network.groups], kept, strict=True)) == {
        "stem": 6, "inner": 12, "down": 9,
    }  # fmt: skip
    network, compressed, _ = elements
    assert kept_channels(network, compressed.plan).tolist() == [group.width for group in network.groups]


@pytest.mark.parametrize("width", [6, 7, 12, 24, 48, 96, 131])
def test_kept_channels_of_fractions_with_many_digits(width, channels):
    """Sparsity is written as a decimal; what is kept must come back whole."""
    network, compressed, _ = channels
    group = replace(network.groups[0], width=width)
    for kept in range(1, width + 1):
        label = replace(compressed.plan.labels[group.owner], sparsity=1 - kept / width)
        plan = Plan({**compressed.plan.labels, group.owner: label})
        assert kept_channels(replace(network, groups=(group,)), plan).tolist() == [kept]


def test_resources_of_the_finished_layers(channels):
    network, compressed, _ = channels
    found = finished_resources(network, compressed.plan, compressed.layers, 1234)
    macs = {"stem": 6 * 18 * 64, "inner": 12 * 54 * 64, "outer": 6 * 108 * 64, "down": 9 * 54 * 16, "head": 5 * 9}
    assert (found["size"], found["macs"]) == (1234, sum(macs.values()))
    assert found["bitops"] == sum(macs[name] * 8 * bits for name, bits in zip(NAMES, BITS, strict=True))


def test_budget():
    amounts = {"size": 1000, "macs": 5_000, "bitops": 7}
    assert check_budget({}, amounts) == []
    assert check_budget({"size": 1000, "macs": 6_000}, amounts) == [
        Check("budget", True, "size 1,000 of 1,000, macs 5,000 of 6,000")
    ]
    assert check_budget({"size": 999, "macs": 6_000}, amounts) == [
        Check("budget", False, "size 1,000 of 999, macs 5,000 of 6,000")
    ]


def logits(answers):
    """5 for the answer, 0 for the other: each output spreads by 2.5 around its mean."""
    return 5.0 * nn.functional.one_hot(torch.tensor(answers), 2).float()


@pytest.mark.parametrize(("wrong", "passes", "percent"), [(0, True, "0"), (1, True, "14"), (2, False, "20")])
def test_agreement_on_200_samples(wrong, passes, percent):
    """k wrong answers: 2 k of 400 outputs differ by 5, so the root mean square is sqrt(k / 8)."""
    pytorch = logits([0, 1] * 100)
    runtime = logits([1] * (wrong > 0) + [0] * (wrong == 0) + [0] * (wrong > 1) + [1] * (wrong < 2) + [0, 1] * 99)
    labels = torch.tensor([0, 1] * 100)
    outcome = runtime_outcome("ONNX Runtime", *(outputs(each, labels) for each in (pytorch, pytorch, runtime)))
    assert outcome.closeness.accuracy == outcome.agreement == 1 - wrong / 200
    assert outcome.difference == pytest.approx((wrong / 8) ** 0.5 / 2.5)
    found = check_agreement(outcome)
    assert (found.name, found.passed) == ("agreement", passes)
    assert found.detail.startswith(
        f"ONNX Runtime agrees with PyTorch on {100 - wrong / 2:.2f} % of the samples, outputs differ by {percent} % of "
        "their spread; one of the two must hold: at least 99.5 %, at most 5 %"
    )


def test_near_ties_may_fall_the_other_way():
    """20 of 200 answers flip, by 0.02 of logits that spread by 2.5."""
    pytorch = logits([0, 1] * 100)
    pytorch[:20] = torch.tensor([2.51, 2.5])
    runtime = pytorch.clone()
    runtime[:20, 1] = 2.52
    outcome = runtime_outcome("ONNX Runtime", *map(outputs, (pytorch, pytorch, runtime)))
    assert outcome.agreement == pytest.approx(0.9)
    assert outcome.difference == pytest.approx(0.02 * 0.05**0.5 / 2.5, rel=0.1)
    assert check_agreement(outcome).passed


@pytest.mark.parametrize(
    ("noise", "bias", "passes"),
    [(0.3, 0.0, True), (0.7, 0.0, False), (0.3, 0.4, False)],
    ids=["flips", "much", "wrong"],
)
def test_roundings_that_fall_the_other_way_in_a_network_that_compression_changed(noise, bias, passes):
    """The file's own noise is small beside that of compression, and it is no farther from the original than PyTorch."""
    generator = torch.Generator().manual_seed(0)
    original, change, other = (torch.randn(2000, 6, generator=generator) for _ in range(3))
    pytorch = original + change
    runtime = pytorch + noise * other - noise**2 / 2 * change + bias * change  # as far from the original, but for bias
    outcome = runtime_outcome("ONNX Runtime", *map(outputs, (original, pytorch, runtime)))
    assert outcome.agreement < 0.95
    assert outcome.difference > 0.15
    assert outcome.of_compression == pytest.approx((noise**2 + (bias - noise**2 / 2) ** 2) ** 0.5, rel=0.05)
    assert check_agreement(outcome).passed is passes


def test_a_file_with_another_weight_disagrees(channels):
    """The file of a network whose head answers the other way round."""
    _, compressed, inputs = channels
    head = compressed.layers["head"]
    tampered = lower(replace_head(compressed, head), inputs, integer=True)
    honest = lower(compressed, inputs, integer=True)
    batches = [(inputs[:20], None), (inputs[20:], None)]
    found = {}
    for name, written in (("honest", honest), ("tampered", tampered)):
        session = open_session(write_onnx(written))
        seen = outputs_on(compressed.model, honest.graph, session, batches)
        assert [len(each.rows()) for each in seen] == [40, 40, 40]
        found[name] = runtime_outcome("ONNX Runtime", *seen)
    assert check_agreement(found["honest"]).passed
    assert not check_agreement(found["tampered"]).passed
    assert found["tampered"].difference > 1 > 0.05 > found["honest"].difference


@pytest.mark.parametrize(("at_once", "sizes"), [(7, [7, 7, 6, 7, 7, 6]), (64, [20, 20])])
def test_outputs_are_computed_in_parts_of_a_batch(channels, at_once, sizes):
    _, compressed, inputs = channels
    seen = []
    handle = compressed.model.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    batches, answers = [(inputs[:20], torch.arange(20)), (inputs[20:], torch.arange(20, 40))], torch.arange(40)
    try:
        found = outputs_on(compressed.model, nn.Identity(), None, batches, at_once=at_once)
    finally:
        handle.remove()
    assert seen == sizes
    assert torch.equal(found[1].rows(), inputs)
    assert found[2] is None
    assert torch.cat(found[0].labels).tolist() == answers.tolist()


def test_an_original_whose_outputs_were_kept_is_not_run_again(channels):
    _, compressed, inputs = channels
    batches = [(inputs[:20], torch.arange(20)), (inputs[20:], torch.arange(20, 40))]
    first, _, _ = outputs_on(compressed.model, nn.Identity(), None, batches)
    seen = []
    handle = compressed.model.register_forward_hook(lambda *_: seen.append(1))
    try:
        kept, found, _ = outputs_on(first, nn.Identity(), None, batches)
    finally:
        handle.remove()
    assert seen == []
    assert kept is first
    assert len(first.rows()) == len(inputs)
    assert first.bytes == first.rows().nbytes
    assert torch.equal(found.rows(), inputs)


def test_the_file_is_given_parts_of_its_own_size(channels):
    _, compressed, inputs = channels

    class Echo:
        def run(self, given):
            seen.append(len(given))
            return given

    seen = []
    found = outputs_on(compressed.model, compressed.model, Echo(), [(inputs[:20], None)], at_once=20, in_runtime=8)
    assert seen == [8, 8, 4]
    assert torch.equal(found[2].rows(), inputs[:20])


def replace_head(compressed, head):
    layer = replace(head, values=-head.values, bias=-head.bias)
    model = copy.deepcopy(compressed.model)
    model.head.weight.data = layer.weight()
    model.head.bias.data = layer.bias.clone()
    return replace(compressed, model=model, layers={**compressed.layers, "head": layer})


class Clock:
    """A session that remembers the samples of its batches."""

    def __init__(self):
        self.sizes = []

    def run(self, inputs):
        self.sizes.append(len(inputs))


def test_latencies_are_of_both_at_every_batch_size():
    original, compressed = Clock(), Clock()
    found = latencies(original, compressed, torch.zeros(3, 2), effort=Effort(least_rounds=4, seconds=0.0))
    assert list(found) == [1, 32] == list(verify.BATCHES)
    assert [timing.rounds for timing in found.values()] == [4, 4]
    assert set(original.sizes) == set(compressed.sizes) == {1, 32}
    assert sorted(original.sizes) == original.sizes
    assert original.sizes.count(1) == 10 + found[1].runs


def timing(ratio, milliseconds=1.0, machine=MACHINE):
    """A timing whose intervals are 1 % wide to either side."""

    def around(value):
        return Interval(value, 0.99 * value, 1.01 * value)

    seconds = milliseconds / 1e3
    times = [Times(each, each, around(each)) for each in (seconds / ratio, seconds)]
    return PairedTiming(*times, around(ratio), 10, 100, 0, True, Waiting(0.0, 0.5, 2), machine)


def test_a_limit_of_time_holds_for_the_upper_bound():
    limit = TimeLimit(0.5, None, 1, 1)
    assert check_latency(limit, timing(0.495)).passed
    assert check_latency(limit, timing(0.496)) == Check(
        "latency",
        False,
        "0.4960 of the original's time (95 % interval 0.4910 to 0.5010), at most 0.5; batch 1, one thread",
    )
    assert check_latency(TimeLimit(None, 0.005, 4, 2), timing(0.9, 4.9)).detail == (
        "4.9 ms (95 % interval 4.851 to 4.949), at most 5 ms; batch 4, 2 threads"
    )
    assert not check_latency(TimeLimit(None, 0.005, 4, 2), timing(0.1, 4.99)).passed


def test_on_another_machine_a_time_is_reported_and_not_claimed():
    limit, other = TimeLimit(0.5, None, 1, 1), Machine("Other", 8, "Linux x86_64")
    assert not check_latency(limit, timing(0.9), MACHINE).passed
    found = check_latency(limit, timing(0.9), other)
    assert found.passed
    assert found.detail.endswith(
        "one thread; not claimed on this machine (Fast, 2 cores, Linux x86_64), but on Other, 8 cores, Linux x86_64"
    )


def test_failures_are_one_line_each(channels):
    _, compressed, _ = channels
    closeness = runtime_outcome("x", *(outputs(logits([0])) for _ in range(3))).closeness
    checks = (Check("a", True, "fine"), Check("b", False, "3 of 2"), Check("c", False, "none"))
    verified = Verification(checks, closeness, None, {}, {})
    assert (verified.passed, verified.failures()) == (False, ["b: 3 of 2", "c: none"])
    assert replace(verified, checks=checks[:1]).passed
    assert isinstance(RuntimeOutcome("x", closeness, 1.0, 0.0, 0.0, 0.0, {}).seconds, dict)
    assert Label(0.0, 2, 8) in compressed.plan.labels.values()
