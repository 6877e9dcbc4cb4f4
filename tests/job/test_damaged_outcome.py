"""What outcome.json claims is read again by `verify` and `finetune`: values of another kind are one line."""

import json

import pytest

from autocompress.errors import InputError
from autocompress.job.finished_run import _outcome_of

WHOLE = {
    "budget": {"limits": {"size": 100}},
    "file_bytes": {"model.onnx": 90},
    "compressed": {"accuracy": 0.5},
    "runtime": None,
    "split": "test",
    "recalibrated": True,
}


def test_what_was_written_is_read(tmp_path):
    (tmp_path / "outcome.json").write_text(json.dumps(WHOLE))
    assert _outcome_of(tmp_path) == WHOLE


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("budget", "a", "'a'"),
        ("budget", {}, "{}"),
        ("budget", {"limits": {"size": "3"}}, "{'limits': {'size': '3'}}"),
        ("budget", {"limits": {"time": 3}}, "{'limits': {'time': 3}}"),
        ("file_bytes", [1], "[1]"),
        ("compressed", {"accuracy": "high"}, "{'accuracy': 'high'}"),
        ("runtime", 3, "3"),
        ("split", "train", "'train'"),
    ],
)
def test_a_value_of_another_kind_is_refused(tmp_path, name, value, shown):
    file = tmp_path / "outcome.json"
    file.write_text(json.dumps({**WHOLE, name: value}))
    with pytest.raises(InputError) as error:
        _outcome_of(tmp_path)
    assert str(error.value) == f"`{name}` of {file} must be as it was written, got {shown}."


def test_a_key_twice_is_refused(tmp_path):
    (tmp_path / "outcome.json").write_text('{"split": "test", "split": "search"}')
    with pytest.raises(InputError) as error:
        _outcome_of(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'outcome.json'} must be JSON, got a damaged file: the key 'split' is there twice."
    )
