"""The environment: one step labels one layer, one episode one network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from autocompress_envs import rewards
from autocompress_envs.actions import ACTIONS, Actions
from autocompress_envs.observation import HIGH, LOW, Observer
from autocompress_envs.problem import BoolArray, Labeling, Outcome, Problem
from autocompress_envs.problem.tables import checked_limits, is_within
from autocompress_envs.rewards import REWARDS, RewardContext
from autocompress_envs.solver import Solver

Evaluate = Callable[[Labeling], Outcome]
Info = dict[str, Any]


class LayerLabelingEnv(gymnasium.Env[npt.NDArray[np.float32], Any]):
    """Label the layers of one network, in network order, within a budget.

    Observation: `observation.Observation` as a (46,) float32 vector. Actions: see `actions` by name. Reward: 0 before
    the last layer, then `rewards` by name of the outcome. Every step's info holds `executed_action`, what the
    environment really did, for replay buffers; the last one `labeling` and `outcome` too. Every finished episode
    meets every limit.

    Args:
        problem: the layers' menus and costs.
        evaluate: measures a finished labelling.
        limits: absolute upper bounds by resource (`size`, `macs`, `bitops`, `memory`).
        action: `price`, `label` or `discrete`.
        reward: `kl`, `accuracy`, `amc_error`, `amc_flops`, `haq` or `galen`.
        price_scale: action 1 multiplies an error by exp(price_scale); `price` only.
        original_accuracy: task metric of the uncompressed network, for rewards that compare with it.

    Raises:
        ValueError: an unknown name, or limits that are not positive whole numbers.
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
        _check_name("action", action, ACTIONS)
        _check_name("reward", reward, REWARDS)
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
        """The limits of the current episode."""
        return dict(self._limits)

    @property
    def reference(self) -> Labeling:
        """The Lagrangian solution for the current limits: what price action 0 everywhere gives."""
        return self._reference

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], Info]:
        """Begin an episode.

        Args:
            seed: of `np_random`; the environment itself draws nothing.
            options: `{"budget": {resource: amount}}` replaces the limits, for this episode and those that follow.
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

        Raises:
            ValueError: no episode is running, the action is malformed or (discrete) illegal, or the outcome is not
                a number.
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
        """(n,) which discrete actions are legal now (sb3-contrib's convention); all of them after the last layer."""
        if self._step >= len(self.problem.layers):
            return np.ones_like(self._actions.mask(0))
        return self._actions.mask(self._step)

    def _set_limits(self, limits: Mapping[str, int]) -> None:
        limits = checked_limits(limits)
        if limits == self._limits:
            return
        self._solver = Solver(self.problem, limits)
        self._limits = limits
        self._reference = self._solver.solve()
        self._observer = Observer(self._solver, self._reference)
        self._actions: Actions = ACTIONS[self._action](self._solver, self._reference, self._price_scale)

    def _observe(self) -> npt.NDArray[np.float32]:
        actions = self._actions
        return self._observer.observe(self._step, actions.so_far(), actions.coordinates()).vector()

    def _finish(self, info: Info) -> float:
        labeling = self._actions.finish()
        assert is_within(self.problem.resources(labeling), self._limits), "an episode broke its budget"
        outcome = self._evaluate(labeling)
        info.update(labeling=labeling, outcome=outcome)
        context = RewardContext(self._original_accuracy, self.problem.original(), self._limits)
        return rewards.compute(self._reward, outcome, context)


def _check_name(what: str, name: str, choices: Iterable[str]) -> None:
    if name not in choices:
        raise ValueError(f"`{what}` must be one of {', '.join(sorted(choices))}, got {name!r}.")
