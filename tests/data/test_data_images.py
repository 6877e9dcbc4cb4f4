import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from autocompress.data import load_data
from autocompress.data.pixels import ImageReader
from autocompress.errors import InputError

CIFAR = Path(__file__).parents[2] / "../shared/data/cifar10-jpeg"
PLAIN = {"mean": [0, 0, 0], "std": [1, 1, 1]}


def message(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def png(value, size=(4, 4)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255)).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder, split="train", images=None, labels=None, classes=None, **options):
    images = [png(value) for value in range(6)] if images is None else images
    labels = [index % 3 for index in range(len(images))] if labels is None else labels
    table = pa.table({"image": images, "label": labels})
    pq.write_table(
        table.replace_schema_metadata({"classes": classes} if classes else None), folder / f"{split}.parquet", **options
    )
    return f"parquet:{folder}"


@pytest.fixture
def spec(tmp_path):
    write(tmp_path, "test", [png(9)])
    return write(tmp_path)


def test_parquet_rows_in_the_order_asked_for(tmp_path, spec):
    write(tmp_path, row_group_size=2)
    data = load_data(spec, **PLAIN)
    inputs, labels = data.train.load([5, 0, 3, 3])
    assert torch.equal((inputs[:, 0, 0, 0] * 255).round(), torch.tensor([5.0, 0, 3, 3]))
    assert torch.equal(inputs[:, 1:, 1, 2], torch.tensor([[0.0, 1.0]]).expand(4, 2))
    assert labels.tolist() == [2, 0, 0, 0]
    assert inputs.shape == (4, 3, 4, 4)
    assert (len(data.train), len(data.test), data.classes) == (6, 1, ("0", "1", "2"))


def test_parquet_images_in_a_struct_and_class_names(tmp_path, spec):
    write(tmp_path, images=[{"bytes": png(value), "path": None} for value in range(6)], classes="cat,dog,eel")
    data = load_data(spec, **PLAIN)
    assert (data.train.load([4])[0][0, 0, 0, 0] * 255).round().item() == 4
    assert data.classes == ("cat", "dog", "eel")


def test_parquet_default_normalization_is_imagenets(spec):
    inputs, _ = load_data(spec).train.load([0])
    assert inputs[0, :, 0, 0].tolist() == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, 0.594 / 0.225], abs=1e-6)


def test_parquet_decodes_only_what_is_asked_for(tmp_path, spec):
    write(tmp_path, images=[b"broken"] * 5 + [png(5)])
    data = load_data(spec)
    assert data.train.load([5])[1].tolist() == [2]
    assert message(data.train.load, [5, 3]) == (
        f"{tmp_path}/train.parquet row 3 must be a readable image, got a broken one: not an image of the "
        "formats BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP."
    )


def test_parquet_truncated_and_empty_image(tmp_path, spec):
    write(tmp_path, images=[png(0)[:-35], None, png(0), png(0, (5, 4))])
    source = load_data(spec).train
    start = f"{tmp_path}/train.parquet"
    assert message(source.load, [0]) == (
        f"{start} row 0 must be a readable image, got a broken one: image file is truncated."
    )
    assert message(source.load, [1]) == f"{start} row 1 must be a readable image, got an empty cell."
    assert message(source.load, [2, 3]) == (
        f"{start} must hold inputs of one shape, got (3, 4, 4) and (3, 4, 5); give image_size to resize images."
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"labels": [0, 1, None, 0, 1, 2]}, "{file} row 2 must have a label, got an empty cell."),
        ({"labels": [0, 1, 2, 0, -1, 2]}, "{file} must hold labels from 0 on, got -1 at 4, which often "
         "marks a missing label; leave such samples out."),
        ({"labels": list("abcdef")}, "{file}, {test} must hold labels that are all integers or all texts, got string "
         "and int64."),
        ({"labels": [0.5] * 6}, "{file}, {test} must hold labels that are all integers or all texts, got double and "
         "int64."),
        ({"classes": "cat,dog"}, "{file} must hold labels below 2 (its classes), got 2."),
        ({"images": ["a.png"] * 6}, "{file} column image must hold bytes or a struct with bytes, got string."),
        ({"images": pa.array([], pa.binary()), "labels": pa.array([], pa.int64())}, "{file} must hold at least 1 row, "
         "got 0."),
        ({"images": [png(0)] * 2}, "`data` must have at least 3 training samples, got 2 in {spec}."),
    ],
)  # fmt: skip
def test_parquet_with_wrong_content(tmp_path, spec, options, expected):
    write(tmp_path, **options)
    assert message(load_data, spec) == expected.format(
        file=tmp_path / "train.parquet", test=tmp_path / "test.parquet", spec=spec
    )


