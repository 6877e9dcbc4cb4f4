"""Made-up networks whose outputs and first-order effects are known."""

import numpy as np

from autocompress.evaluation.effects import Effects
from autocompress.searchers.model_based.cells import Cells
from autocompress.searchers.model_based.output_model import OutputModel
from autocompress_envs.problem import Labeling, Outcome
from autocompress_envs.testing import random_problem


class LinearNetwork:
    """Every option of every layer adds a fixed random change to the logits: what models of the outputs assume."""

    def __init__(self, layers=8, samples=20, classes=4, seed=0, kind="residual", plans=1000, scale=2.0):
        rng = np.random.default_rng(seed)
        while True:  # until the random menus offer something to choose
            self.problem = random_problem(rng, layers, kind)
            self.cells = Cells(self.problem)
            if np.log(self.cells.tables.counts).sum() > np.log(plans):
                break
        self.logits = rng.normal(0.0, 1.0, (samples, classes))
        self.probabilities = softmax(self.logits)
        directions = rng.normal(0.0, 1.0, (2 * layers, samples, classes))
        options = [errors.shape[1] for errors in self.cells.errors for _ in range(layers)]
        self.moved = scale * np.sqrt(self.cells.row)[:, None, None] * np.repeat(directions, options, 0)

    def evaluate(self, labeling, dtype=np.float16):
        logits = self.logits + self.moved[self.cells.of(self.cells.encode(labeling))].sum(0)
        shift = np.log(softmax(logits)) - np.log(self.probabilities)
        kl = float(-(self.probabilities * shift).sum(1).mean())
        return Outcome(kl, 0.5, 0.5, self.problem.resources(labeling), shift.astype(dtype))

    def effects(self, slope, missed=0.0, around=None):
        """Such that plans really move the outputs by `slope` times their sum; `missed` is how far they are wrong.

        Around a plan, they say what other labels do instead of its own.
        """
        noise = np.random.default_rng(9).normal(0.0, 1.0, self.moved.shape)
        wrong = missed * np.sqrt(self.cells.row)[:, None, None] * noise
        rows = (self.moved + wrong) / slope
        return effects_of(self.cells, rows if around is None else self.instead(rows, around))

    def instead(self, rows, plan):
        """Rows (cells, N, K) less those of the plan's own labels."""
        options = np.diff([*self.cells.offsets, self.cells.row.size])
        return rows - np.repeat(rows[self.cells.of(self.cells.encode(plan))], options, 0)

    def random(self, rng):
        counts = self.cells.tables.counts
        return Labeling(*(rng.integers(counts[:, axis]) for axis in range(3)))


class Taught:
    """A network, its model after random plans, and 40 further plans with their true divergences."""

    def __init__(self, effects=None, plans=60, scale=2.0):
        self.network, rng = LinearNetwork(scale=scale), np.random.default_rng(1)
        network = self.network
        known = None if effects is None else network.effects(*effects)
        self.model, seen = OutputModel(network.problem, network.probabilities, effects=known), set()
        while len(self.model) < plans:
            labeling = network.random(rng)
            if labeling.key() not in seen:
                seen.add(labeling.key())
                self.model.add(labeling, network.evaluate(labeling))
        fresh = [labeling for labeling in (network.random(rng) for _ in range(40)) if labeling.key() not in seen]
        self.fresh = np.stack([network.cells.encode(labeling) for labeling in fresh])
        self.truth = np.array([network.evaluate(labeling).kl for labeling in fresh])


def predicted_by_hand(model, network, effects, codes, offset=0.0):
    """The formulas of the module, one plan at a time and in full; `codes` are (M, 2L).

    `offset` is what the plan does around which the effects are.
    """
    settings, layers = model._settings, len(network.problem.layers)
    errors, likeness = network.cells.errors, (settings.pruning, settings.rounding)
    known, probabilities = model.codes, network.probabilities
    shifts = model._shifts.astype(float).reshape(len(known), *probabilities.shape)

    def kernel(one, other):
        alike = 0.0
        for feature, (o, p) in enumerate(zip(one, other, strict=True)):
            e = errors[feature // layers][feature % layers]
            alike += np.sqrt(e[o] * e[p]) * likeness[feature // layers] ** abs(o - p)
        return alike + settings.pairs * alike**2

    def foreseen(plan):
        if effects is None:
            return 0.0
        rows = [effects.pruning[i, plan[i]] + effects.rounding[i, plan[layers + i]] for i in range(layers)]
        return offset + model._slope * np.sum(rows, 0, dtype=float)

    gram = np.array([[kernel(one, other) for other in known] for one in known])
    inverse = np.linalg.inv(gram + settings.noise * np.diag(gram).mean() * np.eye(len(known)))
    missed = np.array([shift - foreseen(plan) for shift, plan in zip(shifts, known, strict=True)])
    best = int(model.losses.argmin())
    now = softmax(np.log(probabilities) + shifts[best])
    found = []
    for plan in codes:
        alpha = inverse @ [kernel(plan, other) for other in known]
        moved = foreseen(plan) + np.tensordot(alpha, missed, 1) - shifts[best]
        variance = (now * moved**2).sum(1) - (now * moved).sum(1) ** 2
        found.append(model.losses[best] + ((now - probabilities) * moved).sum(1).mean() + 0.5 * variance.mean())
    return np.array(found)


def effects_of(cells, by_cell):
    """Effects from their rows (cells, N, K)."""
    parts = np.split(by_cell.astype(np.float32), [cells.errors[0].size])
    shapes = [(*errors.shape, *by_cell.shape[1:]) for errors in cells.errors]
    return Effects(*(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))


def softmax(logits):
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)
