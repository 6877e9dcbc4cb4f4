"""`policy eval`: a policy's plans beside the solver's, and the file that names the networks."""

import json
import subprocess
import sys

import pytest
import yaml

from autocompress.errors import InputError
from autocompress.policies.files import SavedPolicy, load_policy
from autocompress.policies.network import PricePolicy
from autocompress.policy_training.evaluation import Score, evaluate_policy, summarised
from autocompress.searchers.model_based.first_order import predicted_best_plan

ALLOWED = (
    "activation_bits, audio_seconds, budgets, cache, calibration_samples, criterion, data, data_args, device, dtype, "
    "granularity, image_size, jobs, max_tokens, mean, memory, model, model_args, quantizer, remove_branches, "
    "search_samples, seed, sparsity_levels, std, target, task, tokenizer, weight_bits, weights"
)
QUICK = {"model": "digits", "search_samples": 64, "calibration_samples": 64, "sparsity_levels": 4, "dtype": "float32",
         "target": "packed"}  # fmt: skip


@pytest.fixture(scope="module")
def on(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    network = {**QUICK, "cache": str(folder / "cache"), "budgets": ["size=0.08", "size=0.12"]}
    (folder / "on.yaml").write_text(yaml.safe_dump({"networks": [network]}))
    return folder / "on.yaml"


@pytest.fixture
def untrained():
    return SavedPolicy(PricePolicy("layer", 1, 4), {"kinds": ["conv", "linear"]}, "untrained")


def test_an_untrained_policy_is_what_effects_alone_predict(on, untrained, monkeypatch):
    """Its prices are all the same."""
    found = []

    def remembered(*given):
        found.append((predicted_best_plan(*given), predicted_best_plan(*given[:4])))  # with the prices, and without
        return found[-1][0]

    monkeypatch.setattr("autocompress.policies.use.predicted_best_plan", remembered)
    scores = evaluate_policy(untrained, on)
    assert [score.budget for score in scores] == ["size=8%", "size=12%"]
    assert [priced.key() == plain.key() for priced, plain in found] == [True, True]
    assert all(0 < score.policy_kl != score.solver_kl for score in scores)


def test_a_search_from_the_policy_is_no_worse_than_its_plan(on):
    """Which is the search's first."""
    scores = evaluate_policy(load_policy("default"), on, episodes=3)
    assert all(score.few_shot_kl <= score.policy_kl for score in scores)


def test_the_summary_is_a_geometric_mean():
    scores = [Score("net", "size=8%", 0.4, 0.1, 0.1, 0.5, 0.6), Score("net", "size=9%", 0.1, 0.1, 0.4, 0.5, 0.5)]
    found = summarised(scores)
    assert (found.zero_shot, found.better, found.few_shot) == pytest.approx((0.5, 0.5, 1.0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "`on` must be a mapping with a list of `networks`, got {} without; see configs/policy."),
        (
            "networks: [{model: digits}]",
            "`budgets` must be a list such as [size=0.1, macs=50%], got None in {}.",
        ),
        (
            "networks: [{model: digits, method: random, budget: size=0.1, weight-bits: 8, price-scale: 1, "
            "budgets: [size=0.1]}]",
            f"Options of `networks` must be among {ALLOWED}, got budget, method, price_scale in {{}}.",
        ),
        (
            "networks: [{model: digits, budgets: [flops=1]}]",
            "`budget resource` must be one of bitops, latency, macs, memory, size, got 'flops'.",
        ),
    ],
)
def test_files_that_break_a_rule(tmp_path, content, message):
    file = tmp_path / "on.yaml"
    file.write_text(content)
    with pytest.raises(InputError) as error:
        evaluate_policy(load_policy("default"), file)
    assert str(error.value) == message.format(file)


def test_the_command(on, tmp_path):
    command = [
        sys.executable,
        "-c",
        "from autocompress.cli.main import main; main()",
        "policy",
        "eval",
        "default",
        "--on",
    ]
    done = subprocess.run(
        [*command, str(on), "--format", "json", "--quiet"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["policy"], len(found["scores"]), found["summary"]["few_shot"]) == ("default", 2, None)
    done = subprocess.run([*command, str(tmp_path / "no.yaml")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"autocompress: `on` must be a readable file, got {tmp_path / 'no.yaml'}: No such file or directory.\n"
    )
