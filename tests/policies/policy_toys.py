"""Policies with numbers at random, and observations to show them."""

import numpy as np
import torch

from autocompress_envs.labeling.environment import observation_space
from autocompress_envs.labeling.observation import LAYER_NAMES


def grown(policy, seed=0, scale=0.3):
    """The policy with random numbers in every tensor: an untrained one adds nothing to the solver's scores."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in policy.state_dict().items():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
            if name.startswith("deviation_"):
                tensor.abs_().add_(0.1)
    return policy.eval()


def observations(count, layers=5, options=7, seed=0):
    """(count, ...) random observations of networks whose first three of five layers are there; the second is next."""
    rng = np.random.default_rng(seed)
    space = observation_space(layers, options)
    seen = {name: rng.uniform(-1, 1, (count, *box.shape)).astype(np.float32) for name, box in space.spaces.items()}
    for name, rows in (("is_present", slice(3)), ("is_next", slice(1, 2)), ("is_labelled", slice(1))):
        column = LAYER_NAMES.index(name)
        seen["layers"][:, :, column] = 0
        seen["layers"][:, rows, column] = 1
    return {name: torch.from_numpy(values) for name, values in seen.items()}
