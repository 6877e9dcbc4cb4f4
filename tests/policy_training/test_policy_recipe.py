"""Recipes: the shipped one is valid, they come back from YAML, and every rule is told in one line."""

import copy
import hashlib
import json
from pathlib import Path

import pytest
import yaml

from autocompress.errors import InputError
from autocompress.models import load_model
from autocompress.policies.files import load_policy
from autocompress.policy_training.recipe import Fitting, Recipe, Reinforcement, ZooNetwork, read_recipe

CONFIGS = Path(__file__).parents[2] / "configs/policy"
SMALLEST = {
    "data": {"digits": "digits"},
    "networks": [{"name": "net", "model": "digits", "data": "digits", "epochs": 1}],
    "tasks": [{"name": "small", "budgets": [{"resource": "size", "low": 0.2, "high": 0.8}]}],
}
MENUS = (
    "activation_bits, criterion, granularity, quantizer, ranks, remove_branches, sparsity_levels, target, weight_bits, "
    "width_steps"
)


def written(folder, content):
    file = folder / "recipe.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file


def refusal(file, data=None):
    with pytest.raises(InputError) as caught:
        read_recipe(file, data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("default*.yaml")), ids=lambda file: file.stem)
def test_shipped_recipes_are_valid(tmp_path, file):
    recipe = read_recipe(file)
    assert read_recipe(written(tmp_path, recipe.to_yaml())) == recipe
    for network in recipe.networks:
        load_model(network.model, None, network.model_args)  # the arguments fit


def test_the_shipped_policy_was_trained_by_the_shipped_recipe():
    recipe, saved = read_recipe(CONFIGS / "default.yaml"), load_policy("default")
    assert saved.record["networks"] == [network.name for network in recipe.networks]
    assert saved.record["families"] == sorted({network.family for network in recipe.networks})
    content = recipe.model_dump(mode="json", exclude={"data"})
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    assert saved.record["recipe_sha256"] == digest
    assert (saved.policy.width, len(saved.policy.members)) == (recipe.fitting.width, recipe.fitting.members)


def test_what_is_left_out_has_defaults(tmp_path):
    recipe = read_recipe(written(tmp_path, SMALLEST))
    network, task = recipe.networks[0], recipe.tasks[0]
    assert (network.learning_rate, network.augmentation, network.seed, network.model_args) == (0.1, "shift", 0, {})
    assert (network.family, task.options) == ("unnamed", {})
    assert (recipe.fitting, recipe.reinforcement) == (Fitting(), Reinforcement())
    assert read_recipe(written(tmp_path, recipe.to_yaml())) == recipe


def test_data_specs_are_replaced_by_name(tmp_path):
    file = written(tmp_path, SMALLEST)
    assert read_recipe(file, {"digits": "npz:mine.npz"}) == Recipe.model_validate(
        {**SMALLEST, "data": {"digits": "npz:mine.npz"}}
    )
    assert read_recipe(file, {}).data == {"digits": "digits"}
    assert refusal(file, {"cifar10": "parquet:x"}) == (
        f"`data` must name data of the recipe, got 'cifar10', which {file} does not have."
    )


def test_options_may_be_written_with_dashes(tmp_path):
    content = copy.deepcopy(SMALLEST)
    content["tasks"][0]["options"] = {"weight-bits": [2, 4], "target": "packed"}
    assert read_recipe(written(tmp_path, content)).tasks[0].options == {"weight-bits": [2, 4], "target": "packed"}


