"""Made-up networks whose outputs and first-order effects are known."""

import numpy as np

from autocompress.evaluation.effects import Effects
from autocompress.searchers.model_based.encoding import PlanEncoding
from autocompress.searchers.model_based.output_model import OutputModel
from autocompress_envs.problem import Labeling, Outcome
from autocompress_envs.testing import random_problem


class LinearNetwork:
    """Every option of every layer adds a fixed random change to the logits: what models of the outputs assume."""

    def __init__(self, layers=8, samples=20, classes=4, seed=0, kind="residual", plans=1000, scale=2.0):
        rng = np.random.default_rng(seed)
        while True:  # until the random menus offer something to choose
            self.problem = random_problem(rng, layers, kind)
            self.encoding = PlanEncoding(self.problem)
            if np.log(self.encoding.tables.counts).sum() > np.log(plans):
                break
        self.logits = rng.normal(0.0, 1.0, (samples, classes))
        self.probabilities = softmax(self.logits)
        directions = rng.normal(0.0, 1.0, (2 * layers, samples, classes))
        options = [errors.shape[1] for errors in self.encoding.errors for _ in range(layers)]
        self.moved = scale * np.sqrt(self.encoding.slot_errors)[:, None, None] * np.repeat(directions, options, 0)

    def evaluate(self, labeling, dtype=np.float16):
        logits = self.logits + self.moved[self.encoding.slots(self.encoding.encode(labeling))].sum(0)
        shift = np.log(softmax(logits)) - np.log(self.probabilities)
        kl = float(-(self.probabilities * shift).sum(1).mean())
        return Outcome(kl, 0.5, 0.5, self.problem.resources(labeling), shift.astype(dtype))

    def effects(self, slope, missed=0.0, around=None):
        """Such that plans really move the outputs by `slope` times their sum; `missed` is how far they are wrong.

        Around a plan, they say what other labels do instead of its own.
        """
        noise = np.random.default_rng(9).normal(0.0, 1.0, self.moved.shape)
        wrong = missed * np.sqrt(self.encoding.slot_errors)[:, None, None] * noise
        rows = (self.moved + wrong) / slope
        return effects_of(self.encoding, rows if around is None else self.instead(rows, around))

    def instead(self, rows, plan):
        """Rows (slots, N, K) less those of the plan's own labels."""
        options = np.diff([*self.encoding.offsets, self.encoding.slot_errors.size])
        return rows - np.repeat(rows[self.encoding.slots(self.encoding.encode(plan))], options, 0)

    def random(self, rng):
        counts = self.encoding.tables.counts
        return Labeling(*(rng.integers(counts[:, axis]) for axis in range(3)))


class Taught:
    """A network, its model after random plans, and 40 further plans with their true divergences."""

    def __init__(self, effects=None, plans=60, scale=2.0, seed=0):
        self.network, rng = LinearNetwork(seed=seed, scale=scale), np.random.default_rng(1 + seed)
        network = self.network
        known = None if effects is None else network.effects(*effects)
        self.model, seen = OutputModel(network.problem, network.probabilities, effects=known), set()
        while len(self.model) < plans:
            labeling = network.random(rng)
            if labeling.key() not in seen:
                seen.add(labeling.key())
                self.model.add(labeling, network.evaluate(labeling))
        fresh = [labeling for labeling in (network.random(rng) for _ in range(40)) if labeling.key() not in seen]
        self.fresh = np.stack([network.encoding.encode(labeling) for labeling in fresh])
        self.truth = np.array([network.evaluate(labeling).kl for labeling in fresh])


def kernel_by_hand(model, network, settings, one, other):
    """k between two plans (2L,), one feature at a time; the errors are those of the model, prices included."""
    layers, alike = len(network.problem.layers), 0.0
    correlations = settings.pruning, settings.rounding
    for feature, (o, p) in enumerate(zip(one, other, strict=True)):
        e = model.encoding.errors[feature // layers][feature % layers]
        alike += np.sqrt(e[o] * e[p]) * correlations[feature // layers] ** abs(o - p)
    return alike + settings.pairs * alike**2


def gram_by_hand(model, network, settings):
    """K + s I of the plans measured."""
    gram = np.array(
        [[kernel_by_hand(model, network, settings, one, other) for other in model.codes] for one in model.codes]
    )
    return gram + settings.noise * np.diag(gram).mean() * np.eye(len(gram))


def first_order_by_hand(model, network, effects, plan, offset=0.0):
    """(N, K) what effects predict of a plan (2L,): s D(p), and what the plan does around which they are."""
    layers = len(network.problem.layers)
    if effects is None:
        return 0.0
    rows = [effects.pruning[i, plan[i]] + effects.rounding[i, plan[layers + i]] for i in range(layers)]
    return offset + model.slope * np.sum(rows, 0, dtype=float)


def measured_by_hand(model, network, effects, offset=0.0):
    """(n, N, K) shifts of the plans measured, and what effects do not predict of them."""
    plans = map(network.encoding.decode, model.codes)
    shifts = np.array([network.evaluate(plan).shift.astype(float) for plan in plans])
    predicted = [first_order_by_hand(model, network, effects, plan, offset) for plan in model.codes]
    return shifts, shifts - np.array(predicted).reshape(len(shifts), *(shifts.shape[1:] if effects else (1, 1)))


def predicted_by_hand(model, network, effects, codes, offset=0.0):
    """The formulas of the module, one plan at a time and in full; `codes` are (M, 2L).

    `offset` is what the plan does around which the effects are.
    """
    inverse = np.linalg.inv(gram_by_hand(model, network, model.settings))
    shifts, residuals = measured_by_hand(model, network, effects, offset)
    best = int(model.losses.argmin())
    now = softmax(np.log(network.probabilities) + shifts[best])
    found = []
    for plan in codes:
        alpha = inverse @ [kernel_by_hand(model, network, model.settings, plan, other) for other in model.codes]
        predicted = first_order_by_hand(model, network, effects, plan, offset)
        moved = predicted + np.tensordot(alpha, residuals, 1) - shifts[best]
        variance = (now * moved**2).sum(1) - (now * moved).sum(1) ** 2
        found.append(model.losses[best] + ((now - network.probabilities) * moved).sum(1).mean() + 0.5 * variance.mean())
    return np.array(found)


def leave_one_out_by_hand(model, network, effects, settings):
    """Mean squared error, in the Fisher metric, of plans predicted by all others; over the better half."""
    gram = gram_by_hand(model, network, settings)
    shifts, residuals = measured_by_hand(model, network, effects)
    now, errors = softmax(np.log(network.probabilities) + shifts[int(model.losses.argmin())]), []
    for plan in np.flatnonzero(model.losses <= np.median(model.losses)):
        others = np.arange(len(gram)) != plan
        weights = np.linalg.solve(gram[np.ix_(others, others)], gram[others, plan])
        missed = residuals[plan] - np.tensordot(weights, residuals[others], 1)
        errors.append(((now * missed**2).sum(1) - (now * missed).sum(1) ** 2).mean())
    return float(np.mean(errors))


def effects_of(encoding, by_slot):
    """Effects from their rows (slots, N, K)."""
    parts = np.split(by_slot.astype(np.float32), [encoding.errors[0].size])
    shapes = [(*errors.shape, *by_slot.shape[1:]) for errors in encoding.errors]
    return Effects(*(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))


def softmax(logits):
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)
