"""What tests of data share: refusals, images, and a tokenizer that cuts at spaces."""

import io

import pytest
from PIL import Image

from autocompress.data import load_data
from autocompress.errors import InputError

PLAIN = {"mean": [0, 0, 0], "std": [1, 1, 1]}


def message(spec, **options):
    """The line by which data is refused."""
    with pytest.raises(InputError) as error:
        load_data(spec, **options)
    return str(error.value)


def png(value):
    """An encoded image of 4 x 4 pixels of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 255)).save(buffer, "PNG")
    return buffer.getvalue()


def saved_tokenizer(folder, *words):
    """`folder` with a tokenizer of these words, numbered from 2 on; skips where there are no tokenizers."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra text")
    numbers = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *words])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    return folder
