"""A compression task in numbers: the layers' menus, the costs of a labelling, and measured outcomes."""

from autocompress_envs.problem.arrays import BoolArray, FloatArray, IntArray
from autocompress_envs.problem.costs import (
    BIAS_BYTES,
    RANGE_BYTES,
    SCALE_BYTES,
    CostModel,
    layer_resources,
    n_of_m,
    removed_weights,
    stored_bits,
)
from autocompress_envs.problem.kernels import KernelCosts
from autocompress_envs.problem.problem import Labeling, LayerNumbers, Outcome, Problem

__all__ = [
    "BIAS_BYTES",
    "RANGE_BYTES",
    "SCALE_BYTES",
    "BoolArray",
    "CostModel",
    "FloatArray",
    "IntArray",
    "KernelCosts",
    "Labeling",
    "LayerNumbers",
    "Outcome",
    "Problem",
    "layer_resources",
    "n_of_m",
    "removed_weights",
    "stored_bits",
]
