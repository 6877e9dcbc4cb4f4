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
    """The plan of least layer error within the limits: one evaluation."""
    recorder(solve_exactly(task.problem, task.limits))
    raise StopSearch("the layer errors have one exact plan")


def search_measured(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """Measure what every layer's change alone loses, then evaluate the plan of least measured error.

    All but one evaluation of the allowance measure, as far as there are changes.
    """
    problem = measured_problem(task.problem, recorder, settings.episodes - 1)
    recorder(solve_exactly(problem, task.limits))
    raise StopSearch("the measured layer errors have one exact plan")


def solve_exactly(problem: Problem, limits: Mapping[str, int], seconds: float = 60.0) -> Labeling:
    """The labelling of least total layer error within every limit, to a relative `GAP`.

    The Lagrangian solution bounds the search, and is what comes back where HiGHS finds nothing better. HiGHS is
    deterministic as long as `seconds` is not reached.

    Args:
        problem: the menus and costs.
        limits: absolute amounts by resource (`size`, `macs`, `bitops`, `memory`), at least one.
        seconds: of HiGHS; then the best labelling so far is taken.

    Raises:
        InputError: nothing was found in that time, or a layer's cost depends on too many sparsities together.
        InfeasibleBudgetError: no labelling meets the limits.
    """
    solver = Solver(problem, limits)
    relaxed = solver.solve()
    known = solver.error(relaxed)
    if known <= 0.0:
        return relaxed
    solved = solver.repair(_solution(solver, known, seconds))  # whole numbers from HiGHS are whole to 1e-6 only
    return relaxed if solved is None or solver.error(solved) >= known else solved


def _solution(solver: Solver, known: float, seconds: float) -> Labeling:
    from scipy.optimize import Bounds, LinearConstraint, milp

    program = build_program(solver, known)
    result = milp(
        program.objective,
        integrality=program.integral.astype(int),
        bounds=Bounds(0.0, [1.0 if binary else float("inf") for binary in program.integral]),
        constraints=LinearConstraint(program.matrix, program.low, program.high),
        # Presolving saves no time here; and HiGHS 1.12 prints a line where a presolved solution has to be repaired.
        options={"time_limit": seconds, "mip_rel_gap": GAP, "presolve": False},
    )
    if result.x is None:
        raise InputError(
            f"`method` exact or measured needs HiGHS to find a plan within {seconds:g} seconds, got none (scipy's "
            f"status {result.status}); choose the method solver or local-measured, or shorter menus."
        )
    return program.labeling(result.x, solver.tables.layer_count)
