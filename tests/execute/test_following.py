"""Two networks side by side: who is held when, and how much memory that takes."""

from collections import Counter

import pytest
import torch
from execute_toys import labels, menus_of, network, outputs
from torch import nn

from autocompress import memory
from autocompress.execute import recalibrate as recalibration
from autocompress.execute.compressed import from_menus
from autocompress.execute.following import LEAST_HELD, MOST_IN_A_BATCH, Batches, Follower, Pair, Schedule
from autocompress.execute.recalibrate import fitting_bytes, recalibrate
from autocompress.network import trace
from autocompress.network.exported import export_graph


class Shrinking(nn.Module):
    """Input 3x64x64: 4,096 positions, then 256, then one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.early, self.middle = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 4, stride=4)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.early(x))
        return self.head(torch.relu(self.middle(x)).mean((2, 3)))


SAMPLES = 512
EARLY_BYTES = 4 * 4 * 64 * 64  # the output of `early`, one sample, one network


def shrinking():
    model, x = Shrinking().eval(), torch.randn(SAMPLES, 3, 64, 64)
    menus = menus_of(model, x[:64], weight_bits=(3, 32), activation_bits=(8, 32), sparsity_levels=1)
    labeling = labels(menus, 0.0, 3, 8)
    return model, x, menus, labeling, from_menus(menus, labeling, model)


@pytest.fixture
def watched(monkeypatch):
    """Most samples by node that had a value at the same time, and samples that each layer was fitted to."""
    alive, most, fitted = Counter(), Counter(), {}
    step, forget, fit = Follower.step, Follower.forget, recalibration.fitted

    def watched_step(self, node, values, rounding=None):
        step(self, node, values, rounding)
        alive[self, node.name] += len(values[node]) if isinstance(values[node], torch.Tensor) else 0
        most[node.name] = max(most[node.name], alive[self, node.name])

    def watched_forget(self, node, values):
        before = dict(values)
        forget(self, node, values)
        for gone in before.keys() - values.keys():
            alive[self, gone.name] -= len(before[gone])

    def watched_fit(site, layer, batches):
        fitted[site.layer.name] = sum(batch.size for batch in batches)
        return fit(site, layer, batches)

    monkeypatch.setattr(Follower, "step", watched_step)
    monkeypatch.setattr(Follower, "forget", watched_forget)
    monkeypatch.setattr(recalibration, "fitted", watched_fit)
    return most, fitted


def test_early_layers_see_few_samples_and_late_ones_all(watched):
    """`early` has enough with 64 samples; when `head` asks for all, the new ones pass in batches."""
    most, fitted = watched
    model, x, menus, labeling, made = shrinking()
    recalibrate(made, model, menus, labeling, x)
    assert (fitted["early"], fitted["head"]) == (64, SAMPLES)
    assert 64 <= fitted["middle"] < SAMPLES
    convolutions = [count for name, count in most.items() if name.startswith("conv2d")]
    assert convolutions[0] <= 64 + MOST_IN_A_BATCH
    assert max(convolutions) < SAMPLES
    assert most["linear"] == SAMPLES


def test_less_memory_holds_fewer_samples(watched, monkeypatch):
    """Two networks' outputs of `early` and what reads them: about three copies of them at the most a sample."""
    most, fitted = watched
    model, x, menus, labeling, made = shrinking()
    monkeypatch.setattr(memory, "resident_bytes", lambda: 10**9)
    limit = 10**9 + fitting_bytes(menus.network) + 100 * EARLY_BYTES
    found = recalibrate(made, model, menus, labeling, x, memory=limit)
    held = max(count for name, count in most.items() if name.startswith(("conv2d", "relu")) and "1" not in name)
    assert LEAST_HELD <= held <= 50
    assert fitted["early"] <= held < 64 < fitted["head"]
    before, after = ((outputs(each.rounded(), x) - outputs(model, x)).norm() for each in (made, found))
    assert after < 0.9 * before


