"""Stable-Baselines3 files as policies: what is taken over, and what is refused."""

import hashlib
import json
import zipfile

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO, SAC
from torch import nn

from autocompress.errors import InputError
from autocompress.policies.files import SavedPolicy, save_policy
from autocompress.policies.network import PricePolicy
from autocompress.policies.stable_baselines import import_stable_baselines
from autocompress.run.names import POLICY
from autocompress_envs.environment import LayerLabelingEnv
from autocompress_envs.observation import HIGH, LOW
from autocompress_envs.testing import TOY_LIMITS, toy_problem


def observations(count, seed=0):
    return np.random.default_rng(seed).uniform(LOW, HIGH, (count, len(HIGH))).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    save_policy(tmp_path / "mine", PricePolicy("layer", 2, 8), {"kinds": ["conv"]})
    return tmp_path / "mine"


def price_env():
    return LayerLabelingEnv(*toy_problem(), TOY_LIMITS)


def tiny_ppo(env=None, **policy_kwargs):
    options = {"net_arch": [8, 8], **policy_kwargs}
    return PPO("MlpPolicy", env or price_env(), n_steps=4, batch_size=4, device="cpu", policy_kwargs=options, seed=0)


def saved_agent(agent, path):
    agent.save(path)
    return path


@pytest.mark.parametrize("algorithm", ["PPO", "A2C"])
@pytest.mark.parametrize("price_scale", [2.0, 0.7])
def test_an_imported_agent_prices_as_it_acted(tmp_path, algorithm, price_scale):
    agent = tiny_ppo() if algorithm == "PPO" else A2C(
        "MlpPolicy", price_env(), device="cpu", policy_kwargs={"net_arch": {"pi": [8, 8], "vf": [4]}}, seed=0
    )  # fmt: skip
    with torch.no_grad():
        agent.policy.action_net.weight.mul_(20.0)
        agent.policy.action_net.bias.copy_(torch.tensor([0.1, -0.2]))
    file = saved_agent(agent, tmp_path / "agent.zip")
    saved = import_stable_baselines(file, tmp_path / "out", price_scale, trust=True)
    seen = observations(40)
    actions = agent.predict(seen, deterministic=True)[0]
    assert np.abs(actions).max() < 1.0  # nothing was clipped
    assert actions.std(axis=0).min() > 0.02
    with torch.inference_mode():
        prices = saved.policy(torch.from_numpy(seen)[None])[0].numpy()
    np.testing.assert_allclose(prices, price_scale * actions, rtol=0, atol=1e-6)
    assert isinstance(saved, SavedPolicy)
    assert saved.record == {
        "kinds": ["conv", "depthwise", "linear"],
        "source": {"file": "agent.zip", "sha256": hashlib.sha256(file.read_bytes()).hexdigest()},
        "algorithm": algorithm,
        "price_scale": price_scale,
    }
    assert (saved.policy.network, len(saved.policy.members), saved.policy.width) == ("layer", 1, 8)
    assert json.loads((tmp_path / "out" / POLICY).read_text())["width"] == 8


def test_without_trust_the_file_is_not_opened(tmp_path):
    with pytest.raises(InputError) as caught:
        import_stable_baselines(tmp_path / "none.zip", tmp_path / "out", 2.0, trust=False)
    assert str(caught.value) == (
        f"`trust` must be given to import {tmp_path / 'none.zip'}: it may hold pickled code, which is run; "
        "pass --trust only for files of your own."
    )


def import_refusal(file, price_scale=2.0, out=None):
    out = out or file.parent / "out"
    held = sorted(out.iterdir()) if out.exists() else None
    with pytest.raises(InputError) as caught:
        import_stable_baselines(file, out, price_scale, trust=True)
    assert (sorted(out.iterdir()) if out.exists() else None) == held
    return str(caught.value)


def test_arguments_of_an_import(tmp_path, folder):
    file = tmp_path / "none.zip"
    assert import_refusal(file) == f"`file` must be an existing zip file of Stable-Baselines3, got {file}."
    for scale, shown in ((0.0, "0"), (20.0, "20"), (float("nan"), "nan")):
        assert import_refusal(file, scale) == f"`price_scale` must be above 0 and below 20, got {shown}."
    assert import_refusal(file, out=folder) == (
        f"`out` must be a folder without a policy, got {folder}, which holds one; choose another."
    )


WIDTHS = (
    "The agent must have two hidden layers of one width from 1 to 512, got others; "
    "train it with net_arch=[64, 64], say."
)


