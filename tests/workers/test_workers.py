"""Workers with work that needs no network: results of all, second tries, deaths, and nobody left behind."""

import multiprocessing
import signal
import socket
import sys
from pathlib import Path

import pytest
from worker_toys import make

from autocompress.comparison import workers
from autocompress.comparison.live import SilentComparison
from autocompress.comparison.suite import Cell, make_suite
from autocompress.errors import InputError
from autocompress.workers import executors
from autocompress.workers.processes import Processes
from autocompress.workers.ray_tasks import RayTasks, check_cluster
from autocompress.workers.tasks import Death, Result, run_tasks


@pytest.fixture
def tasks(tmp_path):
    return lambda *words: [(word, number, str(tmp_path)) for number, word in enumerate(words)]


def ran(executor, tasks):
    """What came of the tasks, by their numbers, and what was told of them."""
    told = []
    ends = dict(run_tasks(executor, tasks, lambda task, news: told.append((task[1], news))))
    assert set(ends) == set(tasks)
    return {task[1]: end for task, end in ends.items()}, told


def test_a_task_whose_worker_dies_is_run_again_once_and_then_named(tasks):
    given = tasks("fine", "dies", "dies-once", "exits", "fine")
    ends, told = ran(Processes(2, make, (0.25,)), given)
    assert ends == {
        0: Result(0.25),
        1: Death("the worker process was ended by SIGKILL"),
        2: Result(2.25),
        3: Death("the worker process ended with exit code 3"),
        4: Result(4.25),
    }
    assert sorted(number for number, news in told if news is None) == [0, 1, 1, 2, 2, 3, 3, 4]
    assert {number for number, news in told if news is not None} == {0, 1, 2, 3, 4}
    assert multiprocessing.active_children() == []


def test_who_stops_listening_leaves_no_process_behind(tasks, tmp_path):
    (tmp_path / "1").touch()
    handler = signal.getsignal(signal.SIGINT)
    running = run_tasks(Processes(2, make, (0.0,)), tasks("fine", "sleeps"), lambda task, news: None)
    assert next(running)[1] == Result(0.0)
    assert len(multiprocessing.active_children()) == 2
    running.close()
    assert multiprocessing.active_children() == []
    assert signal.getsignal(signal.SIGINT) is handler


def test_no_tasks_need_no_process():
    assert list(run_tasks(Processes(2, make, (0.0,)), [], lambda task, news: None)) == []


@pytest.mark.parametrize(("jobs", "cells", "threads"), [(2, 4, 6), (8, 3, 4), (30, 30, 1), (None, 4, 12)])
def test_threads_are_divided_between_the_processes_that_there_are(monkeypatch, jobs, cells, threads):
    monkeypatch.setattr(executors.torch, "get_num_threads", lambda: 12)
    executor = executors.executor_of(make, (0.0,), cells, jobs, None, on_gpu=False)
    assert (executor.count, executor._arguments[-1]) == (min(jobs or 1, cells), threads)


def test_a_cell_whose_worker_died_twice_has_failed(monkeypatch):
    suite = make_suite({"budgets": ["size=0.1"], "methods": ["random"], "base": {"model": "digits", "data": "digits"}})
    cell = Cell("random", "size=10%", 0)
    monkeypatch.setattr(workers, "_runner", None)
    monkeypatch.setattr(workers, "run_tasks", lambda *given: ((each, Death("it died")) for each in given[1]))
    (result,) = workers.run_by_workers(suite, Path(), [cell], 2, None, SilentComparison())
    assert (result.cell, result.method, result.message) == (cell, "random", "it died")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError) as caught:
        check_cluster("local")
    assert str(caught.value) == (
        "`cluster` needs the package ray, got none; run pip install 'autocompress[distributed]'."
    )
    check_cluster(None)


def test_wrong_addresses_are_one_line():
    pytest.importorskip("ray", reason="the extra distributed is not installed")
    for address in ("here", "host", "host:", ":80", "host:0", "host:65536", "host:ssh", ""):
        with pytest.raises(InputError) as caught:
            check_cluster(address)
        assert str(caught.value) == f"`cluster` must be local, auto or host:port, got {address!r}."


def test_a_cluster_that_cant_be_reached_is_one_line():
    pytest.importorskip("ray", reason="the extra distributed is not installed")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(InputError) as caught:
            RayTasks(address, 1, make, (0.0,))
    assert str(caught.value) == (
        f"`cluster` must be the address of a Ray cluster that answers, got {address}: Connection refused; start "
        "one with: ray start --head."
    )


def test_ray_runs_tasks_and_a_task_whose_worker_dies_once_more(tasks):
    pytest.importorskip("ray", reason="the extra distributed is not installed")
    ends, told = ran(RayTasks("local", 2, make, (0.25,)), tasks("fine", "dies", "dies-once", "fine"))
    assert ends == {
        0: Result(0.25),
        1: Death("the worker in Ray ended with WorkerCrashedError"),
        2: Result(2.25),
        3: Result(3.25),
    }
    assert sorted(number for number, news in told if news is None) == [0, 1, 1, 2, 2, 3]
