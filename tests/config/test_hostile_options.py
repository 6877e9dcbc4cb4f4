"""Files and values of options that nest, burst, overflow or never end: one line each."""

import os

import pytest
from typer.testing import CliRunner

import autocompress
from autocompress.budget import Budget, parse_bytes
from autocompress.cli.main import app
from autocompress.config import load_config, make_config
from autocompress.errors import InputError
from autocompress.files import read_yaml
from autocompress.plan import Plan

ALIASES = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def message(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 5000, "must be nested at most 100 levels deep, got {file}, deeper."),
        ('{"a":' * 3000, "must be nested at most 100 levels deep, got {file}, deeper."),
        ("[" * 101 + "]" * 101, "must be nested at most 100 levels deep, got {file}, deeper."),
        ("&a [*a]", "must be nested at most 100 levels deep, got {file}, deeper."),
        (ALIASES, "must hold at most 1,000,000 values, got {file} with 1,234,567,909."),
        ("a: 2001-99-99", "must be YAML or JSON, got {file}: month must be in 1..12."),
        ("a: " + "9" * 5000, "must be YAML or JSON, got {file}: Exceeds the limit (4300 digits) for integer string "
         "conversion: value has 5000 digits."),
        ("a: !!timestamp x", "must be YAML or JSON, got {file}: a value that is not of its kind."),
        ("a: !!bool x", "must be YAML or JSON, got {file}: a value that is not of its kind."),
        ("#" * 4_000_001, "must have at most 4,000,000 bytes, got {file} with 4,000,001."),
    ],
)  # fmt: skip
def test_yaml_that_nests_or_bursts(tmp_path, text, problem):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    assert message(load_config, file, {}) == f"`config` {problem.format(file=file)}"
    assert message(Plan.load, file) == f"`plan` {problem.format(file=file)}"


def test_a_hundred_levels_are_read(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("[" * 100 + "]" * 100)
    assert str(read_yaml("config", file)) == "[" * 100 + "]" * 100


def test_pipes_and_devices_are_no_options(tmp_path):
    os.mkfifo(tmp_path / "c.yaml")
    for where, kind in ((tmp_path / "c.yaml", "a pipe"), ("/dev/zero", "a device"), (tmp_path, "a folder")):
        expected = f"`config` must be a regular file, got {where}, which is {kind}."
        assert message(load_config, where, {}) == expected
        done = CliRunner().invoke(app, ["search", "--config", str(where)])
        assert (done.exit_code, done.stderr) == (2, f"autocompress: {expected}\n")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"seed": 2**64}, "`seed` must be less than or equal to 4294967295, got 18446744073709551616."),
        ({"seed": "18446744073709551616"}, "`seed` must be less than or equal to 4294967295, got "
         "'18446744073709551616'."),
        ({"seed": 2**32}, "`seed` must be less than or equal to 4294967295, got 4294967296."),
        ({"seed": "-1"}, "`seed` must be greater than or equal to 0, got '-1'."),
        ({"finetune": "1e400"}, "`finetune` must be a finite number, got '1e400'."),
        ({"learning_rate": float("nan")}, "`learning_rate` must be a finite number, got nan."),
        ({"model_args": "[" * 3000}, f"`model_args` must be a valid dictionary, got '{'[' * 199}…."),
        ({"weight_bits": []}, "`weight_bits` must be at least one bit-width, such as 2,4,8, got none; leave it out for "
         "the default."),
        ({"weight_bits": ""}, "`weight_bits` must be at least one bit-width, such as 2,4,8, got none; leave it out for "
         "the default."),
        ({"activation_bits": ()}, "`activation_bits` must be at least one bit-width, such as 2,4,8, got none; leave it "
         "out for the default."),
        ({"budget": "size=1e400"}, "`budget` of size must be from 1e-24 to 1e24, got '1e400'."),
        ({"budget": "macs=1e-999999999"}, "`budget` of macs must be from 1e-24 to 1e24, got '1e-999999999'."),
        ({"budget": f"size={'9' * 5000}"}, f"`budget` of size must be from 1e-24 to 1e24, got '{'9' * 60}…'."),
        ({"memory": "1e999999999GB"}, "`memory` must be from 1e-24 to 1e24, got '1e999999999'."),
    ],
)  # fmt: skip
def test_numbers_that_overflow(options, expected):
    assert message(make_config, options) == expected


def test_a_number_of_many_digits_is_exact():
    assert parse_bytes(f"1.{'0' * 5000}kB", "memory") == 1000
    assert Budget.parse("size=1e24").resolve({"size": 1}) == {"size": 10**24}


def test_the_largest_seed():
    assert make_config({"seed": 2**32 - 1}).seed == 4294967295


def test_pipes_and_devices_are_no_packed_files(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    for where, file in ((tmp_path, tmp_path / "model.safetensors"), ("/dev/zero", "/dev/zero")):
        kind = "a device" if where == "/dev/zero" else "a pipe"
        assert message(autocompress.load, where) == f"`path` must be a regular file, got {file}, which is {kind}."
