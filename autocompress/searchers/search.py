"""The search methods by name, and the one function that runs any of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from autocompress.borrowed import borrowed_random_state
from autocompress.errors import InputError
from autocompress.registry import Registry
from autocompress.searchers.agents import AGENTS, Search, check_agent, search_with_agent
from autocompress.searchers.base import Evaluated, Recorder, SearchResult, SearchSettings, StopSearch, Task
from autocompress.searchers.black_box.evolution import search_evolution
from autocompress.searchers.black_box.optuna_samplers import search_cmaes, search_nsga2, search_tpe
from autocompress.searchers.published.amc import search_amc
from autocompress.searchers.published.galen import search_galen
from autocompress.searchers.published.haq import search_haq
from autocompress.searchers.published.releq import search_releq
from autocompress.searchers.solvers.baselines import search_prices, search_random, search_solver, search_uniform
from autocompress.searchers.solvers.exact import search_exact, search_measured
from autocompress.searchers.solvers.greedy import search_greedy
from autocompress.searchers.solvers.sensitivity import search_measured_prices
from autocompress.searchers.tensorboard import tensorboard_observer

Observe = Callable[[Evaluated], None]
"""Takes every new evaluation of a search, in order."""


@dataclass(frozen=True)
class Searcher:
    """A search method.

    Attributes:
        search: function that runs the search.
        is_random: whether it makes random choices; else every seed gives the same plans. Default: True.
        needs_labels: whether it needs labelled data for rewards of its own, whatever `SearchSettings.reward`
            says. Default: False.
        needs_original_accuracy: whether such a reward compares with `Task.original_accuracy`. Default: False.
        has_agent: whether `SearchSettings.agent` and `SearchSettings.action` matter to it. Default: False.
        needs_outputs: whether it models the network's outputs, as in `Agent`. Of a method with agents, the
            agent's attribute counts instead. Default: False.
    """

    search: Search
    is_random: bool = True
    needs_labels: bool = False
    needs_original_accuracy: bool = False
    has_agent: bool = False
    needs_outputs: bool = False

    def wants_outputs(self, settings: SearchSettings) -> bool:
        """Whether the method, or the settings' agent where it has agents, models the network's outputs."""
        return AGENTS.find(settings.agent).needs_outputs if self.has_agent else self.needs_outputs


SEARCHERS: Registry[Searcher] = Registry(
    "method",
    {
        "rl": Searcher(search_with_agent, has_agent=True),
        "uniform": Searcher(search_uniform, is_random=False),
        "random": Searcher(search_random),
        "solver": Searcher(search_solver, is_random=False),
        "local": Searcher(search_prices("local")),
        "posterior": Searcher(search_prices("posterior")),
        "mixed": Searcher(search_prices("mixed")),
        "greedy": Searcher(search_greedy, is_random=False),
        "exact": Searcher(search_exact, is_random=False),
        "measured": Searcher(search_measured, is_random=False),
        "local-measured": Searcher(search_measured_prices),
        "evolution": Searcher(search_evolution),
        "tpe": Searcher(search_tpe),
        "cmaes": Searcher(search_cmaes),
        "nsga2": Searcher(search_nsga2),
        "amc": Searcher(search_amc, needs_labels=True),
        "haq": Searcher(search_haq, needs_labels=True, needs_original_accuracy=True),
        "galen": Searcher(search_galen, needs_labels=True),
        "releq": Searcher(search_releq, needs_labels=True, needs_original_accuracy=True),
    },
)


def as_searcher(method: str | Search | Searcher) -> Searcher:
    """The searcher of a method.

    Args:
        method: name in `SEARCHERS`, a function that searches, or a searcher, which comes back as it is.

    Raises:
        InputError: there is no method of that name.
    """
    if isinstance(method, Searcher):
        return method
    return SEARCHERS.find(method) if isinstance(method, str) else Searcher(method)


def run_search(
    task: Task,
    settings: SearchSettings,
    *,
    method: str | Search | Searcher = "rl",
    observe: Observe | None = None,
    tensorboard: Path | None = None,
) -> SearchResult:
    """Search for the plan of highest reward within the limits.

    The result, and the order in which plans are evaluated, depend on `task` and `settings` alone. So a search
    is resumed by running it again with an `evaluate` that answers from the journal. Global random generators
    are left as they were.

    Args:
        task: the problem, its limits and its evaluation.
        settings: options of the search; `agent` and `action` matter to the method `rl` only.
        method: name in `SEARCHERS`, or a searcher, or a function such as
            `amc_searcher(AmcOptions(overshoot=True))`. Default: `rl`.
        observe: function that is called after every new evaluation. Default: None.
        tensorboard: folder to which TensorBoard scalars are written. Default: None, for no scalars.

    Raises:
        InputError: an unknown method or agent, an agent that can't take such actions, an evaluation that gave
            NaN, or no plan of the method within the limits.
        InfeasibleBudgetError: no plan at all meets the limits.
    """
    searcher = as_searcher(method)
    if searcher.has_agent:
        check_agent(settings)
    with ExitStack() as stack:
        observers = [] if observe is None else [observe]
        if tensorboard is not None:
            observers.append(stack.enter_context(tensorboard_observer(tensorboard, task.limits)))
        recorder = Recorder(task, settings, observers)
        stack.enter_context(borrowed_random_state())
        reason = _run(searcher, task, settings, recorder)
    if recorder.best is None:
        name = method if isinstance(method, str) else "given"
        raise InputError(f"`budget` must admit a plan of the method {name}, got {task.limits}; raise it.")
    return SearchResult(recorder.best, recorder.evaluations, reason, recorder.policy_state)


def _run(searcher: Searcher, task: Task, settings: SearchSettings, recorder: Recorder) -> str:
    """Run a search to its end, and return the reason why it ended, in one clause."""
    try:
        searcher.search(task, settings, recorder)
    except StopSearch as stop:
        return str(stop)
    return "the method has no further plan"