def test_parquet_missing_damaged_and_of_other_columns(tmp_path, spec):
    file = tmp_path / "train.parquet"
    pq.write_table(pa.table({"picture": [b""], "label": [0]}), file)
    assert message(load_data, spec) == (
        f"{file} must have a column image or text, got picture, label; name one with --data-args '{{text: COLUMN}}'."
    )
    file.write_bytes(b"garbage of some length")
    assert message(load_data, spec) == (
        f"`data` must be a readable Parquet file, got {file}: Parquet magic bytes not found in footer. "
        "Either the file is corrupted or this is not a parquet file."
    )
    file.unlink()
    assert message(load_data, spec) == f"`data` must be a readable Parquet file, got {file}: no such file."


@pytest.mark.skipif(not CIFAR.is_dir(), reason="needs ../shared/data/cifar10-jpeg")
def test_parquet_cifar():
    data = load_data(f"parquet:{CIFAR}")
    inputs, labels = data.search()
    calibration, _ = data.calibration()
    assert (len(data.train), len(data.test)) == (50_000, 5_000)
    assert ",".join(data.classes) == "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"
    assert (inputs.shape, calibration.shape) == ((1000, 3, 32, 32), (512, 3, 32, 32))
    assert not set(data.search_indices) & set(data.calibration_indices)
    assert labels[:8].tolist() == [8, 5, 4, 9, 1, 5, 3, 9]
    assert min(torch.bincount(labels).tolist()) > 70  # a shuffled split: about 100 a class


def image_folder(root, test="test"):
    for part, values in (("train", range(3)), (test, [9])):
        for label, name in enumerate(("cat", "dog")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for value in values:
                (folder / f"{value}.png").write_bytes(png(value + 10 * label, (8, 8)))
    return f"imagefolder:{root}"


@pytest.mark.parametrize("test", ["test", "val"])
def test_imagefolder_in_class_and_name_order(tmp_path, test):
    spec = image_folder(tmp_path, test)
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    (tmp_path / "train/.ipynb_checkpoints").mkdir()
    (tmp_path / "train/cat/._0.png").write_bytes(b"leftover of macOS")
    data = load_data(spec, **PLAIN)
    inputs, labels = data.train.load(range(6))
    assert (inputs[:, 0, 0, 0] * 255).round().tolist() == [0, 1, 2, 10, 11, 12]
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.classes == ("cat", "dog")
    assert next(data.test_batches(8))[1].tolist() == [0, 1]


def test_imagefolder_resizes_and_names_a_broken_image(tmp_path):
    spec = image_folder(tmp_path)
    broken = tmp_path / "train/dog/1.png"
    broken.write_bytes(b"GIF89a nothing")
    data = load_data(spec, image_size=4)
    assert data.train.load([0, 5])[0].shape == (2, 3, 4, 4)
    text = message(data.train.load, [0, 4])
    assert text == (
        f"{broken} must be a readable image, got a broken one: not an image of the formats BMP, GIF, JPEG, PNG, PPM, "
        "TIFF, WEBP."
    )


def test_imagefolder_with_wrong_folders(tmp_path):
    spec = f"imagefolder:{tmp_path}"
    assert message(load_data, spec) == (
        f"{tmp_path} must hold at least 1 image (.bmp, .jpeg, .jpg, .png, .ppm, .tif, .tiff, .webp), got 0."
    )
    (tmp_path / "train").mkdir()
    assert message(load_data, spec) == (
        f"`data` imagefolder:FOLDER must hold a folder test or val, got none in {tmp_path}."
    )
    (tmp_path / "val").mkdir()
    (tmp_path / "val/dog").mkdir()
    assert message(load_data, spec) == (
        f"{tmp_path}/train must hold one folder a class, as {tmp_path}/val does, got none."
    )
    (tmp_path / "train/cat").mkdir()
    assert message(load_data, spec) == (f"{tmp_path}/val must hold the classes of {tmp_path}/train only, got also dog.")
    (tmp_path / "val/dog").rmdir()
    assert message(load_data, spec) == (
        f"{tmp_path}/train must hold at least 1 image (.bmp, .jpeg, .jpg, .png, .ppm, .tif, .tiff, .webp), got 0."
    )


def test_reader_keeps_an_image_of_the_right_size():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    read = ImageReader(6).read(buffer.getvalue(), "it")
    assert np.array_equal(read.permute(1, 2, 0).numpy(), pixels)


def test_reader_scales_the_shorter_side_and_cuts_the_centre():
    # 14 x 28 for image_size 14: shorter side to 16 (14 * 256 / 224), so 16 x 32; the centre 14 columns are 9 to 22,
    # left of column 16 red, right of it green.
    image = Image.new("RGB", (28, 14), (255, 0, 0))
    image.paste((0, 255, 0), (14, 0, 28, 14))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    read = ImageReader(14).read(buffer.getvalue(), "it")
    assert read.shape == (3, 14, 14)
    assert read[0, 5].tolist()[:6] == [255] * 6
    assert read[1, 5].tolist()[8:] == [255] * 6
    assert read[1, 5, 0].item() == 0
    assert read[0, 5, 13].item() == 0


def test_reader_rejects_a_size_of_zero(spec):
    assert message(load_data, spec, image_size=0) == "`image_size` must be at least 1, got 0."
