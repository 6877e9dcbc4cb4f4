"""Finding the label of which something false is believed, by bisection: about log2(labels) evaluations.

Where one label is believed to cost next to nothing and really costs much, every plan that is believed to be
good has it, and all of them disappoint alike. A model that learns small corrections of its beliefs then looks
for the cause everywhere but there.

So the plan of least expected loss is doubted where it lost more than `SURPRISE` times what was expected of it,
measured by the plan that kept best to what was expected: a plan's *excess* is what it lost beyond c times its
expected loss, with c that plan's ratio. Every label of the doubted plan is a suspect, but for those that a
plan of at most half the excess has as well, or harsher ones: that plan vouches for them. Then half of the
suspects are forbidden, and the plan that is believed to be the best without them is measured. Where its excess
is small, it vouches for the other half; where not, it clears those that it did without. The last suspect is
guilty, and what is believed of it is corrected by the excess (`Beliefs.corrected`).

This is group testing for a single defective (Dorfman 1943; bisection: Hwang 1972). Labels that were cleared by
their absence stay forbidden until the end: so of several guilty ones, one is found at a time.
"""

from __future__ import annotations

import numpy as np

from autocompress.searchers.model_based.beliefs import Beliefs, Label, mildness
from autocompress_envs.problem import FloatArray, IntArray, Labeling

SURPRISE = 2.0  # measured over expected loss, beyond that of the plan that kept best to it, that raises doubts
COMPARABLE = 4.0  # most times the doubted plan's loss that the plan may lose which it is measured by
HARMLESS = 1.25  # most times the doubted plan's loss that a plan may lose which vouches: more would hide the excess
LEAST_RATIO = 0.1  # of measured and expected loss, that is taken for usual; corrections are in units of it
PAUSE = 8  # evaluations without doubts after a first doubt that found nothing; twice as many after every other


class Doubts:
    """Which plan to measure next to find a label that is believed to be better than it is.

    Args:
        beliefs: what is believed at first.

    Attributes:
        beliefs: what is believed, with the corrections made so far.
    """

    def __init__(self, beliefs: Beliefs) -> None:
        self.beliefs = beliefs
        self._plans: dict[bytes, Labeling] = {}
        self._measured, self._expected = np.zeros(0), np.zeros(0)  # nats of the n plans added
        layers = beliefs.problem.layers
        self._mildest = np.array(
            [[0, len(layer.weight_bits) - 1, len(layer.activation_bits) - 1] for layer in layers]
        ).T  # (3, L)
        self._mildness: IntArray = np.zeros((0, *self._mildest.shape), dtype=np.int64)
        self._doubted: int | None = None  # number of the plan that is doubted
        self._tests: list[int] = []  # numbers of the plans measured because of it
        self._forbidden: list[Label] = []
        self._left = 0  # suspects before the last test
        self._pause, self._until = PAUSE, 0

    def add(self, labeling: Labeling, kl: float) -> None:
        """Learn what a plan lost that was not added before, in nats."""
        self._plans[labeling.key()] = labeling
        self._measured = np.append(self._measured, kl)
        self._expected = np.append(self._expected, self.beliefs.losses([labeling]))
        self._mildness = np.concatenate([self._mildness, mildness(labeling)[None]])

    def next_plan(self) -> Labeling | None:
        """The plan to measure next because of doubts, or because of what they led to; None without doubts.

        Its measurement has to be added before the next call.
        """
        while self._doubted is not None or self._is_doubtful():
            suspects = self._suspects()
            if len(suspects) == 1:
                plan = self._convict(suspects[0])
            elif suspects and len(suspects) != self._left:
                plan = self._test(suspects)
            else:
                self._drop()
                return None
            if plan.key() not in self._plans:
                return plan
        return None

    def _is_doubtful(self) -> bool:
        """Whether the plan of least expected loss disappointed; then it is doubted from now on."""
        if len(self._plans) < max(2, self._until):
            return False
        plan = int(self._expected.argmin())
        if self._ratios[plan] <= SURPRISE * self._usual_ratio(plan):
            return False
        self._doubted, self._tests, self._forbidden, self._left = plan, [], [], 0
        return True

    @property
    def _ratios(self) -> FloatArray:
        """(n,) what every plan lost, in multiples of what was expected."""
        return self._measured / np.maximum(self._expected, 1e-12)

    def _usual_ratio(self, plan: int) -> float:
        """The least such ratio, of plans that lost at most `COMPARABLE` times as much as the given one."""
        found = float(self._ratios[self._measured <= COMPARABLE * self._measured[plan]].min())
        return max(found, LEAST_RATIO)

    def _excess(self, plan: int) -> FloatArray:
        """(n,) nats that plans lost beyond what was expected, in the light of the given one's doubts."""
        return self._measured - self._usual_ratio(plan) * self._expected

    def _suspects(self) -> list[Label]:
        """The labels that can explain why the doubted plan, and every test with half its excess, disappointed."""
        assert self._doubted is not None
        excess, of_doubted = self._excess(self._doubted), self._mildness[self._doubted]  # (n,), (3, L)
        is_bad = excess > 0.5 * excess[self._doubted]
        vouches = ~is_bad & (self._measured <= HARMLESS * self._measured[self._doubted])
        has = self._mildness <= of_doubted  # whether plans have its labels or harsher ones, (n, 3, L)
        tests = [test for test in self._tests if is_bad[test]]
        suspected = has[tests].all(0) & ~has[vouches].any(0) & (of_doubted < self._mildest)
        return [
            Label(int(part), int(layer), abs(int(of_doubted[part, layer]))) for part, layer in np.argwhere(suspected)
        ]

    def _test(self, suspects: list[Label]) -> Labeling:
        """The plan that is believed to be the best without half of the suspects, and without those before them."""
        assert self._doubted is not None
        self._left = len(suspects)
        cleared = [label for label in self._forbidden if label not in suspects]
        self._forbidden = cleared + suspects[: len(suspects) // 2]
        plan = self.beliefs.corrected(self._forbidden, self._loss(self._doubted)).best()
        keys = list(self._plans)
        self._tests.append(keys.index(plan.key()) if plan.key() in self._plans else len(keys))
        return plan

    def _convict(self, label: Label) -> Labeling:
        """Correct what is believed of a label; the plan that is now believed to be the best."""
        assert self._doubted is not None
        plan, self._doubted = self._doubted, None
        self.beliefs = self.beliefs.corrected([label], self._loss(plan))
        self._expected = self.beliefs.losses(list(self._plans.values()))
        if self._ratios[plan] > SURPRISE * self._usual_ratio(plan):
            self._drop()  # the label does not explain enough
        return self.beliefs.best()

    def _loss(self, plan: int) -> float:
        """Nats that the label at fault was expected to lose too little, by the excess of the doubted plan."""
        return float(self._excess(plan)[plan]) / self._usual_ratio(plan)

    def _drop(self) -> None:
        """Doubt nothing for a while: no single label explains what was measured."""
        self._doubted, self._until = None, len(self._plans) + self._pause
        self._pause *= 2
