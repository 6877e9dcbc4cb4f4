"""What tests of foresight share: a network of two layers computed by hand, and what `moves` and plans stand beside."""

import numpy as np
from output_toys import effects_of

from autocompress.searchers.model_based.cells import Cells
from autocompress_envs.problem import Labeling
from autocompress_envs.testing import LayerShape, Menu, all_labelings, all_resources, build_problem

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


def misses_of_moves(model, codes):
    """How far `moves` of a plan (2L,) are from differences of predictions, at most: alone, and of two together."""
    counts = model.cells.tables.counts
    options = [*counts[:, 0], *(counts[:, 1] * counts[:, 2])]
    feature, option = np.array([(f, o) for f, count in enumerate(options) for o in range(count) if o != codes[f]]).T
    alone, joint = model.moves(codes, feature, option)
    np.testing.assert_allclose(joint, joint.T, atol=1e-8)

    def changed(*indices):
        plan = codes.copy()
        plan[feature[list(indices)]] = option[list(indices)]
        return model.predict(plan[None])[0][0] - model.predict(codes[None])[0][0]

    pairs = [(i, j) for i in range(len(feature)) for j in range(i) if feature[i] != feature[j]]
    together = [abs(alone[i] + alone[j] + joint[i, j] - changed(i, j)) for i, j in pairs]
    assert len(pairs) > 50
    return max(abs(alone[i] - changed(i)) for i in range(len(feature))), max(together)


def tight(network, seed):
    """Limits on one or two resources that a third of a toy's plans meet, and the codes of all plans within them."""
    every = all_labelings(network.problem)
    amounts = all_resources(network.problem, every)
    names = ("size",) if seed % 2 else ("size", "bitops")
    limits = {name: int(np.quantile(amounts[name], 0.33)) for name in names}
    inside = np.all([amounts[name] <= limit for name, limit in limits.items()], axis=0)
    labels = (every.sparsity, every.weight_bits, every.activation_bits)
    return limits, network.cells.encode(Labeling(*(of[inside] for of in labels)))
