"""The one writer: whole files or none, one line for what fails, and rights that colleagues can live with."""

import errno
import os
import resource

import pytest

from autocompress.errors import AutocompressError, InputError, WriteError
from autocompress.files import append, regular_file, replacing, write_atomically
from autocompress.searchers.tensorboard import scalars


@pytest.fixture
def small_files():
    """Files of at most 5,000 bytes, as under `ulimit -f`; Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "No space left on device; free space on its disk."),
        (errno.EDQUOT, "Disk quota exceeded; free space within your quota on its disk."),
        (errno.EFBIG, "File too large; raise the limit on the size of files (ulimit -f)."),
        (errno.EROFS, "Read-only file system; choose a folder on a disk that is not read-only."),
        (errno.EACCES, "Permission denied; make its folder writable, or choose another."),
        (errno.EIO, "Input/output error."),
    ],
)
def test_what_fails_is_one_line_that_names_the_file_and_what_helps(tmp_path, monkeypatch, number, message):
    path = tmp_path / "plan.yaml"
    write_atomically(path, "old")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("autocompress.files.os.replace", fail)
    with pytest.raises(WriteError) as error:
        write_atomically(path, "new")
    assert str(error.value) == f"{path} can't be written: {message}"
    assert isinstance(error.value, (AutocompressError, OSError))
    assert (error.value.errno, error.value.exit_code) == (number, 1)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_limit_on_the_size_of_files(tmp_path, small_files):
    path = tmp_path / "plan.yaml"
    write_atomically(path, "x" * 5000)
    with pytest.raises(WriteError) as error:
        write_atomically(path, "y" * 5001)
    assert str(error.value) == (
        f"{path} can't be written: File too large; raise the limit on the size of files (ulimit -f)."
    )
    assert path.read_text() == "x" * 5000
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_appended_is_there_whole_or_not_at_all(tmp_path, small_files):
    path = tmp_path / "journal.jsonl"
    with path.open("ab", buffering=0) as file:
        append(file, b"x" * 4000, path)
        with pytest.raises(WriteError) as error:
            append(file, b"y" * 2000, path)
        append(file, b"z" * 1000, path)
    assert str(error.value).startswith(f"{path} can't be written: File too large;")
    assert path.read_bytes() == b"x" * 4000 + b"z" * 1000


def test_a_folder_in_the_files_place(tmp_path):
    (tmp_path / "plan.yaml").mkdir()
    with pytest.raises(WriteError) as error:
        write_atomically(tmp_path / "plan.yaml", "new")
    assert str(error.value) == (
        f"{tmp_path / 'plan.yaml'} can't be written: Is a directory; a folder has its name: remove that."
    )


@pytest.mark.parametrize(("mask", "rights"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_rights_that_the_umask_gives(tmp_path, umask, mask, rights):
    umask(mask)
    write_atomically(tmp_path / "a", b"\x00")
    assert (tmp_path / "a").stat().st_mode & 0o777 == rights


def test_names_of_255_characters(tmp_path):
    write_atomically(tmp_path / ("n" * 255), "whole")
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]


def test_a_reader_never_sees_a_part(tmp_path):
    path = tmp_path / "a"
    write_atomically(path, "old")

    def interrupted():
        with replacing(path) as temporary:
            temporary.write_text("ne")
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])


def test_what_can_be_read_to_its_end(tmp_path):
    assert not regular_file(tmp_path / "missing")
    write_atomically(tmp_path / "a", "")
    assert regular_file(tmp_path / "a")
    assert not regular_file(tmp_path / "a" / "b")
    with pytest.raises(InputError) as error:
        regular_file(tmp_path)
    assert str(error.value) == f"{tmp_path} must be a file, got a folder; remove it."


def test_a_full_disk_under_tensorboard_is_one_line_and_no_traceback(tmp_path, small_files, capfd):
    """Its files are written by a thread of its own."""

    def write():
        with scalars(tmp_path / "tb") as add:
            for step in range(500):
                add("search/kl", 0.5, step)

    with pytest.raises(WriteError) as error:
        write()
    assert str(error.value) == (
        f"{tmp_path / 'tb'} can't be written: File too large; raise the limit on the size of files (ulimit -f)."
    )
    assert capfd.readouterr().err == ""
