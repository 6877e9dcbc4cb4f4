"""Row groups of Parquet files that are kept, so that a shuffled batch does not read every group again."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import autocompress.data.parquet as parquet
from autocompress.data import load_data
from autocompress.policy_training.zoo import in_memory


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 255)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def encoded(tmp_path):
    for split in ("train", "test"):
        images, labels = [png(value) for value in range(60)], [value % 3 for value in range(60)]
        pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / f"{split}.parquet", row_group_size=16)
    return load_data(f"parquet:{tmp_path}", search_samples=12, calibration_samples=10)


def test_images_in_memory_are_the_same(encoded):
    held = in_memory(encoded)
    (inputs, labels), (same, same_labels) = (data.train.load([59, 0, 17, 17]) for data in (encoded, held))
    assert torch.equal(inputs, same)
    assert torch.equal(labels, same_labels)
    assert (held.fingerprint, held.search_indices) == (encoded.fingerprint, encoded.search_indices)
    assert (len(held.train), held.test) == (60, encoded.test)


def test_every_row_group_is_read_once(encoded, monkeypatch):
    read, original = [], parquet._read
    monkeypatch.setattr(parquet, "_read", lambda path, what: read.append(path) or original(path, what))
    first = [encoded.train.load([row, 59 - row])[0] for row in range(0, 60, 5)]
    assert len(read) == 4  # groups of 16 rows
    again = [encoded.train.load([row, 59 - row])[0] for row in range(0, 60, 5)]
    assert len(read) == 4
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert (first[3][:, 0, 0, 0] * 0.229 + 0.485).mul(255).round().tolist() == [15.0, 44.0]


def test_kept_row_groups_stay_within_memory(encoded, monkeypatch):
    """Room for one group only: every other one takes its place, and answers stay right."""
    size = encoded.train._images(0).nbytes
    monkeypatch.setattr(parquet, "_KEPT_BYTES", int(1.5 * size))
    encoded.train._kept.clear()
    for row in (0, 20, 40, 59, 0):
        value = encoded.train.load([row])[0][0, 0, 0, 0] * 0.229 + 0.485
        assert round(value.item() * 255) == row
        assert list(encoded.train._kept) == [row // 16]
