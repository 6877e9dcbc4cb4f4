"""Optuna's black-box optimisers (Akiba et al. 2019, arXiv:1907.10902), over prices or directly over labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from autocompress.searchers.base import Recorder, SearchSettings, Task
from autocompress.searchers.black_box.evolution import genes_of, labeling_of_genes, repaired
from autocompress.searchers.prices import PRICE_LIMIT
from autocompress_envs.problem import Labeling
from autocompress_envs.problem.loss_parts import LossParts
from autocompress_envs.problem.tables import is_within
from autocompress_envs.solver import Solver

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    MakeSampler = Callable[[int], BaseSampler]

PRICE_RANGE = PRICE_LIMIT / 2  # of log prices, either way
STARTUP_TRIALS = 20  # random ones, before TPE has a model
POPULATION = 20  # of NSGA-II: twenty generations in 400 evaluations
CROSSED = 0.5  # share of its children with two parents; 0.9, the default, was worse over a few hundred evaluations


def search_tpe(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """Tree-structured Parzen estimators over log prices (Bergstra et al. 2011), multivariate (Falkner et al. 2018).

    Every price vector is decoded by the solver, as in the price environment; the first is 0, the solver's own plan.
    """
    _search_log_prices(task, settings, recorder, _tpe)


def search_cmaes(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """CMA-ES over log prices (Hansen & Ostermeier 2001), from 0, the solver's own plan.

    The first mean is the middle of the range, 0, the first standard deviation a sixth of it, 0.67: Optuna's defaults.
    """
    _search_log_prices(task, settings, recorder, _cmaes)


def search_nsga2(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """NSGA-II over labels (Deb et al. 2002): highest reward against the largest share of a limit that is used.

    A plan beyond the limits is repaired by layer errors before it is evaluated, and its trial is told what the
    repaired plan gives. The first trial is the solver's plan.
    """
    solver = Solver(task.problem, task.limits)
    axes = {f"layer{layer}.axis{axis}": (layer, axis) for layer, axis in np.argwhere(solver.tables.counts > 1)}
    start = genes_of(solver.solve())
    with _quiet_optuna() as optuna:
        menus = {name: int(solver.tables.counts[at]) for name, at in axes.items()}
        ranges = {name: optuna.distributions.IntDistribution(0, count - 1) for name, count in menus.items()}
        sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, crossover_prob=CROSSED, seed=settings.seed)
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        study.enqueue_trial({name: int(start[at]) for name, at in axes.items()})
        while True:
            trial = study.ask(ranges)
            genes = np.zeros_like(start)
            for name, index in trial.params.items():
                genes[axes[name]] = index
            evaluated = recorder.record(_within(solver, labeling_of_genes(genes)))
            used = max(evaluated.outcome.resources[name] / limit for name, limit in solver.limits.items())
            study.tell(trial, [evaluated.reward, used])


def _within(solver: Solver, labeling: Labeling) -> Labeling:
    fits = is_within(solver.tables.resources(labeling, solver.limits), solver.limits)
    return labeling if fits else repaired(solver, labeling)


def _search_log_prices(task: Task, settings: SearchSettings, recorder: Recorder, sampler: MakeSampler) -> None:
    solver = Solver(task.problem, task.limits)
    active = LossParts(task.problem).active
    names = [f"layer{layer}.kind{kind}" for layer, kind in np.argwhere(active)]
    with _quiet_optuna() as optuna:
        ranges = {name: optuna.distributions.FloatDistribution(-PRICE_RANGE, PRICE_RANGE) for name in names}
        study = optuna.create_study(direction="maximize", sampler=sampler(settings.seed))
        study.enqueue_trial(dict.fromkeys(names, 0.0))
        while True:
            trial = study.ask(ranges)
            prices = np.zeros(active.shape)
            chosen = trial.params  # a copy, made anew at every access
            prices[active] = [chosen[name] for name in names]
            study.tell(trial, recorder.record(solver.solve(*np.exp(prices).T)).reward)


def _tpe(seed: int) -> BaseSampler:
    from optuna.samplers import TPESampler

    return TPESampler(multivariate=True, n_startup_trials=STARTUP_TRIALS, seed=seed)


def _cmaes(seed: int) -> BaseSampler:
    from optuna.samplers import CmaEsSampler

    return CmaEsSampler(seed=seed, warn_independent_sampling=False)


@contextmanager
def _quiet_optuna() -> Iterator[Any]:
    """Optuna, that logs errors only and warns of nothing until the block ends."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            yield optuna
        finally:
            optuna.logging.set_verbosity(verbosity)
