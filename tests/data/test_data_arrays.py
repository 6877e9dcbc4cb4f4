import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from autocompress.data import from_datasets, from_tensors, load_data
from autocompress.errors import InputError

LABELS = np.array([0, 1, 2, 0, 1, 2])


def message(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def npz(folder, **changes):
    arrays = {
        "x_train": np.zeros((6, 3, 4, 4), np.uint8),
        "y_train": LABELS,
        "x_test": np.zeros((3, 3, 4, 4), np.uint8),
        "y_test": LABELS[:3],
    }
    arrays.update(changes)
    file = folder / "data.npz"
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    return file


def test_npz_uint8_rgb_is_normalised_as_imagenet(tmp_path):
    x = np.full((6, 3, 4, 4), 51, np.uint8)  # 51 / 255 = 0.2
    data = load_data(f"npz:{npz(tmp_path, x_train=x)}")
    inputs, labels = data.search()
    expected = [(0.2 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    assert inputs.shape == (3, 3, 4, 4)
    assert inputs[1, :, 2, 3].tolist() == pytest.approx(expected, abs=1e-6)
    assert labels.tolist() == [int(LABELS[index]) for index in data.search_indices]
    assert data.classes == ("0", "1", "2")


def test_npz_channels_last_becomes_channels_first(tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 4, 5, 3)).astype(np.float32)
    data = load_data(f"npz:{npz(tmp_path, x_train=x)}")
    assert np.array_equal(data.train.load([2])[0].numpy(), x[2:3].transpose(0, 3, 1, 2))  # floats as they are


def test_npz_grey_images_get_one_channel_in_zero_to_one(tmp_path):
    x = np.full((6, 4, 5), 255, np.uint8)
    inputs, _ = load_data(f"npz:{npz(tmp_path, x_train=x)}").train.load([0])
    assert torch.equal(inputs, torch.ones(1, 1, 4, 5))


def test_npz_floats_are_normalised_on_request(tmp_path):
    x = np.full((6, 1, 2, 2), 3.0)
    inputs, _ = load_data(f"npz:{npz(tmp_path, x_train=x)}", mean=[1], std=[4]).train.load([0])
    assert torch.equal(inputs, torch.full((1, 1, 2, 2), 0.5))


def test_npz_column_labels(tmp_path):
    data = load_data(f"npz:{npz(tmp_path, y_train=LABELS[:, None])}")
    assert data.train.load(range(6))[1].tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"x_test": None, "x_train": None},
            "`data` npz:FILE must hold x_train, with labels y_train, with a test split x_test and its labels y_test, "
            "got no x_train, x_test beside y_train, y_test in {file}.",
        ),
        (
            {"y_test": None},
            "`data` npz:FILE must hold x_train, with labels y_train, with a test split x_test and its labels y_test, "
            "got no y_test beside x_train, y_train, x_test in {file}.",
        ),
        ({"y_train": LABELS[:5]}, "{file} train must hold one label an input (6), got labels of shape (5,)."),
        ({"y_train": LABELS / 2}, "{file} test and {file} train must hold labels of one kind, got classes and float32 "
         "numbers of shape (6,)."),
        ({"y_train": LABELS > 0}, "{file} train must hold labels of whole or floating-point numbers, got torch.bool."),
        ({"y_train": LABELS - 1}, "{file} train must hold labels from 0 on, got -1 at 0, "
         "which often marks a missing label; leave such samples out."),
        ({"x_test": np.zeros((0, 3, 4, 4)), "y_test": LABELS[:0]}, "{file} test must hold inputs of shape (N, …) with "
         "N at least 1, got (0, 3, 4, 4)."),
        ({"x_train": np.zeros((6, 3, 4, 4), np.int32)}, "{file} train must hold uint8 or floating-point images, got "
         "torch.int32."),
        ({"x_test": np.array([1.0, np.nan, 3.0])[:, None]}, "{file} test must hold finite inputs, got NaN or infinity "
         "at 1."),
        (
            {"y_train": np.array([{}] * 6)},
            "`data` npz:FILE must hold plain arrays, not pickles, got y_train of {file}.",
        ),
        ({"x_train": np.zeros((2, 1)), "y_train": LABELS[:2]}, "`data` must have at least 3 training samples, got 2 in "
         "npz:{file}."),
    ],
)  # fmt: skip
def test_npz_with_wrong_content(tmp_path, changes, expected):
    file = npz(tmp_path, **changes)
    assert message(load_data, f"npz:{file}") == expected.format(file=file)


