"""AMC: prune channels layer by layer with DDPG (He et al. 2018, arXiv 1802.03494; code mit-han-lab/amc).

As published: one continuous preserve ratio a layer, the wall (Algorithm 1; `_action_wall`), preserve ratios of at
least 0.2, reward -error, the last reward with every step, 101 random episodes (the code's `episode <= warmup` for
`warmup=100`), then truncated normal noise 0.5 * 0.95^(episode - warmup), a replay of 100 steps a layer, one update a
step, and the hyper-parameters in `ddpg.DdpgOptions`.

Differences:
- Plans come from the task's menus. The ratio is executed as the nearest ratio on the menu; the code rounds channels
  up to multiples of 8. Levels that leave less than 0.2 are not offered; all bits are the highest on the menu.
- The code rounds after its wall and may overshoot the budget. Here the nearest level that leaves the budget within
  reach is taken. `AmcOptions(overshoot=True)` leaves that out; plans beyond the limits are then evaluated and
  counted, but are never the search's best.
- Only layers with several sparsities on the menu take a step. A ratio sets the channels that a layer writes (the
  group's first layer, in network order), the code's those that it reads: the same groups under another name.
- State: the menus' numbers know no kernel and stride. In their stead stand output positions and multiply-accumulates;
  input channels are weight columns (times the kernel's area). Features that are the same everywhere are 0, not raw.
- The rest is always counted in multiply-accumulates; the code's first state counts it in parameters.
- The wall interpolates the cost between menu levels and serves every limited resource; the code's formula is the same
  for multiply-accumulates of layers that read or write the group but don't do both.
- The error is that of top-1, on the search split; the code's default metric is top-5.
- With fewer than 202 evaluations allowed, half of them are random episodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces

from autocompress.searchers.base import Recorder, SearchSettings, Task
from autocompress.searchers.published.ddpg import Ddpg, DdpgOptions, run_episodes
from autocompress.searchers.published.features import layer_features, scaled
from autocompress.searchers.published.menus import (
    HIGHEST,
    Offer,
    measured,
    offer,
    preserve_ratios,
    require_choice,
    require_reachable,
    reward_context,
)
from autocompress.searchers.published.noise import Exploration
from autocompress_envs.actions import LabelActions
from autocompress_envs.problem import BoolArray, FloatArray, IntArray, Labeling
from autocompress_envs.problem.tables import Tables
from autocompress_envs.rewards import compute
from autocompress_envs.solver import Solver

METHOD = "amc"
LEAST_PRESERVED = 0.2
STEPS_A_LAYER = 100
STATE_SIZE = 10
EXPLORATION = Exploration(random_episodes=101, first_exponent=1, decay=0.95)


@dataclass(frozen=True)
class AmcOptions:
    """`overshoot`: round after the wall and whatever that costs, as the released code does."""

    overshoot: bool = False


def amc_searcher(options: AmcOptions) -> Callable[[Task, SearchSettings, Recorder], None]:
    """AMC as a searcher with other options than the method `amc` has; `run_search` takes it as `method`."""

    def search(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
        env = AmcEnv(task, recorder, options)
        exploration = EXPLORATION.limited_to(settings.episodes)
        ddpg = DdpgOptions(exploration, capacity=STEPS_A_LAYER * env.steps)
        run_episodes(env, Ddpg(ddpg, STATE_SIZE, 1, settings.seed))

    return search


def search_amc(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """The method `amc`.

    Raises:
        InputError: nothing to prune, a budget that pruning alone can't meet, or data without labels.
    """
    amc_searcher(AmcOptions())(task, settings, recorder)


class AmcEnv(gymnasium.Env[FloatArray, FloatArray]):
    """One step = the preserve ratio, in [0, 1], of one layer that has sparsities to choose.

    Observation (10,) in [0, 1]; the first seven are scaled over the layers that take a step:

    | index | meaning                                                                 |
    | ----- | ----------------------------------------------------------------------- |
    | 0     | place among these layers                                                |
    | 1     | 1 for linear layers                                                     |
    | 2-3   | weight columns, weight rows                                             |
    | 4     | output positions                                                        |
    | 5-6   | weights, multiply-accumulates                                           |
    | 7     | share of the multiply-accumulates removed, with the rest at its fewest  |
    | 8     | share of the multiply-accumulates in the layers that follow             |
    | 9     | preserve ratio executed before, 1 at first                              |
    """

    def __init__(self, task: Task, recorder: Recorder, options: AmcOptions) -> None:
        self._offered = offer(task.problem, LEAST_PRESERVED, HIGHEST, HIGHEST)
        layers = self._offered.problem.layers
        require_choice([layer.sparsities for layer in layers], METHOD, "sparsities that leave a fifth or more")
        if not options.overshoot:
            why = "it only prunes, to no less than a fifth of a layer"
            require_reachable(task, self._offered, METHOD, why)
        self._recorder, self._limits, self._context = recorder, task.limits, reward_context(task)
        self._tables = Tables(self._offered.problem)
        self._walk = _FreeWalk(self._tables) if options.overshoot else _strict_walk(self._offered, task)
        self._deciders = np.flatnonzero(self._tables.counts[:, 0] > 1)
        self._fixed, self._macs = self._fixed_features()
        self.observation_space = spaces.Box(0.0, 1.0, (STATE_SIZE,), np.float64)
        self.action_space = spaces.Box(0.0, 1.0, (1,), np.float64)
        self._step, self._state = 0, np.zeros(STATE_SIZE)

    @property
    def steps(self) -> int:
        """Steps an episode."""
        return len(self._deciders)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._walk.start()
        self._step = 0
        self._state = self._observe(0.0, 1.0)
        return self._state, {}

    def step(self, action: FloatArray) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Prune the next layer; after the last one, evaluate.

        Raises:
            InputError: the outcome holds no accuracy.
            StopSearch: the search is over.
        """
        index = int(self._deciders[self._step])
        ratios = preserve_ratios(self._offered.problem, index)
        wanted = min(float(action[0]), self.wall(index))
        distances = np.where(self._walk.allowed(index)[:, 0, 0], np.abs(ratios - wanted), np.inf)
        level = int(distances.argmin())
        self._walk.choose(index, (level, 0, 0))
        executed = float(ratios[level])
        info = {"executed_action": np.array([executed])}
        if self._step + 1 == self.steps:
            return self._state.copy(), self._finish(), True, False, info  # as the code: the last state again
        self._step += 1
        self._state = self._observe(self._removed(index, level), executed)
        return self._state, 0.0, False, False, info

    def wall(self, index: int) -> float:
        """The highest preserve ratio of a layer with which the limits can be met, all layers after it at their least.

        Continuous: between menu levels the cost is interpolated. The least ratio on the menu where none meets them.
        """
        ratios = preserve_ratios(self._offered.problem, index)
        plans = [self._with_least_after(index, level) for level in range(len(ratios))]
        amounts = [self._tables.resources(plan, self._limits) for plan in plans]
        return min(
            float(np.interp(limit, [amount[name] for amount in amounts][::-1], ratios[::-1]))
            for name, limit in self._limits.items()
        )

    def _with_least_after(self, index: int, level: int) -> Labeling:
        labeling = self._walk.so_far()
        sparsity = labeling.sparsity.copy()
        sparsity[index] = level
        sparsity[index + 1 :] = self._tables.counts[index + 1 :, 0] - 1
        return Labeling(sparsity, labeling.weight_bits, labeling.activation_bits)

    def _removed(self, index: int, level: int) -> float:
        left = self._tables.resources(self._with_least_after(index, level), ["macs"])["macs"]
        return 1.0 - left / float(self._macs.sum())

    def _observe(self, removed: float, previous: float) -> FloatArray:
        rest = self._macs[self._deciders[self._step] + 1 :].sum() / self._macs.sum()
        return np.array([*self._fixed[self._step], removed, rest, previous])

    def _fixed_features(self) -> tuple[FloatArray, FloatArray]:
        of = layer_features(self._offered.problem)
        rows = np.stack(
            [
                np.arange(len(of.macs), dtype=np.float64),
                of.is_linear,
                of.columns,
                of.rows,
                of.positions,
                of.weights,
                of.macs,
            ],
            axis=1,
        )[self._deciders]
        rows[:, 0] = np.arange(len(rows))
        return scaled(rows), of.macs

    def _finish(self) -> float:
        outcome = measured(self._recorder, self._offered, self._walk.finish(), METHOD)
        return compute("amc_error", outcome, self._context)


class _Walk(Protocol):
    """Labels chosen one layer at a time; see `LabelActions`."""

    def start(self) -> None:
        """Begin an episode."""

    def allowed(self, index: int) -> BoolArray:
        """(S, B, A) labels that may be chosen."""

    def choose(self, index: int, label: tuple[int, int, int]) -> None:
        """Decide a layer's label."""

    def so_far(self) -> Labeling:
        """Labels of which the decided ones count."""

    def finish(self) -> Labeling:
        """All labels."""


def _strict_walk(offered: Offer, task: Task) -> _Walk:
    return LabelActions(Solver(offered.problem, task.limits))


class _FreeWalk:
    """A walk without limits."""

    def __init__(self, tables: Tables) -> None:
        self._counts = tables.counts
        self.start()

    def start(self) -> None:
        self._chosen: IntArray = np.zeros((3, len(self._counts)), dtype=np.int64)

    def allowed(self, index: int) -> BoolArray:
        return np.ones(self._counts[index], dtype=bool)

    def choose(self, index: int, label: tuple[int, int, int]) -> None:
        self._chosen[:, index] = label

    def so_far(self) -> Labeling:
        return Labeling(*self._chosen)

    def finish(self) -> Labeling:
        return Labeling(*self._chosen.copy())
