"""Texts from files of lines: what is read, what becomes of it, and what is refused."""

import json

import pytest
import torch
from data_toys import message, saved_tokenizer

from autocompress.data import load_data

pytest.importorskip("tokenizers", reason="needs the extra text")

ROWS = [
    ("a good film", "1"),
    ("bad", "0"),
    ("very very bad film", "0"),
    ("good", "1"),
    ("a film", "1"),
    ("bad film", "0"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Folder of a tokenizer that cuts at spaces."""
    return saved_tokenizer(tmp_path_factory.mktemp("tokenizer"), "good", "bad", "very", "film", "a")


def written(folder, kind, rows, header=None):
    """A folder with a training file of rows, and a dev file of the first two."""
    folder.mkdir(exist_ok=True)
    for name, part in (("train", rows), ("dev", rows[:2])):
        lines = {
            "tsv": lambda row: "\t".join(row),
            "csv": lambda row: ",".join(row),
            "jsonl": lambda row: json.dumps({"text": row[0], "label": row[1]}),
            "lines": lambda row: row[0],
        }[kind]
        text = "\n".join([*([header] if header else []), *map(lines, part)])
        (folder / f"{name}.{'txt' if kind == 'lines' else kind}").write_text(text + "\n")
    return f"{kind}:{folder}"


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_texts_become_tokens_and_masks_of_one_length(kind, tokenizer, tmp_path):
    data = load_data(written(tmp_path / "texts", kind, ROWS), tokenizer=tokenizer)
    inputs, labels = data.train.load(range(6))
    assert inputs.names == ("input_ids", "attention_mask")
    ids, mask = inputs.tensors
    assert ids[0].tolist() == [6, 2, 5, 0]
    assert ids[2].tolist() == [4, 4, 3, 5]
    assert mask.sum(1).tolist() == [3, 1, 4, 1, 2, 2]
    assert labels.tolist() == [1, 0, 0, 1, 1, 0]
    assert data.classes == ("0", "1")
    ((tested, tested_labels),) = data.test_batches()
    assert torch.equal(tested.tensors[0], ids[:2])
    assert tested_labels.tolist() == [1, 0]


def test_plain_lines_have_no_labels(tokenizer, tmp_path):
    data = load_data(written(tmp_path / "texts", "lines", ROWS), tokenizer=tokenizer, max_tokens=2)
    inputs, labels = data.train.load(range(6))
    assert labels is None
    assert data.classes == ()
    assert inputs.tensors[0].shape == (6, 2)
    assert inputs.tensors[0][2].tolist() == [4, 4]


def test_one_file_has_no_test_split(tokenizer, tmp_path):
    written(tmp_path / "texts", "tsv", ROWS)
    data = load_data(f"tsv:{tmp_path / 'texts' / 'train.tsv'}", tokenizer=tokenizer)
    assert data.test is None
    assert len(data.train) == 6


def test_labels_by_name_are_numbered_in_alphabetical_order(tokenizer, tmp_path):
    rows = [(text, "positive" if label == "1" else "negative") for text, label in ROWS]
    data = load_data(written(tmp_path / "texts", "tsv", rows), tokenizer=tokenizer)
    assert data.classes == ("negative", "positive")
    assert data.train.load(range(3))[1].tolist() == [1, 0, 0]


@pytest.mark.parametrize("arguments", [{}, {"text": "sentence", "label": "class"}])
def test_a_header_is_recognised_or_named(arguments, tokenizer, tmp_path):
    spec = written(tmp_path / "texts", "tsv", ROWS, "sentence\tclass")
    data = load_data(spec, tokenizer=tokenizer, data_args=arguments)
    assert len(data.train) == 6
    assert data.classes == ("0", "1")


def test_columns_by_number(tokenizer, tmp_path):
    rows = [(f"{number}", text, label) for number, (text, label) in enumerate(ROWS)]
    spec = written(tmp_path / "texts", "csv", rows)
    data = load_data(spec, tokenizer=tokenizer, data_args={"text": 1, "label": 2})
    assert data.train.load([2])[0].tensors[0][0].tolist() == [4, 4, 3, 5]


@pytest.mark.parametrize(
    ("rows", "arguments", "expected"),
    [
        (ROWS, {"column": 1}, "`data_args` of {spec} must be text and label, got column."),
        (ROWS, {"text": "sentence"}, "`data_args` must name columns of {file}, got 'sentence'; known: a good film, 1."),
        (
            ROWS,
            {"text": "a good film", "label": 1},
            "`data_args` of {spec} must give two names or two numbers, got 'a good film' and 1.",
        ),
        ([*ROWS, ("lonely",)], {}, "`data` must have its columns in every row, got 1 in row 7 of {file}."),
    ],
)
def test_wrong_tables(rows, arguments, expected, tokenizer, tmp_path):
    spec = written(tmp_path / "texts", "tsv", rows)
    file = tmp_path / "texts" / "train.tsv"
    assert message(spec, tokenizer=tokenizer, data_args=arguments) == expected.format(spec=spec, file=file)


def test_wrong_files(tokenizer, tmp_path):
    spec = written(tmp_path / "texts", "jsonl", ROWS)
    file = tmp_path / "texts" / "train.jsonl"
    file.write_text('{"text": "good", "label": 1}\nnothing\n')
    assert message(spec, tokenizer=tokenizer) == f"`data` must be JSON objects, one a line, got line 2 of {file}."
    file.write_bytes(b'{"text": "good"}\n\xff\n')
    assert message(spec, tokenizer=tokenizer) == f"`data` must be UTF-8, got another byte in line 2 of {file}."
    file.write_text("\n")
    assert message(spec, tokenizer=tokenizer) == f"`data` must hold at least one text, got none in {file}."
    missing = tmp_path / "nowhere"
    assert message(f"tsv:{missing}", tokenizer=tokenizer) == (
        f"`data` tsv:PLACE must be an existing file or folder, got {missing}."
    )
    assert message(f"tsv:{tmp_path / 'texts'}", tokenizer=tokenizer) == (
        f"`data` tsv:{tmp_path / 'texts'} must be a folder with train.tsv, got none there."
    )


def test_tokenizers_that_are_none(tokenizer, tmp_path):
    spec = written(tmp_path / "texts", "tsv", ROWS)
    assert message(spec) == "`tokenizer` must be given for texts, got none; pass --tokenizer FOLDER."
    assert message(spec, tokenizer=tmp_path) == f"`tokenizer` must be a folder with tokenizer.json, got {tmp_path}."
    (tmp_path / "tokenizer.json").write_text("{}")
    assert message(spec, tokenizer=tmp_path).startswith("`tokenizer` must be a file of the library tokenizers, got ")
    assert message("digits", tokenizer=tokenizer) == (
        "`tokenizer` must be given with parquet:, hf-dataset:, tsv:, csv:, jsonl:, lines:, prodigy: and labelbox: "
        "only, got it with digits."
    )
