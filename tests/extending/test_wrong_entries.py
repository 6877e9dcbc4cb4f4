"""Wrong entries from outside: one clear line, from `register_…` or from the search that uses them."""

import re

import pytest
import torch

import autocompress
from autocompress import registry
from autocompress.errors import InputError
from autocompress.extensions import CRITERIA

QUICK = {"search_samples": 64, "calibration_samples": 64, "sparsity_levels": 4, "dtype": "float32"}
AND_TRY = "; autocompress.testing.check_criterion tries it on small groups."


@pytest.mark.parametrize(
    "register",
    [
        autocompress.register_criterion, autocompress.register_quantizer, autocompress.register_searcher,
        autocompress.register_agent, autocompress.register_reward, autocompress.register_data,
        autocompress.register_model,
    ],
)  # fmt: skip
def test_what_is_no_function_is_refused(register):
    with pytest.raises(InputError, match=r"^`\w+` must be a function, got 3\.$"):
        register("mine", 3)


def floats(consumers, generator):
    return torch.arange(len(consumers[0].columns)).float()


def one_too_many(consumers, generator):
    return torch.arange(len(consumers[0].columns) + 1)


def twice_the_same(consumers, generator):
    return 0 * torch.arange(len(consumers[0].columns))


def a_list(consumers, generator):
    return list(range(len(consumers[0].columns)))


def in_order(consumers, generator):
    return torch.arange(len(consumers[0].columns))


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (floats, "int64 (16,) for a group of 16 channels, got torch.float32 (16,)"),
        (one_too_many, "int64 (16,) for a group of 16 channels, got torch.int64 (17,) [0, 1, 2, 3, 4, 5, 6, 7]"),
        (twice_the_same, "each of the channels 0 to 15 once, got torch.int64 (16,) [0, 0, 0, 0, 0, 0, 0, 0]"),
        (a_list, "int64 (16,) for a group of 16 channels, got list"),
    ],
)
def test_a_criterion_that_gives_no_order(criterion, message, tmp_path):
    autocompress.register_criterion("mine", criterion)
    try:
        with pytest.raises(InputError) as error:
            autocompress.inspect(criterion="mine", cache=tmp_path, **QUICK)
    finally:
        CRITERIA.unregister("mine")
    assert str(error.value) == f"The criterion mine must give {message}{AND_TRY}"


@pytest.mark.parametrize(
    ("scores", "got"),
    [
        (lambda context, generator: context.weight[:1], r"torch\.float64 \(1, \d+\)"),
        (lambda context, generator: context.weight * float("nan"), r"torch\.float64 \(\d+, \d+\)"),
    ],
    ids=["shape", "nan"],
)
def test_a_criterion_that_gives_no_scores(scores, got, tmp_path):
    autocompress.register_criterion("mine", in_order, scores)
    rule = r"^The criterion mine must give a number for each of \(\d+, \d+\) weights, got "
    try:
        with pytest.raises(InputError, match=rule + got + re.escape(AND_TRY) + "$"):
            autocompress.inspect(criterion="mine", granularity="element", target="packed", cache=tmp_path, **QUICK)
    finally:
        CRITERIA.unregister("mine")


class BrokenPlugin:
    name, value = "broken", "broken_plugin"

    def load(self):
        raise RuntimeError("boom")


@pytest.fixture
def broken_plugin(monkeypatch):
    """An installed package whose module can't be imported."""
    monkeypatch.setattr(registry, "entry_points", lambda group: [BrokenPlugin()])
    registry.load_plugins.cache_clear()
    yield
    registry.load_plugins.cache_clear()


@pytest.mark.parametrize("target", ["onnxruntime", "packed"])
def test_a_broken_plugin_disturbs_no_search_that_does_without(broken_plugin, target, tmp_path):
    options = {"episodes": 2, "selection_samples": 0, "recalibration_samples": 64, "sparsity_levels": 1}
    result = autocompress.search(
        budget="size=0.2", target=target, out=tmp_path / "run", cache=tmp_path / "cache", **{**QUICK, **options}
    )
    assert result.verification.passed


def test_a_broken_plugin_is_named_where_a_name_is_not_built_in(broken_plugin):
    with pytest.raises(InputError) as error:
        autocompress.inspect(criterion="mine", **QUICK)
    assert str(error.value) == (
        "The plugin broken (broken_plugin) must be importable, got RuntimeError: boom; mend or uninstall its package."
    )
