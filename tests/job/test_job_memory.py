"""The memory of a job: told in one line before the work begins, and refused where it is too little for anything."""

import re

import pytest
from run_toys import QUICK, Watcher

import autocompress
from autocompress import InputError, memory
from autocompress.budget import parse_bytes
from autocompress.job import memory as job_memory
from autocompress.job.memory import menu_threads
from autocompress.menus.calibration import largest_moment
from autocompress.network import trace

GB = 10**9


class Told(Watcher):
    def __init__(self):
        super().__init__()
        self.stages = []

    def stage(self, text):
        self.stages.append(text)


@pytest.fixture(autouse=True)
def held(monkeypatch):
    """The process holds 1 GB, and 10 GB are available."""
    for module in (memory, job_memory):
        monkeypatch.setattr(module, "resident_bytes", lambda: GB)
    monkeypatch.setattr(memory, "available_bytes", lambda: 10 * GB)


def inspected(**options):
    told = Told()
    autocompress.inspect("digits", progress=told, **{**QUICK, "weight_bits": "8,32", **options})
    return [line for line in told.stages if line.startswith("memory: ")]


def test_the_peak_is_told():
    """70 % of what is available and what is held already are allowed."""
    (line,) = inspected()
    found = re.fullmatch(r"memory: about (.*) at the peak, of (.*) allowed", line)
    peak, allowed = (parse_bytes(text, "memory") for text in found.groups())
    assert allowed == pytest.approx(8 * GB, rel=0.02)
    assert GB < peak < 1.3 * GB


def test_a_limit_is_told_as_it_was_asked_for():
    (line,) = inspected(memory="2GB")
    assert line.endswith(" of 2.0 GB allowed")


def test_too_little_is_refused_with_the_least_that_is_enough():
    with pytest.raises(InputError) as caught:
        inspected(memory="900MB")
    found = re.fullmatch(
        r"`memory` must be at least (.*) for this network and data, got 900MB; "
        r"raise --memory, or take smaller images or fewer samples\.",
        str(caught.value),
    )
    least = parse_bytes(found[1], "memory")
    assert GB < least <= 1.2 * GB
    assert len(inspected(memory=str(least))) == 1  # what the message names is enough
    with pytest.raises(InputError):
        inspected(memory=str(int(0.9 * least)))


def test_more_recalibration_samples_need_more(monkeypatch):
    monkeypatch.setattr(job_memory, "resident_bytes", lambda: 10**7)
    monkeypatch.setattr(job_memory, "pass_bytes", lambda layers, device: 0)  # more than all else, of this network
    with pytest.raises(InputError) as few:
        inspected(memory="1", recalibration_samples=0)
    with pytest.raises(InputError) as many:
        inspected(memory="1", recalibration_samples=1000, search_samples=600)
    least = [parse_bytes(re.search("at least (.*) for", str(each.value))[1], "memory") for each in (few, many)]
    assert least[0] < least[1]


def test_menus_get_as_many_threads_as_fit():
    network = trace(autocompress.models.load_model("digits", num_classes=10), _sample())
    thread = 60 * largest_moment(network)
    assert menu_threads(network, 3, None) == 3
    assert menu_threads(network, None, None) is None
    assert menu_threads(network, 3, GB + 2 * thread) == 2
    assert menu_threads(network, 3, GB + 9 * thread) == 3
    assert menu_threads(network, 3, GB) == 1


def _sample():
    inputs, _ = autocompress.data.load_data("digits").calibration()
    return inputs[:1]
