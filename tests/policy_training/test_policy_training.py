"""Training a policy end to end on two tiny networks of the digits: files, resuming, refusals, the zoo's cache."""

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

import autocompress.policy_training.experience as exploring
import autocompress.policy_training.gathering as gathering
import autocompress.policy_training.training as training
import autocompress.policy_training.zoo as zoo
from autocompress.cli.main import app
from autocompress.data import from_tensors, load_data
from autocompress.errors import InputError
from autocompress.policies.files import load_policy
from autocompress.policy_training.experience import plan_at
from autocompress.policy_training.experience_files import load_experience
from autocompress.policy_training.recipe import Recipe, ZooNetwork, read_recipe
from autocompress.policy_training.training import train_policy
from autocompress.progress import Silent
from autocompress.workers.tasks import Death, Result
from autocompress_envs.solver import Solver

RESNET = {
    "name": "res", "model": "autocompress.models.small_nets:SmallResNet", "data": "digits",
    "epochs": 12, "augmentation": "none", "model_args": {"blocks": [1], "width": 8, "channels": 1},
}  # fmt: skip
VGG = {
    "name": "vgg", "model": "autocompress.models.small_nets:SmallVgg", "data": "digits", "epochs": 2,
    "model_args": {"widths": [[8], [8]], "hidden": 0, "channels": 1},
}  # fmt: skip
CONTENT = {
    "data": {"digits": "digits"},
    "networks": [RESNET, VGG],
    "tasks": [
        {
            "name": "small",
            "budgets": [{"resource": "size", "low": 0.5, "high": 0.9}],
            "options": {"target": "packed"},
        },
    ],
    "budgets": 3,
    "plans": 3,
    "search_samples": 64,
    "fitting": {"steps": 20, "width": 8},
    "reinforcement": {"steps": 32, "environments": 2, "rollout": 16, "batch": 8},
}
CHANGED = {**CONTENT, "budgets": 4}


class Watcher(Silent):
    def __init__(self):
        self.stages, self.advances, self.notes = [], [], []

    def stage(self, text):
        self.stages.append(text)

    def advance(self, done, total, what):
        self.advances.append((done, total, what))

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(yaml.safe_dump(CONTENT))
    return file


@pytest.fixture(scope="module")
def finished(recipe, cache, tmp_path_factory):
    """One whole training, shared: (policy, folder, watcher)."""
    folder, watcher = tmp_path_factory.mktemp("policies") / "mine", Watcher()
    return train_policy(recipe, folder, cache=cache, progress=watcher), folder, watcher


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished[1], tmp_path / "mine")


@pytest.fixture
def nothing_made(monkeypatch):
    """Any menu, evaluator or training from here on fails."""

    def refuse(*given, **named):
        raise AssertionError("made again")

    for module, name in ((gathering, "build_evaluator"), (gathering, "prepare"), (zoo, "train_")):
        monkeypatch.setattr(module, name, refuse)


def test_a_worker_writes_the_files_of_one_network(finished, cache, tmp_path):
    content = {
        **CONTENT,
        "networks": [VGG, {**RESNET, "name": "bad", "model": "collections:OrderedDict", "model_args": {}}],
    }
    run = gathering._runner(Recipe.model_validate(content), tmp_path, cache, "cpu", torch.get_num_threads())
    picks, why = run("vgg", None)
    assert why == ""
    assert any(name.startswith("evaluating vgg ") for name in picks)
    assert [file.name for file in tmp_path.iterdir()] == ["vgg--small.npz"]
    _, why = run("bad", None)
    assert why
    assert [file.name for file in tmp_path.iterdir()] == ["vgg--small.npz"]


def test_networks_that_fail_at_workers_are_left_out_and_the_others_read(finished, copied, cache, monkeypatch):
    """One worker died twice, the other has written its files meanwhile."""
    kept = copied / "experience" / "vgg--small.npz"
    content = kept.read_bytes()
    for file in (copied / "experience").glob("*.npz"):
        file.unlink()

    def run_tasks(executor, tasks, told):
        assert (executor.count, list(tasks)) == (2, ["res", "vgg"])
        for name in tasks:
            told(name, None)
        kept.write_bytes(content)
        yield "vgg", Result(({}, ""))
        yield "res", Death("the worker process was ended by SIGKILL")

    monkeypatch.setattr(gathering, "run_tasks", run_tasks)
    wanted, watcher = Recipe.model_validate(CONTENT), Watcher()
    workers = gathering.Workers("cpu", jobs=4)
    splits = gathering.load_all(wanted)
    gathered, failed = gathering.gather(wanted, splits, copied / "experience", cache, workers, watcher)
    assert set(gathered) == {("vgg", "small")}
    assert failed == {"res": "the worker process was ended by SIGKILL"}
    assert watcher.notes == ["res is left out: the worker process was ended by SIGKILL"]
    assert watcher.advances[:2] == [(1, 2, "networks"), (2, 2, "networks")]


