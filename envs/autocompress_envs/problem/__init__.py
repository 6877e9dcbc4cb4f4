"""A compression task in numbers: the layers' menus, the costs of a labelling, and measured outcomes."""

from autocompress_envs.problem.arrays import BoolArray, FloatArray, IntArray
from autocompress_envs.problem.costs import (
    BIAS_BYTES,
    FLOAT_BYTES,
    RANGE_BYTES,
    SCALE_BYTES,
    CostModel,
    layer_resources,
    n_of_m,
    removed_weights,
    stored_bits,
)
from autocompress_envs.problem.energy import FLOAT_MAC, EnergyCosts, access_energy
from autocompress_envs.problem.kernels import KernelCosts
from autocompress_envs.problem.problem import Labeling, LayerNumbers, Outcome, Problem

__all__ = [
    "BIAS_BYTES",
    "FLOAT_BYTES",
    "FLOAT_MAC",
    "RANGE_BYTES",
    "SCALE_BYTES",
    "BoolArray",
    "CostModel",
    "EnergyCosts",
    "FloatArray",
    "IntArray",
    "KernelCosts",
    "Labeling",
    "LayerNumbers",
    "Outcome",
    "Problem",
    "access_energy",
    "layer_resources",
    "n_of_m",
    "removed_weights",
    "stored_bits",
]
