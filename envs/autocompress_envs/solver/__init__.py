"""The Lagrangian solver: labels of least expected loss within every budget. NumPy only."""

from autocompress_envs.solver.feasibility import InfeasibleBudgetError
from autocompress_envs.solver.solver import Solver

__all__ = ["InfeasibleBudgetError", "Solver"]
