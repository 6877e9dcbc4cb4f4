"""Evaluation: stitched networks, and how close their outputs stay to the original's.

Two words are kept apart. To *evaluate* is to run one plan on the search split, with the menus' weights, renormalized
(`Evaluator`). To *measure* is to compare any two networks on any samples: `measure` runs both, `compare` takes their
outputs, and `Closeness` is the result.
"""

from autocompress.evaluation.evaluator import Evaluator
from autocompress.evaluation.measure import Closeness, measure
from autocompress.evaluation.number_format import (
    AUTO,
    DTYPES,
    choose_dtype,
    measured_at_once,
    samples_that_fit,
    torch_device,
)

__all__ = [
    "AUTO",
    "DTYPES",
    "Closeness",
    "Evaluator",
    "choose_dtype",
    "measure",
    "measured_at_once",
    "samples_that_fit",
    "torch_device",
]
