"""Data that lies, bursts or never ends: one line each, before it takes memory, time or a program."""

import io
import os
import struct
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from autocompress.budget import format_bytes
from autocompress.data import from_tensors, load_data, npz, parquet, pixels
from autocompress.data.pixels import ImageReader
from autocompress.errors import InputError

FORMATS = "BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"
LABELS = np.array([0, 1, 2, 0, 1, 2])
MARK = "which often marks a missing label; leave such samples out"


def message(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def archive(folder, **changes):
    file = folder / "data.npz"
    x = np.zeros((6, 1, 4, 4), np.uint8)
    np.savez(file, **{"x_train": x, "y_train": LABELS, "x_test": x[:3], "y_test": LABELS[:3], **changes})
    return file


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def png_header(width, height):
    """A PNG file that says its size and holds next to nothing."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def tables(folder, images=None, labels=LABELS, metadata=None):
    images = [encoded(Image.new("RGB", (4, 4)))] * 6 if images is None else images
    for split in ("train", "test"):
        table = pa.table({"image": images, "label": labels}).replace_schema_metadata(metadata)
        pq.write_table(table, folder / f"{split}.parquet")
    return f"parquet:{folder}"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1, 2, 0, 2_000_000_000, 2], "must hold labels below 1,000,000, got 2,000,000,000 at 4; renumber them from "
         "0."),
        ([0, 1, 2, 0, 2**64 - 1, 2], "must hold labels below 1,000,000, got 18,446,744,073,709,551,615 at 4; renumber "
         "them from 0."),
        ([0, 1, -1, 0, 1, 2], f"must hold labels from 0 on, got -1 at 2, {MARK}."),
        ([0, 1, 2, 255, 1, 2], f"must hold labels from 0 to 2, as all others, got 255 at 3, {MARK}."),
        ([0, 1, 2, 0, 1, 65535], f"must hold labels from 0 to 2, as all others, got 65535 at 5, {MARK}."),
    ],
)  # fmt: skip
def test_labels_beyond_every_number_of_classes(tmp_path, labels, expected):
    labels = np.array(labels, np.uint64 if max(labels) > 2**63 else np.int64)
    file = archive(tmp_path, y_train=labels)
    assert message(load_data, f"npz:{file}") == f"{file} train {expected}"
    assert message(load_data, tables(tmp_path, labels=labels)) == f"{tmp_path}/train.parquet {expected}"
    assert message(from_tensors, (torch.zeros(6, 2), labels)) == f"tensors train {expected}"


def test_256_classes_are_no_mark(tmp_path):
    labels = torch.tensor([0, 1, 2, 130, 200, 255])
    assert len(from_tensors((torch.zeros(6, 2), labels)).classes) == 256
    named = from_tensors((torch.zeros(6, 2), torch.tensor([0, 1, 2, 0, 1, 255])), classes=["x"] * 256)
    assert len(named.classes) == 256


def test_unsigned_labels(tmp_path):
    for kind in (np.uint8, np.uint16, np.uint32, np.uint64):
        data = load_data(f"npz:{archive(tmp_path, y_train=LABELS.astype(kind))}")
        assert data.train.load(range(6))[1].tolist() == LABELS.tolist()


def replaced(file, name, content):
    """The archive with other bytes for one array."""
    with zipfile.ZipFile(file) as old:
        members = {each: old.read(each) for each in old.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for each, bytes_ in {**members, f"{name}.npy": content}.items():
            new.writestr(each, bytes_)


def header(text, version=b"\x01\x00"):
    return b"\x93NUMPY" + version + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"


@pytest.mark.parametrize("shape", ["(1000000000, 1000, 1000)", "(6, -4, -4)", "(6, 1, 4, 5)", "(6, 1, 4)"])
def test_npz_headers_that_lie(tmp_path, shape):
    file = archive(tmp_path)
    replaced(file, "x_train", header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}") + bytes(96))
    said = int(np.prod([int(edge) for edge in shape.strip("()").split(",")], dtype=object))
    assert message(load_data, f"npz:{file}") == (
        f"`data` npz:FILE must hold arrays of the shape in their headers, got x_train of {file} with 96 bytes "
        f"instead of {said:,}."
    )


@pytest.mark.parametrize("text", ["(" * 200, "{", "[1, 2]", "'\\x00", "{'descr': '|u1'}"])
def test_npz_headers_that_are_none(tmp_path, text):
    file = archive(tmp_path)
    replaced(file, "y_train", header(text))
    assert message(load_data, f"npz:{file}").startswith(
        f"`data` npz:FILE must be a readable .npz archive, got {file}: "
    )


def test_npz_arrays_in_fortran_order(tmp_path):
    x = np.asfortranarray(np.random.default_rng(0).normal(size=(6, 3, 4, 5)))
    data = load_data(f"npz:{archive(tmp_path, x_train=x, x_test=x[:3])}")
    assert np.allclose(data.train.load([4])[0][0].numpy(), x[4], atol=1e-6)


def test_npz_bomb(tmp_path, monkeypatch):
    file = tmp_path / "data.npz"
    zeros = np.zeros((2**13, 1, 8, 8), np.uint8)
    np.savez_compressed(file, x_train=zeros, y_train=LABELS, x_test=zeros, y_test=LABELS)
    monkeypatch.setattr(npz, "memory_limit", lambda _: 10**6)
    assert message(load_data, f"npz:{file}") == (
        f"`data` npz:FILE must fit into the 1 MB of memory that are left, got {file}, whose arrays take 2 MB."
    )


def test_a_flipped_bit_in_an_npz_file(tmp_path):
    file = archive(tmp_path)
    content = bytearray(file.read_bytes())
    content[180] ^= 1
    file.write_bytes(content)
    assert message(load_data, f"npz:{file}") == (
        f"`data` npz:FILE must be a readable .npz archive, got {file}: Bad CRC-32 for file 'x_train.npy'."
    )


def test_parquet_of_a_billion_equal_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "memory_limit", lambda _: 10**3)
    labels = np.zeros(100, np.int64)
    spec = tables(tmp_path, images=[b"x"] * 100, labels=labels)
    assert message(load_data, spec) == (
        f"{tmp_path}/train.parquet must fit into the 1 kB of memory that are left, got 100 rows, whose labels "
        "take 4 kB."
    )


def test_class_names_that_are_not_utf_8(tmp_path):
    assert message(load_data, tables(tmp_path, metadata={"classes": b"cat,d\xffg,eel"})) == (
        f"`classes` in the metadata of {tmp_path}/train.parquet must be UTF-8, got byte 5 that is not."
    )


@pytest.mark.parametrize("kind", ["EPS", "PDF", "TGA", "ICO"])
def test_formats_that_are_not_listed_are_not_decoded(tmp_path, kind, monkeypatch):
    content = encoded(Image.new("RGB", (16, 16)), kind)
    monkeypatch.setattr("subprocess.Popen", None)  # EPS starts Ghostscript
    monkeypatch.setattr("subprocess.check_call", None)
    expected = f"must be a readable image, got a broken one: not an image of the formats {FORMATS}."
    assert (
        message(load_data(tables(tmp_path, [content] * 6)).train.load, [0])
        == f"{tmp_path}/train.parquet row 0 {expected}"
    )
    for part in ("train", "test"):
        (tmp_path / part / "cat").mkdir(parents=True)
        for index in range(3):
            (tmp_path / part / "cat" / f"{index}.png").write_bytes(content)
    source = load_data(f"imagefolder:{tmp_path}").train
    assert message(source.load, [1]) == f"{tmp_path}/train/cat/1.png {expected}"


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_formats_that_are_listed(kind):
    assert ImageReader().read(encoded(Image.new("RGB", (16, 16)), kind), "x").shape == (3, 16, 16)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_narrow_and_huge_images_are_refused_by_their_headers():
    narrow = encoded(Image.new("L", (1, 60_000)))
    assert message(ImageReader(224).read, narrow, "x.png") == (
        "x.png must have at most 89,478,485 pixels when its shorter side has 256, got 1 x 60,000, which gives "
        "256 x 15,360,000."
    )
    assert ImageReader().read(narrow, "x.png").shape == (3, 60_000, 1)
    for size in (None, 224):
        assert message(ImageReader(size).read, png_header(10_000, 9_000), "x.png") == (
            "x.png must have at most 89,478,485 pixels, got 10,000 x 9,000."
        )
    assert message(ImageReader().read, png_header(60_000, 60_000), "x.png") == (
        "x.png must have at most 89,478,485 pixels, got twice as many or more."
    )


def test_batches_that_do_not_fit_into_memory(tmp_path, monkeypatch):
    source, resized = load_data(spec := tables(tmp_path)).train, load_data(spec, image_size=5).train
    monkeypatch.setattr(pixels, "memory_limit", lambda _: 16 * 15 * 3)
    assert source.load([0, 1, 2])[0].shape == (3, 3, 4, 4)
    assert message(source.load, [3] * 4) == (
        f"{tmp_path}/train.parquet row 3 must have at most 12 pixels to fit into memory with its batch, got 4 x 4."
    )
    assert message(resized.load, [0, 1]) == ("`image_size` must be at most 4 for 2 images to fit into memory, got 5.")


def pipe(path):
    os.mkfifo(path)
    return path


def test_pipes_and_devices_are_no_files(tmp_path):
    for where, kind in (("/dev/zero", "a device"), (pipe(tmp_path / "p"), "a pipe"), (tmp_path, "a folder")):
        assert message(load_data, f"npz:{where}") == f"`data` must be a regular file, got {where}, which is {kind}."
    pipe(tmp_path / "train.parquet")
    assert message(load_data, f"parquet:{tmp_path}") == (
        f"`data` must be a regular file, got {tmp_path}/train.parquet, which is a pipe."
    )
    for part in ("train", "test"):
        (tmp_path / part / "cat").mkdir(parents=True)
        for index in range(3):
            pipe(tmp_path / part / "cat" / f"{index}.png")
    source = load_data(f"imagefolder:{tmp_path}").train
    assert message(source.load, [0]) == (
        f"An image must be a regular file, got {tmp_path}/train/cat/0.png, which is a pipe."
    )


def test_parquet_whose_row_group_is_larger_than_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "memory_limit", lambda _: 10**6)
    for split in ("train", "test"):
        pq.write_table(
            pa.table({"image": [bytes(5 * 10**6)] * 6, "label": [0, 1, 2] * 2}), tmp_path / f"{split}.parquet"
        )
    size = pq.ParquetFile(tmp_path / "train.parquet").metadata.row_group(0).total_byte_size
    source = load_data(f"parquet:{tmp_path}").train
    with pytest.raises(InputError) as error:
        source.load([0])
    assert str(error.value) == (
        f"{tmp_path / 'train.parquet'} must have row groups that fit into the 1 MB of memory that are left, got one of "
        f"{format_bytes(size)}; write the file with smaller ones."
    )
