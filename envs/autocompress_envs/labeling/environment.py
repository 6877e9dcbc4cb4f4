"""Version 1 of the environment: one step gives one layer a label from its menu, one episode labels one network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from autocompress_envs.episode import check_choice, pay
from autocompress_envs.labeling.forecast import Forecast, positions_of
from autocompress_envs.labeling.ledger import Ledger, LedgerActions
from autocompress_envs.labeling.observation import BOUND, CONTEXT_NAMES, LAYER_NAMES, OPTION_NAMES, Arrays, Observer
from autocompress_envs.labeling.rendering import as_pixels, as_text
from autocompress_envs.labeling.sketch import Sketch
from autocompress_envs.problem import BoolArray, FloatArray, IntArray, Labeling, Outcome, Problem
from autocompress_envs.problem.tables import checked_limits, is_within
from autocompress_envs.rewards import KL_FLOOR, REWARDS
from autocompress_envs.solver import Solver

Evaluate = Callable[[Labeling], Outcome]
"""Measures one finished labelling."""

Info = dict[str, Any]
"""Gymnasium's `info` of a step, by name."""


@dataclass(frozen=True, eq=False)
class Episode:
    """The episode in which L layers got the labels of a given plan.

    Attributes:
        labeling: the plan.
        observed: observations before each layer, by part, with the leading axis L.
        masks: (L, O) legal options.
        actions: (L,) the plan's options.
        rewards: (L,) rewards of the steps.
        outcome: the plan's outcome.
    """

    labeling: Labeling
    observed: Arrays
    masks: BoolArray
    actions: IntArray
    rewards: FloatArray
    outcome: Outcome


