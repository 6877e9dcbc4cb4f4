"""Files of a comparison's cells that are damaged: one line, and no table is made of them."""

import json

import pytest

from autocompress.comparison.folder import keep, kept
from autocompress.comparison.results import CellResult
from autocompress.comparison.suite import make_suite
from autocompress.errors import InputError

CELL = CellResult("local", "local", "size=8%", 0, kl=0.25, trace=((1, 0.5), (4, 0.25)), limits={"size": 3})


def test_what_was_written_is_read():
    found = CellResult.from_json(CELL.to_json(), "cell.json")
    assert repr(found) == repr(CELL)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("kl", "low", "'low'"),
        ("kl", float("inf"), "inf"),
        ("seed", True, "True"),
        ("evaluations", -1, "-1"),
        ("evaluations", 2**70, "1180591620717411303424"),
        ("limits", {"size": "3"}, "{'size': '3'}"),
        ("trace", [[1]], "[[1]]"),
        ("trace", 7, "7"),
        ("plan", None, "None"),
    ],
)
def test_a_value_of_another_kind_is_refused(name, value, shown):
    text = json.dumps({**json.loads(CELL.to_json()), name: value})
    with pytest.raises(InputError) as error:
        CellResult.from_json(text, "cell.json")
    assert str(error.value) == (
        f"cell.json must hold the result of a cell, got damaged content: `{name}` can't be {shown}; remove it."
    )


def test_a_key_twice_is_refused():
    text = CELL.to_json().replace('"seed": 0', '"seed": 0, "seed": 1')
    with pytest.raises(InputError) as error:
        CellResult.from_json(text, "cell.json")
    assert str(error.value) == (
        "cell.json must hold the result of a cell, got damaged content: the key 'seed' is there twice; remove it."
    )


def test_the_result_of_another_cell_is_refused(tmp_path):
    suite = make_suite({"budgets": ["size=8%"], "methods": ["local", "uniform"], "seeds": 1})
    (tmp_path / "cells").mkdir()
    keep(tmp_path, suite, CELL)
    assert list(kept(tmp_path, suite)) == [CELL.cell]
    (own,) = (tmp_path / "cells").iterdir()
    other = own.with_name(own.name.replace("local", "uniform"))
    own.rename(other)
    with pytest.raises(InputError) as error:
        kept(tmp_path, suite)
    assert str(error.value) == (
        f"{other} must hold the result of uniform, size=8%, seed 0, got that of local, size=8%, seed 0; remove it."
    )
