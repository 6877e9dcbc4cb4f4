"""Data sets as `datasets` saves them (their layout of version 5.2), and Parquet files with texts and other columns."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_toys import PLAIN, message, png, saved_tokenizer

from autocompress.data import load_data
from autocompress.errors import InputError


def cell(value):
    """An image as `datasets` stores it."""
    return {"bytes": png(value), "path": None}


def save(folder, columns, features=None, files=1):
    """One split, in as many files."""
    folder.mkdir(parents=True)
    table, names = pa.table(columns), [f"data-{number:05}-of-{files:05}.arrow" for number in range(files)]
    rows = -(-len(table) // files)
    for number, name in enumerate(names):
        with pa.ipc.new_stream(folder / name, table.schema) as stream:
            stream.write_table(table[number * rows : (number + 1) * rows])
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features or {}}))
    return folder


def save_splits(root, **splits):
    for name, (columns, features) in splits.items():
        save(root / name, columns, features)
    (root / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return f"hf-dataset:{root}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return saved_tokenizer(tmp_path_factory.mktemp("tokenizer"), "good", "bad", "film")


TEXTS = {"sentence": ["good film", "bad", "bad film", "good"], "label": [1, 0, 0, 1]}
NAMED = {"label": {"names": ["neg", "pos", "mixed"], "_type": "ClassLabel"}}


def test_images_of_one_split_in_two_files(tmp_path):
    folder = save(tmp_path / "set", {"image": [cell(value) for value in range(5)], "label": [0, 1, 0, 1, 2]}, NAMED, 2)
    data = load_data(f"hf-dataset:{folder}", **PLAIN)
    inputs, labels = data.train.load([4, 0, 3])
    assert (inputs[:, 0, 0, 0] * 255).round().tolist() == [4, 0, 3]
    assert labels.tolist() == [2, 0, 1]
    assert (data.classes, data.test, data.notes) == (("neg", "pos", "mixed"), None, ())


def test_texts_with_names_of_columns_and_splits(tmp_path, tokenizer):
    unlabelled = {"sentence": ["good"], "label": [-1]}
    spec = save_splits(tmp_path / "set", train=(TEXTS, NAMED), validation=(TEXTS, NAMED), test=(unlabelled, NAMED))
    options = {"tokenizer": tokenizer, "data_args": {"text": "sentence"}}
    assert message(spec, **options) == (
        f"{tmp_path}/set/test must have labels, got -1 in every row; name another split with --data-args "
        "'{test: validation}'."
    )
    options["data_args"]["test"] = "validation"
    data = load_data(spec, **options)
    inputs, labels = data.train.load(range(4))
    assert inputs.tensors[0].tolist() == [[2, 4], [3, 0], [3, 4], [2, 0]]
    assert labels.tolist() == [1, 0, 0, 1]
    assert (data.classes, len(data.test)) == (("neg", "pos", "mixed"), 4)


def test_labels_are_texts_or_missing(tmp_path):
    images = [cell(value) for value in range(4)]
    named = load_data(f"hf-dataset:{save(tmp_path / 'a', {'image': images, 'label': ['dog', 'cat', 'dog', 'eel']})}")
    assert (named.classes, named.train.labels.tolist()) == (("cat", "dog", "eel"), [1, 0, 1, 2])
    folder = save(tmp_path / "b", {"image": images, "kind": [0, 1, 0, 1]})
    bare = load_data(f"hf-dataset:{folder}")
    assert (bare.classes, bare.train.load([0])[1]) == ((), None)
    assert bare.notes == (f"{folder} has no column label, and is used without labels; --data-args '{{label: COLUMN}}' "
                          "names one",)  # fmt: skip
    asked = load_data(f"hf-dataset:{folder}", data_args={"label": "kind"})
    assert (asked.classes, asked.notes) == (("0", "1"), ())


def test_what_is_no_saved_data_set(tmp_path, tokenizer):
    assert message("hf-dataset:nowhere") == "`data` hf-dataset:FOLDER must be an existing folder, got nowhere."
    assert message(f"hf-dataset:{tmp_path}") == (
        f"`data` hf-dataset:FOLDER must be written by save_to_disk of the library datasets, got {tmp_path} without "
        "dataset_dict.json or state.json."
    )
    folder = save(tmp_path / "set", TEXTS)
    spec = f"hf-dataset:{folder}"
    assert message(spec) == (
        f"{folder} must have a column image or text, got sentence, label; name one with --data-args '{{text: COLUMN}}'."
    )
    assert message(spec, data_args={"text": "body"}) == (
        f"`data_args` must name columns of {folder}, got 'body'; known: sentence, label."
    )
    assert message(spec, data_args={"txt": "sentence"}) == (
        "`data_args` of hf-dataset: must be of image, text, label, train, test, got txt."
    )
    assert message(spec, data_args={"text": "sentence"}) == (
        "`tokenizer` must be given for texts, got none; pass --tokenizer FOLDER."
    )
    assert message(spec, data_args={"text": "sentence"}, tokenizer=tokenizer, image_size=8) == (
        f"`image_size` must be left out for texts, got it with {spec}, which holds texts."
    )
    assert message(spec, data_args={"image": "sentence"}) == (
        f"{folder} column sentence must hold bytes or a struct with bytes, got string."
    )
    (other,) = save(tmp_path / "other", {"sentence": [1]}).glob("*.arrow")
    other.rename(folder / "other.arrow")
    names = [{"filename": "data-00000-of-00001.arrow"}, {"filename": "other.arrow"}]
    state = (folder / "state.json").read_text()
    (folder / "state.json").write_text(json.dumps({"_data_files": names}))
    assert message(spec).startswith(f"{folder} must hold files of the same columns, got others: Schema at index 1 was")
    (folder / "state.json").write_text(state)
    (folder / "data-00000-of-00001.arrow").write_bytes(b"no arrow stream at all")
    assert message(spec).startswith(f"`data` must be a readable Arrow file, got {folder}/data-00000-of-00001.arrow: ")
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../other.arrow"}]}')
    assert message(spec) == f"{folder}/state.json must name the Arrow files beside it, got ['../other.arrow']."


def test_splits_that_are_not_there(tmp_path):
    spec = save_splits(tmp_path / "set", dev=(TEXTS, None), unsupervised=(TEXTS, None))
    assert message(spec) == (
        f"`data` hf-dataset:FOLDER must have a split train, got dev, unsupervised in {tmp_path}/set; name one with "
        "--data-args '{train: SPLIT}'."
    )
    assert message(spec, data_args={"train": "all"}) == (
        f"`data_args` train must be one of dev, unsupervised, got 'all' for {tmp_path}/set."
    )


def test_an_image_that_is_only_a_path(tmp_path):
    images = pa.array([{"bytes": None, "path": "a.png"}] * 3, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    folder = save(tmp_path / "set", {"image": images, "label": [0, 1, 0]})
    with pytest.raises(InputError) as error:
        load_data(f"hf-dataset:{folder}").train.load([1])
    assert str(error.value) == f"{folder} row 1 must hold an image's bytes, got none; save the data set anew."


# --- Parquet ---------------------------------------------------------------------------------------------------------


def test_parquet_texts(tmp_path, tokenizer):
    for part in ("train", "test"):
        pq.write_table(
            pa.table({"body": TEXTS["sentence"], "mood": ["+", "-", "-", "+"]}), tmp_path / f"{part}.parquet"
        )
    spec, columns = f"parquet:{tmp_path}", {"text": "body", "label": "mood"}
    data = load_data(spec, tokenizer=tokenizer, data_args=columns)
    inputs, labels = data.train.load(range(4))
    assert inputs.tensors[0].tolist() == [[2, 4], [3, 0], [3, 4], [2, 0]]
    assert (data.classes, labels.tolist(), len(data.test)) == (("+", "-"), [0, 1, 1, 0], 4)
    assert message(spec, tokenizer=tokenizer, data_args={**columns, "image": "body"}) == (
        f"`data_args` must name a column of images or of texts, got both for {tmp_path}/train.parquet."
    )
    assert message(spec, data_args={"texts": "body"}) == (
        "`data_args` of parquet: must be image, text and label, got texts."
    )


def test_parquet_images_without_labels_or_a_test_split(tmp_path):
    pq.write_table(pa.table({"photo": [cell(value) for value in range(4)]}), tmp_path / "train.parquet")
    data = load_data(f"parquet:{tmp_path}", data_args={"image": "photo", "label": None}, **PLAIN)
    inputs, labels = data.train.load([3, 1])
    assert (inputs[:, 0, 0, 0] * 255).round().tolist() == [3, 1]
    assert (labels, data.classes, data.test, data.notes) == (None, (), None, ())


def test_parquet_texts_with_an_empty_cell(tmp_path, tokenizer):
    pq.write_table(pa.table({"text": ["good", None, "bad"]}), tmp_path / "train.parquet")
    assert message(f"parquet:{tmp_path}", tokenizer=tokenizer) == (
        f"{tmp_path}/train.parquet row 1 must have a text, got an empty cell."
    )
