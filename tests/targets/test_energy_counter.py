"""The machine's counter of energy, read from a folder of our own."""

import pytest
import torch
from test_timing import World

from autocompress.targets.timing import Effort, MeasuredEnergy, energy_counter, time_pair


def zone(folder, name, number, energy, most=1_000_000):
    path = folder / name
    path.mkdir(parents=True)
    for file, content in (("name", number), ("energy_uj", energy), ("max_energy_range_uj", most)):
        (path / file).write_text(f"{content}\n")
    return path / "energy_uj"


def test_processors_are_added_up_and_their_parts_are_not(tmp_path):
    first = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 5)
    zone(tmp_path, "intel-rapl:0:0", "core", 7)
    zone(tmp_path, "intel-rapl:2", "psys", 7)
    counter = energy_counter(tmp_path)
    assert counter.source == "RAPL package-0, package-1"
    first.write_text("2100\n")
    second.write_text("1005\n")
    assert counter.joules() == pytest.approx(0.003)


def test_a_counter_that_starts_again_goes_on(tmp_path):
    file = zone(tmp_path, "intel-rapl:0", "package-0", 999_000)
    counter = energy_counter(tmp_path)
    file.write_text("500")
    assert counter.joules() == pytest.approx(0.0015)
    file.write_text("1500")
    assert counter.joules() == pytest.approx(0.0025)


def test_machines_without_a_counter_that_can_be_read(tmp_path):
    assert energy_counter(tmp_path / "none") is None
    zone(tmp_path, "intel-rapl:0", "package-0", "not a number")
    assert energy_counter(tmp_path) is None
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert energy_counter(tmp_path) is None


def test_the_timing_in_turns_reads_the_counter(tmp_path):
    """Two watts: 4 and 3 milliseconds take 8 and 6 millijoules a run."""
    file, world = zone(tmp_path, "intel-rapl:0", "package-0", 0, 10**9), World()
    counter = energy_counter(tmp_path)

    def clock():
        file.write_text(str(round(2e6 * world.now)))
        return world.now

    sessions = world.session("a", 0.004), world.session("b", 0.003)
    settings = Effort(least_rounds=10, warm_up=2, burst_seconds=0.01)
    found = time_pair(*sessions, torch.zeros(1, 2), settings, clock=clock, counter=counter)
    assert found.energy == MeasuredEnergy(pytest.approx(0.008), pytest.approx(0.006), "RAPL package-0")
    assert time_pair(*sessions, torch.zeros(1, 2), settings, clock=clock).energy is None
