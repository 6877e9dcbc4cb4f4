"""Evaluation: stitched networks, and how close they stay to the original."""

from autocompress.evaluation.evaluator import DTYPES, Evaluator, torch_device
from autocompress.evaluation.measure import Closeness, measure

__all__ = ["DTYPES", "Closeness", "Evaluator", "measure", "torch_device"]
