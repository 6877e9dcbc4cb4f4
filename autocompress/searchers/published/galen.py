"""Galen: sparsity and bits with DDPG (Krieger, Klein & Fröning 2022, arXiv 2212.07818; UniHD-CEG/galen).

As published (the joint agent, `runtime/agent/pq_agent.py`): three actions a layer in [0, 1] (sparsity,
activations, weights; 1 compresses most), a state of 47 numbers with the layer's sensitivities, standardized
as they come, an absolute reward for all steps, 10 random episodes, then truncated normal noise 0.5 *
0.95^(episode - 10), hidden layers of 400 and 300, tau 0.001, discount 0.99, batches of 128 from the last
2,000 steps, weight decay 0.01 for the critic, one update an episode, last layers that start within 0.003 and
0.0003, no end of an episode in the targets, and the first step of every episode but the first left out of the
replay. The paper searches for 410 episodes.

Differences:
- The paper has no wall: its reward punishes cost on either side of the target. Here labels are also clipped
  to those that leave the budget within reach (`LabelActions`), since evaluated plans must meet it; the replay
  holds the action before the clip.
- The target is the budget in its own resources, summed over the limits; the paper's is measured latency. The
  punishment is 3 times the distance (`rewards.galen`); the released code's default is 5.
- An action runs linearly over the layer's menu. The code has thresholds: float32 up to 0.2, int8 up to 0.5,
  mixed bits beyond, and rounds channels to multiples of 32.
- Sensitivities are log10 of the menus' layer errors (nats), interpolated; the code measures the KL divergence
  of 32 single-layer changes a layer. They cost no evaluation. Layers that can't be pruned have 3 (the code:
  1,000).
- State: kernel and stride are not among the menus' numbers; output positions and whether the layer is
  depthwise stand in their stead, and input channels are weight columns (times the kernel's area).
- With fewer than 20 evaluations allowed, half of them are random episodes.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from autocompress.searchers.base import Recorder, SearchSettings, Task
from autocompress.searchers.published.ddpg import Ddpg, DdpgOptions, run_episodes
from autocompress.searchers.published.features import layer_features
from autocompress.searchers.published.menus import measured, offer, reward_context
from autocompress.searchers.published.noise import Exploration
from autocompress_envs.actions import LabelActions
from autocompress_envs.problem import FloatArray, Labeling, LayerNumbers, Problem
from autocompress_envs.problem.tables import Tables
from autocompress_envs.rewards import compute
from autocompress_envs.solver import Solver

METHOD = "galen"
STATE_SIZE = 47
SAMPLES = 10  # sensitivities of each kind
REPLAY = 2000  # steps that the replay holds
NOT_PRUNABLE = 3.0  # sensitivity to sparsity of layers that can't be pruned
SMALLEST_ERROR = 1e-12  # nats; stands for 0 in logarithms
ORIGINAL_BITS = 32  # bits of layers that are not decided yet
EXPLORATION = Exploration(random_episodes=10, first_exponent=0, decay=0.95)


def search_galen(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """The method `galen`: DDPG over sparsity and bits, layer by layer.

    Args:
        task: the problem, its limits and its evaluation.
        settings: options of the search; `episodes` and `seed` count here.
        recorder: evaluates plans, and raises `StopSearch` when the search is over.

    Raises:
        InputError: data without labels.
        InfeasibleBudgetError: no plan at all meets the limits.
        StopSearch: the search is over.
    """
    env = GalenEnv(task, recorder)
    options = galen_options(EXPLORATION.limited_to(settings.episodes))
    run_episodes(env, Ddpg(options, STATE_SIZE, 3, settings.seed))


def galen_options(exploration: Exploration) -> DdpgOptions:
    """The released code's hyper-parameters.

    Args:
        exploration: schedule of random episodes and noise.
    """
    return DdpgOptions(
        exploration,
        capacity=REPLAY,
        hidden=(400, 300),
        critic_decay=1e-2,
        tau=1e-3,
        discount=0.99,
        batch=128,
        updates_every_step=False,
        knows_end=False,
        keeps_first_step=False,
        narrow_start=(3e-3, 3e-4),
    )


class GalenEnv(gymnasium.Env[FloatArray, FloatArray]):
    """One step = sparsity, activation bits and weight bits of one layer, from three actions in [0, 1].

    Observation (47,), standardized by the mean and deviation of all states so far:

    | index | meaning                                                                                     |
    | ----- | ------------------------------------------------------------------------------------------- |
    | 0     | place among the layers                                                                      |
    | 1-2   | multiply-accumulates and bit operations of the layer, given the labels so far               |
    | 3-4   | weight rows and columns left                                                                |
    | 5-6   | output positions, 1 for depthwise layers                                                    |
    | 7     | weights left                                                                                |
    | 8-11  | shares of the layers before, and after, of the multiply-accumulates, and of bit operations  |
    | 12-41 | ten sensitivities each to sparsity, activation bits and weight bits, from none to nine      |
    |       | tenths of the way to the harshest                                                           |
    | 42-43 | sensitivity at (about) 8 bits, and at the highest bits                                      |
    | 44-46 | the previous actions: sparsity, activations, weights; zeros at first                        |

    Args:
        task: the problem, its limits and its evaluation.
        recorder: evaluates plans, and raises `StopSearch` when the search is over.

    Raises:
        InfeasibleBudgetError: no plan at all meets the limits.
    """

    def __init__(self, task: Task, recorder: Recorder) -> None:
        self._offered = offer(task.problem, least_preserved=0.0)
        self._recorder, self._context = recorder, reward_context(task)
        solver = Solver(self._offered.problem, task.limits)
        self._problem, self._tables = self._offered.problem, solver.tables
        self._actions = LabelActions(solver)
        self._sensitivities = sensitivities(self._problem, self._tables)
        self._standardizer = Standardizer(STATE_SIZE)
        self.observation_space = spaces.Box(-np.inf, np.inf, (STATE_SIZE,), np.float64)
        self.action_space = spaces.Box(0.0, 1.0, (3,), np.float64)
        self._step, self._state = 0, np.zeros(STATE_SIZE)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Begin an episode; the standardization goes on."""
        super().reset(seed=seed)
        self._actions.start()
        self._step = 0
        self._state = self._standardizer(self.raw_state(np.zeros(3)))
        return self._state, {}

    def step(self, action: FloatArray) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Label the next layer; after the last one, evaluate the plan.

        Args:
            action: (3,) sparsity, activation bits and weight bits, in [0, 1]; 1 compresses most.

        Returns:
            Observation, reward (0 before the end), whether the episode is over, False, and an empty info.

        Raises:
            InputError: the outcome holds no accuracy.
            StopSearch: the search is over.
        """
        sparsity, activations, weights = (float(part) for part in action)
        self._actions.apply(self._step, np.array([2.0 * sparsity - 1.0, 1.0 - 2.0 * weights, 1.0 - 2.0 * activations]))
        if self._step + 1 == len(self._problem.layers):
            outcome = measured(self._recorder, self._offered, self._actions.finish(), METHOD)
            return self._state.copy(), compute("galen", outcome, self._context), True, False, {}
        self._step += 1
        self._state = self._standardizer(self.raw_state(np.asarray(action, dtype=np.float64)))
        return self._state, 0.0, False, False, {}

    def raw_state(self, previous: FloatArray) -> FloatArray:
        """(47,) the present state before it is standardized, given the previous actions (3,)."""
        step, decided = self._step, self._decided()
        now = layer_features(self._problem, self._tables.kept_channels(decided.sparsity))
        bitops = now.macs * self._bits(decided)
        layer = [step, now.macs[step], bitops[step], now.rows[step], now.columns[step]]
        shape = [now.positions[step], now.is_depthwise[step], now.weights[step]]
        shares = [*_around(now.macs, step), *_around(bitops, step)]
        return np.array([*layer, *shape, *shares, *self._sensitivities[step], *previous])

    def _decided(self) -> Labeling:
        """The labels so far; for layers to come, indices of 0: no sparsity, and the fewest bits."""
        chosen = self._actions.so_far()
        return Labeling(*(np.where(np.arange(len(part)) < self._step, part, 0) for part in _parts(chosen)))

    def _bits(self, decided: Labeling) -> FloatArray:
        """(L,) weight bits times activation bits of every layer; 32 times 32 for layers to come."""
        rows = np.arange(self._tables.layer_count)
        weights = self._tables.weight_bits[rows, decided.weight_bits]
        activations = self._tables.activation_bits[rows, decided.activation_bits]
        bits = np.where(rows < self._step, weights * activations, ORIGINAL_BITS**2)
        return bits.astype(np.float64)


class Standardizer:
    """Scales vectors to mean 0 and deviation 1 over all vectors so far, with the present one (Welford 1962).

    An entry that has not varied yet is only centred, as in scikit-learn's StandardScaler, which the code
    feeds one by one.

    Args:
        size: length of the vectors.
    """

    def __init__(self, size: int) -> None:
        self._count, self._mean, self._squares = 0, np.zeros(size), np.zeros(size)

    def __call__(self, vector: FloatArray) -> FloatArray:
        """(size,) the standardized vector, given the vector (size,) itself."""
        self._count += 1
        before = vector - self._mean
        self._mean = self._mean + before / self._count
        self._squares = self._squares + before * (vector - self._mean)
        deviation = np.sqrt(self._squares / self._count)
        varies = deviation > 1e-12 * np.maximum(np.abs(self._mean), 1.0)
        standard: FloatArray = (vector - self._mean) / np.where(varies, deviation, 1.0)
        return standard


def sensitivities(problem: Problem, tables: Tables) -> FloatArray:
    """(L, 32) sensitivities of every layer: log10 of layer errors in nats.

    Ten each for sparsity, activation bits and weight bits, from none to nine tenths of the way to the
    harshest; then one at (about) 8 bits, and one at the most bits.

    Args:
        problem: menus and layer errors of the network.
        tables: the same as arrays.
    """
    pruning = _pruning_errors(problem, tables)
    return np.stack([_sensitivity(layer, pruning[index]) for index, layer in enumerate(problem.layers)])


def _sensitivity(layer: LayerNumbers, pruning: FloatArray) -> FloatArray:
    """(32,) sensitivities of a layer, given the log10 errors (S,) of its sparsities."""
    steps = np.arange(SAMPLES) / SAMPLES
    errors = layer.errors[0]  # (B, A)
    if len(layer.sparsities) > 1:
        to_sparsity = np.interp(steps * layer.sparsities[-1], layer.sparsities, pruning[: len(layer.sparsities)])
    else:
        to_sparsity = np.full(SAMPLES, NOT_PRUNABLE)
    to_activations = np.interp(_descending(layer.activation_bits, steps), layer.activation_bits, _log(errors[-1]))
    to_weights = np.interp(_descending(layer.weight_bits, steps), layer.weight_bits, _log(errors[:, -1]))
    eight = int(np.abs(layer.weight_bits - 8).argmin()), int(np.abs(layer.activation_bits - 8).argmin())
    return np.concatenate([to_sparsity, to_activations, to_weights, _log(np.array([errors[eight], errors[-1, -1]]))])


def _pruning_errors(problem: Problem, tables: Tables) -> FloatArray:
    """(L, S) log10 of the errors of a layer's sparsities over all layers that they touch, at the most bits."""
    total = tables.extra_errors.copy()
    for index, layer in enumerate(problem.layers):
        if layer.source is not None:
            total[layer.source] += tables.errors[index, :, -1, -1]
    return _log(total)


def _descending(menu: Any, steps: FloatArray) -> FloatArray:
    """(n,) bits on the way from the most (step 0) to the fewest (step 1) of a menu, given steps (n,)."""
    bits: FloatArray = menu[-1] - steps * (menu[-1] - menu[0])
    return bits


def _log(errors: FloatArray) -> FloatArray:
    """Log10 of errors in nats, of the same shape; 0 counts as `SMALLEST_ERROR`."""
    return np.log10(np.maximum(errors, SMALLEST_ERROR))


def _around(amounts: FloatArray, step: int) -> tuple[float, float]:
    """Shares of the total of the amounts (L,) that the layers before `step`, and those after it, have."""
    total = amounts.sum()
    return float(amounts[:step].sum() / total), float(amounts[step + 1 :].sum() / total)


def _parts(labeling: Labeling) -> tuple[Any, Any, Any]:
    """(L,) sparsity, (L,) weight bits and (L,) activation bits of a labelling."""
    return labeling.sparsity, labeling.weight_bits, labeling.activation_bits
