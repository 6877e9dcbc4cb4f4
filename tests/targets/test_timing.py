"""Timing in turns, on a clock of our own: ratios, intervals, and when it stops."""

import numpy as np
import pytest
import torch

from autocompress.budget import Budget
from autocompress.errors import InputError
from autocompress.targets.timing import Effort, Interval, Machine, TimeLimit, Waiting, this_machine, time_pair
from autocompress.targets.timing.paired import interval


class World:
    """A clock that only calls move; how fast the machine is may change from call to call."""

    def __init__(self, speed=lambda call: 1.0):
        self.now, self.calls, self.speed, self.order = 0.0, 0, speed, []

    def clock(self):
        return self.now

    def session(self, name, seconds):
        return Fake(self, name, seconds)


class Fake:
    def __init__(self, world, name, seconds):
        self.world, self.name, self.seconds = world, name, seconds

    def run(self, inputs):
        world = self.world
        world.now += self.seconds * world.speed(world.calls)
        world.calls += 1
        world.order.append(self.name)


def timed(world, original, compressed, interruptions=None, **effort):
    settings = Effort(**{"least_rounds": 10, "warm_up": 2, **effort})
    sessions = world.session("a", original), world.session("b", compressed)
    return time_pair(*sessions, torch.zeros(1, 2), settings, clock=world.clock, interruptions=interruptions)


def test_the_two_take_turns_in_bursts():
    world = World()
    found = timed(world, 0.001, 0.0005, burst_seconds=0.002)
    assert world.order[:4] == ["a", "a", "b", "b"]  # warm-up
    after = "".join(world.order[4:])
    assert after == ("aaaa" + "bbbb") * found.rounds  # as many as the faster one needs for its burst
    assert (found.rounds, found.runs, found.settled) == (10, 40, True)
    assert found.ratio == Interval(pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5))
    assert found.original.p50 == pytest.approx(0.001)


def test_a_machine_that_slows_down_slows_both():
    """Ten times slower for the second half: the medians are off, the ratio is not."""
    world = World(lambda call: 10.0 if call > 60 else 1.0)
    found = timed(world, 0.004, 0.003, burst_seconds=0.001, least_rounds=60, seconds=0.0)
    assert found.rounds == 60
    assert found.ratio.median == pytest.approx(0.75)
    assert found.ratio.tightness < 0.001
    assert found.original.p95 == pytest.approx(0.04)


def interrupted_world():
    """Every third run takes 20 times as long, because the system gave the processor to another program."""
    world = World(lambda call: 20.0 if call % 3 == 0 and call >= 4 else 1.0)
    return world, lambda: max(0, (world.calls - 1) // 3 - 1)


def test_interrupted_rounds_do_not_count():
    world, interruptions = interrupted_world()
    found = timed(world, 0.004, 0.003, interruptions, burst_seconds=0.0, least_rounds=30)
    assert found.rounds >= 30
    assert found.interrupted > found.rounds  # two rounds of three
    assert found.original.p95 == pytest.approx(0.004)
    assert found.ratio == Interval(*[pytest.approx(0.75)] * 3)


def test_where_all_rounds_are_interrupted_all_count():
    world = World()
    found = timed(world, 0.004, 0.003, lambda: world.calls, least_rounds=12, seconds=0.0)
    assert (found.rounds, found.interrupted) == (12, 12)
    assert found.ratio.median == pytest.approx(0.75)


def test_timing_stops_at_its_limits_and_says_that_nothing_settled():
    rng = np.random.default_rng(0)
    world = World(lambda call: float(rng.uniform(0.5, 2.0)))
    found = timed(world, 0.01, 0.01, most_rounds=25, tightness=0.001)
    assert (found.rounds, found.settled) == (25, False)
    assert any(note.startswith("times did not settle in 25 rounds: the ratio lies within ") for note in found.notes())
    enough = timed(world, 0.01, 0.01, seconds=1.0, tightness=0.001)
    assert 10 < enough.rounds < 100


def test_more_rounds_are_taken_until_the_interval_is_tight():
    rng = np.random.default_rng(1)
    world = World(lambda call: float(rng.uniform(0.9, 1.1)))
    found = timed(world, 0.001, 0.002, burst_seconds=0.0, tightness=0.01)
    assert found.settled
    assert found.rounds > 10
    assert found.ratio.tightness <= 0.01
    assert found.ratio.low < 2.0 < found.ratio.high


def test_the_interval_holds_the_median_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [interval(rng.lognormal(0.0, 0.3, 120)) for _ in range(200)]
    share = np.mean([each.low <= 1.0 <= each.high for each in found])
    assert 0.88 <= share <= 0.99


def test_a_busy_machine_is_noticed():
    assert not Waiting(0.02, 1.5, 2).is_busy
    assert not Waiting(0.02, float("nan"), 2).is_busy
    assert Waiting(0.1, 0.5, 2).is_busy
    assert Waiting(0.0, 2.5, 2).is_busy
    assert str(Waiting(0.123, 2.5, 2)) == "waited 12 % of the time, load 2.5 on 2 cores"


def test_a_machine_is_read_as_it_was_written():
    assert Machine.of(this_machine().data()) == this_machine()
    assert this_machine().cores >= 1


def test_limits_of_time_are_read_from_budgets():
    assert TimeLimit.of(Budget.parse("size=0.5"), 1, 1) is None
    assert TimeLimit.of(Budget.parse("latency=50%,size=1kB"), 4, 2) == TimeLimit(0.5, None, 4, 2)
    assert TimeLimit.of(Budget.parse("latency=2.5ms"), 1, 1) == TimeLimit(None, 0.0025, 1, 1)
    limit = TimeLimit(0.5, None, 4, 2)
    assert TimeLimit.from_data(limit.data()) == limit


@pytest.mark.parametrize("text", ["latency=5", "latency=5kB", "latency=0.5h", "latency=", "latency=ms", "latency=1.01"])
def test_units_of_time_that_are_none(text):
    with pytest.raises(InputError) as caught:
        Budget.parse(text)
    assert str(caught.value) == (
        "`budget` of latency must be a fraction of the original's time such as 0.5 or 50%, or a time such as 5ms "
        f"(ns, us, ms or s), got {text.removeprefix('latency=')!r}."
    )


@pytest.mark.parametrize(
    ("text", "normal"),
    [("latency=0.5", "latency=50%"), ("latency=5ms", "latency=5000000ns"), ("latency=2us", "latency=2000ns"),
     ("latency=1.5 s", "latency=1500000000ns"), ("latency=3µs,macs=0.5", "latency=3000ns,macs=50%")],
)  # fmt: skip
def test_times_are_kept_in_nanoseconds(text, normal):
    assert str(Budget.parse(text)) == normal
    assert Budget.parse(normal) == Budget.parse(text)


def test_sizes_have_no_units_of_time():
    with pytest.raises(InputError, match="`budget` must read RESOURCE=AMOUNT"):
        Budget.parse("size=5ms")
