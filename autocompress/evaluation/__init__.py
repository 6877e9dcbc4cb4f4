"""Evaluation: stitched networks, and how close they stay to the original."""

from autocompress.evaluation.evaluator import Evaluator
from autocompress.evaluation.measure import Closeness, measure
from autocompress.evaluation.number_format import DTYPES, choose_dtype, torch_device

__all__ = ["DTYPES", "Closeness", "Evaluator", "choose_dtype", "measure", "torch_device"]
