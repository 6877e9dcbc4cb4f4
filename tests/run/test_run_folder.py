"""Run folders: atomic files, a journal that survives being cut off, and no run that is overwritten by accident."""

import json
import math
import os

import pytest

from autocompress import InputError
from autocompress.config import Config, load_config
from autocompress.files import write_atomically
from autocompress.run.folder import RunFolder, check_finished, claim, default_path
from autocompress.run.journal import JOURNAL_VERSION, Entry, read_journal

MADE_ON = {"network": "n1", "weights": "w1", "data": "d1", "dtype": "float32"}
VERSIONS = {"autocompress": "0.1.0", "torch": "9.9"}


def entry(index, level=0, accuracy=0.5):
    resources = {"size": 100 + index, "macs": 2**53 + 1}
    labels = ((level, 0), (1, index), (0, 0))
    return Entry(index, labels, 0.1 + 0.2, accuracy, 0.75, resources, -0.1 - 0.2, index == 0, 0.25)


def make_run(path, entries, **options):
    config = Config(model="digits", budget="size=0.5", out=path, **options)
    with RunFolder(claim(config), config, VERSIONS, MADE_ON) as folder:
        for each in entries:
            folder.append(each)
    return config


def test_journal_round_trip_is_exact(tmp_path):
    written = [entry(0), entry(1, level=3, accuracy=math.nan)]
    make_run(tmp_path / "run", written)
    header, entries = read_journal(tmp_path / "run" / "journal.jsonl")
    assert header == {"journal": 1, **MADE_ON}
    assert entries[0] == written[0]
    assert math.isnan(entries[1].accuracy)
    assert entries[1].labels == ((3, 0), (1, 1), (0, 0))
    assert entries[1].resources == {"size": 101, "macs": 2**53 + 1}


def test_every_line_is_on_disk_at_once_and_is_json(tmp_path):
    config = Config(budget="size=0.5", out=tmp_path / "run")
    with RunFolder(claim(config), config, VERSIONS, MADE_ON) as folder:
        folder.append(entry(0, accuracy=math.nan))
        lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    assert len(lines) == 2
    strict = json.loads(lines[1], parse_constant=pytest.fail)  # NaN is not JSON
    assert (strict["kl"], strict["accuracy"], strict["best"]) == (0.30000000000000004, None, True)


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_torn_last_line_is_left_out_and_overwritten(tmp_path, kept):
    """Cut the journal in the middle of every line in turn."""
    make_run(tmp_path / "run", [entry(0), entry(1)])
    path = tmp_path / "run" / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])
    header, entries = read_journal(path)
    assert header == ({} if kept == 0 else {"journal": 1, **MADE_ON})
    assert entries == [entry(0), entry(1)][: max(kept - 1, 0)]
    make_run(tmp_path / "run", [entry(0), entry(1), entry(2)], resume=True)
    assert read_journal(path) == ({"journal": 1, **MADE_ON}, [entry(0), entry(1), entry(2)])


def damaged(path, line, reason):
    return (
        f"{path} must hold one JSON object a line, got a damaged line {line}: {reason}; "
        "remove it and those after it, which are evaluated again."
    )


def test_damage_elsewhere_is_an_error(tmp_path):
    make_run(tmp_path / "run", [entry(0), entry(1)])
    path = tmp_path / "run" / "journal.jsonl"
    header, _, last = path.read_text().splitlines()
    path.write_text(f'{header}\n{{"index": 0\n{last}\n')
    with pytest.raises(InputError) as error:
        read_journal(path)
    reason = "Expecting ',' delimiter: line 1 column 12 (char 11)"
    assert str(error.value) == damaged(path, 2, reason)
    path.write_text('{"journal": 2}\n')
    with pytest.raises(InputError) as error:
        read_journal(path)
    assert str(error.value) == f"{path} must have journal version 1, got 2."


def test_config_file_is_a_config_with_versions(tmp_path):
    config = make_run(tmp_path / "run", [], seed=7)
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert text.startswith("# autocompress 0.1.0\n# torch 9.9\nmodel: digits\n")
    assert load_config(tmp_path / "run" / "config.yaml", {}) == config


def test_an_existing_run_is_not_overwritten(tmp_path):
    out = tmp_path / "run"
    make_run(out, [entry(0)])
    with pytest.raises(InputError) as error:
        make_run(out, [])
    assert str(error.value) == (
        f"`out` must be a new folder, got {out}, which holds a run; "
        "pass --force to replace it or --resume to continue it."
    )
    assert len(read_journal(out / "journal.jsonl")[1]) == 1


def test_force_replaces_the_run_and_nothing_else(tmp_path):
    out = tmp_path / "run"
    make_run(out, [entry(0)])
    (out / "outcome.json").write_text("{}")
    (out / "notes.txt").write_text("mine")
    (out / "tb").mkdir()
    (out / "tb" / "events").write_text("")
    make_run(out, [], force=True)
    assert sorted(os.listdir(out)) == ["config.yaml", "journal.jsonl", "notes.txt"]
    assert read_journal(out / "journal.jsonl") == ({"journal": 1, **MADE_ON}, [])


def test_folders_that_hold_no_run_are_left_alone(tmp_path):
    (tmp_path / "config.yaml").write_text("mine")
    for force in (False, True):
        with pytest.raises(InputError) as error:
            claim(Config(out=tmp_path, force=force))
        assert str(error.value) == (
            f"`out` must be a new or empty folder, got {tmp_path}, which holds files that are no run's."
        )
    file = tmp_path / "config.yaml"
    with pytest.raises(InputError) as error:
        claim(Config(out=file))
    assert str(error.value) == f"`out` must be a folder, got {file}, which is a file."


