"""Suite files: what they give, the messages about what is wrong with them, and what a resumed one may change."""

from pathlib import Path

import pytest
import yaml

from autocompress.comparison.session import requests_of
from autocompress.comparison.suite import Cell, check_continues, make_suite, overridden, read_suite
from autocompress.errors import InputError
from autocompress.searchers.search import SEARCHERS

SMALL = {"budgets": ["size=0.08", "macs=50%,size=40kB"], "methods": ["solver", "random"], "seeds": 2}


def test_cells_are_methods_times_budgets_times_seeds_and_methods_without_chance_run_once():
    suite = make_suite(SMALL)
    assert (suite.episodes, suite.test, suite.seeds) == (400, True, (0, 1))
    assert suite.cells() == (
        Cell("solver", "size=8%", 0),
        Cell("solver", "macs=50%,size=40000", 0),
        Cell("random", "size=8%", 0),
        Cell("random", "size=8%", 1),
        Cell("random", "macs=50%,size=40000", 0),
        Cell("random", "macs=50%,size=40000", 1),
    )
    assert suite.slug(suite.cells()[-1]) == "random--macs=50pct_size=40000--1"


def test_a_method_overrides_the_base():
    suite = make_suite(
        {
            "base": {"target": "packed", "agent": "td3", "criterion": "obs"},
            "budgets": ["size=0.1"],
            "methods": ["rl", {"name": "HAQ's own menus", "method": "rl", "agent": "ddpg", "criterion": "l1"}],
            "episodes": 7,
        }
    )
    ours, theirs = suite.configs["rl"], suite.configs["HAQ's own menus"]
    assert (ours.method, ours.agent, ours.criterion, ours.target, ours.episodes) == ("rl", "td3", "obs", "packed", 7)
    assert (theirs.method, theirs.agent, theirs.criterion, theirs.target) == ("rl", "ddpg", "l1", "packed")
    assert suite.slug(Cell("HAQ's own menus", "size=10%", 3)) == "HAQ-s-own-menus--size=10pct--3"


def test_the_resolved_suite_reads_back_whole():
    suite = make_suite({**SMALL, "base": {"weight_bits": "2,4"}, "methods": [{"name": "a", "method": "local"}]})
    text = suite.to_yaml()
    again = make_suite(yaml.safe_load(text))
    assert (again.cells(), again.configs) == (suite.cells(), suite.configs)
    assert again.to_yaml() == text
    assert suite.configs["a"].weight_bits == (2, 4)


@pytest.mark.parametrize("path", sorted(Path("configs/compare").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_suites_pass_every_check(path):
    suite = read_suite(path)
    requests_of(suite)
    assert {method.searcher for method in suite.methods} <= SEARCHERS.keys()
    assert suite.episodes == {"resnet56_pareto": 60, "efficientnet_lite0": 20}.get(path.stem, 400)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "`suite` must be a mapping, got the suite, which holds a list."),
        (
            {**SMALL, "budget": "size=0.1"},
            "Unknown budget (did you mean budgets?) in the suite; "
            "known: base, budgets, methods, seeds, episodes, test.",
        ),
        ({"methods": ["rl"]}, "`budgets` must be a list such as [size=0.08, size=0.1], got None."),
        (
            {**SMALL, "budgets": ["flops=1"]},
            "`budget resource` must be one of bitops, energy, latency, macs, memory, size, got 'flops'.",
        ),
        ({**SMALL, "budgets": [0.1]}, "Each of `budgets` must be text such as size=0.1, got 0.1."),
        ({**SMALL, "budgets": ["size=0.1", "size=10%"]}, "`budgets` must be different ones, got size=10% twice."),
        ({**SMALL, "methods": []}, "`methods` must be a list such as [solver, rl], got []."),
        ({**SMALL, "methods": [3]}, "Each of `methods` must be a name, or a mapping with a name and options, got 3."),
        (
            {**SMALL, "methods": ["rl", {"method": "rl", "agent": "ddpg"}]},
            "`methods` must have different names, got 'rl' and 'rl'; give one a name.",
        ),
        (
            {**SMALL, "methods": ["rl", {"name": "RL!", "method": "rl"}]},
            "`methods` must have different names, got 'rl' and 'RL!'; give one a name.",
        ),
        (
            {**SMALL, "methods": [{"name": "!", "method": "rl"}]},
            "`name` of a method must have 1 to 100 characters, a letter or digit among them, got '!'.",
        ),
        (
            {**SMALL, "methods": [{"method": "rl", "data": "digits"}]},
            "`data` must stand in `base`, got it in the method rl.",
        ),
        (
            {**SMALL, "methods": [{"method": "rl", "seed": 3}]},
            "`seed` must stand in `base`, where it is of the splits and the menus; the searches' stand in `seeds`, "
            "got it in the method rl.",
        ),
        (
            {**SMALL, "base": {"episodes": 3}},
            "`episodes` must stand in `episodes` beside `base`, got it in `base`.",
        ),
        (
            {**SMALL, "base": {"selection_samples": 3}},
            "`selection_samples` must be left out of `base`: it has no effect on a comparison.",
        ),
        (
            {**SMALL, "base": {"finetune": 3}},
            "`finetune` must be left out of `base`: it has no effect on a comparison.",
        ),
        ({**SMALL, "base": ["digits"]}, "`base` must be a mapping of options of search, got ['digits']."),
        ({**SMALL, "base": {"search_samples": 0}}, "`search_samples` must be greater than or equal to 1, got 0."),
        (
            {**SMALL, "methods": [{"name": "a", "method": "rl", "price_scale": "x"}]},
            "Method a: `price_scale` must be a valid number, got 'x'.",
        ),
        ({**SMALL, "seeds": 10**10}, "`seeds` must be at most 10000, got 10000000000."),
        ({**SMALL, "seeds": [2**64]}, "`seeds` must be numbers up to 4294967295, got 18446744073709551616."),
        ({**SMALL, "seeds": 0}, "`seeds` must be at least one, and different ones, got 0."),
        ({**SMALL, "seeds": [1, 1]}, "`seeds` must be at least one, and different ones, got [1, 1]."),
        (
            {**SMALL, "seeds": "two"},
            "`seeds` must be a number of seeds, or a list of whole numbers from 0, got 'two'.",
        ),
        (
            {**SMALL, "seeds": [-1]},
            "`seeds` must be a number of seeds, or a list of whole numbers from 0, got [-1].",
        ),
        ({**SMALL, "episodes": 0}, "`episodes` must be a whole number of at least 1, got 0."),
        ({**SMALL, "test": "yes"}, "`test` must be true or false, got 'yes'."),
    ],
)
def test_messages_about_a_suite(content, message):
    with pytest.raises(InputError) as error:
        make_suite(content)
    assert str(error.value) == message


