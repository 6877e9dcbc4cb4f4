"""`policy eval`: a policy's plans beside the solver's, and the file that names the networks."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from typer.testing import CliRunner

from autocompress.cli.main import app
from autocompress.errors import InputError
from autocompress.policies.files import SavedPolicy, load_policy
from autocompress.policies.network import LabelPolicy
from autocompress.policy_training import evaluation
from autocompress.policy_training.evaluation import WRITERS, Score, compared, evaluate_policy, summarised
from autocompress.progress import Silent
from autocompress.workers.tasks import Death, Result

ALLOWED = (
    "activation_bits, audio_seconds, budgets, cache, calibration_samples, criterion, data, data_args, device, dtype, "
    "granularity, image_size, jobs, max_tokens, mean, memory, model, model_args, quantizer, ranks, remove_branches, "
    "search_samples, seed, sparsity_levels, std, target, task, tokenizer, weight_bits, weights, width_steps"
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
    return SavedPolicy(LabelPolicy(1, 4), {"kinds": ["conv", "linear"]}, "untrained")


def test_every_writer_is_measured_and_planning_with_an_untrained_policy_costs_nothing(on, untrained):
    """Its prices are 0: the model in which it plans is that of effects alone, and its plans are candidates besides."""
    scores = evaluate_policy(untrained, on, episodes=[2])
    assert [score.budget for score in scores] == ["size=8%", "size=12%"]
    for score in scores:
        assert sorted(score.kl) == sorted([*WRITERS, "search 2", "search 2 with the policy"])
        assert all(kl > 0 for kl in score.kl.values())
        assert score.kl["search 2"] <= score.kl["solver"]


def test_the_comparison_is_a_geometric_mean_with_an_interval():
    scores = [Score("net", f"size={n}", {"a": 0.1, "b": b}) for n, b in enumerate([0.4, 0.1, 0.2, 0.05])]
    found = compared(scores, "a", "b")
    assert (found.ratio, found.better, found.rows) == pytest.approx(
        (0.25 ** (1 / 4) * 1 * 0.5 ** (1 / 4) * 2 ** (1 / 4), 0.5, 4)
    )
    assert 0.25 <= found.low <= found.ratio <= found.high <= 2.0
    alike = compared(scores, "a", "a")
    assert (alike.ratio, alike.low, alike.high, alike.better) == (1.0, 1.0, 1.0, 0.0)
    nothing = compared([Score("net", "size=1", {"a": 0.1, "b": float("nan")})], "a", "b")
    assert nothing.rows == 0


def test_the_summary_has_every_writer_beside_the_solver_and_searches_beside_each_other():
    kl = dict.fromkeys([*WRITERS, "search 7", "search 7 with the policy"], 0.1)
    pairs = [(each.writer, each.beside) for each in summarised([Score("net", "size=1", kl)], [7])]
    assert pairs == [
        *((name, "solver") for name in WRITERS if name != "solver"),
        ("search 7", "solver"),
        ("search 7 with the policy", "solver"),
        ("search 7 with the policy", "search 7"),
    ]


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
            "`budget resource` must be one of bitops, energy, latency, macs, memory, size, got 'flops'.",
        ),
        (  # before the first network is loaded
            "networks: [{model: nowhere, budgets: [size=1]}, {model: digits, weight_bits: x, budgets: [size=1]}]",
            "`weight_bits` must be a valid integer, got 'x'.",
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
    assert (found["policy"], len(found["scores"]), len(found["summary"])) == ("default", 2, len(WRITERS) - 1)
    done = CliRunner().invoke(app, ["policy", "eval", "default", "--on", str(tmp_path / "no.yaml")])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        f"autocompress: `on` must be a readable file, got {tmp_path / 'no.yaml'}: No such file or directory.\n"
    )


def test_a_worker_finds_the_same_and_says_why_a_row_has_no_score(on, untrained):
    """What processes and tasks of a cluster run, in this process."""
    unsure, told = replace(untrained, record={"kinds": ["conv"]}), []
    here, _ = evaluate_policy(unsure, on)
    content = yaml.safe_load(on.read_text())
    content["networks"][0]["budgets"] = ["size=0.08", "size=0.0001"]
    (on.parent / "tight.yaml").write_text(yaml.safe_dump(content))
    networks = tuple(evaluation._networks(on.parent / "tight.yaml"))
    run = evaluation._runner(evaluation._Asked(unsure, (), 0, networks), torch.get_num_threads())
    assert run((0, 0), told.append) == here
    assert run((0, 1), told.append).startswith("`size` budget must be at least 4,925 bytes")
    assert told == ["the policy was not trained on linear layers; it takes the 1 here for conv layers"]


def test_rows_come_in_the_files_order_and_a_row_whose_worker_died_twice_is_named(on, untrained, monkeypatch):
    class Watcher(Silent):
        def __init__(self):
            self.notes, self.counts = [], []

        def note(self, text):
            self.notes.append(text)

        def advance(self, done, total, what):
            self.counts.append((done, total, what))

    def run_tasks(executor, rows, told):
        assert (executor.count, rows) == (2, [(0, 0), (0, 1)])
        told(rows[0], None)
        told(rows[0], "so it is")
        told(rows[1], "so it is")
        yield rows[1], ends[1]
        yield rows[0], ends[0]

    monkeypatch.setattr(evaluation, "run_tasks", run_tasks)
    scores = [Score("digits", f"size={n}", {"solver": 0.1}) for n in range(2)]
    ends, watcher = [Result(score) for score in scores], Watcher()
    assert evaluate_policy(untrained, on, jobs=8, progress=watcher) == scores
    assert watcher.notes == ["so it is"]
    assert watcher.counts == [(1, 2, "networks and budgets"), (2, 2, "networks and budgets")]
    ends[0] = Death("the worker process was ended by SIGKILL")
    assert evaluate_policy(untrained, on, jobs=8, progress=watcher) == scores[1:]
    assert watcher.notes[2:] == ["digits: size=8% is left out: the worker process was ended by SIGKILL"]
    ends[0] = Result("No plan fits.")
    with pytest.raises(InputError, match=r"^No plan fits\.$"):
        evaluate_policy(untrained, on, jobs=8)


def test_workers_that_can_not_be_had(on, untrained):
    with pytest.raises(InputError, match=r"^`jobs` must be at least 1, got 0\.$"):
        evaluate_policy(untrained, on, jobs=0)
