"""The Gymnasium environment of autocompress, its Lagrangian solver, and small problems to test both.

Imports NumPy, Gymnasium and the standard library only.
"""

from gymnasium import register

from autocompress_envs.environment import LayerLabelingEnv
from autocompress_envs.labeling.environment import LabelingEnv
from autocompress_envs.labeling.sketch import Sketch
from autocompress_envs.problem import CostModel, Labeling, LayerNumbers, Outcome, Problem
from autocompress_envs.solver import InfeasibleBudgetError, Solver

__all__ = [
    "CostModel",
    "InfeasibleBudgetError",
    "Labeling",
    "LabelingEnv",
    "LayerLabelingEnv",
    "LayerNumbers",
    "Outcome",
    "Problem",
    "Sketch",
    "Solver",
]

register(id="autocompress/LayerLabeling-v0", entry_point="autocompress_envs.environment:LayerLabelingEnv")
register(id="autocompress/LayerLabeling-v1", entry_point="autocompress_envs.labeling.environment:LabelingEnv")
