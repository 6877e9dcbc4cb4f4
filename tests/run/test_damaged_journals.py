"""Damaged journals: one line that names the place, or a recovery that loses nothing that can't be evaluated again."""

import json
import os

import pytest

from autocompress import InputError
from autocompress.config import Config
from autocompress.run.folder import RunFolder, claim
from autocompress.run.journal import Entry, journal_header, read_journal, read_line, stamped
from autocompress.run.shifts import ShiftFile

MADE_ON = {"network": "n1", "dtype": "float32", "batch_size": 64}


def entry(index):
    return Entry(index, ((0, 1), (1, index), (0, 0)), 0.25, 0.5, 0.75, {"size": 100}, -0.25, index == 0, 0.5)


@pytest.fixture
def journal(tmp_path):
    config = Config(model="digits", budget="size=0.5", out=tmp_path / "run")
    with RunFolder(claim(config), config, {}, MADE_ON) as folder:
        for index in range(3):
            folder.append(entry(index))
    return tmp_path / "run" / "journal.jsonl"


def put(journal, line, content):
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[line - 1] = content
    journal.write_bytes(b"".join(lines))


def refusal(journal):
    with pytest.raises(InputError) as error:
        read_journal(journal)
    return str(error.value)


def changed(**values):
    """A line whose checksum matches, as another program might write it."""
    return stamped({**read_line(entry(1).to_line().encode()), **values}).encode()


def unchecked(kl):
    """A line without a checksum, as earlier versions wrote them."""
    return entry(1).to_line().replace("0.25", kl, 1).partition(', "crc32"')[0].encode() + b"}\n"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"index": 1, "lab\n', "Unterminated string starting at: line 1 column 14 (char 13)"),
        (b"\n", "Expecting value: line 1 column 1 (char 0)"),
        (b"\x00\xff\xfe\x80\n", None),
        (b"{\xff\xfe}\n", "'utf-8' codec can't decode byte 0xff in position 1: invalid start byte"),
        (b"[1, 2]\n", "it is no object but a list"),
        (b"[" * 100_000 + b"\n", "it is nested too deeply"),
        (entry(1).to_line().replace("0.25", "0.24", 1).encode(), "its checksum does not match"),
        (entry(0).to_line().encode(), "it must be that of evaluation 1, got 0"),
        (changed(kl=None), "`kl` can't be None"),
        (changed(labels=[[0, -1], [1, 1], [0, 0]]), "`labels` can't be [[0, -1], [1, 1], [0, 0]]"),
        (changed(labels=[[10**20], [1], [0]]), f"`labels` can't be [[{10**20}], [1], [0]]"),
        (changed(labels="all"), "`labels` can't be 'all'"),
        (changed(resources={"size": 10**400}), None),
        (changed(resources={"size": -1}), "`resources` can't be {'size': -1}"),
        (changed(accuracy=1.5), "`accuracy` can't be 1.5"),
        (changed(best="yes"), "`best` can't be 'yes'"),
        (changed(index=True), "`index` can't be True"),
        (json.dumps({"index": 1, "labels": []}).encode() + b"\n", None),
        (unchecked("NaN"), "`kl` can't be nan"),
        (unchecked("1e999"), "`kl` can't be inf"),
    ],
)  # fmt: skip
def test_a_damaged_line_is_named(journal, line, reason):
    put(journal, 3, line)
    message = refusal(journal)
    assert message.startswith(f"{journal} must hold one JSON object a line, got a damaged line 3: ")
    assert message.endswith("; remove it and those after it, which are evaluated again.")
    assert len(message) < 400
    assert "\n" not in message
    if reason is not None:
        assert message.partition("line 3: ")[2].rpartition("; ")[0] == reason


