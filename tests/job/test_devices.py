"""Where networks run: what `auto` becomes, what a resumed run goes on with, and modules that lie elsewhere."""

import re

import pytest
import torch
from run_toys import contents, invoke, refused
from torch import nn

import autocompress
from autocompress import InputError, api
from autocompress.comparison import run as comparison_run
from autocompress.config import Config, load_config
from autocompress.data import from_tensors
from autocompress.evaluation.batches import running
from autocompress.job import finished_run, load
from autocompress.job import options as job_options
from autocompress.job.options import request
from autocompress.run.folder import claim

WITH_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
CPU = torch.device("cpu")


@pytest.fixture
def with_gpu(monkeypatch):
    """A machine on which `auto` is CUDA, as far as names go."""

    def torch_device(name):
        return torch.device("cuda" if name == "auto" else name)

    for module in (job_options, comparison_run):
        monkeypatch.setattr(module, "torch_device", torch_device)


def begun(folder, **options):
    """A folder that looks like a run which was begun."""
    (folder / "config.yaml").write_text(Config(**options).to_yaml())
    (folder / "journal.jsonl").touch()
    return folder


def test_auto_is_the_default_and_becomes_the_devices_name(with_gpu):
    assert Config().device == "auto"
    assert request().config.device == "cuda"
    assert request(options={"device": "cpu"}).config.device == "cpu"


def test_auto_without_a_gpu_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert request().config.device == "cpu"


def test_a_resumed_run_goes_on_where_it_began(with_gpu, tmp_path):
    begun(tmp_path, device="cpu")
    asked = request(options={"out": tmp_path, "resume": True})
    assert asked.config.device == "cpu"
    assert claim(asked.config) == tmp_path
    assert request(options={"out": tmp_path}).config.device == "cuda"  # a new run


def test_a_run_may_go_on_on_another_device(with_gpu, tmp_path):
    begun(tmp_path, device="cpu")
    asked = request(options={"out": tmp_path, "resume": True, "device": "cuda"})
    assert claim(asked.config) == tmp_path
    assert asked.config.device == "cuda"


def test_a_run_of_a_gpu_that_is_not_here(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    begun(tmp_path, device="cuda")
    message = "`device` must exist on this machine, got 'cuda' without CUDA; use cpu."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        request(options={"out": tmp_path, "resume": True})


def test_runs_say_where_they_ran_and_are_looked_at_where_one_is(made, run):
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert load_config(made.run_folder / "config.yaml", {}).device == expected
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(f"device: {expected}", "device: cuda:7"))
    assert finished_run._config_of(run, {}).device == "auto"
    assert finished_run._config_of(run, {"device": "cpu"}).device == "cpu"
    assert api.verify(run).passed


def test_a_comparison_says_where_it_ran_and_goes_on_there(with_gpu, tmp_path):
    suite = {"base": {"target": "packed"}, "budgets": ["size=0.1"], "methods": ["solver"]}
    named = [
        comparison_run._device("auto", tmp_path, resume=False),
        comparison_run._device("auto", tmp_path, resume=True),  # nothing to resume, which is told later
    ]
    assert named == ["cuda", "cuda"]
    made = autocompress.comparison.suite.make_suite({**suite, "base": {"device": "cpu"}})
    (tmp_path / "suite.yaml").write_text(made.to_yaml())
    assert comparison_run._device("auto", tmp_path, resume=True) == "cpu"
    assert comparison_run._device("auto", tmp_path, resume=False) == "cuda"
    assert comparison_run._device("cuda:1", tmp_path, resume=True) == "cuda:1"  # refused by `check_continues`