def test_npz_of_words(tmp_path):
    file = npz(tmp_path, y_train=np.array(list("abcdef")))
    text = message(load_data, f"npz:{file}")
    assert text.startswith(f"{file} train labels must be an array of numbers, got ndarray: can't convert np.ndarray of")


def test_npz_missing_bare_and_damaged(tmp_path):
    missing, bare, short = tmp_path / "none.npz", tmp_path / "bare.npy", tmp_path / "short.npz"
    np.save(bare, LABELS)
    short.write_bytes(npz(tmp_path).read_bytes()[:300])
    assert message(load_data, f"npz:{missing}") == f"`data` npz:FILE must be an existing file, got {missing}."
    assert message(load_data, f"npz:{bare}") == (
        f"`data` npz:FILE must be an archive of x_train, y_train, x_test, y_test, got one bare array in {bare}."
    )
    assert message(load_data, f"npz:{short}") == (
        f"`data` npz:FILE must be a readable .npz archive, got {short}: File is not a zip file."
    )


def test_from_tensors_checks_classes():
    pair = torch.zeros(6, 2), torch.from_numpy(LABELS)
    assert from_tensors(pair, classes=["a", "b", "c", "d"]).classes == ("a", "b", "c", "d")
    assert message(from_tensors, pair, classes=["a", "b"]) == (
        "`classes` must name every label, got 2 names and label 2."
    )


def test_from_tensors_takes_pairs_only():
    expected = "tensors test must be a pair (inputs, labels), got Tensor."
    assert message(from_tensors, (torch.zeros(6, 2), None), torch.zeros(3, 2)) == expected


class Pairs:
    """A dataset of given items."""

    classes = ("cat", "dog")

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_from_datasets_reads_tensors_arrays_and_images():
    tensor, array = torch.full((2, 3), 7.0), np.full((2, 3), 8.0, np.float32)
    data = from_datasets(Pairs([(tensor, 0), (array, np.int64(1)), (tensor, torch.tensor(1))]))
    inputs, labels = data.train.load([1, 0])
    assert torch.equal(inputs, torch.stack([torch.full((2, 3), 8.0), tensor]))
    assert labels.tolist() == [1, 0]
    assert data.classes == ("cat", "dog")


def test_from_datasets_turns_pillow_images_into_pixels():
    grey, colour = Image.new("L", (5, 4), 255), Image.new("RGBA", (5, 4), (255, 0, 0, 255))
    grey_inputs, _ = from_datasets(Pairs([(grey, 0)] * 3)).train.load([0])
    inputs, _ = from_datasets(Pairs([(colour, 0)] * 3), mean=[0, 0, 0], std=[1, 1, 1]).train.load([0])
    assert torch.equal(grey_inputs, torch.ones(1, 1, 4, 5))
    assert inputs[0, :, 0, 0].tolist() == [1.0, 0.0, 0.0]
    assert inputs.shape == (1, 3, 4, 5)


GOOD = (torch.zeros(2), 0)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (torch.zeros(2), "datasets train must give (input, label) pairs, got Tensor at 2."),
        ((torch.zeros(2), 2), "datasets train must give integer labels from 0 to 1, got 2 at 2."),
        ((torch.zeros(2), "dog"), "datasets train must give integer labels from 0 to 1, got 'dog' at 2."),
        ((torch.full((2,), torch.nan), 1), "datasets train must hold finite inputs, got NaN or infinity at 2."),
        (
            (torch.zeros(3), 1),
            "datasets train must hold inputs of one shape, got (2,) and (3,); give image_size to resize images.",
        ),
    ],
)
def test_from_datasets_with_a_wrong_item(item, expected):
    data = from_datasets(Pairs([GOOD, GOOD, item]))
    assert message(data.train.load, [1, 2]) == expected


def test_from_datasets_with_wrong_datasets():
    assert message(from_datasets, 3) == "datasets train must be a map-style dataset, got int."
    assert (
        message(from_datasets, [GOOD] * 3) == "`classes` must be given, for datasets train has no attribute `classes`."
    )
    assert message(from_datasets, Pairs([GOOD] * 3), Pairs([])) == (
        "`data` must have at least 1 test sample, got 0 in datasets."
    )


