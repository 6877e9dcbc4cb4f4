"""The environment: one step labels one layer, one episode one network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from autocompress_envs.actions import ACTIONS, Actions
from autocompress_envs.episode import check_choice, pay
from autocompress_envs.observation import HIGH, LOW, Observer
from autocompress_envs.problem import BoolArray, Labeling, Outcome, Problem
from autocompress_envs.problem.tables import checked_limits
from autocompress_envs.rewards import REWARDS
from autocompress_envs.solver import Solver

Evaluate = Callable[[Labeling], Outcome]
"""Measures one finished labelling."""

Info = dict[str, Any]
"""Gymnasium's `info` of a step, by name."""


class LayerLabelingEnv(gymnasium.Env[npt.NDArray[np.float32], Any]):
    """Environment that labels the layers of one network, in network order, within a budget.

    One step labels one layer, and one episode labels the network. The environment knows no network: it sees
    menus in numbers and calls `evaluate` once per episode.

    ## Observation space

    Box of shape (46,), float32, dimensionless. `observation.Observation` lists every index with its bounds.

    ## Action space

    | `action`   | space              | meaning                                                                   |
    | ---------- | ------------------ | ------------------------------------------------------------------------- |
    | `price`    | Box(-1, 1, (2,))   | log-prices of the layer's expected losses; the solver labels in the end   |
    | `label`    | Box(-1, 1, (3,))   | sparsity, weight bits, activation bits; the nearest legal label is taken  |
    | `discrete` | Discrete(n)        | index of the label; `action_masks` says which are legal                   |

    ## Rewards

    0 before the last layer. After it, the named reward of `rewards.REWARDS` for the measured outcome.

    ## Episode end

    Terminated after the last layer, never truncated. Every finished episode meets every limit.

    ## Info

    | key               | steps    | meaning                                                                     |
    | ----------------- | -------- | --------------------------------------------------------------------------- |
    | `executed_action` | all      | the action after clipping and limits, which a replay buffer should store    |
    | `labeling`        | the last | the finished labelling                                                      |
    | `outcome`         | the last | its measured outcome                                                        |

    An episode on a toy of three layers, with prices that the solver's own plan does not have:

    >>> from autocompress_envs.testing import TOY_LIMITS, toy_problem
    >>> problem, evaluate = toy_problem()
    >>> env = LayerLabelingEnv(problem, evaluate, TOY_LIMITS)
    >>> observation, info = env.reset()
    >>> for action in ([0.0, 0.0], [0.0, 1.0], [0.0, -0.5]):
    ...     observation, reward, terminated, truncated, info = env.step(np.array(action))
    >>> terminated, info["labeling"].weight_bits.tolist(), round(info["outcome"].kl, 6)  # indices into (2, 4, 8) bits
    (True, [0, 1, 0], 0.512)

    Args:
        problem: the layers' menus and the cost model.
        evaluate: function that measures a finished labelling.
        limits: absolute upper bounds by resource (`size`, `macs`, `bitops`, `memory`, `energy`), at least one.
        action: name of the action scheme: `price`, `label` or `discrete`. `price` by default.
        reward: name of the reward: `kl`, `accuracy`, `amc_error`, `amc_flops`, `haq` or `galen`. `kl` by
            default.
        price_scale: natural logarithm of the price at action 1, above 0 and below 20; 2 by default. For
            `price` only.
        original_accuracy: task metric of the uncompressed network in [0, 1], for rewards that compare with
            it; NaN (unknown) by default.

    Attributes:
        problem: the problem that was given.

    Raises:
        ValueError: an unknown name, a `price_scale` out of range, or limits that are not positive whole
            numbers.
        InfeasibleBudgetError: no labelling meets the limits (also from `reset` with other limits).
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(
        self,
        problem: Problem,
        evaluate: Evaluate,
        limits: Mapping[str, int],
        action: str = "price",
        reward: str = "kl",
        price_scale: float = 2.0,
        original_accuracy: float = float("nan"),
    ) -> None:
        check_choice("action", action, sorted(ACTIONS))
        check_choice("reward", reward, sorted(REWARDS))
        if not 0.0 < price_scale < 20.0:
            raise ValueError(f"`price_scale` must be above 0 and below 20, got {price_scale}.")
        self.problem = problem
        self._evaluate, self._action, self._reward = evaluate, action, reward
        self._price_scale, self._original_accuracy = price_scale, original_accuracy
        self._limits: dict[str, int] = {}
        self._set_limits(limits)
        self.observation_space = spaces.Box(LOW.astype(np.float32), HIGH.astype(np.float32), dtype=np.float32)
        self.action_space = self._actions.space(self._solver.tables)
        self._step = len(problem.layers)

    @property
    def limits(self) -> dict[str, int]:
        """A copy of the current episode's limits by resource."""
        return dict(self._limits)

    @property
    def reference(self) -> Labeling:
        """The solver's labelling under the current limits, which price action 0 at every layer gives."""
        return self._reference

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], Info]:
        """Begin an episode.

        Args:
            seed: seed of `np_random`. The environment itself draws no random numbers.
            options: `{"budget": {resource: amount}}` replaces the limits, for this episode and those that
                follow. By default they stay.

        Returns:
            The observation before the first layer, (46,) float32, and an empty info.

        Raises:
            ValueError: `options` holds anything but a budget, or the budget is malformed.
            InfeasibleBudgetError: no labelling meets the budget.
        """
        super().reset(seed=seed)
        unknown = set(options or {}) - {"budget"}
        if unknown:
            raise ValueError(f"`options` must hold nothing but budget, got {', '.join(sorted(unknown))}.")
        if options and options.get("budget") is not None:
            self._set_limits(options["budget"])
        self._actions.start()
        self._step = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, Info]:
        """Label the next layer.

        Args:
            action: an element of the action space. Continuous actions are clipped to [-1, 1].

        Returns:
            The next observation (46,) float32, the reward, whether the episode is over, False, and the info.

        Raises:
            ValueError: no episode is running, the action is malformed or (discrete) illegal, or the outcome
                is not a number.
        """
        count = len(self.problem.layers)
        if self._step >= count:
            raise ValueError("`step` must follow `reset`: no episode is running.")
        info: Info = {"executed_action": self._actions.apply(self._step, action)}
        self._step += 1
        is_last = self._step == count
        reward = self._finish(info) if is_last else 0.0
        return self._observe(), reward, is_last, False, info

    def action_masks(self) -> BoolArray:
        """(n,) which discrete actions are legal now; all of them after the last layer.

        The name is the convention of sb3-contrib's masked agents.

        Raises:
            ValueError: the actions are not discrete.
        """
        if self._step >= len(self.problem.layers):
            return np.ones_like(self._actions.mask(0))
        return self._actions.mask(self._step)

    def _set_limits(self, limits: Mapping[str, int]) -> None:
        """Replace the limits, and everything that depends on them."""
        limits = checked_limits(limits)
        if limits == self._limits:
            return
        self._solver = Solver(self.problem, limits)
        self._limits = limits
        self._reference = self._solver.solve()
        self._observer = Observer(self._solver, self._reference)
        self._actions: Actions = ACTIONS[self._action](self._solver, self._reference, self._price_scale)

    def _observe(self) -> npt.NDArray[np.float32]:
        """(46,) the observation before the next layer."""
        actions = self._actions
        return self._observer.observe(self._step, actions.so_far(), actions.coordinates()).vector()

    def _finish(self, info: Info) -> float:
        """The terminal reward; the labelling and its outcome are put into `info`."""
        labeling, accuracy = self._actions.finish(), self._original_accuracy
        return pay(labeling, self._solver.tables, self._limits, self._evaluate, self._reward, accuracy, info)
