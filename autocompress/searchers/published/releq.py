"""ReLeQ: weight bits with recurrent PPO (Elthakeb et al. 2018, arXiv 1811.01704; code he-actlab/releq).

Follows the released code, `examples/classifier_compression/releq_cifar.py` (the recurrent agent) and, for
episodes that are measured once, at their end, `ppo_all_layers.py`: a discrete choice of bits a layer, all
layers at the most bits at first; a state of eight numbers with the state of quantization (mean bits by the
most bits) and the state of relative accuracy (the latest measured by the original's); an LSTM of 128 before
policy (128, 128) and value (128, 64) layers; PPO with one pass over each episode, clip 0.3, Adam 1e-4,
discount 0.999, lambda 1, entropy 0.01, value loss 1, plain advantages. Reward 0 before the last layer, then
`calculate_reward_shaping` (see `shaped_reward`).

Differences:
- ReLeQ has no budget: its reward trades bits against accuracy. Here the nearest bits (the fewer where two are
  as near) that leave the budget within reach are taken; PPO learns with the choice before that.
- Bits are those on the task's menus; activations keep the most bits and nothing is pruned. No fine-tuning
  within the episode (the code trains for some epochs): the weights are the menus'.
- State: the menus' numbers know no kernel and no deviation of the weights. Output positions and log10 of the
  layer's error at its fewest bits stand in their stead; input channels are weight columns (times the kernel's
  area).
- The paper weighs bits in the state of quantization by memory accesses and multiply-accumulates; the code
  does not, and neither does this. The paper's text was not at hand: its constants for reward and PPO may
  differ from the code's.
- The LSTM starts anew with each episode (the code carries its state over), gradients flow through the whole
  episode (the code: one step), and the softmax has temperature 1 (the code halves it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from torch import nn

from autocompress.searchers.base import Recorder, SearchSettings, Task
from autocompress.searchers.published.features import layer_features, scaled
from autocompress.searchers.published.menus import (
    HIGHEST,
    measured,
    offer,
    require_choice,
    require_original_accuracy,
    require_reachable,
)
from autocompress_envs.actions import LabelActions
from autocompress_envs.problem import FloatArray, Problem
from autocompress_envs.solver import Solver

if TYPE_CHECKING:
    from sb3_contrib import RecurrentPPO

METHOD = "releq"
STATE_SIZE = 8
ENDLESS = 10**9  # steps of the learn loop; the recorder ends the search long before
MARGIN = 0.4  # relative accuracy below which the reward is -1
QUANTIZATION_POWER = 0.8  # power of the state of quantization in the reward
ACCURACY_POWER = 1.0  # numerator of the relative accuracy's power in the reward
SMALLEST_ERROR = 1e-12  # nats; stands for 0 in logarithms


def search_releq(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """The method `releq`: recurrent PPO over weight bits, layer by layer.

    Args:
        task: the problem, its limits and its evaluation, with `original_accuracy`.
        settings: options of the search; `seed` counts here.
        recorder: evaluates plans, and raises `StopSearch` when the search is over.

    Raises:
        InputError: one weight bit-width for each layer, a budget that the fewest bits don't meet, or data
            without labels.
        StopSearch: the search is over.
    """
    build_releq(ReleqEnv(task, recorder), settings).learn(ENDLESS)


def build_releq(env: ReleqEnv, settings: SearchSettings) -> RecurrentPPO:
    """The recurrent PPO agent of the released code, with one update after every episode.

    Args:
        env: environment in which it acts.
        settings: options of the search; `seed` counts here.
    """
    from sb3_contrib import RecurrentPPO  # seconds to import, with Stable-Baselines3

    layers = env.steps
    return RecurrentPPO(
        "MlpLstmPolicy",
        env,
        learning_rate=1e-4,
        n_steps=layers,
        batch_size=layers,
        n_epochs=1,
        gamma=0.999,
        gae_lambda=1.0,
        clip_range=0.3,
        ent_coef=0.01,
        vf_coef=1.0,
        max_grad_norm=float("inf"),
        normalize_advantage=False,
        seed=settings.seed,
        device="cpu",  # networks of a few hundred units are fastest there
        policy_kwargs={
            "lstm_hidden_size": 128,
            "shared_lstm": True,
            "enable_critic_lstm": False,
            "net_arch": {"pi": [128, 128], "vf": [128, 64]},
            "activation_fn": nn.ReLU,
        },
    )


class ReleqEnv(gymnasium.Env[FloatArray, np.int64]):
    """One step = the weight bits of one layer: an index into `bits`, all bit-widths on any menu, ascending.

    Observation (8,); indices 4 to 7 are scaled over all layers:

    | index | meaning                                                                        | bounds  |
    | ----- | ------------------------------------------------------------------------------ | ------- |
    | 0     | place among the layers, from 1, by their number                                | [0, 1]  |
    | 1     | the layer's bits as they are (the most), by the most bits of all layers        | [0, 1]  |
    | 2     | state of quantization: mean bits so far by the most bits                       | [0, 1]  |
    | 3     | state of relative accuracy: the latest measured by the original's, 1 at first  | [0, inf)|
    | 4-5   | weight rows, weight columns                                                    | [0, 1]  |
    | 6     | output positions                                                               | [0, 1]  |
    | 7     | log10 of the layer's error at its fewest bits                                  | [0, 1]  |

    Args:
        task: the problem, its limits and its evaluation, with `original_accuracy`.
        recorder: evaluates plans, and raises `StopSearch` when the search is over.

    Attributes:
        bits: all bit-widths on any menu, in ascending order; an action is an index into these.

    Raises:
        InputError: one weight bit-width for each layer, an unknown original accuracy, or a budget that the
            fewest bits don't meet.
    """

    def __init__(self, task: Task, recorder: Recorder) -> None:
        self._offered = offer(task.problem, least_preserved=1.0, activation_bits=HIGHEST)
        layers = self._offered.problem.layers
        require_choice([layer.weight_bits for layer in layers], METHOD, "weight bit-widths")
        require_original_accuracy(task, METHOD)
        require_reachable(task, self._offered, METHOD, "it only chooses weight bits")
        self._recorder, self._original = recorder, task.original_accuracy
        solver = Solver(self._offered.problem, task.limits)
        self._actions = LabelActions(solver)
        self._menus = [layer.weight_bits.astype(np.float64) for layer in layers]
        self.bits = sorted({int(bits) for menu in self._menus for bits in menu})
        self._fixed = _fixed_features(self._offered.problem)
        self.observation_space = spaces.Box(0.0, np.inf, (STATE_SIZE,), np.float64)
        self.action_space = spaces.Discrete(len(self.bits))
        self._relative_accuracy = 1.0
        self._start()

    @property
    def steps(self) -> int:
        """Number of steps of an episode, one a layer."""
        return len(self._menus)

    @property
    def quantization(self) -> float:
        """The state of quantization: mean bits of the layers so far, divided by the most bits."""
        return float(self._now.mean() / self.bits[-1])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._start()
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Choose the next layer's bits; after the last layer's, evaluate the plan.

        Args:
            action: index into `bits`; the nearest bits on the menu that leave the budget within reach are
                taken.

        Returns:
            Observation, reward (0 before the end), whether the episode is over, False, and an empty info.

        Raises:
            InputError: the outcome holds no accuracy.
            StopSearch: the search is over.
        """
        index, menu = self._step, self._menus[self._step]
        wanted = self.bits[int(action)]
        allowed = self._actions.allowed(index)[0, :, 0]
        chosen = int(np.where(allowed, np.abs(menu - wanted), np.inf).argmin())
        self._actions.choose(index, (0, chosen, 0))
        self._now[index] = menu[chosen]
        if index + 1 == self.steps:
            accuracy = measured(self._recorder, self._offered, self._actions.finish(), METHOD).accuracy
            self._relative_accuracy = accuracy / self._original
            reward = shaped_reward(self.quantization, self._relative_accuracy, self.bits[0] / self.bits[-1])
            return self._observe(), reward, True, False, {}
        self._step += 1
        return self._observe(), 0.0, False, False, {}

    def _start(self) -> None:
        """Begin an episode with the most bits everywhere."""
        self._actions.start()
        self._step = 0
        self._now = np.array([menu[-1] for menu in self._menus])

    def _observe(self) -> FloatArray:
        """(8,) observation of the next step."""
        place = (self._step + 1) / self.steps
        bits = self._now[self._step] / self.bits[-1]
        return np.array([place, bits, self.quantization, self._relative_accuracy, *self._fixed[self._step]])