class LabelingEnv(gymnasium.Env[Arrays, Any]):
    """Environment in which a policy picks, layer after layer, one label from each layer's menu, within hard budgets.

    It knows no network: it sees menus in numbers and first-order effects in few dimensions, and calls `evaluate` once
    an episode. What it shows of a label depends on the labels before it: how far the outputs have been moved so far,
    and in which direction this label would move them on. So layers that disturb the outputs alike can be told from
    layers that make up for each other.

    ## Observation space

    Dict of four boxes, float32; `labeling.observation` lists every column.

    | key       | shape               | what                                                                |
    | --------- | ------------------- | ------------------------------------------------------------------- |
    | `layers`  | (most layers, 37)   | every layer, with its label or, before it has one, the reference's |
    | `options` | (most options, 28)  | every label on the next layer's menu                                |
    | `context` | (29,)               | budgets, and the expected divergence so far                         |
    | `base`    | (most options,)     | score of every label by the solver's multiplier: no learning needed |

    Rows beyond the network's layers, or the layer's menu, are zeros. After the last layer there are no options.

    ## Action space

    Discrete(most options): the position on the next layer's menu, (s * B + b) * A + a for sparsity s, weight bits b and
    activation bits a. `action_masks` says which leave every budget within reach.

    ## Rewards

    After the last layer the named reward of `rewards.REWARDS`. With `shaping`, every step also earns the fall of the
    potential log10(J + 1e-4), J being the expected divergence of the labels so far and the reference's rest; the last
    step takes the potential back (Ng, Harada & Russell 1999), so the best policy is the same, and the return is the
    reward plus log10(J + 1e-4) of the reference: with the reward `kl`, how many decades a plan loses less than the
    solver's was expected to.

    ## Episode end

    Terminated after the last layer, never truncated. Every finished episode meets every limit.

    ## Info

    `labeling` and `outcome` of the finished episode, with the last step.

    An episode of a policy that has learned nothing, on a toy of four layers whose effects cancel in pairs:

    >>> from autocompress_envs.testing import cancelling_toy
    >>> problem, sketch, evaluate, limits = cancelling_toy(np.array([1, 1, -1, -1]))
    >>> env = LabelingEnv(problem, evaluate, limits, sketch)
    >>> observation, info = env.reset()
    >>> done = False
    >>> while not done:
    ...     score = np.where(env.action_masks(), observation["base"], -np.inf)
    ...     observation, reward, done, _, info = env.step(int(score.argmax()))
    >>> info["labeling"].weight_bits.tolist(), env.reference.weight_bits.tolist()  # indices into (2, 8) bits
    ([0, 1, 0, 0], [0, 0, 1, 1])
    >>> round(info["outcome"].kl, 3), round(evaluate(env.reference).kl, 3)
    (0.08, 0.22)

    Args:
        problem: the layers' menus and the cost model.
        evaluate: function that measures a finished labelling; None for `expected`, which evaluates nothing.
        limits: absolute upper bounds by resource, at least one.
        sketch: first-order effects of all labels. Default: None, for unknown ones.
        reward: name of the reward in `rewards.REWARDS`. Default: `kl`.
        shaping: whether steps earn the fall of the expected divergence. Default: true.
        original_accuracy: task metric of the uncompressed network in [0, 1], for rewards that compare with it; NaN
            (unknown) by default.
        most_layers: rows of `layers`, at least the number of layers. Default: None, for that number.
        most_options: rows of `options`, at least the longest menu. Default: None, for that length.
        render_mode: `ansi` (text), `rgb_array` (pixels) or None, the default.

    Attributes:
        problem: the problem that was given.

    Raises:
        ValueError: an unknown name, too few rows, or limits that are not positive whole numbers.
        InfeasibleBudgetError: no labelling meets the limits (also from `reset` with other limits).
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # noqa: RUF012 - Gymnasium's

    def __init__(
        self,
        problem: Problem,
        evaluate: Evaluate | None,
        limits: Mapping[str, int],
        sketch: Sketch | None = None,
        reward: str = "kl",
        *,
        shaping: bool = True,
        original_accuracy: float = float("nan"),
        most_layers: int | None = None,
        most_options: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        check_choice("reward", reward, sorted(REWARDS))
        if render_mode is not None:
            check_choice("render_mode", render_mode, self.metadata["render_modes"])
        self.problem, self.render_mode = problem, render_mode
        self._evaluate, self._reward, self._shaping = evaluate, reward, shaping
        self._original_accuracy = original_accuracy
        self._limits: dict[str, int] = {}
        self._sketch = sketch
        self._most = most_layers or len(problem.layers), most_options or longest_menu(problem)
        _check_rows("most_layers", self._most[0], len(problem.layers))
        _check_rows("most_options", self._most[1], longest_menu(problem))
        self._set_limits(limits)
        self.observation_space: spaces.Space[Arrays] = observation_space(*self._most)  # type: ignore[assignment]
        self.action_space = spaces.Discrete(self._most[1])
        self._step = len(problem.layers)

    @property
    def limits(self) -> dict[str, int]:
        """A copy of the current episode's limits by resource."""
        return dict(self._limits)

    @property
    def reference(self) -> Labeling:
        """The solver's labelling under the current limits, which stands for the layers that have no label yet."""
        return self._reference

    @property
    def forecast(self) -> Forecast:
        """The expected divergence of the labels so far; not to be changed."""
        return self._forecast

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Arrays, Info]:
        """Begin an episode.

        Args:
            seed: seed of `np_random`. The environment itself draws no random numbers.
            options: `{"budget": {resource: amount}}` replaces the limits, for this episode and those that follow; they
                stay by default. `{"plan": labeling}` keeps the labels of a plan within the limits legal as long as they
                are followed: with several limits, some other mixture may be all that completes a label, and then the
                label is not legal otherwise.

        Returns:
            The observation before the first layer, and an empty info.

        Raises:
            ValueError: `options` holds anything but a budget and a plan, the budget is malformed, or the plan breaks
                it.
            InfeasibleBudgetError: no labelling meets the budget.
        """
        super().reset(seed=seed)
        options = options or {}
        unknown = set(options) - {"budget", "plan"}
        if unknown:
            raise ValueError(f"`options` must hold nothing but budget and plan, got {', '.join(sorted(unknown))}.")
        if options.get("budget") is not None:
            self._set_limits(options["budget"])
        self._actions.start(self._checked_plan(options.get("plan")))
        self._forecast.start()
        self._step, self._potential = 0, self._expected()
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Arrays, float, bool, bool, Info]:
        """Label the next layer.

        Args:
            action: position on its menu, a legal one.

        Returns:
            The next observation, the reward, whether the episode is over, False, and the info.

        Raises:
            ValueError: no episode is running, the action is not legal, or the outcome is not a number.
        """
        count = len(self.problem.layers)
        if self._step >= count:
            raise ValueError("`step` must follow `reset`: no episode is running.")
        option = self._actions.apply(self._step, action)
        self._forecast.add(option)
        self._step += 1
        is_last, info, reward = self._step == count, Info(), 0.0
        if is_last:
            reward = self._finish(info)
        if self._shaping:
            potential = 0.0 if is_last else self._expected()
            reward, self._potential = reward + self._potential - potential, potential
        return self._observe(), reward, is_last, False, info

    def action_masks(self) -> BoolArray:
        """(most options,) which actions are legal now; all of them after the last layer.

        The name is the convention of sb3-contrib's masked agents.
        """
        mask = np.ones(self._most[1], dtype=bool)
        if self._step < len(self.problem.layers):
            allowed = self._actions.allowed(self._step).ravel()
            mask[:] = False
            mask[: allowed.size] = allowed
        return mask

    def render(self) -> Any:
        """The network so far: text (`ansi`), or (H, W, 3) uint8 pixels (`rgb_array`); None without a `render_mode`."""
        if self.render_mode is None:
            return None
        draw = as_text if self.render_mode == "ansi" else as_pixels
        return draw(self._solver.tables, self._actions.so_far(), self._step, self._limits)

    def follow(self, plan: Labeling) -> Episode:
        """Run the episode in which the layers get a plan's labels, from `reset` to the plan's outcome.

        Args:
            plan: labelling within the limits.

        Raises:
            ValueError: the plan breaks the limits.
        """
        seen, _ = self.reset(options={"plan": plan})
        actions, info = positions_of(self._solver.tables, plan), Info()
        observed, masks, rewards = [], [], []
        for option in actions:
            observed.append(seen)
            masks.append(self.action_masks())
            seen, reward, _, _, info = self.step(option)
            rewards.append(reward)
        stacked = {name: np.stack([each[name] for each in observed]) for name in observed[0]}
        return Episode(plan, stacked, np.stack(masks), actions, np.array(rewards), info["outcome"])

    def expected(self, labeling: Labeling) -> Outcome:
        """A plan's outcome without an evaluation: the expected divergence, unknown metrics, and the resources."""
        tables = self._solver.tables
        kl = self._forecast.plan_value(positions_of(tables, labeling))
        return Outcome(kl, math.nan, math.nan, tables.resources(labeling))

    def twin(self, evaluate: Evaluate | None = None) -> LabelingEnv:
        """Another environment of the same network and budget, which costs next to nothing; no episode runs in it.

        Args:
            evaluate: function that measures its finished labellings. Default: None, for that of this environment.
        """
        other = copy.copy(self)
        other._evaluate, other._step = evaluate or self._evaluate, len(self.problem.layers)
        other._forecast, other._ledger = copy.copy(self._forecast), copy.copy(self._ledger)
        other._actions = LedgerActions(self._solver, other._ledger)
        return other

    def _checked_plan(self, plan: Labeling | None) -> Labeling | None:
        if plan is not None and not is_within(self.problem.resources(plan), self._limits):
            raise ValueError(f"`plan` must be within the limits {self._limits}, got {self.problem.resources(plan)}.")
        return plan

    def _set_limits(self, limits: Mapping[str, int]) -> None:
        """Replace the limits, and everything that depends on them."""
        limits = checked_limits(limits)
        if limits == self._limits:
            return
        self._solver = Solver(self.problem, limits)
        tables = self._solver.tables
        sketch = self._sketch or Sketch.empty(
            len(self.problem.layers), tables.errors.shape[1], _flat_bits(tables.errors)
        )
        self._limits = limits
        self._reference = self._solver.solve()
        self._forecast = Forecast(tables, sketch, self._reference)
        self._ledger = Ledger(self._solver, self._reference)
        self._observer = Observer(self._solver, self._reference, self._forecast, self._ledger, *self._most)
        self._actions = LedgerActions(self._solver, self._ledger)

    def _observe(self) -> Arrays:
        allowed = np.zeros(0, dtype=bool)
        if self._step < len(self.problem.layers):
            allowed = self._actions.allowed(self._step).ravel()
        return self._observer.observe(self._step, self._actions.so_far(), allowed, self._forecast, self._ledger)

    def _expected(self) -> float:
        """The potential: log10 of the expected divergence of the labels so far and the reference's rest."""
        return math.log10(self._forecast.value() + KL_FLOOR)

    def _finish(self, info: Info) -> float:
        """The terminal reward; the labelling and its outcome are put into `info`."""
        labeling, accuracy = self._actions.finish(), self._original_accuracy
        evaluate = self._evaluate or self.expected
        return pay(labeling, self._solver.tables, self._limits, evaluate, self._reward, accuracy, info)


def longest_menu(problem: Problem) -> int:
    """The most labels that any layer of a problem may get."""
    return max(len(x.sparsities) * len(x.weight_bits) * len(x.activation_bits) for x in problem.layers)


def observation_space(most_layers: int, most_options: int) -> spaces.Dict:
    """The observation space for up to so many layers and options a layer."""
    shapes = {
        "layers": (most_layers, len(LAYER_NAMES)),
        "options": (most_options, len(OPTION_NAMES)),
        "context": (len(CONTEXT_NAMES),),
        "base": (most_options,),
    }
    return spaces.Dict({name: spaces.Box(-BOUND, BOUND, shape, np.float32) for name, shape in shapes.items()})


def _flat_bits(errors: npt.NDArray[np.float64]) -> int:
    return int(errors.shape[2] * errors.shape[3])


def _check_rows(what: str, given: int, least: int) -> None:
    """Raise a ValueError where there are too few rows."""
    if given < least:
        raise ValueError(f"`{what}` must be at least {least}, the network's own, got {given}.")