@pytest.mark.parametrize(
    ("policy_kwargs", "message"),
    [
        ({"net_arch": [8, 4]}, WIDTHS),
        ({"net_arch": [8]}, WIDTHS),
        ({"net_arch": [8, 8, 8]}, WIDTHS),
        ({"net_arch": []}, WIDTHS),
        ({"net_arch": [513, 513]}, WIDTHS),
        ({"activation_fn": nn.ReLU}, "`activation_fn` of the agent must be Tanh, got ReLU."),
    ],
)
def test_agents_of_another_shape(tmp_path, policy_kwargs, message):
    file = saved_agent(tiny_ppo(**policy_kwargs), tmp_path / "agent.zip")
    assert import_refusal(file) == f"{file}: {message}"


def test_an_agent_that_squashes_its_actions(tmp_path):
    agent = PPO("MlpPolicy", price_env(), n_steps=4, batch_size=4, device="cpu", use_sde=True,
                policy_kwargs={"net_arch": [8, 8], "squash_output": True})  # fmt: skip
    file = saved_agent(agent, tmp_path / "agent.zip")
    assert import_refusal(file) == f"{file}: `squash_output` of the agent must be False, got True."


def test_other_algorithms(tmp_path):
    sac = saved_agent(SAC("MlpPolicy", price_env(), device="cpu", buffer_size=10), tmp_path / "sac.zip")
    assert import_refusal(sac) == f"{sac}: The agent must be PPO or A2C with MlpPolicy, got a SACPolicy."
    trpo = saved_agent(TRPO("MlpPolicy", price_env(), device="cpu", n_steps=4, batch_size=4), tmp_path / "trpo.zip")
    assert import_refusal(trpo) == f"{trpo}: The agent must be PPO or A2C with MlpPolicy, got another algorithm."


def test_agents_of_other_environments(tmp_path):
    labels = LayerLabelingEnv(*toy_problem(), TOY_LIMITS, action="label")
    file = saved_agent(tiny_ppo(labels), tmp_path / "labels.zip")
    assert import_refusal(file) == (
        f"{file}: `action_space` of the agent must be a Box of shape (2,), got Box(-1.0, 1.0, (3,), float32)."
    )
    discrete = LayerLabelingEnv(*toy_problem(), TOY_LIMITS, action="discrete")
    file = saved_agent(tiny_ppo(discrete), tmp_path / "discrete.zip")
    assert import_refusal(file) == (
        f"{file}: `action_space` of the agent must be a Box of shape (2,), got Discrete(6)."
    )
    rescaled = RescaleAction(price_env(), -0.5, 0.5)
    file = saved_agent(tiny_ppo(rescaled), tmp_path / "rescaled.zip")
    assert import_refusal(file) == (
        f"{file}: `action_space` of the agent must have the price environment's bounds, got others."
    )
    other = price_env()
    other.observation_space = spaces.Box(-1.0, 1.0, (45,), np.float32)
    file = saved_agent(tiny_ppo(other), tmp_path / "other.zip")
    assert import_refusal(file) == (
        f"{file}: `observation_space` of the agent must be a Box of shape (46,), got Box(-1.0, 1.0, (45,), float32)."
    )


def test_zip_files_that_are_damaged_or_something_else(tmp_path):
    whole = saved_agent(tiny_ppo(), tmp_path / "whole.zip")
    wrong = f"{tmp_path / 'bad.zip'}: The file must be an undamaged zip file of Stable-Baselines3, got: "
    bad = tmp_path / "bad.zip"
    bad.write_bytes(whole.read_bytes()[:1000])
    assert import_refusal(bad) == f"{wrong}File is not a zip file."
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("data", "{}")
    assert import_refusal(bad) == f"{wrong}There is no item named 'policy.pth' in the archive."
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("data", "{}")
        archive.writestr("policy.pth", "no weights")
    assert import_refusal(bad).startswith(wrong)
    with zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", " " * (16 * 2**20 + 1))
    assert import_refusal(bad) == f"{bad}: A policy's file must have at most 16,777,216 bytes, got 16,777,217."


def test_a_class_that_is_not_installed(tmp_path):
    whole = saved_agent(tiny_ppo(), tmp_path / "whole.zip")
    with zipfile.ZipFile(whole) as archive:
        settings, weights = json.loads(archive.read("data")), archive.read("policy.pth")
    settings["policy_class"][":serialized:"] = "Y25vX3N1Y2hfbW9kdWxlCkEKLg=="  # GLOBAL no_such_module A
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("data", json.dumps(settings))
        archive.writestr("policy.pth", weights)
    assert import_refusal(tmp_path / "other.zip") == (
        f"{tmp_path / 'other.zip'}: `policy_class` of the agent must be readable here, got: "
        "No module named 'no_such_module'."
    )
