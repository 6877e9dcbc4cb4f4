"""Worker processes, with work that needs no network: results of all, deaths, errors, and nobody left behind."""

import multiprocessing
import os
import signal
import time

import pytest

from autocompress.comparison import workers
from autocompress.comparison.live import SilentComparison
from autocompress.comparison.pool import run_in_pool
from autocompress.comparison.results import CellResult, failed
from autocompress.comparison.suite import Cell
from autocompress.progress import Step


def work(pipe, offset):
    """Tells one step a cell, then the result; budgets say what goes wrong."""
    while True:
        try:
            cell = pipe.recv()
        except EOFError:
            return
        if cell.budget == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if cell.budget == "exits":
            raise SystemExit(3)
        pipe.send(Step(cell.seed, 10, True, 0.5, 0.9, {}, {}))
        pipe.send(CellResult(cell.method, "random", cell.budget, cell.seed, kl=cell.seed + offset))
        if cell.budget == "sleeps":
            time.sleep(600)


class Watcher(SilentComparison):
    def __init__(self):
        self.begun, self.steps = [], []

    def cell_step(self, cell, step):
        (self.begun if step is None else self.steps).append(cell)


def failed_cell(cell, exit_message):
    return failed(cell, "random", exit_message)


def test_every_cell_is_run_once_and_a_death_fails_one_cell_alone():
    watcher = Watcher()
    budgets = ["fine", "dies", "fine", "exits", "fine"]
    cells = [Cell("random", budget, seed) for seed, budget in enumerate(budgets)]
    results = {each.cell: each for each in run_in_pool(cells, 2, work, (0.25,), failed_cell, watcher)}
    assert [results[cell].kl for cell in (cells[0], cells[2], cells[4])] == [0.25, 2.25, 4.25]
    assert [results[cell].message for cell in (cells[1], cells[3])] == [
        "the worker process was ended by SIGKILL",
        "the worker process ended with exit code 3",
    ]
    assert len(results) == 5
    assert watcher.begun == cells
    assert sorted(watcher.steps, key=lambda cell: cell.seed) == [cells[0], cells[2], cells[4]]
    assert multiprocessing.active_children() == []


def test_who_stops_listening_leaves_no_process_behind():
    cells = [Cell("random", "sleeps", seed) for seed in range(4)]
    handler = signal.getsignal(signal.SIGINT)
    running = run_in_pool(cells, 2, work, (0.0,), failed_cell, Watcher())
    assert next(running).finished
    assert len(multiprocessing.active_children()) == 2
    running.close()
    assert multiprocessing.active_children() == []
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize(("jobs", "cells", "threads"), [(2, 4, 6), (8, 3, 4), (30, 30, 1)])
def test_threads_are_divided_between_the_processes_that_there_are(monkeypatch, jobs, cells, threads):
    monkeypatch.setattr(workers.torch, "get_num_threads", lambda: 12)
    monkeypatch.setattr(workers, "run_in_pool", lambda cells, jobs, work, arguments, *others: arguments)
    pending = [Cell("random", "fine", seed) for seed in range(cells)]
    assert workers.run_in_processes(None, None, pending, jobs, Watcher()) == (None, None, threads)


def test_no_cells_need_no_process():
    assert list(run_in_pool([], 2, work, (0.0,), failed_cell, Watcher())) == []
    with pytest.raises(StopIteration):
        next(iter(run_in_pool([], 2, work, (0.0,), failed_cell, Watcher())))
