"""Predicted time: whole variants of a network are timed, and what its kernels cost is fitted to them.

`variants` draws plans that show the kernels in all their widths, `fitting` finds the costs and says how well they
predict plans that they were not fitted to.
"""

from autocompress.targets.kernels.fitting import Fit, LayerShapes, Measured, fit_kernels
from autocompress.targets.kernels.variants import draw_variants

__all__ = ["Fit", "LayerShapes", "Measured", "draw_variants", "fit_kernels"]
