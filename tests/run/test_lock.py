"""One writer a folder: the second is refused by name, and what a dead process left is no hindrance."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from autocompress import InputError
from autocompress.files import this_machine
from autocompress.run import lock as module
from autocompress.run.lock import Holder, locked

HOLDING = """
import sys, time
from pathlib import Path
from autocompress.run.lock import locked
with locked(Path(sys.argv[1]), "out", "search"):
    print("held", flush=True)
    time.sleep(60)
"""
ELSEWHERE = {
    "process": 4, "started": 1.0, "host": "node7", "machine": "00000000", "task": "finetune",
    "since": "2026-11-26 10:00:00", "locks_file": True,
}  # fmt: skip


@pytest.fixture
def held(tmp_path):
    """A folder that another process holds, and that process."""
    folder = tmp_path / "runs" / "a"
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(folder)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield folder, process
    process.kill()
    process.wait()
    process.stdout.close()


def refusal(folder, argument="out"):
    with pytest.raises(InputError) as error, locked(folder, argument, "search"):
        pass
    return str(error.value)


def holder(folder):
    return Holder(**json.loads((folder / ".lock").read_text()))


def test_the_second_process_is_refused_and_the_first_is_named(held):
    folder, process = held
    before = (folder / ".lock").read_bytes()
    since, host = holder(folder).since, holder(folder).host
    assert refusal(folder) == (
        f"`out` must be a folder that no other process writes, got {folder}, where process {process.pid} on {host} "
        f"(autocompress search, since {since}) is at work; wait for it, end it, or choose another folder."
    )
    assert (folder / ".lock").read_bytes() == before


def test_a_killed_holder_is_no_hindrance(held):
    folder, process = held
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (folder / ".lock").exists()
    with locked(folder, "out", "search"):
        assert holder(folder).process == os.getpid()
    assert list(folder.iterdir()) == []


def test_a_stopped_holder_still_holds(held):
    folder, process = held
    os.kill(process.pid, signal.SIGSTOP)
    assert "is at work" in refusal(folder)


def test_threads_of_one_process_are_writers_too(tmp_path):
    found = []
    with locked(tmp_path / "a", "run", "finetune"):
        thread = threading.Thread(target=lambda: found.append(refusal(tmp_path / "a", "run")))
        thread.start()
        thread.join()
    assert found[0].startswith(f"`run` must be a folder that no other process writes, got {tmp_path / 'a'}, where proc")


def test_folders_that_were_made_for_nothing_go_again(tmp_path):
    with locked(tmp_path / "runs" / "a", "out", "search"):
        assert [path.name for path in (tmp_path / "runs" / "a").iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "runs" / "a", "out", "search"):
        (tmp_path / "runs" / "a" / "plan.yaml").touch()
    assert [path.name for path in (tmp_path / "runs" / "a").iterdir()] == ["plan.yaml"]


def compete(folder, start, end, wins):
    start.wait()
    try:
        with locked(folder, "out", "search"):
            with wins.get_lock():
                wins.value += 1
            end.wait()
    except InputError:
        end.wait()


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("can_lock", [True, False])
def test_of_many_starts_at_once_one_goes_on(tmp_path, monkeypatch, stale, can_lock):
    if not can_lock:
        monkeypatch.setattr(module, "_flock", lambda descriptor: None)
    if stale:
        (tmp_path / ".lock").write_text(json.dumps({**ELSEWHERE, "process": 2**22 + 1, "machine": this_machine()}))
    context = multiprocessing.get_context("fork")
    start, end, wins = context.Barrier(6), context.Barrier(6), context.Value("i", 0)
    processes = [context.Process(target=compete, args=(tmp_path, start, end, wins)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 6
    assert wins.value == 1
    assert list(tmp_path.iterdir()) == []


def test_of_another_machine_nobody_knows_and_the_way_on_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_is_local", lambda path: False)
    (tmp_path / ".lock").write_text(json.dumps(ELSEWHERE))
    expected = (
        f"`out` must be a folder that no other process writes, got {tmp_path}, where process 4 on node7 (autocompress "
        "finetune, since 2026-11-26 10:00:00) may be at work, which can't be seen from here; if it is not, remove "
        f"{tmp_path / '.lock'} and try again."
    )
    assert refusal(tmp_path) == expected
    monkeypatch.setattr(module, "_flock", lambda descriptor: None)
    assert refusal(tmp_path) == expected


def test_on_a_disk_of_this_machine_alone_a_lock_of_another_boot_is_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_is_local", lambda path: True)
    (tmp_path / ".lock").write_text(json.dumps(ELSEWHERE))
    with locked(tmp_path, "out", "search"):
        assert holder(tmp_path).process == os.getpid()


@pytest.mark.parametrize(("lives", "same_start"), [(True, True), (True, False), (False, True)])
def test_where_files_can_not_be_locked_the_process_itself_is_looked_for(tmp_path, monkeypatch, lives, same_start):
    """Another process may have got the number of a dead one; it began at another time."""
    monkeypatch.setattr(module, "_flock", lambda descriptor: None)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = psutil.Process(process.pid).create_time() - (0.0 if same_start else 100.0)
    if not lives:
        process.kill()
        process.wait()
    content = {**ELSEWHERE, "process": process.pid, "started": started, "machine": this_machine(), "locks_file": False}
    (tmp_path / ".lock").write_text(json.dumps(content))
    try:
        if lives and same_start:
            assert f"where process {process.pid} on node7" in refusal(tmp_path)
        else:
            with locked(tmp_path, "out", "search"):
                assert holder(tmp_path).process == os.getpid()
    finally:
        process.communicate(b"\n") if lives else process.stdin.close()


def test_file_systems_without_hard_links(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with locked(tmp_path, "out", "search"):
        assert holder(tmp_path).process == os.getpid()
        assert "is at work" in refusal(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_says_nothing(tmp_path):
    file = tmp_path / ".lock"
    file.touch()  # as if it were being written
    assert refusal(tmp_path) == (
        f"`out` must be a folder that no other process writes, got {tmp_path}, whose lock {file} can't be read; "
        "if no process writes there, remove that file."
    )
    os.utime(file, (1, 1))
    with locked(tmp_path, "out", "search"):
        assert holder(tmp_path).process == os.getpid()


def test_leftovers_of_dead_processes_are_swept(tmp_path):
    dead, alive = f"{this_machine()}-{2**22 + 1}-0", f"{this_machine()}-{os.getppid()}-0"
    for owner in (dead, alive, "00000000-1-0"):
        (tmp_path / f".plan.yaml.{owner}.tmp").touch()
    (tmp_path / ".mine.tmp").touch()
    with locked(tmp_path, "out", "search"):
        left = {path.name for path in tmp_path.iterdir()} - {".lock"}
    assert left == {f".plan.yaml.{alive}.tmp", ".plan.yaml.00000000-1-0.tmp", ".mine.tmp"}
    os.utime(tmp_path / ".plan.yaml.00000000-1-0.tmp", (1, 1))
    with locked(tmp_path, "out", "search"):
        left = {path.name for path in tmp_path.iterdir()} - {".lock"}
    assert left == {f".plan.yaml.{alive}.tmp", ".mine.tmp"}