class Net(nn.Module):
    """Input 6."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.first(x)))


def data(device="cpu", samples=120):
    inputs = torch.randn(samples, 6, generator=torch.Generator().manual_seed(0))
    return inputs.to(device), inputs[:, :3].argmax(1).to(device)


def options_of(folder):
    return {
        "budget": "bitops=0.2", "episodes": 2, "search_samples": 40, "calibration_samples": 30, "sparsity_levels": 2,
        "target": "packed", "dtype": "float32", "recalibration_samples": 30, "finetune": 0.5, "batch_size": 16,
        "labels": "teacher", "cache": folder / "cache", "out": folder / "run",
    }  # fmt: skip


def test_a_network_that_the_device_can_not_run_is_one_line_at_the_start(monkeypatch):
    """Where it makes a tensor on the CPU, the operators of CUDA fail as this does."""

    def fails(model, device, *_, **__):
        raise RuntimeError("Expected all tensors to be on the same device, but found two.\nmore lines")

    load._check_device(Net(), data()[0][:2], CPU)
    monkeypatch.setattr(load, "running", fails)
    load._check_device(Net(), data()[0][:2], CPU)  # what runs anyway is not run twice
    message = (
        "`model` must run on the device cuda, got the error: Expected all tensors to be on the same device, but found "
        "two; make its tensors on the input's device and register those that it keeps, or pass --device cpu."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load._check_device(Net(), data()[0][:2], torch.device("cuda"))


def test_too_little_memory_is_told_as_that(monkeypatch):
    class Full(nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(load, "running", lambda model, device: running(model, CPU))
    with pytest.raises(InputError, match=r"^`device` must have memory for one sample of `data`, got cpu without; "):
        load._check_device(Full(), data()[0][:2], torch.device("cuda"))


@pytest.mark.parametrize(
    "command", ["search", "inspect", "evaluate", "apply", "verify", "finetune", "compare", "train-policy"]
)
def test_every_command_that_computes_takes_a_device(command, run, tmp_path):
    """A wrong one is refused by all in the same words, before anything is computed or written."""
    (tmp_path / "suite.yaml").write_text("budgets: [size=0.1]\nmethods: [solver]\n")
    arguments = {
        "search": ["--budget", "size=0.1", "--out", tmp_path / "new"],
        "evaluate": ["--plan", run / "plan.yaml"],
        "apply": ["--plan", run / "plan.yaml", "--out", tmp_path / "new"],
        "verify": [run],
        "finetune": [run, "--epochs", "1"],
        "compare": [tmp_path / "suite.yaml", "--out", tmp_path / "new"],
        "train-policy": [tmp_path / "suite.yaml", "--out", tmp_path / "new"],
    }
    before = contents(run)
    done = invoke(command, *arguments.get(command, []), "--device", "abacus", "--quiet")
    refused(done, "`device` must be such as auto, cpu or cuda:0, got 'abacus'.")
    assert not (tmp_path / "new").exists()
    assert contents(run) == before


@WITH_CUDA
def test_modules_and_tensors_on_cuda_are_taken_and_stay_there(tmp_path):
    found = []
    for device in ("cpu", "cuda"):
        model = Net().to(device)
        result = autocompress.search(model, data(device), device=device, **options_of(tmp_path / device))
        assert result.verification.passed
        assert {each.device.type for each in model.parameters()} == {device}
        assert {each.device.type for each in result.model.parameters()} == {"cpu"}
        found.append(result)
    assert found[0].limits == found[1].limits
    assert found[0].original_outcome.accuracy == found[1].original_outcome.accuracy
    held = autocompress.load(found[1].run_folder, Net().cuda())
    assert torch.allclose(held(data()[0]), found[1].model(data()[0]), atol=1e-4)


@WITH_CUDA
def test_every_command_runs_on_cuda(tmp_path):
    model, options = Net(), options_of(tmp_path) | {"device": "cuda"}
    result = autocompress.search(model, data(), **options)
    measured = autocompress.evaluate(model, data(), result.plan, **options | {"out": None})
    assert measured.outcome.kl == pytest.approx(result.search_outcome.kl, rel=1e-3)
    assert autocompress.verify(result.run_folder, model, data(), device="cuda").passed
    assert autocompress.finetune(result.run_folder, model, data(), finetune=0.5, device="cuda").verification.passed
    assert autocompress.inspect(model, data(), **options | {"out": None}).layers


def test_data_comes_to_the_cpu():
    """On CUDA what is given there, elsewhere what is here already; nothing is copied twice."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs, labels = data(device)
    made = from_tensors((inputs, labels), search_samples=10, calibration_samples=10)
    for tensor in (*made.search(), *made.calibration(), made.train.inputs, made.train.labels):
        assert tensor.device == CPU
    assert (made.train.inputs.data_ptr() == inputs.data_ptr()) == (device == "cpu")
