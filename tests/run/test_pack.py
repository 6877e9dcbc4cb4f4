"""Runs and policies as one file: whole again after unpacking, and nothing hostile gets out of one."""

import hashlib
import json
import zipfile

import pytest
from typer.testing import CliRunner

from autocompress import InputError
from autocompress.cli.main import app
from autocompress.run.pack import POLICY, RUN, pack, unpack


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path):
    """Two files of a run, and what is never packed."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "plan.yaml").write_text("labels: {}\n")
    (run / "model.onnx").write_bytes(bytes(range(256)) * 40)
    (run / "finetune.pt").write_bytes(b"a pickle")
    return run


@pytest.fixture
def packed(folder, tmp_path):
    pack(folder, ["plan.yaml", "model.onnx", "missing.json"], RUN, tmp_path / "run.zip")
    return tmp_path / "run.zip"


def test_what_was_packed_is_unpacked(folder, packed, tmp_path):
    assert unpack(packed, RUN, tmp_path / "again") == ["plan.yaml", "model.onnx"]
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"plan.yaml", "model.onnx"}


def test_equal_folders_give_equal_files(folder, packed, tmp_path):
    (folder / "plan.yaml").touch()
    pack(folder, ["plan.yaml", "model.onnx"], RUN, tmp_path / "second.zip")
    assert packed.read_bytes() == (tmp_path / "second.zip").read_bytes()


@pytest.mark.parametrize("name", ["finetune.pt", "mine.py", "a.pkl"])
def test_code_and_pickles_are_never_packed(folder, tmp_path, name):
    (folder / name).write_text("")
    with pytest.raises(InputError, match=r"a pack holds plain files of \.yaml, .* only, got "):
        pack(folder, [name], RUN, tmp_path / "run.zip")
    assert not (tmp_path / "run.zip").exists()


def forged(path, contents, listed=None, kind=RUN):
    """A pack with these contents; its manifest lists `listed`, by default what is true."""
    listed = contents if listed is None else listed
    files = {name: {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()} for name, text in listed.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps({"autocompress_pack": 1, "kind": kind, "files": files}))
        for name, text in contents.items():
            archive.writestr(name, text)
    return path


@pytest.mark.parametrize(
    ("contents", "listed", "message"),
    [
        ({"../evil.yaml": b""}, None, "a pack holds plain files"),
        ({"/etc/evil.yaml": b""}, None, "a pack holds plain files"),
        ({"a/b.yaml": b""}, None, "a pack holds plain files"),
        ({".bashrc.json": b""}, None, "a pack holds plain files"),
        ({"model.pkl": b""}, None, "a pack holds plain files"),
        ({"plan.yaml": b"12"}, {"plan.yaml": b"13"}, "must hold plan.yaml as it was packed"),
        ({"plan.yaml": b"0" * 10_000_000}, {"plan.yaml": b"0"}, "must hold plan.yaml as it was packed"),
        ({"plan.yaml": b"0"}, {"plan.yaml": b"00"}, "must hold plan.yaml as it was packed"),
        ({"plan.yaml": b"0"}, {}, "must hold what its manifest lists"),
        ({}, {"plan.yaml": b"0"}, "must hold what its manifest lists"),
        ({f"{number}.yaml": b"" for number in range(65)}, None, "which has no such list of files"),
    ],
)
def test_hostile_packs_are_refused_and_nothing_is_written(tmp_path, contents, listed, message):
    file = forged(tmp_path / "evil.zip", contents, listed)
    with pytest.raises(InputError, match=message):
        unpack(file, RUN, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.zip"]


def test_damage_is_one_line(packed, tmp_path):
    content = packed.read_bytes()
    for place in range(0, len(content), 7):
        (tmp_path / "damaged.zip").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            unpack(tmp_path / "damaged.zip", RUN, tmp_path / f"out{place}")
        except InputError:
            assert not (tmp_path / f"out{place}").exists()
        else:  # a flipped bit in what is not read, such as a date
            assert (tmp_path / f"out{place}" / "plan.yaml").read_text() == "labels: {}\n"
    for text, message in ((b"no archive", "damaged"), (content[:-30], "damaged")):
        (tmp_path / "damaged.zip").write_bytes(text)
        done = invoke("unpack", tmp_path / "damaged.zip", "--out", tmp_path / "none")
        assert (done.exit_code, message in done.stderr, "Traceback" in done.stderr) == (2, True, False)


def test_kinds_and_folders_are_kept_apart(packed, tmp_path):
    with pytest.raises(InputError, match=r"`file` must hold a policy, got .*, which holds a 'run'\."):
        unpack(packed, POLICY, tmp_path / "policy")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    with pytest.raises(InputError, match=r"`out` must be a new or empty folder, got .*full, which holds something\."):
        unpack(packed, RUN, tmp_path / "full")
    with pytest.raises(InputError, match="which does not exist"):
        unpack(tmp_path / "none.zip", RUN, tmp_path / "out")


def test_the_shipped_policy_goes_through_a_pack(tmp_path):
    done = invoke("policy", "pack", "default", "--out", tmp_path / "policy.zip")
    assert done.exit_code == 0, done.stderr
    done = invoke("policy", "unpack", tmp_path / "policy.zip", "--out", tmp_path / "mine")
    assert done.exit_code == 0, done.stderr
    assert "parameters" in done.stdout
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"policy.json", "policy.safetensors"}


def test_what_is_no_run_is_not_packed(tmp_path):
    done = invoke("pack", tmp_path)
    assert done.exit_code == 2
    message = f"`run` must be the folder of a finished run, got {tmp_path}, which has no config.yaml."
    assert done.stderr == f"autocompress: {message}\n"
