"""What a policy is asked for: plans in episodes of the environment, prices, and a few steps of learning."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from autocompress.policies.network import LabelPolicy, masked
from autocompress_envs.labeling.environment import Episode, LabelingEnv
from autocompress_envs.labeling.observation import KINDS, LAYER_NAMES, Arrays
from autocompress_envs.problem import FloatArray, Labeling, Problem

_STEPS = 3  # gradient steps when a plan is imitated
_LEARNING_RATE = 1e-3
_NEAREST: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "depthwise": ("conv", "linear"),
        "linear": ("conv", "depthwise"),
        "conv": ("depthwise", "linear"),
        "embedding": ("linear", "conv", "depthwise"),
        "recurrent": ("linear", "conv", "depthwise"),
        "transposed": ("conv", "depthwise", "linear"),
    }
)


def nearest_kinds(problem: Problem, known: Sequence[str]) -> dict[str, str]:
    """The nearest known kind for every unknown kind of layer of the problem; empty if `known` is empty.

    Args:
        problem: the network in numbers.
        known: kinds of layer that a policy was trained on.
    """
    kinds = sorted({layer.kind for layer in problem.layers} - set(known))
    order = {kind: (*_NEAREST.get(kind, ()), *KINDS) for kind in kinds}
    return {kind: next(near for near in order[kind] if near in known) for kind in kinds if known}


class PolicyInSearch:
    """A copy of a policy that labels layers and may learn.

    Args:
        policy: policy to copy.
        problem: the network in numbers, whose layers of unknown kinds are shown as the nearest known ones.
        known: kinds of layer that the policy was trained on; empty: all.
    """

    def __init__(self, policy: LabelPolicy, problem: Problem, known: Sequence[str] = ()) -> None:
        self._policy = copy.deepcopy(policy).eval()
        self._shown = _kind_columns(problem, known)
        self._optimizer = torch.optim.Adam(self._policy.parameters(), _LEARNING_RATE)

    def plans(self, envs: Sequence[LabelingEnv], rng: np.random.Generator | None) -> list[Labeling]:
        """One plan for each environment of the same network, each in one episode.

        Args:
            envs: environments of the same observation space; they are reset.
            rng: generator by which labels are drawn; None: the likeliest label of every layer.
        """
        observed = [env.reset()[0] for env in envs]
        found: list[Labeling] = []
        while not found:
            masks = np.stack([env.action_masks() for env in envs])
            with torch.inference_mode():
                logits = self._policy(self._tensors(_stacked(observed))).logits.double().numpy()
            logits = np.where(masks, logits, -np.inf)
            drawn = logits if rng is None else logits + rng.gumbel(size=logits.shape)
            steps = [env.step(int(action)) for env, action in zip(envs, drawn.argmax(1), strict=True)]
            observed = [step[0] for step in steps]
            found = [step[4]["labeling"] for step in steps if step[2]]
        return found

    def imitate(self, episode: Episode) -> None:
        """Make the plan of an episode likelier, by `_STEPS` gradient steps on the likelihood of its labels.

        Args:
            episode: episode of `LabelingEnv.follow` in the policy's network.
        """
        tensors = self._tensors(episode.observed)
        masks, options = torch.from_numpy(episode.masks), torch.from_numpy(episode.actions)
        for _ in range(_STEPS):
            self._optimizer.zero_grad()
            F.cross_entropy(masked(self._policy(tensors).logits, masks), options).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()

    def prices(self, env: LabelingEnv) -> FloatArray:
        """(L, 2) log prices of pruning and of rounding every layer, under the environment's budget; it is reset."""
        observed, _ = env.reset()
        with torch.inference_mode():
            prices = self._policy(self._tensors(_stacked([observed]))).prices[0, : len(env.problem.layers)]
        found: FloatArray = prices.double().numpy()
        return found

    def _tensors(self, observed: Arrays) -> dict[str, torch.Tensor]:
        """Observations, which have a leading batch axis, as tensors."""
        tensors = {name: torch.from_numpy(values) for name, values in observed.items()}
        if self._shown is not None:
            first = LAYER_NAMES.index(f"is_{KINDS[0]}")
            tensors["layers"] = tensors["layers"].clone()
            tensors["layers"][:, : len(self._shown), first : first + len(KINDS)] = torch.from_numpy(self._shown)
        return tensors


def _stacked(observed: Sequence[Arrays]) -> Arrays:
    """Observations with a leading batch axis."""
    return {name: np.stack([each[name] for each in observed]) for name in observed[0]}


def _kind_columns(problem: Problem, known: Sequence[str]) -> npt.NDArray[np.float32] | None:
    """(L, kinds) columns in which unknown kinds are the nearest known ones; None where all are known."""
    stand_ins = nearest_kinds(problem, known)
    if not stand_ins:
        return None
    shown = [stand_ins.get(layer.kind, layer.kind) for layer in problem.layers]
    return np.array([[kind == name for name in KINDS] for kind in shown], dtype=np.float32)
