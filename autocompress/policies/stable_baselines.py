"""Policies from Stable-Baselines3: makes one of the zip file of an agent of the price environment.

Such a file may hold pickled code. So it is read only if the user says that it is trusted.
"""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.policies.files import (
    MOST_WIDTH,
    SHOWN,
    SavedPolicy,
    blaming,
    check_numbers,
    check_size,
    first_line,
    load_policy,
    read_bounded,
    save_policy,
)
from autocompress.policies.network import PricePolicy
from autocompress.run.names import POLICY, POLICY_WEIGHTS
from autocompress_envs.observation import HIGH, KINDS, LOW

MOST_PRICE_SCALE = 20.0  # upper bound, exclusive, as in the price environment

# What torch.load, zipfile and unpickling were seen to raise on damaged files, and on classes of other versions.
_DAMAGED = (
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, ImportError, AttributeError, TypeError,
    RuntimeError, EOFError, OSError, ValueError, LookupError, AssertionError,
)  # fmt: skip
_LAYERS = {  # names of our parameters by Stable-Baselines3's names
    "mlp_extractor.policy_net.0": "members.0.body.0",
    "mlp_extractor.policy_net.2": "members.0.body.2",
    "action_net": "members.0.head",
}


def import_stable_baselines(file: Path, out: Path, price_scale: float, *, trust: bool) -> SavedPolicy:
    """Make a policy of a Stable-Baselines3 agent that was trained in the price environment, and save it.

    The policy's log prices are `price_scale` times the agent's mean actions. Two things differ from what the
    agent did: the environment clips actions to [-1, 1], while a policy clips log prices at `PRICE_LIMIT`; and
    a policy sees zeros in place of the previous actions. The file does not say which layer kinds the agent
    was trained on, so all are assumed. Nor does it hold the statistics of `VecNormalize`: an agent that was
    trained with that wrapper decides differently without it.

    Args:
        file: zip file of PPO or A2C with `MlpPolicy` and two hidden Tanh layers of equal width.
        out: folder that the policy is written into; it must not hold a policy yet.
        price_scale: `price_scale` of the environment that the agent was trained in, in (0, 20).
        trust: whether code that the file holds may run; it must be True.

    Returns:
        The policy, read back from `out`.

    Raises:
        InputError: the file is not trusted, not such an agent, or damaged, or an argument is out of range.
    """
    if not trust:
        raise InputError(
            f"`trust` must be given to import {file}: it may hold pickled code, which is run; "
            "pass --trust only for files of your own."
        )
    if not 0.0 < price_scale < MOST_PRICE_SCALE:
        raise InputError(f"`price_scale` must be above 0 and below {MOST_PRICE_SCALE:g}, got {price_scale:g}.")
    if any((out / name).exists() for name in (POLICY_WEIGHTS, POLICY)):
        raise InputError(f"`out` must be a folder without a policy, got {out}, which holds one; choose another.")
    if not file.is_file():
        raise InputError(f"`file` must be an existing zip file of Stable-Baselines3, got {file}.")
    with blaming(file):
        raw = read_bounded(file)
        settings, state = _agent(raw)
        algorithm = _checked_algorithm(settings)
        policy = _policy_of_agent(state, price_scale)
    record = {
        "kinds": list(KINDS),
        "source": {"file": file.name, "sha256": hashlib.sha256(raw).hexdigest()},
        "algorithm": algorithm,
        "price_scale": price_scale,
    }
    save_policy(out, policy, record)
    return load_policy(out)