def test_no_memory_at_all_still_holds_a_few(watched):
    most, fitted = watched
    model, x, menus, labeling, made = shrinking()
    recalibrate(made, model, menus, labeling, x[:100], memory=1)
    assert set(fitted.values()) == {LEAST_HELD}
    assert max(most.values()) == LEAST_HELD


def test_values_are_those_of_both_networks_whenever_samples_come():
    model, x, _, _, made = shrinking()
    pair = Pair(export_graph(model, x[:1]), export_graph(made.model, x[:1]))
    batches = Batches(pair, x, 3, torch.device("cpu"), lambda place: None)
    for place in range(len(pair.nodes)):
        batches.grow_(2 + place, place)  # one more at every node
        for batch in batches:
            if place + 1 < len(pair.nodes):  # the last node hands the result out
                pair.run_reference(place, batch)
                pair.run_current(place, batch, None)
    count = 1 + len(pair.nodes)
    assert [batch.start for batch in batches][:2] == [0, 2]
    assert batches.samples == count
    last = [nodes[-2] for nodes in (pair.reference.nodes, pair.current.nodes)]
    for node, values, whole in zip(last, ("reference", "current"), (model, made.model), strict=True):
        found = torch.cat([getattr(batch, values)[node] for batch in batches])
        torch.testing.assert_close(found, outputs(whole, x[:count]), rtol=0, atol=1e-5)


def test_bytes_at_every_place_by_hand():
    """Both networks, float32: the input, then 4, 4, 8, 8 channels, their mean, 5 outputs."""
    model, x, _, _, made = shrinking()
    pair = Pair(export_graph(model, x[:1]), export_graph(made.model, x[:1]))
    names = [before.name for before, _ in pair.nodes]
    found = dict(zip(names, pair.bytes_by_place(x[:1]), strict=True))
    image, early, middle = 3 * 64 * 64, 4 * 64 * 64, 8 * 16 * 16
    assert found["conv2d"] == 2 * 4 * (image + early)
    assert found["relu"] == 2 * 4 * 2 * early
    assert found["conv2d_1"] == 2 * 4 * (early + middle)
    assert found["linear"] == 2 * 4 * (8 + 5)


@pytest.mark.parametrize(
    ("limit", "in_a_batch", "held"),
    [
        (10**9, 32, {0: 64, 2: 200, 5: 1000}),
        (80_000, 32, {0: 64, 2: 200, 5: 1000}),
        (20_000, 25, {0: 64, 2: 150, 5: 1000}),
        (4_000, 5, {0: 30, 2: 30, 5: 300}),
        (0, 1, {0: 8, 2: 8, 5: 8}),
    ],
)
def test_the_schedule_by_hand(limit, in_a_batch, held):
    """A quarter of the limit runs with twice 100 bytes a sample; of three quarters, as many are held as fit to the end.

    At place 2 the largest is still to come, at place 3: 100 bytes.
    """
    found = Schedule.of({0: 64, 2: 200, 5: 5000}, [50, 50, 50, 100, 10, 10], limit, 1000)
    assert (found.in_a_batch, found.held) == (in_a_batch, held)


def test_samples_once_held_stay():
    """A later layer that needs fewer, or sees larger values, drops none: there is nothing to drop before the limit."""
    assert Schedule.of({0: 300, 1: 64}, [10, 10], 10**6, 1000).held == {0: 300, 1: 300}
    assert Schedule.of({0: 300, 1: 300}, [1, 100], 20_000, 1000).held == {0: 150, 1: 150}


@pytest.mark.parametrize("name", ["mixed", "circular", "shrinking"])
def test_the_trace_knows_the_activations(name):
    """What evaluations are bounded by, closed form, against what a run of both networks holds: within a factor of 2."""
    model, x = (Shrinking().eval(), torch.randn(1, 3, 64, 64)) if name == "shrinking" else network(name, samples=1)
    pair = Pair(export_graph(model, x), export_graph(model, x))
    held = max(pair.bytes_by_place(x)) / 2
    assert 0.5 <= trace(model, x).activation_bytes / held <= 2
