"""Exact solutions of the layer-error problem by HiGHS, on expected or on measured layer errors."""

from __future__ import annotations

from collections.abc import Mapping

from autocompress.errors import InputError
from autocompress.searchers.base import Recorder, SearchSettings, StopSearch, Task
from autocompress.searchers.solvers.exact_model import build_program
from autocompress.searchers.solvers.sensitivity import measured_problem
from autocompress_envs.problem import Labeling, Problem
from autocompress_envs.solver import Solver

GAP = 1e-4  # relative: how far the plan's error may be above the least


def search_exact(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """The method `exact`: the plan of least layer error within the limits, in one evaluation.

    Args:
        task: the problem, its limits and its evaluation.
        settings: options of the search; none counts here.
        recorder: evaluates plans, and raises `StopSearch` when the search is over.

    Raises:
        StopSearch: the plan is evaluated.
        InputError: HiGHS finds no plan in time, or a layer's cost depends on too many sparsities together.
        InfeasibleBudgetError: no plan meets the limits.
    """
    recorder(solve_exactly(task.problem, task.limits))
    raise StopSearch("the layer errors have one exact plan")


def search_measured(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """The method `measured`: measure every layer's changes alone, then evaluate the plan of least such error.

    All evaluations of the allowance but one measure single changes, as far as there are that many.

    Args:
        task: the problem, its limits and its evaluation.
        settings: options of the search; `episodes` counts here.
        recorder: evaluates plans, and raises `StopSearch` when the search is over.

    Raises:
        StopSearch: the plan is evaluated, or the allowance is used up.
        InputError: HiGHS finds no plan in time, or a layer's cost depends on too many sparsities together.
        InfeasibleBudgetError: no plan meets the limits.
    """
    problem = measured_problem(task.problem, recorder, settings.episodes - 1)
    recorder(solve_exactly(problem, task.limits))
    raise StopSearch("the measured layer errors have one exact plan")


def solve_exactly(problem: Problem, limits: Mapping[str, int], seconds: float = 60.0) -> Labeling:
    """The labelling of least total layer error within every limit, to a relative `GAP`.

    The Lagrangian solution bounds the search, and is returned where HiGHS finds nothing better. HiGHS is
    deterministic as long as it needs less than `seconds`.

    Args:
        problem: menus, layer errors and costs of the network.
        limits: upper bound of every limited resource (`size`, `macs`, `bitops`, `memory`, `energy`), in absolute units;
            at least one.
        seconds: most time that HiGHS may take; then its best labelling so far counts. Default: 60.

    Raises:
        InputError: HiGHS found no plan in that time, or a layer's cost depends on too many sparsities
            together, or memory is limited and low ranks are on offer.
        InfeasibleBudgetError: no labelling meets the limits.
    """
    solver = Solver(problem, limits)
    if "memory" in limits and solver.tables.ranks.any():
        raise InputError(
            "`ranks` must be none for the methods exact and measured where memory is limited, as their program has no "
            "row for what two factors hand on; leave out --ranks, or choose the method solver or local-measured."
        )
    relaxed = solver.solve()
    known = solver.error(relaxed)
    if known <= 0.0:
        return relaxed
    solved = solver.repair(_solution(solver, known, seconds))  # whole numbers from HiGHS are whole to 1e-6 only
    return relaxed if solved is None or solver.error(solved) >= known else solved


def _solution(solver: Solver, known: float, seconds: float) -> Labeling:
    """HiGHS's labelling, given the layer error of a known plan in nats; it may miss a limit by rounding."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    program = build_program(solver, known)
    result = milp(
        program.objective,
        integrality=program.integral.astype(int),
        bounds=Bounds(0.0, [1.0 if binary else float("inf") for binary in program.integral]),
        constraints=LinearConstraint(program.matrix, program.low, program.high),
        # Presolving saves no time here, and HiGHS 1.12 prints a line where it has to repair a presolved solution.
        options={"time_limit": seconds, "mip_rel_gap": GAP, "presolve": False},
    )
    if result.x is None:
        raise InputError(
            f"`method` exact or measured needs HiGHS to find a plan within {seconds:g} seconds, got none (scipy's "
            f"status {result.status}); choose the method solver or local-measured, or shorter menus."
        )
    return program.labeling(result.x, solver.tables.layer_count)
