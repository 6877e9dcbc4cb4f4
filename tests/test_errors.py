"""What other libraries say, in one line."""

import json
import struct

import pytest

from autocompress.errors import InputError, reason_of
from autocompress.models import load_model


def test_one_line_is_the_first_and_no_longer_than_300_characters() -> None:
    assert reason_of(ValueError("first.\nsecond")) == "first"
    assert reason_of(ValueError()) == "ValueError"
    assert reason_of(KeyError("no such key.")) == "no such key"
    assert reason_of(ValueError("x" * 1_000)) == "x" * 300 + "…"


def test_a_number_of_thousands_of_digits_in_a_header_is_not_repeated(tmp_path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": ["9" * 5_000], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(InputError, match=r"^`weights` must be a readable safetensors file, got ") as error:
        load_model("digits", path)
    assert len(str(error.value)) < 600 + len(str(path))