def refusal(*given, **named):
    with pytest.raises(InputError) as caught:
        train_policy(*given, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.parent.name != "tb"}


def stamps(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (folder / "experience").glob("*.npz")}


def test_the_folder_holds_recipe_experience_and_policy(finished, recipe):
    saved, folder, _ = finished
    assert files(folder) == {
        "recipe.yaml", "experience/res--small.npz", "experience/vgg--small.npz", "experience/settled.json",
        "policy.json", "policy.safetensors",
    }  # fmt: skip
    assert read_recipe(folder / "recipe.yaml") == read_recipe(recipe)
    assert len(list((folder / "tb").iterdir())) == 1
    loaded = load_policy(folder)
    assert loaded.record == saved.record
    for name, tensor in saved.policy.state_dict().items():
        assert torch.equal(loaded.policy.state_dict()[name], tensor)
    assert any(bool(member.score[3].weight.any()) for member in loaded.policy.members)


def test_the_record_says_what_it_was_trained_on(finished, recipe):
    saved, folder, _ = finished
    found = [experience_of(folder, name) for name in ("res", "vgg")]
    assert sorted(saved.record) == [
        "date", "failed", "families", "kinds", "licence", "networks", "plans", "recipe_sha256", "scores",
        "seconds_of_last_run", "tasks", "versions",
    ]  # fmt: skip
    assert saved.record["kinds"] == ["conv", "linear"]
    assert saved.record["networks"] == ["res", "vgg"]
    assert saved.record["tasks"] == ["small: size 0.5 to 0.9"]
    assert saved.record["plans"] == sum(len(each.losses) for each in found)
    assert (saved.record["families"], saved.record["failed"]) == (["unnamed"], {})
    assert saved.record["licence"] == "Apache-2.0"
    content = read_recipe(folder / "recipe.yaml").model_dump(mode="json", exclude={"data"})
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    assert saved.record["recipe_sha256"] == digest
    score = saved.record["scores"]["explored_best_kl_over_solver"]["small"]
    assert 0.0 < score <= 1.0


def experience_of(folder, name):
    file = folder / "experience" / f"{name}--small.npz"
    with np.load(file) as archive:
        made_for = str(archive["made_for"])
    is_there, found = load_experience(file, made_for)
    assert is_there
    return found


def test_experience_is_real_measurements_within_their_budgets(finished):
    for name, layers in (("res", 4), ("vgg", 3)):
        found = experience_of(finished[1], name)
        assert 1 <= len(found.budgets) <= 3
        assert found.labelings.sparsity.shape == (len(found.losses), layers)
        assert len(found.losses) <= 9
        assert found.losses.min() > 0
        for limits in found.budgets:
            assert list(limits) == ["size"]
            reference = Solver(found.problem, limits).solve().key()
            keys = [plan_at(found.labelings, number).key() for number in found.within(limits)]
            assert reference in keys
            assert found.losses[found.within(limits)[0]] <= exploring.MOST_LOSS


def test_progress_is_told(finished):
    _, folder, watcher = finished
    found = [experience_of(folder, name) for name in ("res", "vgg")]
    budgets = sum(len(each.budgets) for each in found)
    labels = sum(len(each.budgets) * len(each.problem.layers) for each in found)
    assert watcher.stages == [
        "network 1 of 2: res",
        "training res: 12 epochs",
        "network 2 of 2: vgg",
        "training vgg: 2 epochs",
        f"lessons: the expert's plans under {budgets} budgets",
        f"imitation: {labels} labels of the expert",
        "reinforcement learning: 32 steps in the environment",
    ]
    assert (20, 20, "steps of imitation") in watcher.advances
    assert (32, 32, "steps in the environment") in watcher.advances
    assert (1, 3, "budgets of small") in watcher.advances
    assert watcher.notes == []