def test_unknown_options_name_those_that_a_comparison_has():
    with pytest.raises(InputError, match=r"^Unknown depth in `base`; known: model, weights, .*, cache\.$"):
        make_suite({**SMALL, "base": {"depth": 3}})
    with pytest.raises(InputError, match=r"^Unknown depth in the method rl; known: tokenizer, .*method, agent.*\.$"):
        make_suite({**SMALL, "methods": [{"method": "rl", "depth": 3}]})


def test_methods_share_the_task_that_divergences_come_from():
    assert make_suite({**SMALL, "base": {"task": "regression"}}).configs["solver"].task == "regression"
    with pytest.raises(InputError, match=r"^`task` must stand in `base`, got it in the method rl\.$"):
        make_suite({**SMALL, "methods": [{"method": "rl", "task": "regression"}]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"methods": ["sollver"]},
            f"`method` must be one of {', '.join(sorted(SEARCHERS))}, got 'sollver' (did you mean solver?).",
        ),
        (
            {"methods": [{"name": "x", "method": "rl", "criterion": "l9"}]},
            "Method x: `criterion` must be one of activation, l1, l2, obs, random, taylor, got 'l9'.",
        ),
        (
            {"base": {"model": "resnet20"}},
            "`data` must be given for the network resnet20, such as --data parquet:FOLDER.",
        ),
    ],
)
def test_names_are_checked_before_anything_is_loaded(changes, message):
    with pytest.raises(InputError) as error:
        requests_of(make_suite({**SMALL, **changes}))
    assert str(error.value) == message


def test_options_given_beside_the_suite_win():
    suite = overridden(
        make_suite({**SMALL, "base": {"data": "npz:a", "target": "packed"}}),
        {"data": "npz:b", "weights": None},
        methods="random,local",
        seeds="4,2",
        episodes="9",
    )
    assert [method.name for method in suite.methods] == ["random", "local"]
    assert (suite.seeds, suite.episodes, dict(suite.base)) == ((4, 2), 9, {"data": "npz:b", "target": "packed"})
    with pytest.raises(InputError) as error:
        overridden(make_suite(SMALL), {}, methods="random,lokal")
    others = [name for name in SEARCHERS if name not in ("solver", "random")]
    assert str(error.value) == f"`methods` must be among {', '.join(['solver', 'random', *others])}, got 'lokal'."


def test_a_resumed_suite_may_grow():
    grown = {**SMALL, "seeds": 3, "methods": ["local", *SMALL["methods"]], "budgets": ["size=0.2", *SMALL["budgets"]]}
    check_continues(make_suite(SMALL), make_suite(grown | {"base": {"jobs": 2, "cache": "elsewhere"}}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1, 2]}, "seeds to hold 0 as in the comparison to resume, got [1, 2]"),
        (
            {"budgets": ["size=0.08"]},
            "budgets to hold macs=50%,size=40000 as in the comparison to resume, got ['size=8%']",
        ),
        ({"methods": ["random"]}, "methods to hold solver as in the comparison to resume, got ['random']"),
        ({"episodes": 3}, "episodes to be as in the comparison to resume, 400, got 3"),
        ({"test": False}, "test to be as in the comparison to resume, True, got False"),
        ({"base": {"criterion": "l1"}}, "criterion of solver to be as in the comparison to resume, 'obs', got 'l1'"),
    ],
)
def test_a_resumed_suite_may_not_change(changes, message):
    with pytest.raises(InputError) as error:
        check_continues(make_suite(SMALL), make_suite({**SMALL, **changes}))
    assert str(error.value) == f"`resume` needs {message}; put it back, or choose another --out."