def test_claim_writes_nothing(tmp_path):
    assert claim(Config(out=tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert list(tmp_path.iterdir()) == []


def test_resume_needs_the_same_options(tmp_path):
    out = tmp_path / "run"
    make_run(out, [entry(0)])
    with pytest.raises(InputError) as error:
        make_run(out, [], resume=True, seed=1)
    assert str(error.value) == (
        "`seed` must be as in the run to resume, 0, got 1; leave it out, or choose another --out."
    )


def test_resume_needs_the_same_fine_tuning_between_stages(tmp_path):
    make_run(tmp_path / "staged", [entry(0)], stages=3, finetune=1)
    with pytest.raises(InputError) as error:
        make_run(tmp_path / "staged", [], resume=True, stages=3, finetune=5)
    assert str(error.value) == (
        "`finetune` must be as in the run to resume, 1.0, got 5.0; leave it out, or choose another --out."
    )
    make_run(tmp_path / "run", [entry(0)], finetune=1)
    make_run(tmp_path / "run", [], resume=True, finetune=5)  # it comes after the search


def test_resume_needs_a_run(tmp_path):
    with pytest.raises(InputError) as error:
        claim(Config(out=tmp_path, resume=True))
    assert str(error.value) == (
        f"`resume` needs the folder of a run, got {tmp_path}, which has no config.yaml and journal.jsonl."
    )
    with pytest.raises(InputError) as error:
        claim(Config(resume=True))
    assert str(error.value) == "`resume` needs the folder of the run to continue, got none; pass --out FOLDER."
    with pytest.raises(InputError) as error:
        claim(Config(out=tmp_path, resume=True, force=True))
    assert str(error.value) == (
        "`force` and `resume` exclude each other, got both: --force starts anew, --resume continues."
    )


def test_resume_needs_the_same_network(tmp_path):
    config = make_run(tmp_path, [entry(0)]).model_copy(update={"resume": True})
    with pytest.raises(InputError) as error:
        RunFolder(claim(config), config, VERSIONS, {**MADE_ON, "weights": "w2"})
    assert str(error.value) == (
        f"`resume` must find the same weights as the run in {tmp_path}, w1, got w2; "
        "put it back, or start anew with --force."
    )


def test_a_search_that_goes_another_way_keeps_what_the_journal_held(tmp_path):
    first = [entry(0), entry(1), entry(2)]
    config = make_run(tmp_path, first).model_copy(update={"resume": True})
    other = entry(1, level=1)
    with RunFolder(claim(config), config, VERSIONS, MADE_ON) as folder:
        assert [folder.departs(each.index, each.labels) for each in (*first, other, entry(3))] == [0, 0, 0, 1, 0]
        folder.depart(1)
        folder.append(other)
        assert (folder.replayed, folder.before) == (first[:1], first)
    header, entries = read_journal(tmp_path / "journal.jsonl")
    assert (header["journal"], entries) == (JOURNAL_VERSION, [first[0], other])
    with RunFolder(claim(config), config, VERSIONS, MADE_ON) as folder:  # also after a kill
        assert (folder.replayed, folder.before) == ([first[0], other], first)
    with RunFolder(tmp_path, config.model_copy(update={"resume": False}), VERSIONS, MADE_ON) as folder:
        assert (folder.replayed, folder.before) == ([], [])


def test_a_run_is_resumed_on_another_device(tmp_path):
    config = make_run(tmp_path, [entry(0)]).model_copy(update={"resume": True, "device": "cuda:1"})
    assert claim(config) == tmp_path


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "plan.yaml"
    write_atomically(path, "old")

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("autocompress.run.folder.os.replace", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_gives_ordinary_rights(tmp_path):
    write_atomically(tmp_path / "a", b"\x00\x01")
    assert (tmp_path / "a").read_bytes() == b"\x00\x01"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_default_folder_counts_up(tmp_path):
    first = default_path("a/b.py:net", "size=0.1", tmp_path)
    assert first == tmp_path / "a-b.py-net-size=0.1"
    first.mkdir()
    second = default_path("a/b.py:net", "size=0.1", tmp_path)
    assert second == tmp_path / "a-b.py-net-size=0.1-2"
    second.mkdir()
    assert default_path("a/b.py:net", "size=0.1", tmp_path) == tmp_path / "a-b.py-net-size=0.1-3"


def test_a_folder_that_is_no_finished_run_is_told_from_the_tries_of_a_tolerance(tmp_path):
    for name in ("config.yaml", "plan.yaml"):
        (tmp_path / name).write_text("{}")
    check_finished(tmp_path, ("config.yaml", "plan.yaml"))
    with pytest.raises(InputError) as caught:
        check_finished(tmp_path, ("config.yaml", "outcome.json"))
    assert str(caught.value) == (
        f"`run` must be the folder of a finished run, got {tmp_path}, which has no outcome.json."
    )
    (tmp_path / "tolerance.json").write_text("{}")
    with pytest.raises(InputError) as caught:
        check_finished(tmp_path, ("outcome.json",))
    assert str(caught.value) == (
        f"`run` must be the folder of one run, got {tmp_path}, which holds the tries of a tolerance; name one of them, "
        f"such as {tmp_path}/try-1 (tolerance.json says which was chosen)."
    )
