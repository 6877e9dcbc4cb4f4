"""The default agent: it labels layer after layer in the environment, and plans on in a model of the outputs.

Every plan that is evaluated is an episode of `autocompress/LayerLabeling-v1`. A policy that was trained on other
networks (`Task.policy`) writes the first plan after the simple ones, and takes the explorer's turns: it draws several
plans in episodes without an evaluation, the model of the outputs picks the most promising one, and a descent goes on
from there. So what is explored is where policy and model disagree. Descents from random plans begin at the policy's
draws, too. Whenever a plan becomes the best, the policy learns it by a few gradient steps.

Without a policy, labels are drawn by the solver's multiplier and the expected divergence so far: what a policy says
that has learned nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from autocompress.searchers.base import LabelingPolicy, Recorder, SearchSettings, Task
from autocompress.searchers.model_based.search import ModelSearch
from autocompress_envs.labeling.environment import Episode, Info, LabelingEnv
from autocompress_envs.problem import FloatArray, IntArray, Labeling, Outcome

DRAWS = 8  # plans that the policy draws at its turn; the model picks one


def search_by_labeling(task: Task, settings: SearchSettings, recorder: Recorder) -> NoReturn:
    """Search until the recorder ends it; the arguments and errors are those of `search_with_model`."""
    LabelingSearch(task, settings, recorder).run()


class LabelingSearch(ModelSearch):
    """A model-based search that acts in the environment.

    Args:
        task: the problem, its limits and its evaluation.
        settings: options of the search; `seed` counts here.
        recorder: evaluates plans, and raises `StopSearch` when the search is over.
    """

    def __init__(self, task: Task, settings: SearchSettings, recorder: Recorder) -> None:
        super().__init__(task, settings, recorder)
        env = task.environment or self._environment()
        self._env = env.twin(recorder)
        self._drawing = [env.twin(env.expected) for _ in range(DRAWS)]
        self._policy: LabelingPolicy = MultiplierPolicy() if task.policy is None else task.policy()

    def begin(self) -> None:
        """Evaluate the policy's plan, the simple plans and the predicted best plan."""
        super().begin()
        (plan,) = self._policy.plans(self._drawing[:1], None)
        self._count(1)
        self._evaluate(plan)
        self._is_repeating = False

    def explore(self) -> None:
        """Evaluate the best plan of a descent from the most promising of the policy's draws."""
        candidates = self._new(self._planner.descend(self._drawn(), 0.0))
        if not len(candidates):
            super().explore()
            return
        expected, _ = self._model.predict(candidates)
        self._evaluate(self._model.encoding.decode(candidates[int(expected.argmin())]))

    def _random_start(self) -> IntArray:
        return self._drawn()

    def _drawn(self) -> IntArray:
        """(2L,) codes of that of the policy's draws whose divergence the model expects to be the least."""
        plans = self._policy.plans(self._drawing, self._rng)
        self._count(len(plans))
        codes = np.stack([self._model.encoding.encode(plan) for plan in plans])
        drawn: IntArray = codes[int(self._model.predict(codes)[0].argmin())]
        return drawn

    def _measure(self, labeling: Labeling) -> Outcome:
        """The outcome of an episode in which the layers get a plan's labels."""
        best = self._recorder.best
        self._count(1)
        episode = self._env.follow(labeling)
        if best is not None and self._recorder.best is not best:
            self._policy.imitate(episode)
        return episode.outcome

    def _count(self, episodes: int) -> None:
        """Count the steps of episodes."""
        self._recorder.steps += episodes * len(self._task.problem.layers)

    def _environment(self) -> LabelingEnv:
        """An environment of the task that evaluates nothing."""
        task = self._task
        assert task.probabilities is not None
        sketch = None if self._effects is None else self._effects.sketch(task.probabilities)
        return LabelingEnv(task.problem, None, task.limits, sketch)


class MultiplierPolicy:
    """Labels by the solver's multiplier and the expected divergence so far: a policy that has learned nothing."""

    def plans(self, envs: Sequence[LabelingEnv], rng: np.random.Generator | None) -> list[Labeling]:
        """One plan for each environment, each in one episode: drawn by `rng`, or the likeliest labels for None."""
        return [self._plan(env, rng) for env in envs]

    def imitate(self, episode: Episode) -> None:
        """Learn nothing."""

    def _plan(self, env: LabelingEnv, rng: np.random.Generator | None) -> Labeling:
        observed, _ = env.reset()
        done, info = False, Info()
        while not done:
            scores: FloatArray = np.where(env.action_masks(), observed["base"], -np.inf)
            drawn = scores if rng is None else scores + rng.gumbel(size=len(scores))
            observed, _, done, _, info = env.step(int(drawn.argmax()))
        plan: Labeling = info["labeling"]
        return plan