def test_every_flipped_bit_is_found_or_harms_nothing(journal):
    """Of a line: the whole line is under its checksum."""
    lines = journal.read_bytes().splitlines(keepends=True)
    before, content = read_journal(journal), lines[2]
    unnoticed = 0
    for position in range(len(content) - 1):
        for bit in (0, 3, 6):
            put(journal, 3, content[:position] + bytes([content[position] ^ (1 << bit)]) + content[position + 1 :])
            try:
                assert read_journal(journal) == before  # a space that became a tab
                unnoticed += 1
            except InputError:
                pass
    assert unnoticed < 30


def test_a_header_of_another_kind(journal):
    put(journal, 1, stamped({"journal": 1, **MADE_ON, "dtype": "int8"}).encode())
    assert refusal(journal) == (
        f"{journal} must hold one JSON object a line, got a damaged line 1: `dtype` can't be 'int8'; "
        "remove it and those after it, which are evaluated again."
    )
    put(journal, 1, stamped({"journal": 1, **MADE_ON, "batch_size": 0}).encode())
    assert "damaged line 1: `batch_size` can't be 0;" in refusal(journal)
    put(journal, 1, b"")
    assert refusal(journal) == f"{journal} must have journal version 1, got None."


def test_another_networks_journal_is_refused(journal):
    config = Config(model="digits", budget="size=0.5", out=journal.parent, resume=True)
    with pytest.raises(InputError) as error:
        RunFolder(claim(config), config, {}, {**MADE_ON, "network": "n2"})
    assert str(error.value) == (
        f"`resume` must find the same network as the run in {journal.parent}, n1, got n2; "
        "put it back, or start anew with --force."
    )


def test_an_empty_journal_is_that_of_a_run_which_has_just_begun(journal):
    journal.write_bytes(b"")
    assert read_journal(journal) == ({}, [])


def test_removing_the_damaged_lines_goes_on(journal):
    put(journal, 3, b"damaged\n")
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:2]))
    config = Config(model="digits", budget="size=0.5", out=journal.parent, resume=True)
    with RunFolder(claim(config), config, {}, MADE_ON) as folder:
        assert folder.replayed == [entry(0)]
        for index in range(3):
            folder.append(entry(index))
    assert read_journal(journal)[1] == [entry(0), entry(1), entry(2)]


def test_journals_of_before_checksums_are_read(journal):
    old = [{name: value for name, value in json.loads(line).items() if name != "crc32"} for line in journal.open()]
    journal.write_text("".join(json.dumps(line) + "\n" for line in old))
    assert read_journal(journal) == ({"journal": 1, **MADE_ON}, [entry(0), entry(1), entry(2)])


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_file_is_refused_and_not_waited_for(journal, kind):
    journal.unlink()
    if kind == "folder":
        journal.mkdir()
    elif kind == "pipe":
        os.mkfifo(journal)
    else:
        journal.symlink_to("/dev/zero")
    with pytest.raises(InputError) as error:
        journal_header(journal.parent)
    assert str(error.value) == f"{journal} must be a file, got a {kind}; remove it."
    with pytest.raises(InputError, match=r"has no config.yaml and journal.jsonl\.$"):
        claim(Config(model="digits", budget="size=0.5", out=journal.parent, resume=True))


def test_shifts_that_are_damaged_are_as_good_as_none(tmp_path):
    import numpy as np

    shift = np.arange(6, dtype=np.float16).reshape(2, 3)
    with ShiftFile(tmp_path / "shifts", (2, 3)) as file:
        checksums = [file.write(index, shift + index) for index in range(2)]
        assert np.array_equal(file.read(1, checksums[1]), shift + 1)
    content = bytearray((tmp_path / "shifts").read_bytes())
    content[13] ^= 1
    (tmp_path / "shifts").write_bytes(content)
    with ShiftFile(tmp_path / "shifts", (2, 3)) as file:
        assert np.array_equal(file.read(0, checksums[0]), shift)
        assert file.read(1, checksums[1]) is None
        assert file.read(1) is not None  # runs of before checksums
    (tmp_path / "pipe").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError) as error:
        ShiftFile(tmp_path / "pipe", (2, 3))
    assert str(error.value) == f"{tmp_path / 'pipe'} must be a file, got a pipe; remove it."
