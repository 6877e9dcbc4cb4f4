"""A made-up network of which one label is believed to cost next to nothing, by expected losses and effects alike."""

from dataclasses import replace

import numpy as np
from output_toys import LinearNetwork, effects_of

from autocompress.searchers.base import Task
from autocompress.searchers.model_based.encoding import PlanEncoding
from autocompress.searchers.model_based.first_order import predicted_best_plan
from autocompress.searchers.simple_plans import simple_plans
from autocompress_envs.solver import Solver
from autocompress_envs.testing import LayerShape, Menu, build_problem

BITS = (2, 3, 4, 6, 8)


class Mistaken(LinearNetwork):
    """Layers of 256 weights; at 2 bits the guilty one really costs `lie` times what is expected of it.

    Attributes:
        truth: the problem with the true expected losses; `problem` is what is believed.
        guilty: index of the layer that lies.
        limits: 3.6 bits a weight, scales included.
    """

    def __init__(self, seed, layers=12, samples=40, classes=4, lie=100.0, bits=3.6):
        rng = np.random.default_rng(seed)
        shape = LayerShape("linear", (), None, 1, (64, 64), 1)
        scales = 0.02 * 10 ** rng.uniform(-0.7, 0.7, layers)
        self.guilty = int(rng.integers(layers))
        scales[self.guilty] = 0.0125 * layers  # nats at 2 bits: as much as half of the others together
        losses = [scale * 4.0 ** (2.0 - np.array(BITS, dtype=float)) for scale in scales]
        self.truth = self._problem(shape, losses)
        losses[self.guilty] = losses[self.guilty] / np.where(np.array(BITS) == 2, lie, 1.0)
        losses[self.guilty] = np.minimum(losses[self.guilty], losses[self.guilty][0])
        self.problem = self._problem(shape, losses)
        self.limits = {"size": int(bits * layers * 64 * 64 / 8)}
        self.encoding, true = PlanEncoding(self.problem), PlanEncoding(self.truth)
        self.logits = rng.normal(0.0, 1.0, (samples, classes))
        exponents = np.exp(self.logits)
        self.probabilities = exponents / exponents.sum(1, keepdims=True)
        directions = rng.normal(0.0, 1.0, (2 * layers, samples, classes))
        options = np.diff([*true.offsets, true.slot_errors.size])
        by_slot = np.repeat(directions, options, 0)
        self.moved = 1.6 * np.sqrt(true.slot_errors)[:, None, None] * by_slot
        self.believed = 1.6 * np.sqrt(self.encoding.slot_errors)[:, None, None] * by_slot

    def _problem(self, shape, losses):
        layers = len(losses)
        return build_problem([shape] * layers, np.zeros(0, dtype=np.int64), Menu((0.0,), BITS, (8,)),
                             [loss[None, :, None] for loss in losses], has_bias=False)  # fmt: skip

    def effects(self, slope=1.0, missed=0.0, around=None):
        """What is believed; around a plan, only what its neighbours do is known, and the guilty label stays false."""
        rows = self.believed if around is None else self.instead(self.believed, around)
        return replace(effects_of(self.encoding, rows), passes=np.inf)

    def optimum(self):
        """The least divergence of the plans that the truth leads to."""
        effects = effects_of(self.encoding, self.moved)
        plans = [predicted_best_plan(self.truth, self.limits, self.probabilities, effects),
                 Solver(self.truth, self.limits).solve(), *simple_plans(self.truth, self.limits)]  # fmt: skip
        return min(self.evaluate(plan, np.float64).kl for plan in plans)

    def task(self, knows_effects=True):
        effects = (lambda around: self.effects(around=around)) if knows_effects else None
        return Task(self.problem, self.limits, self.evaluate, np.nan, self.probabilities, effects=effects)
