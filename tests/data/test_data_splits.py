import numpy as np
import pytest
import torch

from autocompress.data import from_tensors, load_data
from autocompress.errors import InputError

CIFAR_TRAIN = 50_000


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def message(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def numbered(count, **options):
    """Data whose single feature is the sample's number."""
    x = torch.arange(count, dtype=torch.float32)[:, None]
    return from_tensors((x, torch.arange(count) % 2), (x + 1000, torch.arange(count) % 2), **options)


def test_digits_sizes_and_names(digits):
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.classes == tuple("0123456789")
    assert (len(digits.search_indices), len(digits.calibration_indices)) == (718, 479)  # half, a third


def test_digits_pixels_are_sixteenths(digits):
    inputs, labels = digits.train.load(range(1437))
    assert inputs.shape == (1437, 1, 8, 8)
    assert inputs.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert (inputs.min().item(), inputs.max().item()) == (0.0, 1.0)
    assert torch.equal((inputs * 16).round(), inputs * 16)


def test_digits_are_scikit_learns_split_without_loss(digits):
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    train, test = digits.train.load(range(1437)), next(digits.test_batches(360))
    ours = torch.cat([test[0], train[0]]).flatten(1).numpy() * 16
    order = np.random.default_rng(0).permutation(1797)
    assert np.array_equal(ours, pixels[order])
    assert np.array_equal(torch.cat([test[1], train[1]]).numpy(), labels[order])


def test_the_test_split_does_not_depend_on_the_seed(digits):
    other, mine = next(load_data("digits", seed=7).test_batches(360)), next(digits.test_batches(360))
    assert torch.equal(other[0], mine[0])


@pytest.mark.parametrize(("count", "search", "calibration"), [(3, 1, 1), (6, 3, 2), (100, 50, 33), (4000, 1000, 512)])
def test_small_data_gives_what_is_there(count, search, calibration):
    data = numbered(count)
    assert (len(data.search_indices), len(data.calibration_indices)) == (search, calibration)


@pytest.mark.parametrize("count", [3, 4, 5, 6, 7, 100, 3001])
def test_splits_are_disjoint_and_within_the_training_data(count):
    data = numbered(count)
    used = data.search_indices + data.calibration_indices
    assert len(set(used)) == len(used)
    assert set(used) <= set(range(count))


def test_splits_are_loaded_from_train_and_test_from_test():
    data = numbered(10)
    assert data.search()[0][:, 0].tolist() == list(data.search_indices)
    assert data.calibration()[0][:, 0].tolist() == list(data.calibration_indices)
    assert [batch[0][:, 0].tolist() for batch in data.test_batches(4)] == [
        [1000, 1001, 1002, 1003],
        [1004, 1005, 1006, 1007],
        [1008, 1009],
    ]


def test_a_seed_fixes_the_splits_and_another_changes_them():
    assert numbered(100).search_indices == numbered(100, seed=0).search_indices
    assert numbered(100).search_indices != numbered(100, seed=1).search_indices
    assert numbered(6).search_indices == (3, 2, 5)  # numpy's default_rng(0).permutation(6) is 3 2 5 4 0 1
    assert numbered(6).calibration_indices == (0, 1)


def test_the_calibration_size_does_not_move_the_search_split():
    assert numbered(100, calibration_samples=5).search_indices == numbered(100).search_indices


def test_fingerprint_follows_the_calibration_content():
    first = numbered(100)
    assert first.fingerprint == numbered(100).fingerprint
    assert len(first.fingerprint) == 16
    others = [numbered(100, seed=1), numbered(100, calibration_samples=5), numbered(101)]
    x = torch.arange(100, dtype=torch.float32)[:, None]
    relabelled = from_tensors((x, torch.ones(100, dtype=torch.int64)))
    assert len({first.fingerprint, relabelled.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_data_without_labels_or_test_split():
    data = from_tensors((torch.zeros(6, 2), None))
    assert data.search()[1] is None
    assert data.classes == ()
    assert message(data.test_batches) == "`data` must have a test split to be tested on, got tensors without one."


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"search_samples": 0}, "`search_samples` must be at least 1, got 0."),
        ({"calibration_samples": -3}, "`calibration_samples` must be at least 1, got -3."),
        ({"seed": -1}, "`seed` must be from 0 to 4294967295, got -1."),
        (
            {"image_size": 8},
            "`image_size` must be given with parquet:, imagefolder:, hf-dataset:, prodigy: and labelbox: only, got it "
            "with digits.",
        ),
        ({"audio_seconds": 1.5}, "`audio_seconds` must be given with audio: only, got it with digits."),
        (
            {"data_args": {"a": 1}},
            "`data_args` must be given with a callable, a table or sounds only, got a with digits.",
        ),
        ({"mean": [0.5]}, "`mean` and `std` must be given together, got (0.5,) and None."),
        (
            {"mean": [0.5], "std": [1, 2]},
            "`mean` and `std` must have one number a channel each, got (0.5,) and (1.0, 2.0).",
        ),
        ({"mean": [0.5], "std": [0]}, "`mean` must be finite and `std` above 0, got (0.5,) and (0.0,)."),
    ],
)
def test_wrong_options(options, expected):
    assert message(load_data, "digits", **options) == expected


@pytest.mark.parametrize("spec", ["digts", "", "digits:", "jpegs:/data/x"])
def test_unknown_spec(spec):
    near = " (did you mean digits?)" if spec.startswith("dig") else ""
    assert message(load_data, spec) == (
        "`data` must be one of audio:FOLDER, csv:FILE|FOLDER, digits, file.py:callable, hf-dataset:FOLDER, "
        "imagefolder:FOLDER, jsonl:FILE|FOLDER, labelbox:FILE|FOLDER, lines:FILE|FOLDER, npz:FILE, "
        f"package.module:callable, parquet:FOLDER, prodigy:FILE|FOLDER, tsv:FILE|FOLDER, got {spec!r}{near}."
    )


def test_digits_with_another_normalization():
    plain, scaled = load_data("digits"), load_data("digits", mean=[0.5], std=[0.25])
    assert torch.equal(scaled.search()[0], (plain.search()[0] - 0.5) / 0.25)


def test_too_many_channels_in_the_normalization():
    data = load_data("digits", mean=[0, 0, 0], std=[1, 1, 1])
    assert message(data.search) == "`mean` and `std` must have one number a channel (1), got 3."
