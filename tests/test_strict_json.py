"""JSON and YAML whose keys stand there once; nothing that is written twice is silently taken for the last of it."""

import pytest

from autocompress.errors import InputError
from autocompress.files import parse_yaml, strict_json


def test_what_is_json_is_read_as_it_stands():
    assert strict_json(b'{"a": [1, 2.5, null, "b"], "c": {"a": 1}}') == {"a": [1, 2.5, None, "b"], "c": {"a": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {"b": 1, "b": 2}}', "the key 'b' is there twice"),
        ("[" * 100_000, "it is nested too deeply"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ],
)
def test_what_is_not_is_refused(text, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        strict_json(text)
    assert str(error.value) == message


def test_a_key_of_yaml_that_is_there_twice_is_refused_with_its_line():
    with pytest.raises(InputError) as error:
        parse_yaml("plan", "a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "plan.yaml")
    assert str(error.value) == "`plan` must be YAML or JSON, got plan.yaml, line 5: the key c twice."


def test_merged_keys_may_be_overridden():
    text = "x: &x {a: 1, b: 2}\ny: &y {<<: *x, b: 3}\nz: *y\n"
    assert parse_yaml("plan", text, "here") == {"x": {"a": 1, "b": 2}, "y": {"a": 1, "b": 3}, "z": {"a": 1, "b": 3}}