def test_a_folder_in_use_is_not_touched(finished, recipe, cache):
    folder = finished[1]
    before = stamps(folder)
    assert refusal(recipe, folder, cache=cache) == (
        f"`out` must be a new folder, got {folder}, which holds a training; pass --resume to go on with it or "
        "--force to replace it."
    )
    assert stamps(folder) == before


def test_resuming_evaluates_nothing_again(copied, finished, recipe, cache, nothing_made):
    before = stamps(copied)
    for name in ("policy.json", "policy.safetensors"):
        (copied / name).unlink()
    resumed = train_policy(recipe, copied, cache=cache, resume=True)
    assert stamps(copied) == before
    assert (copied / "policy.safetensors").read_bytes() == (finished[1] / "policy.safetensors").read_bytes()
    timeless = [{**record, "seconds_of_last_run": 0, "date": ""} for record in (resumed.record, finished[0].record)]
    assert timeless[0] == timeless[1]


def test_resuming_explores_only_what_is_missing(copied, finished, recipe, cache, monkeypatch):
    before = stamps(copied)
    (copied / "experience/vgg--small.npz").unlink()
    monkeypatch.setattr(zoo, "train_", lambda *given: pytest.fail("the weights are in the cache"))
    watcher = Watcher()
    train_policy(recipe, copied, cache=cache, resume=True, progress=watcher)
    assert watcher.stages[:2] == ["network 1 of 2: res", "network 2 of 2: vgg"]
    assert "training vgg: 2 epochs" not in watcher.stages
    after = stamps(copied)
    assert after["res--small.npz"] == before["res--small.npz"]
    assert after["vgg--small.npz"][0] > before["vgg--small.npz"][0]
    first, again = (experience_of(folder, "vgg") for folder in (copied, finished[1]))
    assert first.budgets == again.budgets
    assert (first.losses == again.losses).all()


EVALUATING = 'evaluating vgg {"target": "packed"}'


def test_resuming_picks_no_dtype_and_batch_size_again(copied, recipe, tmp_path, monkeypatch):
    """With an empty cache the zoo is trained again, too."""
    file = copied / "experience/settled.json"
    number_formats = json.loads(file.read_text())
    assert list(number_formats) == ["training res", EVALUATING.replace("vgg", "res"), "training vgg", EVALUATING]
    wanted = {"training vgg": "bfloat16", EVALUATING: {"dtype": "bfloat16", "batch_size": 3}}
    file.write_text(json.dumps(number_formats | wanted))
    (copied / "experience/vgg--small.npz").unlink()
    built, ran = [], set()
    build, forward = gathering.build_evaluator, zoo._forward

    def building(*given):
        built.append(build(*given))
        return built[-1]

    def forwarding(model, inputs, dtype):
        ran.add(dtype)
        return forward(model, inputs, dtype)

    monkeypatch.setattr(gathering, "build_evaluator", building)
    monkeypatch.setattr(zoo, "_forward", forwarding)
    train_policy(recipe, copied, cache=tmp_path / "empty", resume=True)
    assert ran == {torch.bfloat16}
    assert [(each.dtype, each.batch_size) for each in built] == [("bfloat16", 3)]
    assert json.loads(file.read_text()) == number_formats | wanted


def test_what_was_picked_is_kept_before_it_is_used(tmp_path, recipe, monkeypatch):
    """A kill in the first network's training leaves the pick behind; --force removes it."""

    def killed(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, "_fastest_dtype", lambda *given: "bfloat16")
    monkeypatch.setattr(zoo, "_forward", killed)
    with pytest.raises(KeyboardInterrupt):
        train_policy(recipe, tmp_path / "mine", cache=tmp_path / "empty")
    file = tmp_path / "mine/experience/settled.json"
    assert json.loads(file.read_text()) == {"training res": "bfloat16"}
    monkeypatch.setattr(zoo, "_fastest_dtype", killed)
    with pytest.raises(KeyboardInterrupt):
        train_policy(recipe, tmp_path / "mine", cache=tmp_path / "empty", force=True)
    assert not file.exists()


def test_resuming_by_another_recipe_is_refused(copied, cache):
    before = stamps(copied)
    assert refusal(Recipe.model_validate(CHANGED), copied, cache=cache, resume=True) == (
        f"`resume` must go on by the recipe in {copied / 'recipe.yaml'}, got another; choose another --out or --force."
    )
    assert stamps(copied) == before


