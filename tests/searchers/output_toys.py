"""Made-up networks whose outputs and first-order effects are known."""

import numpy as np

from autocompress.evaluation.effects import Effects
from autocompress.searchers.cells import Cells
from autocompress_envs.numbers import Labeling, Outcome
from autocompress_envs.toy import random_problem


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

    def effects(self, slope, missed=0.0):
        """Such that plans really move the outputs by `slope` times their sum; `missed` is how far they are wrong."""
        noise = np.random.default_rng(9).normal(0.0, 1.0, self.moved.shape)
        wrong = missed * np.sqrt(self.cells.row)[:, None, None] * noise
        return effects_of(self.cells, (self.moved + wrong) / slope)

    def random(self, rng):
        counts = self.cells.tables.counts
        return Labeling(*(rng.integers(counts[:, axis]) for axis in range(3)))


def effects_of(cells, by_cell):
    """Effects from their rows (cells, N, K)."""
    parts = np.split(by_cell.astype(np.float32), [cells.errors[0].size])
    shapes = [(*errors.shape, *by_cell.shape[1:]) for errors in cells.errors]
    return Effects(*(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))


def softmax(logits):
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)
