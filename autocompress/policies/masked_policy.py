"""The policy as Stable-Baselines3 takes it: an actor-critic whose actions are masked.

All of it is in the features extractor: the features are the options' scores and the value, and the two heads that
Stable-Baselines3 puts on top read them off.
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableMultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from autocompress.policies.network import WIDTH, LabelPolicy


class ScoreExtractor(BaseFeaturesExtractor):
    """The scores of all options and the value, as features (B, most options + 1).

    Args:
        observation_space: observation space of the environment's version 1.
        members: number of members of the policy.
        width: features inside a member.
    """

    def __init__(self, observation_space: spaces.Dict, members: int = 1, width: int = WIDTH) -> None:
        options = observation_space["base"].shape
        assert options is not None
        super().__init__(observation_space, options[0] + 1)
        self.policy = LabelPolicy(members, width)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        said = self.policy(observations)
        return torch.cat([said.logits, said.values[:, None]], 1)


class MaskedLabelPolicy(MaskableMultiInputActorCriticPolicy):
    """Actor-critic of `sb3_contrib.MaskablePPO` for the environment's version 1.

    `MaskablePPO(MaskedLabelPolicy, env)` learns from nothing; `start_from` begins with a trained policy.

    Args:
        *args: as of `MaskableMultiInputActorCriticPolicy`.
        **kwargs: likewise; `net_arch`, `ortho_init` and the extractor's class are set here.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs |= {"net_arch": [], "ortho_init": False, "features_extractor_class": ScoreExtractor}
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_net = _Slice(None, -1)  # type: ignore[assignment]  # heads need no weights here
        self.value_net = _Slice(-1, None)  # type: ignore[assignment]
        kwargs = self.optimizer_kwargs
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **kwargs)  # type: ignore[call-arg]

    @property
    def labels(self) -> LabelPolicy:
        """The policy without Stable-Baselines3 around it."""
        assert isinstance(self.features_extractor, ScoreExtractor)
        return self.features_extractor.policy

    def start_from(self, policy: LabelPolicy) -> None:
        """Take the weights of a trained policy of the same shape."""
        self.labels.load_state_dict(policy.state_dict())


class _Slice(nn.Module):
    """Some neighbouring features, as a head without weights.

    Args:
        first, last: as in `slice`.
    """

    def __init__(self, first: int | None, last: int | None) -> None:
        super().__init__()
        self._part = slice(first, last)

    def forward(self, features: Tensor) -> Tensor:
        return features[:, self._part]