def test_resuming_nothing_is_refused(tmp_path, recipe, cache):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new", tmp_path / "empty"):
        assert refusal(recipe, folder, cache=cache, resume=True) == (
            f"`resume` needs the folder of a training, got {folder}, which has no recipe.yaml."
        )
    assert not (tmp_path / "new").exists()


def test_a_folder_of_other_files_is_refused_even_by_force(tmp_path, recipe, cache):
    (tmp_path / "thesis.txt").write_text("years of work")
    for force in (False, True):
        assert refusal(recipe, tmp_path, cache=cache, force=force) == (
            f"`out` must be a new or empty folder, got {tmp_path}, which holds other files."
        )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_force_measures_anew(copied, cache, monkeypatch):
    before = stamps(copied)
    shorter = Recipe.model_validate(
        {**CONTENT, "networks": [VGG], "budgets": 1, "fitting": {"steps": 2, "width": 8},
         "reinforcement": {"steps": 0}}
    )  # fmt: skip
    train_policy(shorter, copied, cache=cache, force=True)
    after = stamps(copied)
    assert list(after) == ["vgg--small.npz"]
    assert after["vgg--small.npz"][0] > before["vgg--small.npz"][0]
    assert read_recipe(copied / "recipe.yaml") == shorter
    assert load_policy(copied).record["networks"] == ["vgg"]


def test_where_every_network_only_guesses_nothing_is_fitted(tmp_path, recipe, cache, monkeypatch):
    monkeypatch.setattr(exploring, "MOST_LOSS", -1.0)
    assert refusal(recipe, tmp_path / "mine", cache=cache) == (
        "`tasks` must have budgets under which the solver's plan loses at most 3 nats, got none for any network; "
        "raise `low` and `high`."
    )
    assert files(tmp_path / "mine") == {
        "recipe.yaml", "experience/res--small.npz", "experience/vgg--small.npz", "experience/settled.json",
    }  # fmt: skip


def test_a_network_that_fails_is_named_and_left_out(tmp_path, cache):
    broken = {**VGG, "name": "broken", "model_args": {**VGG["model_args"], "channels": 5}}
    wanted = Recipe.model_validate({**CONTENT, "networks": [broken, VGG], "reinforcement": {"steps": 0}})
    watcher = Watcher()
    saved = train_policy(wanted, tmp_path / "mine", cache=cache, progress=watcher)
    assert saved.record["networks"] == ["vgg"]
    assert list(saved.record["failed"]) == ["broken"]
    (note,) = watcher.notes
    assert note.startswith("broken is left out: Given groups=1, weight of size [8, 5, 3, 3], expected input")
    assert "\n" not in note


def test_a_trained_network_beats_chance(finished, cache):
    """Chance is 10 %; the data's own search split, which was not trained on."""
    data = load_data("digits", seed=0, search_samples=64)
    network = ZooNetwork.model_validate(RESNET)
    model = zoo.trained(network, data, cache / "zoo")
    inputs, labels = data.search()
    with torch.inference_mode():
        accuracy = (model(inputs).argmax(1) == labels).float().mean().item()
    assert accuracy > 0.8
    assert not model.training


def test_weights_come_from_the_cache(finished, cache, nothing_made):
    data, network = load_data("digits", seed=0, search_samples=64), ZooNetwork.model_validate(RESNET)
    file = zoo.weights_file(network, data, cache / "zoo")
    before = file.read_bytes()
    model = zoo.trained(network, data, cache / "zoo")
    state = load_file(file)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert file.read_bytes() == before
    assert sorted(path.name[:4] for path in (cache / "zoo").iterdir()) == ["res-", "vgg-"]


def test_weights_are_named_by_all_that_they_depend_on(tmp_path):
    data, other = (load_data("digits", seed=seed, search_samples=64) for seed in (0, 1))
    base = ZooNetwork.model_validate(RESNET)
    hashed = zoo.weights_file(base, data, tmp_path).stem.removeprefix("res-")
    renamed = base.model_copy(update={"name": "same"})
    assert zoo.weights_file(renamed, data, tmp_path) == tmp_path / f"same-{hashed}.safetensors"
    changes = [{"epochs": 7.0}, {"learning_rate": 0.2}, {"seed": 1}, {"augmentation": "shift"}, {"model_args": {}}]
    changed = [zoo.weights_file(base.model_copy(update=each), data, tmp_path) for each in changes]
    assert len({*changed, zoo.weights_file(base, other, tmp_path), tmp_path / f"res-{hashed}.safetensors"}) == 7


