"""The cache: that it is read instead of rebuilt, and that damage and company do no harm."""

import hashlib
import itertools
import multiprocessing
import os
import re
import resource
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from menu_toys import branches
from safetensors.torch import load_file, save_file
from torch import nn

from autocompress.cache import default_cache
from autocompress.checked_tensors import load_checked, save_checked
from autocompress.errors import InputError, WriteError
from autocompress.evaluation.stitch import resolve
from autocompress.job.prepare import tell_damaged
from autocompress.menus import QUANTIZERS, Menus, MenuSettings, Quantizer, build_menus
from autocompress.menus.rounding import Rounded, Rounding
from autocompress.menus.store import Store, content_key
from autocompress.network import trace
from autocompress.progress import Silent
from autocompress_envs import Labeling

SETTINGS = MenuSettings(weight_bits=(2, 4), activation_bits=(8,), sparsity_levels=3)


def build(cache: Path | None, settings: MenuSettings = SETTINGS, jobs: int = 1, **options: Any) -> Menus:
    model, x = options.pop("prepared", None) or branches()
    return build_menus(
        model, trace(model, x[:1]), x, settings, data_fingerprint="data", cache=cache, jobs=jobs, **options
    )


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def written(folder: Path) -> dict[str, tuple[int, int]]:
    """By file name: inode and time of the last write. A file that is written anew gets another inode."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def kinds(folder: Path) -> Counter[str]:
    """How many files there are of each kind: `statistics`, `order` (of a group's channels), `layer` (its variants)."""
    return Counter(re.match("[a-z]+", path.name).group() for path in folder.rglob("*.safetensors"))  # type: ignore[union-attr]


def test_second_build_writes_nothing(tmp_path: Path) -> None:
    first = build(tmp_path)
    # 3 rows for each of join's two groups, for point and for head; one for left, right and depthwise. The unpruned row
    # of join is one file, which the second of its groups finds there.
    assert kinds(tmp_path) == {"statistics": 1, "order": 3, "layer": 14}
    before = written(tmp_path)
    second = build(tmp_path)
    for a, b in zip(first.problem().layers, second.problem().layers, strict=True):
        assert np.array_equal(a.errors, b.errors)
    assert written(tmp_path) == before


@pytest.mark.parametrize(("victim", "name"), [("layer005-k8-s0", "0.error"), ("order002", "order")])
def test_second_build_believes_what_the_first_wrote(tmp_path: Path, victim: str, name: str) -> None:
    """Nothing is computed that a file holds: what is changed there shows in the menus."""
    build(tmp_path)
    (path,) = tmp_path.rglob(f"{victim}.safetensors")
    tensors = load_file(path)
    tensors[name] = tensors[name].flip(0) if tensors[name].ndim else torch.tensor(123.0, dtype=torch.float64)
    save_checked(path, {key: tensor.clone() for key, tensor in tensors.items()}, f"{path.parent.name}/{path.stem}")
    found = build(tmp_path)
    if name == "order":
        assert torch.equal(found.orders[2], tensors["order"])
    else:
        assert float(found.problem().layers[5].errors[0, 0, 0] - found.range_errors["head"][0]) == pytest.approx(123)


def test_a_file_in_the_place_of_another_is_made_anew(tmp_path: Path) -> None:
    """Both are whole, and the same in form: only the name in the checksum tells them apart."""
    build(tmp_path)
    before = contents(tmp_path)
    one, other = (next(tmp_path.rglob(f"order{index:03d}.safetensors")) for index in (0, 1))
    other.write_bytes(one.read_bytes())
    found = build(tmp_path)
    assert found.store.damaged == [other]
    assert contents(tmp_path) == before


def test_second_build_does_not_calibrate(tmp_path: Path) -> None:
    """No sample runs through the network again: inputs that would give infinite outputs go unnoticed."""
    model, x = branches()
    build(tmp_path, prepared=(model, x))
    before = written(tmp_path)
    build(tmp_path, prepared=(model, x + float("inf")))
    assert written(tmp_path) == before


def test_threads_do_not_change_what_is_written(tmp_path: Path) -> None:
    build(tmp_path / "one", jobs=1)
    build(tmp_path / "four", jobs=4)
    assert contents(tmp_path / "one") == contents(tmp_path / "four")


def test_without_a_cache_the_folder_goes_with_the_menus() -> None:
    found = build(None)
    folder = found.store.folder
    assert len(list(folder.iterdir())) == 18
    del found
    assert not folder.exists()


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_cut_files_are_rebuilt(tmp_path: Path, size: int) -> None:
    """The damaged file alone, with the bytes that it had."""
    build(tmp_path)
    before, files = contents(tmp_path), written(tmp_path)
    (victim,) = tmp_path.rglob("layer005-k8-*.safetensors")
    data = victim.read_bytes()
    victim.write_bytes(data[:size])
    build(tmp_path)
    assert contents(tmp_path) == before
    after = written(tmp_path)
    assert {name for name in files if after[name] != files[name]} == {victim.name}


@pytest.mark.parametrize("name", ["statistics", "order002", "layer005-k8-s0"])
@pytest.mark.parametrize("where", [0.3, 0.6, 1.0])
def test_a_flipped_bit_is_found(tmp_path: Path, name: str, where: float) -> None:
    """In the header (names, shapes, the checksum itself) or in the values: the file is made anew."""
    build(tmp_path)
    before = contents(tmp_path)
    (victim,) = tmp_path.rglob(f"{name}.safetensors")
    data = bytearray(victim.read_bytes())
    data[round(where * (len(data) - 1))] ^= 4
    victim.write_bytes(data)
    found = build(tmp_path)
    assert contents(tmp_path) == before
    assert found.store.damaged == [victim]


def test_files_without_a_checksum_are_made_anew(tmp_path: Path) -> None:
    """Those of earlier versions: nobody can say whether they are whole."""
    build(tmp_path)
    before = contents(tmp_path)
    (victim,) = tmp_path.rglob("order002.safetensors")
    save_file({"order": load_file(victim)["order"].clone()}, victim)
    assert build(tmp_path).store.damaged == [victim]
    assert contents(tmp_path) == before


def test_the_user_is_told_of_damage_once(tmp_path: Path) -> None:
    told: list[str] = []
    found = Store(tmp_path)
    found.tensors("a", lambda: {"a": torch.ones(3)})
    (tmp_path / "a.safetensors").write_bytes(b"damaged")
    again = Store(tmp_path)
    assert torch.equal(again.tensors("a", lambda: {"a": torch.ones(3)})["a"], torch.ones(3))
    watcher = Silent()
    watcher.note = told.append  # type: ignore[method-assign]
    for _ in range(2):
        tell_damaged(again, watcher)
    assert told == [
        "files of the cache without a checksum that matches were made anew: 1, "
        f"the first is {tmp_path / 'a.safetensors'}"
    ]


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    found = Store(tmp_path).tensors("a", lambda: {"a": torch.ones(3)})
    assert torch.equal(found["a"], torch.ones(3))
    assert (tmp_path / "a.safetensors").is_file()
    (tmp_path / "b.safetensors").mkdir()
    with pytest.raises(WriteError) as error:
        Store(tmp_path).tensors("b", lambda: {"b": torch.ones(3)})
    assert str(error.value) == (
        f"{tmp_path / 'b.safetensors'} can't be written: Is a directory; a folder has its name: remove that."
    )


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(WriteError) as error:
            Store(tmp_path).tensors("a", lambda: {"a": torch.ones(30_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(error.value) == (
        f"{tmp_path / 'a.safetensors'} can't be written: File too large; "
        "raise the limit on the size of files (ulimit -f)."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("mask", "rights"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_rights_that_the_umask_gives(tmp_path: Path, mask: int, rights: int) -> None:
    before = os.umask(mask)
    try:
        Store(tmp_path).tensors("a", lambda: {"a": torch.ones(3)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == rights


def test_a_folder_that_is_removed_meanwhile_is_made_again(tmp_path: Path) -> None:
    found = Store(tmp_path / "menus")
    (tmp_path / "menus").rmdir()
    assert torch.equal(found.tensors("a", lambda: {"a": torch.ones(3)})["a"], torch.ones(3))


def test_menus_of_other_versions_and_machines_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are knowledge about the network: whoever built them, the same name has them."""
    model, x = branches()
    network = trace(model, x[:1])
    before = content_key(model, network, "d", SETTINGS)
    monkeypatch.setattr(torch, "__version__", "9.9")
    monkeypatch.setattr("autocompress.version.__version__", "9.9")
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    monkeypatch.setattr("platform.machine", lambda: "other")
    assert content_key(model, network, "d", SETTINGS) == before


def test_what_safetensors_writes_and_reads_are_the_same_files(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(5, dtype=torch.int8), "a": torch.tensor(0.5, dtype=torch.float64), "none": torch.zeros(0, 3),
        "t": torch.arange(6.0).view(2, 3).T, "h": torch.ones(3).bfloat16(), "flag": torch.tensor([True, False]),
    }  # fmt: skip
    save_checked(tmp_path / "a.safetensors", tensors)
    for found in (load_file(tmp_path / "a.safetensors"), load_checked(tmp_path / "a.safetensors")):
        assert found is not None
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(found[name], tensor)
            assert found[name].dtype == tensor.dtype


def test_failed_builds_leave_nothing_behind(tmp_path: Path) -> None:
    def fail() -> dict[str, torch.Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).tensors("a", fail)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def slow_quantizer() -> Iterator[threading.Event]:
    """`slow` rounds its first weight at once, all others 0.2 seconds after the event."""
    interrupted, started = threading.Event(), itertools.count()

    def slow(rounding: Rounding, bits: Sequence[int]) -> list[Rounded]:
        if next(started):
            interrupted.wait(10)
            time.sleep(0.2)
        return QUANTIZERS["nearest"](rounding, bits)

    QUANTIZERS.register("slow", Quantizer(slow))
    yield interrupted
    QUANTIZERS.unregister("slow")


def test_interrupted_builds_stop(tmp_path: Path, slow_quantizer: threading.Event) -> None:
    """The rest of the queue is dropped, not worked through."""

    def interrupt(done: int, total: int, what: str) -> None:
        if what == "menus":
            slow_quantizer.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, replace(SETTINGS, quantizer="slow"), progress=interrupt)
    assert 1 <= kinds(tmp_path)["layer"] <= 2  # of 14


def test_two_threads_in_one_folder(tmp_path: Path) -> None:
    alone = build(tmp_path / "alone")
    prepared = branches()  # draws its weights from the random state that all threads share
    with ThreadPoolExecutor(2) as pool:
        pair = list(pool.map(lambda _: build(tmp_path / "shared", jobs=2, prepared=prepared), range(2)))
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    for found in pair:
        for a, b in zip(alone.problem().layers, found.problem().layers, strict=True):
            assert np.array_equal(a.errors, b.errors)


def write_and_check(folder: Path, start: Any) -> None:
    store = Store(folder)
    start.wait()
    for number in range(40):
        expected = torch.full((5000,), float(number))
        found = store.tensors(f"file{number}", lambda expected=expected: {"a": expected})  # type: ignore[misc]
        if not torch.equal(found["a"], expected):
            raise ValueError(f"file{number} holds something else")


def test_four_processes_in_one_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # no operator runs in parallel there; spawning takes seconds
    start = context.Barrier(4)
    processes = [context.Process(target=write_and_check, args=(tmp_path, start)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"file{n}.safetensors" for n in range(40))


def test_default_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert default_cache() == Path("/a")
    monkeypatch.delenv("AUTOCOMPRESS_CACHE")
    assert default_cache() == Path("/b/autocompress")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "autocompress"


def test_progress_counts_up(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    build(tmp_path, progress=lambda *args: seen.append(args))
    # Calibration runs eight blocks of samples, between which it sees how far chance reaches.
    blocks = [(done, 24, "calibration") for done in range(3, 25, 3)]
    assert seen == [*blocks, *((done, 15, "menus") for done in range(1, 16))]


def state(model: nn.Module) -> dict[str, Any]:
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())
    return {
        "modes": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "hooks": hooks,
        "threads": torch.get_num_threads(),
        "random": torch.get_rng_state().tolist(),
        "tensors": {name: tensor.clone().tolist() for name, tensor in model.state_dict().items()},
    }


def test_the_model_and_the_data_stay_as_they_are() -> None:
    model, x = branches()
    model.train()
    model.head.eval()
    before, inputs = state(model), x.clone()
    build_menus(model, trace(model, x[:1]), x, SETTINGS, data_fingerprint="", jobs=2)
    assert state(model) == before
    assert torch.equal(x, inputs)


def test_broken_weights() -> None:
    model, x = branches()
    network = trace(model, x[:1])
    with torch.no_grad():
        model.point.weight[0, 0] = float("inf")
    message = "`weights` must give finite outputs, got NaN or infinity on the calibration data."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        build_menus(model, network, x, SETTINGS, data_fingerprint="")


def test_no_weights_are_made_for_a_known_plan(tmp_path: Path) -> None:
    """With granularity `element` too: stitching asks for the files that the build wrote."""
    found = build(tmp_path, replace(SETTINGS, granularity="element"))
    assert kinds(tmp_path) == {"statistics": 1, "layer": 6 * 3}
    before = written(tmp_path)
    ones = np.ones(6, np.int64)
    for layer, choice in zip(found.network.layers, resolve(found, Labeling(ones, ones, 0 * ones)), strict=True):
        found.variants(layer, choice.reads, choice.sparsity)
    assert written(tmp_path) == before
