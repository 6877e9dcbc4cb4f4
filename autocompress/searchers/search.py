"""The one way to run any searcher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

from autocompress.errors import InputError, unknown_name
from autocompress.searchers.agents import check_agent, search_with_agent
from autocompress.searchers.base import Evaluated, Recorder, SearchResult, SearchSettings, StopSearch, Task
from autocompress.searchers.baselines import search_prices, search_random, search_solver, search_uniform
from autocompress.searchers.black_box import search_cmaes, search_nsga2, search_tpe
from autocompress.searchers.evolution import search_evolution
from autocompress.searchers.exact import search_exact, search_measured
from autocompress.searchers.greedy import search_greedy
from autocompress.searchers.published.amc import search_amc
from autocompress.searchers.published.galen import search_galen
from autocompress.searchers.published.haq import search_haq
from autocompress.searchers.published.releq import search_releq
from autocompress.searchers.random_state import borrowed_random_state
from autocompress.searchers.scalars import tensorboard_observer
from autocompress.searchers.sensitivity import search_measured_prices

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
        "greedy": search_greedy,
        "exact": search_exact,
        "measured": search_measured,
        "local-measured": search_measured_prices,
        "evolution": search_evolution,
        "tpe": search_tpe,
        "cmaes": search_cmaes,
        "nsga2": search_nsga2,
        "amc": search_amc,
        "haq": search_haq,
        "galen": search_galen,
        "releq": search_releq,
    }
)

SEEDLESS = frozenset({"uniform", "solver", "exact", "greedy", "measured"})
"""Methods that make no random choice: every seed gives the same plans."""

LABELLED = frozenset({"amc", "haq", "galen", "releq"})
"""Methods whose own rewards need labels, whatever `settings.reward` says."""

COMPARING = frozenset({"haq", "releq"})
"""Those of them that compare with the original's accuracy: they need `task.original_accuracy`."""


def run_search(
    task: Task,
    settings: SearchSettings,
    *,
    method: str | Searcher = "rl",
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
        method: name in `SEARCHERS`, or a searcher, such as `amc_searcher(AmcOptions(overshoot=True))`.
        observe: called after every evaluation.
        tensorboard: folder for TensorBoard scalars.

    Raises:
        InputError: an unknown method or agent, an agent that can't take such actions, an evaluation that gave NaN,
            or no plan of the method within the limits.
        InfeasibleBudgetError: no plan at all within the limits.
    """
    if isinstance(method, str) and method not in SEARCHERS:
        raise unknown_name("method", method, SEARCHERS)
    if method == "rl":
        check_agent(settings)
    with ExitStack() as stack:
        observers = [] if observe is None else [observe]
        if tensorboard is not None:
            observers.append(stack.enter_context(tensorboard_observer(tensorboard, task.limits)))
        recorder = Recorder(task, settings, observers)
        stack.enter_context(borrowed_random_state())
        reason = _run(SEARCHERS[method] if isinstance(method, str) else method, task, settings, recorder)
    if recorder.best is None:
        name = method if isinstance(method, str) else "given"
        raise InputError(f"`budget` must admit a plan of the method {name}, got {task.limits}; raise it.")
    return SearchResult(recorder.best, recorder.evaluations, reason, recorder.policy_state)


def _run(searcher: Searcher, task: Task, settings: SearchSettings, recorder: Recorder) -> str:
    try:
        searcher(task, settings, recorder)
    except StopSearch as stop:
        return str(stop)
    raise AssertionError("a searcher ends by StopSearch")
