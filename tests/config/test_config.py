"""Options: one table for the command line, YAML and Python; who wins; messages for wrong ones."""

from pathlib import Path

import pytest
import yaml

from autocompress import InputError
from autocompress.config import OPTIONS, Config, first_difference, load_config, make_config

CONFIGS = Path(__file__).parents[2] / "configs"


def write(folder, text):
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_command_line_wins_over_yaml_wins_over_default(tmp_path):
    path = write(tmp_path, "episodes: 7\nseed: 3\nbudget: size=0.5\n")
    config = load_config(path, {"seed": "5", "budget": None})
    assert (config.episodes, config.seed, config.budget, config.search_samples) == (7, 5, "size=0.5", 1000)


def test_text_and_yaml_give_the_same_values(tmp_path):
    path = write(
        tmp_path,
        "weight-bits: [2, 4]\nmean: [0.5, 0.25, 1]\nmodel_args: {width: 2}\nforce: true\n"
        "budget: {size: 0.1, macs: 50%}\n",
    )
    text = {
        "weight_bits": "2,4",
        "mean": "0.5,0.25,1",
        "model_args": "{width: 2}",
        "force": True,
        "budget": "size=0.1,macs=50%",
    }
    assert load_config(path, {}) == load_config(None, text)
    assert load_config(path, {}).weight_bits == (2, 4)
    assert load_config(None, {"activation_bits": 8}).activation_bits == (8,)


def test_yaml_round_trip():
    config = make_config(
        {
            "model": "resnet20",
            "weights": "w.safetensors",
            "budget": "size=0.1",
            "mean": (0.5, 0.5, 0.5),
            "out": "runs/x",
        }
    )
    assert make_config(yaml.safe_load(config.to_yaml())) == config
    assert set(yaml.safe_load(config.to_yaml())) == set(OPTIONS)


def test_unknown_options_list_the_known(tmp_path):
    path = write(tmp_path, "episods: 7\nbudgetz: size=0.5\nseed: 1\n")
    with pytest.raises(InputError) as error:
        load_config(path, {})
    assert str(error.value) == (
        f"Unknown budgetz (did you mean budget?), episods (did you mean episodes?) in {path}; "
        f"known: {', '.join(OPTIONS)}."
    )
    with pytest.raises(InputError) as error:
        make_config({"episods": 7})
    assert str(error.value) == f"Unknown episods (did you mean episodes?) in the options; known: {', '.join(OPTIONS)}."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"distillation": "week"},
            "`distillation` must be 'standard', 'weak' or 'strong', got 'week' (did you mean weak?).",
        ),
        ({"episodes": "many"}, "`episodes` must be a valid integer, got 'many'."),
        ({"episodes": -1}, "`episodes` must be greater than or equal to 0, got -1."),
        ({"episodes": 1.5}, "`episodes` must be a valid integer, got 1.5."),
        ({"seed": -1}, "`seed` must be greater than or equal to 0, got -1."),
        ({"price_scale": 0}, "`price_scale` must be greater than 0, got 0."),
        ({"weight_bits": "2,x"}, "`weight_bits` must be a valid integer, got 'x'."),
        ({"model_args": "3"}, "`model_args` must be a valid dictionary, got 3."),
        ({"model_args": "{a: "}, "`model_args` must be a valid dictionary, got '{a: '."),
        ({"format": "xml"}, "`format` must be 'table' or 'json', got 'xml'."),
        ({"force": "perhaps"}, "`force` must be a valid boolean, got 'perhaps'."),
        (
            {"budget": "flops=1"},
            "`budget resource` must be one of bitops, energy, latency, macs, memory, size, got 'flops'.",
        ),
        ({"budget": 0.5}, "`budget` must be a valid string, got 0.5."),
    ],
)
def test_wrong_values(options, message):
    with pytest.raises(InputError) as error:
        make_config(options)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- a\n- b\n", "`config` must be a mapping of options, got {path}, which holds a list."),
        (
            "seed: 1\nmean: [1\n",
            "`config` must be YAML or JSON, got {path}, line 3: expected ',' or ']', but got '<stream end>'.",
        ),
    ],
)
def test_files_that_are_no_options(tmp_path, text, problem):
    path = write(tmp_path, text)
    with pytest.raises(InputError) as error:
        load_config(path, {})
    assert str(error.value) == problem.format(path=path)


def test_missing_file():
    with pytest.raises(InputError) as error:
        load_config("none.yaml", {})
    assert str(error.value) == "`config` must be a readable file, got none.yaml: No such file or directory."


