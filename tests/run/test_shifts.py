import numpy as np

from autocompress.run.shifts import ShiftFile


def records(count, shape=(3, 2)):
    return [np.arange(6, dtype=np.float16).reshape(shape) + 100 * index for index in range(count)]


def test_records_come_back_exactly(tmp_path):
    first, second = records(2)
    with ShiftFile(tmp_path / "f", (3, 2)) as file:
        file.write(0, first)
        file.write(1, second)
    with ShiftFile(tmp_path / "f", (3, 2)) as file:
        np.testing.assert_array_equal(file.read(0), first)
        np.testing.assert_array_equal(file.read(1), second)
        assert file.read(2) is None
    assert (tmp_path / "f").stat().st_size == 2 * 12


def test_a_torn_record_is_none_and_is_written_over(tmp_path):
    first, second = records(2)
    with ShiftFile(tmp_path / "f", (3, 2)) as file:
        file.write(0, first)
        file.write(1, second)
    content = (tmp_path / "f").read_bytes()
    for length in range(12, 24):
        (tmp_path / "f").write_bytes(content[:length])
        with ShiftFile(tmp_path / "f", (3, 2)) as file:
            assert file.read(1) is None
            np.testing.assert_array_equal(file.read(0), first)
            file.write(1, second)
            np.testing.assert_array_equal(file.read(1), second)
