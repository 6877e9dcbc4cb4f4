"""The one way to run any searcher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

from autocompress.errors import InputError, unknown_name
from autocompress.searchers.agents import agent_spec, search_with_agent
from autocompress.searchers.base import Evaluated, Recorder, SearchResult, SearchSettings, StopSearch, Task
from autocompress.searchers.baselines import search_prices, search_random, search_solver, search_uniform
from autocompress.searchers.random_state import borrowed_random_state
from autocompress.searchers.scalars import tensorboard_observer

Searcher = Callable[[Task, SearchSettings, Recorder], None]
Observe = Callable[[Evaluated], None]

SEARCHERS: Mapping[str, Searcher] = MappingProxyType(
    {
        "rl": search_with_agent,
        "uniform": search_uniform,
        "random": search_random,
        "solver": search_solver,
        "local": search_prices("local"),
        "posterior": search_prices("posterior"),
        "mixed": search_prices("mixed"),
    }
)


def run_search(
    task: Task,
    settings: SearchSettings,
    *,
    method: str = "rl",
    observe: Observe | None = None,
    tensorboard: Path | None = None,
) -> SearchResult:
    """Search for the plan of highest reward within the limits.

    The result, and the order in which plans are evaluated, depend on `task` and `settings` alone, so a search is
    resumed by running it again with an `evaluate` that answers from the journal. Global random generators are
    left as they were.

    Args:
        task: what to search.
        settings: how; `settings.agent` and `settings.action` matter to the method `rl` only.
        method: name in `SEARCHERS`.
        observe: called after every evaluation.
        tensorboard: folder for TensorBoard scalars.

    Raises:
        InputError: an unknown method or agent, an agent that can't take such actions, an evaluation that gave NaN,
            or no plan of the method within the limits.
        InfeasibleBudgetError: no plan at all within the limits.
    """
    if method not in SEARCHERS:
        raise unknown_name("method", method, SEARCHERS)
    if method == "rl":
        agent_spec(settings)
    with ExitStack() as stack:
        observers = [] if observe is None else [observe]
        if tensorboard is not None:
            observers.append(stack.enter_context(tensorboard_observer(tensorboard, task.limits)))
        recorder = Recorder(task, settings, observers)
        stack.enter_context(borrowed_random_state())
        reason = _run(SEARCHERS[method], task, settings, recorder)
    if recorder.best is None:
        raise InputError(f"`budget` must admit a plan of the method {method}, got {task.limits}; raise it.")
    return SearchResult(recorder.best, recorder.evaluations, reason, recorder.policy_state)


def _run(searcher: Searcher, task: Task, settings: SearchSettings, recorder: Recorder) -> str:
    try:
        searcher(task, settings, recorder)
    except StopSearch as stop:
        return str(stop)
    raise AssertionError("a searcher ends by StopSearch")
