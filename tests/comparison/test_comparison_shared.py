"""Evaluations that processes share through a file, and what a kill may leave of it."""

import math
import os

import numpy as np
import pytest

from autocompress.comparison.folder import read_conditions, read_policies
from autocompress.comparison.shared import SharedEvaluations
from autocompress.errors import InputError
from autocompress.run.journal import read_line, stamped
from autocompress_envs.problem import Labeling, Outcome

RESOURCES = {"size": 10, "macs": 20}


def labeling(*weight_bits):
    bits = np.array(weight_bits)
    return Labeling(np.zeros_like(bits), bits, np.zeros_like(bits))


class Measure:
    """Counts; the outcome says which plan it was."""

    def __init__(self):
        self.calls = []

    def __call__(self, plan):
        first = int(plan.weight_bits[0])
        self.calls.append(first)
        return Outcome(0.1 * first, math.nan, 0.5, RESOURCES, np.full((2, 3), first, dtype=np.float16))


def test_what_one_process_measured_costs_another_nothing(tmp_path):
    first, second = Measure(), Measure()
    one = SharedEvaluations(tmp_path / "journal.jsonl", first)
    other = SharedEvaluations(tmp_path / "journal.jsonl", second)
    measured = one.numbers(labeling(3, 1))
    other.refresh()
    known = other.numbers(labeling(3, 1))
    assert (first.calls, second.calls, one.measured, other.measured) == ([3], [], 1, 0)
    assert (known.kl, known.agreement, known.resources) == (measured.kl, 0.5, RESOURCES)
    assert known.kl == 0.1 * 3
    assert math.isnan(known.accuracy)
    assert known.shift is None is measured.shift


def test_shifts_are_kept_by_the_process_that_measured_them_alone(tmp_path):
    first, second = Measure(), Measure()
    one = SharedEvaluations(tmp_path / "journal.jsonl", first)
    assert one.whole(labeling(4)).shift.tolist() == [[4.0] * 3] * 2
    assert one.whole(labeling(4)).shift is one.whole(labeling(4)).shift
    other = SharedEvaluations(tmp_path / "journal.jsonl", second)
    assert other.numbers(labeling(4)).kl == 0.4
    assert second.calls == []
    assert other.whole(labeling(4)).shift.shape == (2, 3)
    assert (first.calls, second.calls) == ([4], [4])
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 1


def test_a_torn_line_is_measured_again_and_tears_no_other(tmp_path):
    path = tmp_path / "journal.jsonl"
    writer = SharedEvaluations(path, Measure())
    for bits in (1, 2):
        writer.numbers(labeling(bits))
    path.write_bytes(path.read_bytes()[:-20])
    measure = Measure()
    resumed = SharedEvaluations(path, measure)
    assert [resumed.numbers(labeling(bits)).kl for bits in (1, 2, 3)] == [0.1, 0.2, 0.1 * 3]
    assert measure.calls == [2, 3]
    last = Measure()
    assert [SharedEvaluations(path, last).numbers(labeling(bits)).kl for bits in (1, 2, 3)] == [0.1, 0.2, 0.1 * 3]
    assert last.calls == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.replace(b"0.2", b"0.3"),  # its checksum does not match
        lambda line: b"\x00\xff\xfe\n",
        lambda line: b"[" * 100_000 + b"\n",
        lambda line: b'{"labels": [[0], [2], [0]], "kl": NaN, "accuracy": null, "agreement": 1, "resources": {}}\n',
        lambda line: b'{"labels": [[0], [-2], [0]], "kl": 0, "accuracy": null, "agreement": 1, "resources": {}}\n',
        lambda line: b'{"labels": [[0], [2], [0]], "kl": 0}\n',
        lambda line: stamped({**read_line(line), "labels": [[0], [2], []]}).encode(),  # under a checksum that fits
        lambda line: b"\n",
    ],
)
def test_a_damaged_line_is_measured_again(tmp_path, damage):
    path = tmp_path / "journal.jsonl"
    writer = SharedEvaluations(path, Measure())
    for bits in (1, 2, 3):
        writer.numbers(labeling(bits))
    lines = path.read_bytes().splitlines(keepends=True)
    assert damage(lines[1]) != lines[1]
    path.write_bytes(lines[0] + damage(lines[1]) + lines[2])
    measure = Measure()
    resumed = SharedEvaluations(path, measure)
    assert [resumed.numbers(labeling(bits)).kl for bits in (1, 2, 3)] == [0.1, 0.2, 0.1 * 3]
    assert measure.calls == [2]


def test_a_journal_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "journal.jsonl")
    with pytest.raises(InputError) as error:
        SharedEvaluations(tmp_path / "journal.jsonl", Measure())
    assert str(error.value) == f"{tmp_path / 'journal.jsonl'} must be a file, got a pipe; remove it."


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000, "\x00"])
def test_damaged_conditions_are_one_line(tmp_path, content):
    (tmp_path / "evaluations").mkdir()
    for file, read in (("evaluations/a.json", read_conditions), ("policies.json", read_policies)):
        (tmp_path / file).write_text(content)
        with pytest.raises(InputError) as error:
            read(tmp_path)
        assert str(error.value) == (
            f"`resume` must find a mapping in {tmp_path / file}, which is damaged; start anew with --force."
        )
