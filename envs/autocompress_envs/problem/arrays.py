"""Array types that the whole package shares."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
"""Whole numbers: indices into menus, channels, bits, and amounts of a resource."""

FloatArray = npt.NDArray[np.float64]
"""Real numbers: expected losses in nats, sparsities, weights, multipliers."""

BoolArray = npt.NDArray[np.bool_]
"""Truth values: masks of labels, and which layer reads which tensor."""