def test_training_needs_labels(tmp_path):
    data = from_tensors((torch.rand(60, 1, 8, 8), None), None, search_samples=12, calibration_samples=10)
    with pytest.raises(InputError) as caught:
        zoo.trained(ZooNetwork.model_validate(RESNET), data, tmp_path)
    assert str(caught.value) == f"`data` must have labels to train res, got {data.name} without."


@pytest.mark.parametrize("steps", [1, 4, 5, 6])
def test_trainings_of_a_few_steps(steps):
    """Five once had a warm-up of no length. One batch an epoch; 40 samples, 8 of them for the search split."""
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.rand(40, 1, 8, 8, generator=generator), torch.arange(40) % 10
    data = from_tensors((inputs, labels), None, search_samples=8, calibration_samples=8)
    network = ZooNetwork.model_validate({**RESNET, "epochs": steps})
    model = zoo.load_model(network.model, None, network.model_args)
    before = model.linear.weight.detach().clone()
    zoo.train_(model, data, network)
    assert int(model.stem[1].num_batches_tracked) == steps
    assert not torch.equal(model.linear.weight, before)
    assert not model.training


def invoke(*arguments):
    return CliRunner().invoke(app, ["train-policy", *map(str, arguments)])


def test_the_command_shows_the_policy(copied, finished, recipe, cache, nothing_made):
    done = invoke(recipe, "--out", copied, "--cache", cache, "--resume", "--quiet", "--format", "json")
    assert (done.exit_code, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert (shown["folder"], shown["width"], shown["members"]) == (str(copied), 8, 1)
    assert shown["record"]["plans"] == finished[0].record["plans"]


def test_the_command_shows_a_policy_in_a_folder_named_like_the_shipped_one(
    copied, recipe, cache, nothing_made, monkeypatch
):
    monkeypatch.chdir(copied.parent)
    copied.rename("default")
    done = invoke(recipe, "--out", "default", "--cache", cache, "--resume", "--quiet", "--format", "json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout)["folder"] == "default"


def test_an_interrupted_command_says_how_to_go_on(tmp_path, recipe, cache, monkeypatch):
    def interrupt(*given):
        raise KeyboardInterrupt

    out = tmp_path / "mine"
    arguments = [recipe, "--out", out, "--cache", cache, "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(training, "load_all", interrupt)
        done = invoke(*arguments)
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "autocompress: interrupted.\n")
    with monkeypatch.context() as patch:
        patch.setattr(training, "gather", interrupt)
        done = invoke(*arguments)
    command = f"autocompress train-policy {out}/recipe.yaml --out {out} --cache {cache} --resume"
    assert (done.exit_code, done.stdout) == (130, "")
    assert done.stderr == f"autocompress: interrupted. What was explored is kept; continue with: {command}\n"
    done = invoke(*command.split()[2:], "--quiet")
    assert (done.exit_code, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--data", "digits"], "`data` must be NAME=SPEC, got 'digits'; such as cifar10=parquet:FOLDER."),
        (["--data", "=x"], "`data` must be NAME=SPEC, got '=x'; such as cifar10=parquet:FOLDER."),
        (["--data", "digits="], "`data` must be NAME=SPEC, got 'digits='; such as cifar10=parquet:FOLDER."),
        (["--data", "cifar=a=b"], "`data` must name data of the recipe, got 'cifar', which {recipe} does not have."),
        (["--data", "digits=wat"], "`data` must be one of "),
        (["--format", "xml"], "`format` must be 'table' or 'json', got 'xml'."),
        (["--resume"], "`resume` needs the folder of a training, got {out}, which has no recipe.yaml."),
    ],
)
def test_wrong_options_are_told(tmp_path, recipe, cache, given, message):
    done = invoke(recipe, "--out", tmp_path / "new", "--cache", cache, "--quiet", *given)
    wanted = "autocompress: " + message.format(recipe=recipe, out=tmp_path / "new")
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(wanted) if wanted.endswith(" ") else done.stderr == wanted + "\n"


def test_wrong_input_in_a_process_of_its_own(finished, recipe):
    command = [sys.executable, "-c", "from autocompress.cli.main import main; main()", "train-policy", str(recipe)]
    done = subprocess.run([*command, "--out", str(finished[1])], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"autocompress: `out` must be a new folder, got {finished[1]}, which holds a training; pass --resume to go on "
        "with it or --force to replace it.\n"
    )