NETWORK = {
    "name": ("a/b", "`networks.0.name` String should match pattern '^[A-Za-z0-9._]+(-[A-Za-z0-9._]+)*$', got 'a/b'."),
    "model": (3, "`networks.0.model` must be a valid string, got 3."),
    "model_args": (3, "`networks.0.model_args` must be a valid dictionary, got 3."),
    "data": ("cifar10", "`data` of net must be one of digits, got 'cifar10'."),
    "epochs": (0, "`networks.0.epochs` must be greater than 0, got 0."),
    "learning_rate": (float("inf"), "`networks.0.learning_rate` must be a finite number, got inf."),
    "augmentation": ("blur", "`networks.0.augmentation` must be 'none', 'shift' or 'shift+flip', got 'blur'."),
    "seed": (-1, "`networks.0.seed` must be greater than or equal to 0, got -1."),
    "modell": (
        1,
        f"Unknown modell (did you mean model?) in `networks.0`; known: {', '.join(ZooNetwork.model_fields)}.",
    ),
}
SIZE = {"resource": "size", "low": 0.2, "high": 0.8}
TASK = [
    ({"name": ""}, "`tasks.0.name` String should match pattern '^[A-Za-z0-9._]+(-[A-Za-z0-9._]+)*$', got ''."),
    (
        {"budgets": [{**SIZE, "resource": "latency"}]},
        "`tasks.0.budgets.0.resource` must be 'size', 'macs', 'bitops' or 'memory', got 'latency'.",
    ),
    ({"budgets": [{**SIZE, "low": -0.1}]}, "`tasks.0.budgets.0.low` must be greater than or equal to 0, got -0.1."),
    ({"budgets": [{**SIZE, "high": 1.1}]}, "`tasks.0.budgets.0.high` must be less than or equal to 1, got 1.1."),
    ({"budgets": [{**SIZE, "high": 0.2}]}, "`low` must be below `high`, got 0.2 and 0.2 for size."),
    ({"budgets": [{**SIZE, "low": float("nan")}]}, "`tasks.0.budgets.0.low` must be a finite number, got nan."),
    ({"budgets": []}, "`tasks.0.budgets` Tuple should have at least 1 item after validation, not 0, got []."),
    ({"options": {"seed": 1, "wat": 2}}, f"`options` of the task small must be among {MENUS}, got ['seed', 'wat']."),
    ({"options": {"sparsity_levels": 0}}, "`sparsity_levels` must be greater than or equal to 1, got 0."),
    (
        {"options": {"target": "phone"}},
        "`target` must be one of executorch, litert, onnxruntime, openvino, packed, got 'phone'.",
    ),
    (
        {"options": {"weight_bits": [3], "target": "onnxruntime"}},
        "`weight_bits` must be among 2, 4, 8, 16, 32 for the target onnxruntime, got 3; choose others or "
        "--target packed.",
    ),
]
WHOLE = [
    ({"budgets": 0}, "`budgets` must be greater than or equal to 1, got 0."),
    ({"plans": 1}, "`plans` must be greater than or equal to 2, got 1."),
    ({"search_samples": 0}, "`search_samples` must be greater than or equal to 1, got 0."),
    ({"seed": -1}, "`seed` must be greater than or equal to 0, got -1."),
    ({"networks": []}, "`networks` Tuple should have at least 1 item after validation, not 0, got []."),
    ({"tasks": []}, "`tasks` Tuple should have at least 1 item after validation, not 0, got []."),
    ({"data": "digits"}, "`data` must be a valid dictionary, got 'digits'."),
    ({"wat": 1}, f"Unknown wat in the file; known: {', '.join(Recipe.model_fields)}."),
    ({"networks": SMALLEST["networks"] * 2}, "`networks` must have different names, got net twice."),
    ({"tasks": SMALLEST["tasks"] * 3}, "`tasks` must have different names, got small twice."),
    ({"fitting": {"network": "rnn"}}, f"Unknown network in `fitting`; known: {', '.join(Fitting.model_fields)}."),
    ({"fitting": {"members": 0}}, "`fitting.members` must be greater than or equal to 1, got 0."),
    ({"fitting": {"members": 65}}, "`fitting.members` must be less than or equal to 64, got 65."),
    ({"fitting": {"steps": 0}}, "`fitting.steps` must be greater than or equal to 1, got 0."),
    ({"fitting": {"batch": 0}}, "`fitting.batch` must be greater than or equal to 1, got 0."),
    ({"fitting": {"learning_rate": 0}}, "`fitting.learning_rate` must be greater than 0, got 0."),
    ({"fitting": {"weight_decay": -1}}, "`fitting.weight_decay` must be greater than or equal to 0, got -1."),
    ({"fitting": {"shrinkage": -1}}, "`fitting.shrinkage` must be greater than or equal to 0, got -1."),
    ({"fitting": {"seed": -1}}, "`fitting.seed` must be greater than or equal to 0, got -1."),
    ({"fitting": {"width": 66}}, "`fitting.width` must be a multiple of 4, got 66."),
    ({"reinforcement": {"steps": -1}}, "`reinforcement.steps` must be greater than or equal to 0, got -1."),
    ({"reinforcement": {"gae_lambda": 2}}, "`reinforcement.gae_lambda` must be less than or equal to 1, got 2."),
    ({"reinforcement": {"curriculum": 2}}, "`reinforcement.curriculum` must be less than or equal to 1, got 2."),
]


@pytest.mark.parametrize("field", NETWORK)
def test_networks_that_break_a_rule(tmp_path, field):
    value, message = NETWORK[field]
    content = {**SMALLEST, "networks": [{**SMALLEST["networks"][0], field: value}]}
    assert refusal(written(tmp_path, content)) == message


@pytest.mark.parametrize(("change", "message"), TASK)
def test_tasks_that_break_a_rule(tmp_path, change, message):
    assert refusal(written(tmp_path, {**SMALLEST, "tasks": [{**SMALLEST["tasks"][0], **change}]})) == message


@pytest.mark.parametrize(("change", "message"), WHOLE)
def test_recipes_that_break_a_rule(tmp_path, change, message):
    assert refusal(written(tmp_path, {**SMALLEST, **change})) == message


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        (("data",), "`data` must be given."),
        (("tasks",), "`tasks` must be given."),
        (("networks", 0, "epochs"), "`networks.0.epochs` must be given."),
    ],
)
def test_what_must_be_given(tmp_path, left_out, message):
    content = copy.deepcopy(SMALLEST)
    inner = content
    for key in left_out[:-1]:
        inner = inner[key]
    del inner[left_out[-1]]
    assert refusal(written(tmp_path, content)) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "`recipe` must be a mapping, got {file}, which holds a list."),
        ("", "`recipe` must be a mapping, got {file}, which holds a NoneType."),
        ("data: {", "`recipe` must be YAML or JSON, got {file}, line 1: expected the node content, but found "
         "'<stream end>'."),
    ],
)  # fmt: skip
def test_files_that_are_no_recipe(tmp_path, text, message):
    file = written(tmp_path, text)
    assert refusal(file) == message.format(file=file)


def test_a_file_that_is_not_there(tmp_path):
    file = tmp_path / "none.yaml"
    assert refusal(file) == f"`recipe` must be a readable file, got {file}: No such file or directory."