def shaped_reward(quantization: float, accuracy: float, least: float) -> float:
    """The released code's `calculate_reward_shaping`.

    It is 2 ((1 - (q - q_least)^0.8) a^(1 / a) - 0.5), and -1 for a < 0.4. It is at most 1 where the accuracy
    is no better than the original's.

    Args:
        quantization: state of quantization q, the mean bits divided by the most bits.
        accuracy: relative accuracy a, the accuracy divided by the original's.
        least: q_least, the fewest bits divided by the most bits.

    >>> shaped_reward(0.25, 1.0, 0.25), shaped_reward(1.0, 0.39, 0.25)
    (1.0, -1.0)
    """
    if accuracy < MARGIN:
        return -1.0
    compression = 1.0 - max(quantization - least, 0.0) ** QUANTIZATION_POWER
    return float(2.0 * (compression * accuracy ** (ACCURACY_POWER / accuracy) - 0.5))


def _fixed_features(problem: Problem) -> FloatArray:
    """(L, 4) the part of the observation that no choice changes."""
    of = layer_features(problem)
    fewest = np.array([max(layer.errors[0, 0, -1], SMALLEST_ERROR) for layer in problem.layers])
    return scaled(np.stack([of.rows, of.columns, of.positions, np.log10(fewest)], axis=1))