def test_empty_file_gives_the_defaults(tmp_path):
    assert load_config(write(tmp_path, ""), {}) == Config()


def test_budget_and_data_are_needed_where_nothing_else_says_them():
    with pytest.raises(InputError) as error:
        Config().required_budget()
    assert str(error.value) == "`budget` must be given, such as --budget size=0.1 (a tenth of the original's bytes)."
    with pytest.raises(InputError) as error:
        Config(model="resnet20").required_data()
    assert str(error.value) == "`data` must be given for the network resnet20, such as --data parquet:FOLDER."
    assert Config().required_data() == "digits"


def test_first_difference_ignores_what_does_not_change_the_search():
    before = Config(budget="size=0.1", seed=1, criterion="obs")
    assert first_difference(before, before.model_copy(update={"out": Path("x"), "resume": True, "jobs": 2})) is None
    assert first_difference(before, before.model_copy(update={"episodes": 2, "criterion": "l1"})) == "criterion"


TUNING = {
    "distillation": "weak", "learning_rate": 1.0, "batch_size": 7, "labels": "teacher", "soft_weight": 7.0,
    "hard_weight": 7.0, "features_weight": 7.0, "temperature": 7.0, "augmentation": "none", "clip": 7.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "compared"),
    [
        ({}, set()),
        ({"l1_epochs": 1.0}, set(TUNING)),
        ({"stages": 2, "finetune": 1.0}, {*TUNING, "finetune", "recalibration_samples"}),
        ({"stages": 2, "finetune": 1.0, "l1_epochs": 1.0}, {*TUNING, "finetune", "recalibration_samples"}),
    ],
)
def test_first_difference_counts_fine_tuning_that_comes_before_a_search(options, compared):
    before = Config(budget="size=0.1", **options)
    changes = TUNING | {"finetune": 7.0, "recalibration_samples": 7}
    differ = {name: first_difference(before, before.model_copy(update={name: changes[name]})) for name in changes}
    assert differ == {name: name if name in compared else None for name in changes}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_are_valid(path):
    config = load_config(path, {})
    assert config.required_budget().limits
    assert config.required_data()
    assert config.out is not None


def test_defaults_are_those_of_the_parts():
    """The table repeats defaults, so that `--help` needs no torch; they must not drift apart."""
    from autocompress.execute.distillation import Objective
    from autocompress.execute.tuning import FineTuning
    from autocompress.job.options import fine_tuning, request, search_request
    from autocompress.menus import MenuSettings
    from autocompress.searchers.base import SearchSettings

    def tuning(has_labels, **options):
        return fine_tuning(Config(**options), 0, has_labels=has_labels)

    assert search_request().settings == SearchSettings()
    assert request(options={"target": "packed"}).menus == MenuSettings()
    assert request().menus == MenuSettings(weight_bits=(2, 4, 8))
    assert tuning(has_labels=True) is None
    assert tuning(has_labels=False, finetune=2) == FineTuning(objective=Objective(hard=0.0))
    assert tuning(has_labels=True, finetune=2) == FineTuning(objective=Objective(hard=0.5))
    by_teacher = FineTuning(labels="teacher", objective=Objective(hard=0.5))
    assert tuning(has_labels=False, finetune=2, labels="teacher") == by_teacher
    strong = FineTuning(method="strong", objective=Objective(hard=0.0))
    assert tuning(has_labels=True, finetune=2, distillation="strong", hard_weight=0) == strong


def test_help_names_every_choice():
    from autocompress.menus import CRITERIA, QUANTIZERS
    from autocompress.searchers.agents import AGENTS
    from autocompress.searchers.base import REWARDS
    from autocompress.searchers.search import SEARCHERS
    from autocompress.targets import TARGETS

    choices = {
        "criterion": CRITERIA, "quantizer": QUANTIZERS, "method": SEARCHERS, "agent": AGENTS, "reward": REWARDS,
        "target": TARGETS,
    }  # fmt: skip
    for option, names in choices.items():
        text = Config.model_fields[option].description
        assert [name for name in names if name not in text] == []


@pytest.mark.parametrize(("given", "amount"), [(None, None), ("4GB", 4 * 10**9), (2_000_000_000, 2 * 10**9)])
def test_memory(given, amount):
    config = make_config({"memory": given})
    assert config.memory_bytes() == amount
    assert Config(**yaml.safe_load(config.to_yaml())) == config


def test_memory_that_is_no_amount():
    with pytest.raises(InputError) as error:
        make_config({"memory": "lots"})
    assert str(error.value) == "`memory` must be a number of bytes such as 500MB or 4GB, got 'lots'."