def _agent(raw: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The agent's settings as they are in the file, and the state dict of its policy."""
    try:
        with zipfile.ZipFile(BytesIO(raw)) as archive:
            for name in ("data", "policy.pth"):
                check_size(archive.getinfo(name).file_size)
            settings = json.loads(archive.read("data"))
            state = torch.load(BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True)
    except InputError:
        raise
    except _DAMAGED as error:
        raise InputError(
            f"The file must be an undamaged zip file of Stable-Baselines3, got: {first_line(error)}."
        ) from error
    if not isinstance(settings, dict) or not isinstance(state, Mapping):
        raise InputError("The file must hold the settings and weights of an agent, got something else.")
    return settings, {str(name): value for name, value in state.items()}


def _checked_algorithm(settings: Mapping[str, Any]) -> str:
    """The algorithm's name, `PPO` or `A2C`; InputError if its network is not a plain Tanh network."""
    from stable_baselines3.common.policies import ActorCriticPolicy

    policy_class = _restored(settings, "policy_class")
    if policy_class is not ActorCriticPolicy:
        raise InputError(
            f"The agent must be PPO or A2C with MlpPolicy, got a {getattr(policy_class, '__name__', '?')}."
        )
    is_a2c = "batch_size" not in settings  # no file says its algorithm's name
    if not is_a2c and "clip_range" not in settings:
        raise InputError("The agent must be PPO or A2C with MlpPolicy, got another algorithm.")
    for name, low, high in (("observation_space", LOW, HIGH), ("action_space", -np.ones(2), np.ones(2))):
        _check_space(name, _restored(settings, name), low, high)
    _check_policy_options(_restored(settings, "policy_kwargs"))
    return "A2C" if is_a2c else "PPO"


def _restored(settings: Mapping[str, Any], name: str) -> Any:
    """One of the agent's settings as a Python object, unpickled where the file holds it pickled."""
    value = settings.get(name)
    if not isinstance(value, dict) or ":serialized:" not in value:
        return value
    try:
        return pickle.loads(base64.b64decode(value[":serialized:"]))  # the caller trusts the file
    except _DAMAGED as error:
        raise InputError(f"`{name}` of the agent must be readable here, got: {first_line(error)}.") from error


def _check_space(name: str, space: Any, low: np.ndarray[Any, Any], high: np.ndarray[Any, Any]) -> None:
    """Check a space's shape and bounds; bounds also show if a wrapper rescales observations or actions."""
    from gymnasium.spaces import Box

    if not isinstance(space, Box) or space.shape != low.shape:
        raise InputError(f"`{name}` of the agent must be a Box of shape {low.shape}, got {str(space)[:SHOWN]}.")
    if not (np.array_equal(space.low, low.astype(np.float32)) and np.array_equal(space.high, high.astype(np.float32))):
        raise InputError(f"`{name}` of the agent must have the price environment's bounds, got others.")


def _check_policy_options(options: Any) -> None:
    from stable_baselines3.common.torch_layers import FlattenExtractor

    if not isinstance(options, dict):
        raise InputError(f"`policy_kwargs` of the agent must be a mapping, got {str(options)[:SHOWN]}.")
    plain = {"activation_fn": nn.Tanh, "features_extractor_class": FlattenExtractor, "squash_output": False}
    for name, wanted in plain.items():
        got = options.get(name, wanted)
        if got is not wanted:
            shown = [getattr(value, "__name__", str(value)) for value in (wanted, got)]
            raise InputError(f"`{name}` of the agent must be {shown[0]}, got {shown[1]}.")


def _policy_of_agent(state: Mapping[str, Tensor], price_scale: float) -> PricePolicy:
    """The policy whose log prices are `price_scale` times the mean actions of the agent with this state."""
    first = state.get("mlp_extractor.policy_net.0.weight")
    width = len(first) if isinstance(first, Tensor) and first.ndim else 0
    policy = PricePolicy("layer", 1, min(max(width, 1), MOST_WIDTH))
    own = policy.state_dict()
    wanted = {f"{theirs}.{leaf}": f"{ours}.{leaf}" for theirs, ours in _LAYERS.items() for leaf in ("weight", "bias")}
    acting = {name: value for name, value in state.items() if name.startswith(("mlp_extractor.policy", "action_net"))}
    shapes = {name: tuple(value.shape) for name, value in acting.items() if isinstance(value, Tensor)}
    if shapes != {theirs: tuple(own[ours].shape) for theirs, ours in wanted.items()}:
        raise InputError(
            f"The agent must have two hidden layers of one width from 1 to {MOST_WIDTH}, got others; "
            "train it with net_arch=[64, 64], say."
        )
    for theirs, ours in wanted.items():
        own[ours].copy_(state[theirs] * (price_scale if theirs.startswith("action_net") else 1.0))
    check_numbers(own)
    return policy.eval()
