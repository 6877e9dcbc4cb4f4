"""Dtypes and batch sizes picked by measurement in a training: kept in a file; a damaged file is one clear line."""

import pytest

from autocompress.errors import InputError
from autocompress.policy_training.number_formats import NumberFormats


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        "null",
        '{"a": "int8"}',
        '{"a": 3}',
        '{"a": {"dtype": "float32", "batch_size": 0}}',
        '{"a": "float32", "a": "bfloat16"}',
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content):
    file = tmp_path / "settled.json"
    file.write_text(content)
    with pytest.raises(InputError) as caught:
        NumberFormats(file)
    assert str(caught.value) == (
        f"`resume` must find a whole settled.json, got {file}, which is damaged; remove it to pick anew."
    )


def test_picks_are_found_again(tmp_path):
    number_formats = NumberFormats(tmp_path / "settled.json")
    number_formats["training small"] = {"dtype": "float32"}
    assert NumberFormats(tmp_path / "settled.json").data == {"training small": {"dtype": "float32"}}