SCRIPT = """
import torch

def tensors(count=6, shift=0.0):
    x = torch.arange(count, dtype=torch.float32)[:, None] + shift
    return (x, torch.arange(count) % 2), (x[:2], torch.arange(2))

def named():
    return *tensors(), ["even", "odd"]

class Squares:
    classes = ["a"]
    def __len__(self): return 9
    def __getitem__(self, index):
        if index >= 9: raise IndexError
        return torch.tensor([float(index ** 2)]), 0

def datasets():
    return Squares(), Squares()

def wrong():
    return [1, 2]

number = 3
"""


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "my_data.py"
    file.write_text(SCRIPT)
    return file


def test_callable_of_tensors_with_arguments(script):
    data = load_data(f"{script}:tensors", data_args={"count": 8, "shift": 0.5}, search_samples=2, seed=3)
    assert data.train.load(range(8))[0][:, 0].tolist() == [index + 0.5 for index in range(8)]
    assert (len(data.search_indices), data.classes, data.name) == (2, ("0", "1"), f"{script}:tensors")


def test_callable_with_class_names_and_with_datasets(script):
    assert load_data(f"{script}:named").classes == ("even", "odd")
    data = load_data(f"{script}:datasets")
    assert data.train.load([8, 3])[0][:, 0].tolist() == [64.0, 9.0]
    assert [len(labels) for _, labels in data.test_batches(5)] == [5, 4]


def test_callable_in_a_module(script, monkeypatch):
    monkeypatch.syspath_prepend(script.parent)
    assert load_data("my_data:named").classes == ("even", "odd")


def test_wrong_callables(script):
    assert message(load_data, f"{script}:wrong") == (
        f"`data` {script}:wrong must return (train, test) or (train, test, class names), got list."
    )
    assert (
        message(load_data, f"{script}:number") == f"`data` must name a callable, but {script} has no callable 'number'."
    )
    assert message(load_data, f"{script}:tensors", data_args={"size": 1}) == (
        f"`data_args` must fit {script}:tensors, got size: got an unexpected keyword argument 'size'."
    )
    assert message(load_data, "no_such_module:make") == (
        "`data` must name a module that can be imported, got 'no_such_module': No module named 'no_such_module'."
    )
    assert message(load_data, "none.py:make") == "`data` must name an existing Python file, got none.py."


def test_a_callable_of_one_split_is_told_from_one_of_two(script):
    with script.open("a") as file:
        file.write("\ndef one():\n    return torch.zeros(8, 2), None\n")
    assert message(load_data, f"{script}:one") == (
        f"`data` {script}:one must return ((inputs, labels), (test inputs, test labels)), got (inputs, labels); "
        "return that pair and None without a test split."
    )


def test_no_name_leads_to_the_standard_library(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from functools import partial\nfrom os import system\nfrom subprocess import Popen\nrun = partial(system)\n"
        "def tensors(): return __import__('torch').zeros(3, 1), None\nload = partial(lambda: (tensors(), None))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    copies = [f"{subprocess.__file__}:call", "mine:system", f"{tmp_path / 'mine.py'}:Popen", "mine:run", "test:x"]
    for spec in ["subprocess:call", "os:system", "builtins:eval", "importlib.util:find_spec", *copies]:
        assert message(load_data, spec, data_args={"args": ["touch", str(tmp_path / "X")]}) == (
            f"`data` must name a function of your own, got {spec!r}, which is in Python's standard library."
        )
    assert not (tmp_path / "X").exists()
    assert len(load_data("mine:load").train) == 3


def test_a_file_may_import_what_lies_beside_it(tmp_path):
    """At its top and inside the function; what is installed comes first, and the path is as it was."""
    (tmp_path / "beside_first.py").write_text("import torch\n\ndef inputs():\n    return torch.zeros(8, 2)\n")
    (tmp_path / "beside_second.py").write_text("COUNT = 8\n")
    (tmp_path / "yaml.py").write_text("raise RuntimeError('not this one')\n")
    (tmp_path / "mine.py").write_text(
        "import yaml\nfrom beside_first import inputs\n\n"
        "def load():\n    import beside_second\n    return (inputs()[: beside_second.COUNT], None), None\n"
    )
    before = list(sys.path)
    assert len(load_data(f"{tmp_path / 'mine.py'}:load").train) == 8
    assert sys.path == before


def test_a_file_with_a_syntax_error(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("def f(:\n")
    assert message(load_data, f"{file}:f") == (
        f"`data` must name a Python file that can be imported, got {file}: invalid syntax (broken.py, line 1)."
    )


def test_errors_of_the_users_code_come_through(tmp_path):
    file = tmp_path / "buggy.py"
    file.write_text("def f():\n    raise KeyError('mine')\n")
    with pytest.raises(KeyError, match="mine"):
        load_data(f"{file}:f")
