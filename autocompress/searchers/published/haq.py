"""HAQ: bits with DDPG, lowered at the end until the budget holds (Wang et al. 2019, arXiv 1811.08886).

Code: mit-han-lab/haq, `lib/env/{quantize,linear_quantize}_env.py`, `rl_quantize.py`. As published: an action
in [0, 1] spread evenly over the bits; weights first, then activations (where there is a choice); no wall
within the episode; at its end bits are lowered one by one, from the last layer to the first and round again,
activations before weights, until the budget holds (`_final_action_wall`); then one evaluation. Reward 0.1 *
(accuracy - original accuracy) in percent, the last reward with every step, 21 random episodes (the code's
`episode <= warmup` for `warmup=20`), then truncated normal noise 0.5 * 0.99^(episode - warmup), a replay of
128 steps a layer, one update a step, and the hyper-parameters in `ddpg.DdpgOptions`.

Differences:
- Bits come from the task's menus: the nearest one on the menu is taken, and lowering goes to the next one
  below.
- Every limited resource is kept, as it is counted in the end; the k-means code counts weights alone, the
  linear one takes latencies from a table. Sparsity is 0 everywhere.
- Which layers keep 8 bits is the menus' matter; the linear code keeps the first and the last layer there.
- No fine-tuning within the episode (one epoch in the code) and no k-means: the weights are the menus'.
- State: the menus' numbers know no kernel, stride and input pixels. In their stead stand output positions,
  multiply- accumulates and whether the layer is linear; input channels are weight columns (times the kernel's
  area). The flag is 1 before weight actions (the code shows the kind of the action before), the previous bits
  are scaled by the most bits (the k-means code: raw), and the first state does not carry over from the
  episode before.
- With fewer than 42 evaluations allowed, half of them are random episodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from autocompress.searchers.base import Recorder, SearchSettings, Task
from autocompress.searchers.published.ddpg import Ddpg, DdpgOptions, run_episodes
from autocompress.searchers.published.features import layer_features, scaled
from autocompress.searchers.published.menus import (
    measured,
    offer,
    require_choice,
    require_original_accuracy,
    require_reachable,
    reward_context,
)
from autocompress.searchers.published.noise import Exploration
from autocompress_envs.problem import FloatArray, IntArray, Labeling, Problem
from autocompress_envs.problem.tables import Tables, is_within
from autocompress_envs.rewards import compute

METHOD = "haq"
STEPS_A_LAYER = 128  # steps that the replay holds, for each layer
STATE_SIZE = 10
EXPLORATION = Exploration(random_episodes=21, first_exponent=1, decay=0.99)


def search_haq(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """The method `haq`: DDPG over bits, layer by layer.

    Args:
        task: the problem, its limits and its evaluation, with `original_accuracy`.
        settings: options of the search; `episodes` and `seed` count here.
        recorder: evaluates plans, and raises `StopSearch` when the search is over.

    Raises:
        InputError: one weight bit-width for each layer, a budget that the fewest bits don't meet, or data
            without labels.
        StopSearch: the search is over.
    """
    env = HaqEnv(task, recorder)
    options = DdpgOptions(EXPLORATION.limited_to(settings.episodes), capacity=STEPS_A_LAYER * len(task.problem.layers))
    run_episodes(env, Ddpg(options, STATE_SIZE, 1, settings.seed))


class HaqEnv(gymnasium.Env[FloatArray, FloatArray]):
    """One step = the weight bits of a layer, or its activation bits, from an action in [0, 1].

    Observation (10,) in [0, 1]; the first eight are scaled over all layers:

    | index | meaning                                                         |
    | ----- | --------------------------------------------------------------- |
    | 0-1   | 1 for depthwise layers, 1 for linear layers                     |
    | 2-3   | weight columns, weight rows                                     |
    | 4     | output positions                                                |
    | 5-6   | weights, multiply-accumulates                                   |
    | 7     | place among the layers                                          |
    | 8     | bits chosen before, as a share of the most on that menu         |
    | 9     | 1 before weight bits, 0 before activation bits                  |

    Args:
        task: the problem, its limits and its evaluation, with `original_accuracy`.
        recorder: evaluates plans, and raises `StopSearch` when the search is over.

    Raises:
        InputError: one weight bit-width for each layer, an unknown original accuracy, or a budget that the
            fewest bits don't meet.
    """

    def __init__(self, task: Task, recorder: Recorder) -> None:
        require_original_accuracy(task, METHOD)
        self._offered = offer(task.problem, least_preserved=1.0)
        layers = self._offered.problem.layers
        require_choice([layer.weight_bits for layer in layers], METHOD, "weight bit-widths")
        require_reachable(task, self._offered, METHOD, "it only chooses bits")
        self._recorder, self._limits, self._context = recorder, task.limits, reward_context(task)
        self._tables = Tables(self._offered.problem)
        self._fixed = _fixed_features(self._offered.problem)
        menus = [[layer.weight_bits for layer in layers], [layer.activation_bits for layer in layers]]
        kinds = (0, 1) if any(len(menu) > 1 for menu in menus[1]) else (0,)
        self._order = [(index, kind) for index in range(len(layers)) for kind in kinds]
        self._menus = menus
        self.observation_space = spaces.Box(0.0, 1.0, (STATE_SIZE,), np.float64)
        self.action_space = spaces.Box(0.0, 1.0, (1,), np.float64)
        self._step, self._state = 0, np.zeros(STATE_SIZE)
        self._chosen = np.zeros((2, len(layers)), dtype=np.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._step = 0
        self._chosen = np.zeros((2, len(self._fixed)), dtype=np.int64)
        self._state = self._observe(1.0)
        return self._state, {}

    def step(self, action: FloatArray) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Choose the next bits; after the last layer's, lower bits until the limits hold, and evaluate the plan.

        Args:
            action: (1,) the bits, in [0, 1], spread evenly over the menu's range.

        Returns:
            Observation, reward (0 before the end), whether the episode is over, False, and an empty info.

        Raises:
            InputError: the outcome holds no accuracy.
            StopSearch: the search is over.
        """
        index, kind = self._order[self._step]
        menu = self._menus[kind][index]
        chosen = nearest_bits(menu, float(action[0]))
        self._chosen[kind, index] = chosen
        if self._step + 1 == len(self._order):
            return self._state.copy(), self._finish(), True, False, {}  # as the code: the last state again
        self._step += 1
        self._state = self._observe(float(menu[chosen] / menu[-1]))
        return self._state, 0.0, False, False, {}

    def _observe(self, previous: float) -> FloatArray:
        """(10,) observation of the next step, given the bits chosen before as a share of the most."""
        index, kind = self._order[self._step]
        return np.array([*self._fixed[index], previous, 1.0 - kind])

    def _finish(self) -> float:
        """The reward of the finished plan, which is lowered and evaluated."""
        none = np.zeros_like(self._chosen[0])
        plan = lowered(self._tables, Labeling(none, *self._chosen), self._limits)
        return compute("haq", measured(self._recorder, self._offered, plan, METHOD), self._context)


