"""A network of two layers for which foresight is computed by hand."""

import numpy as np
from output_toys import effects_of

from autocompress.searchers.cells import Cells
from autocompress_envs.toy import LayerShape, Menu, build_problem

KINDS = ["chain", "residual", "concat", "depthwise", "element"]
UNSURE = np.array([[0.5, 0.5], [0.8, 0.2]])  # two samples, two classes


def two_layers():
    """4 channels that may be halved, then a head; 2 or 8 bits. Errors: 0.1 and 0.3 at 2 bits, 0.2 pruned.

    The roundings pull the first sample the same way; pruning and the head's rounding pull the second apart.
    """
    shapes = [LayerShape("conv", (), 0, 1, (2, 0), 1, owns=True), LayerShape("linear", (0,), None, 1, (0, 2), 1)]
    errors = [np.array([[[0.1], [0.0]]]), np.array([[[0.3], [0.0]], [[0.5], [0.2]]])]
    problem = build_problem(shapes, np.array([4]), Menu((0.0, 0.5), (2, 8), (8,)), errors, has_bias=False)
    cells = Cells(problem)
    rows, (pruned, _, first, head) = np.zeros((cells.row.size, 2, 2)), cells.offsets
    rows[first, 0], rows[head, 0] = (1.0, -1.0), (0.5, -0.5)
    rows[pruned + 1, 1], rows[head, 1] = (2.0, 0.0), (-1.0, 0.0)
    return problem, effects_of(cells, rows)


def even(apart):
    """KL of (1/2, 1/2) from the same with the logits moved by (x, -x)."""
    return np.log(np.cosh(apart))


def likely(moved):
    """KL of (0.8, 0.2) from the same with the first logit moved by x."""
    return np.log(0.8 * np.exp(moved) + 0.2) - 0.8 * moved


TRIPLED = np.log([[2.0, 1.0], [1.0, 3.0]])  # pruning counts twice, and the head's rounding three times
