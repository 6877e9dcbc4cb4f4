"""The Gymnasium environment of autocompress: NumPy and Gymnasium only."""

from gymnasium import register

from autocompress_envs.environment import LayerLabelingEnv
from autocompress_envs.problem.numbers import CostModel, Labeling, LayerNumbers, Outcome, Problem
from autocompress_envs.solver.pricing import InfeasibleBudgetError, Pricer

__all__ = [
    "CostModel",
    "InfeasibleBudgetError",
    "Labeling",
    "LayerLabelingEnv",
    "LayerNumbers",
    "Outcome",
    "Pricer",
    "Problem",
]

register(id="autocompress/LayerLabeling-v0", entry_point="autocompress_envs.environment:LayerLabelingEnv")