def nearest_bits(menu: IntArray, action: float) -> int:
    """Index of the entry of a menu that an action stands for; of two that are as near, the fewer bits.

    As in the code, [0, 1] is spread evenly over [lowest - 0.5, highest + 0.5].

    >>> [nearest_bits(np.array([2, 4, 8]), action) for action in (0.0, 0.3, 0.6, 1.0)]
    [0, 1, 1, 2]

    Args:
        menu: bits in ascending order.
        action: the action, in [0, 1].
    """
    low, high = float(menu[0]) - 0.5, float(menu[-1]) + 0.5
    return int(np.abs(menu - (low + (high - low) * action)).argmin())


def lowered(tables: Tables, labeling: Labeling, limits: Mapping[str, int]) -> Labeling:
    """HAQ's last wall: the labelling with bits lowered by one menu entry at a time, until the limits hold.

    The order is last layer first, activations before weights, and round again. Where the limits can't be met,
    the result has the fewest bits everywhere.

    Args:
        tables: the problem's numbers as arrays.
        labeling: the labels chosen.
        limits: upper bound of every limited resource, in absolute units.
    """
    weights, activations = labeling.weight_bits.copy(), labeling.activation_bits.copy()
    plan = Labeling(labeling.sparsity, weights, activations)
    while not is_within(tables.resources(plan, limits), limits) and (weights.any() or activations.any()):
        for index in reversed(range(tables.layer_count)):
            for bits in (activations, weights):
                if bits[index] == 0:
                    continue
                bits[index] -= 1
                if is_within(tables.resources(plan, limits), limits):
                    return plan
    return plan


def _fixed_features(problem: Problem) -> FloatArray:
    """(L, 8) the part of the observation that no choice changes."""
    of = layer_features(problem)
    order = np.arange(len(of.macs), dtype=np.float64)
    fields = [of.is_depthwise, of.is_linear, of.columns, of.rows, of.positions, of.weights, of.macs, order]
    return scaled(np.stack(fields, axis=1))
