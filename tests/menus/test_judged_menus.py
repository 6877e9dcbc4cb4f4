"""Menus with judged losses: their tables, what is stored of them, and menus that build few variants."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judging_toys import Pool, maps, menus_of
from menu_toys import branches, randn
from safetensors.torch import load_file

from autocompress.checked_tensors import save_checked
from autocompress.errors import InputError
from autocompress.menus import Menus
from autocompress.menus.judging import judge
from autocompress.menus.renormalized import renormalized_change
from autocompress.menus.responses import Changes
from autocompress.menus.store import Store, _pack
from autocompress.menus.variants import Variant
from autocompress.network import fold_batch_norms

OPTIONS: dict[str, Any] = {"weight_bits": (2, 4, 32), "activation_bits": (4, 8, 32), "sparsity_levels": 4}


def judging_samples(seed: int = 7) -> torch.Tensor:
    return torch.randn(30, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def menus(judging: torch.Tensor | None = None, **options: Any) -> Menus:
    model, x = branches()
    return menus_of(model, x, judging, **{**OPTIONS, **options})


def layer_of(found: Menus, name: str) -> Any:
    return found.network.layers[found.network.layer_index()[name]]


@pytest.fixture(scope="module")
def plain() -> Menus:
    return menus()


@pytest.fixture(scope="module")
def judged() -> Menus:
    return menus(judging_samples())


@pytest.fixture
def lazily(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.menus.build._EAGER_WEIGHTS", 0)


def test_every_variant_of_every_table_is_judged_by_itself(judged: Menus) -> None:
    """One at a time, in place of hundreds: the same number at the same place."""
    model, _ = branches()
    folded = fold_batch_norms(model, judged.network).requires_grad_(False)
    shapes = {
        "left": [(1, 3)], "right": [(1, 3)], "join": [(4, 3), (4, 3)], "depthwise": [(1, 3)], "point": [(4, 3)],
        "head": [(4, 3)],
    }  # fmt: skip
    assert judged.judged is not None
    assert {name: [table.shape for table in tables] for name, tables in judged.judged.items()} == shapes
    for layer in judged.network.layers:
        for position, table in enumerate(judged.judged[layer.name]):
            cells = judged.table_cells(layer, position)
            for row, bits in ((0, 0), (len(cells) - 1, 1), (len(cells) - 1, 2)):
                kept, sparsity, _ = cells[row]
                variant = judged.variants(layer, kept, sparsity)[bits]
                change = renormalized_change(judged.sources[layer.name], variant)
                alone = Changes(layer, 1, lambda change=change: iter([change]), judged.ranges[layer.name])
                found = judge(folded, [alone], judging_samples(), draws=judged.settings.fisher_draws)[layer.name]
                assert table[row, bits] == pytest.approx(found.weights[0], rel=1e-4, abs=1e-12)
                np.testing.assert_allclose(judged.range_errors[layer.name], found.roundings, rtol=1e-4)


def test_the_problem_holds_the_judged_losses(plain: Menus, judged: Menus) -> None:
    """Weights and inputs add up; what a second group adds is what its table grows by, never below 0."""
    assert judged.judged is not None
    for layer, other in zip(judged.problem().layers, plain.problem().layers, strict=True):
        first = judged.judged[layer.name][0]
        np.testing.assert_array_equal(layer.errors, first[:, :, None] + judged.range_errors[layer.name])
        assert layer.errors.shape == other.errors.shape
        assert not np.isclose(layer.errors[:, :2], other.errors[:, :2], rtol=1e-6).any()
        assert (layer.source, layer.weight_bits.tolist()) == (other.source, other.weight_bits.tolist())
    ((_, added),) = judged.problem().layers[2].extra_sources
    second = judged.judged["join"][1]
    np.testing.assert_array_equal(added, np.maximum(second[:, -1] - second[0, -1], 0))


def test_variants_are_those_of_menus_that_are_not_judged(plain: Menus, judged: Menus) -> None:
    """Judging weighs the labels; it does not make them."""
    for layer in judged.network.layers:
        for (kept, one), (other_kept, other) in zip(
            judged.table_variants(layer, 0), plain.table_variants(layer, 0), strict=True
        ):
            assert kept == other_kept
            assert torch.equal(one.weight(), other.weight())
            assert one.error == other.error


def test_tables_by_hand(plain: Menus, lazily: None) -> None:
    """Rows of all bits as they are given; of others the loss of pruning, and a share of the first row's rounding."""
    join = layer_of(plain, "join")  # 10 columns; 6, 5, 3 or 2 of the first group's 6 channels stay
    given = [float(number) for number in range(12)]
    assert plain.table(join, 0, given).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    lazy = menus()
    assert not lazy.eager
    expected = [[8, 4, 1], [10 + 0.9 * 8, 10 + 0.9 * 4, 10 + 0.9], [20 + 0.7 * 8, 20 + 0.7 * 4, 20 + 0.7]]
    expected.append([30 + 0.6 * 8, 30 + 0.6 * 4, 30 + 0.6])
    np.testing.assert_allclose(lazy.table(join, 0, [8, 4, 1, 10, 20, 30]), expected, rtol=1e-12)
    assert lazy.table(layer_of(lazy, "left"), 0, [8, 4, 1]).tolist() == [[8, 4, 1]]


def test_table_variants_are_the_rows_one_after_the_other(plain: Menus, lazily: None) -> None:
    """Lazily, the pruned weights alone stand for a row."""
    head, lazy = layer_of(plain, "head"), menus()
    for found, counts in ((plain, [8, 8, 8, 6, 6, 6, 4, 4, 4, 2, 2, 2]), (lazy, [8, 8, 8, 6, 4, 2])):
        listed = list(found.table_variants(head, 0))
        assert [kept for kept, _ in listed] == [{2: count} for count in counts]
        assert [len(variant.columns) for _, variant in listed] == counts
    for (_, one), other in zip(list(plain.table_variants(head, 0))[:3], plain.variants(head, {2: 8}), strict=True):
        assert torch.equal(one.weight(), other.weight())
    for kept, variant in list(lazy.table_variants(head, 0))[3:]:
        assert torch.equal(variant.weight(), lazy.pruned(head, kept).weight())


def test_pruned_is_the_pruned_layer_in_16_bits(plain: Menus) -> None:
    """Whatever bits are on offer: refitted as with 32, and rounded to the nearest float16."""
    join = layer_of(plain, "join")
    for kept in ({0: 3, 1: 4}, {0: 2, 1: 1}):
        found, exact = plain.pruned(join, kept), plain.variants(join, kept)[2]
        assert found.scale is None
        assert torch.equal(found.columns, plain.kept_columns(join, kept))
        assert torch.equal(found.weight(), exact.weight().half().float())
        assert torch.equal(found.bias, exact.bias)
        assert found.error == pytest.approx(exact.error, rel=1e-3)


def test_lazy_menus_are_judged_on_what_they_build(judged: Menus, lazily: None) -> None:
    """The first rows are the eager ones; the others lose what pruning costs, and an estimate of rounding."""
    lazy = menus(judging_samples())
    assert not lazy.eager
    assert judged.judged is not None
    assert lazy.judged is not None
    for layer in judged.network.layers:
        for position, eager in enumerate(judged.judged[layer.name]):
            table = lazy.judged[layer.name][position]
            assert table.shape == eager.shape
            np.testing.assert_allclose(table[0], eager[0], rtol=1e-4, atol=1e-12)
            np.testing.assert_allclose(table[:, -1], eager[:, -1], rtol=0.02, atol=1e-9)  # 16 bits beside 32
            kept = [len(lazy.kept_columns(layer, cell)) for cell, *_ in lazy.table_cells(layer, position)]
            shares = np.array(kept)[:, None] / layer.fan_in
            rounding = table[1:] - table[1:, -1:]
            np.testing.assert_allclose(rounding, (shares * (table[0] - table[0, -1]))[1:], rtol=1e-6, atol=1e-12)
    names = [path.stem for path in lazy.store.folder.iterdir() if path.stem.startswith("layer")]
    assert len(names) == 6 + 12  # whole layers, and the pruned ones of each cell


def losses_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("losses-*.safetensors"))


def test_losses_are_stored_by_the_samples_that_they_were_judged_on(tmp_path: Path) -> None:
    """Other samples are judged anew, beside the first; the same menus hold both."""
    one, other = judging_samples(7), judging_samples(8)
    first = menus(one, cache=tmp_path)
    assert len(losses_files(tmp_path)) == 1
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    seen: list[str] = []
    again = menus(one.clone(), cache=tmp_path, progress=lambda done, total, what: seen.append(what))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before
    assert set(seen) == {"menus"}
    second = menus(other, cache=tmp_path)
    assert len(losses_files(tmp_path)) == 2
    for a, b, c in zip(first.problem().layers, again.problem().layers, second.problem().layers, strict=True):
        assert np.array_equal(a.errors, b.errors)
        assert not np.allclose(a.errors[:, :2], c.errors[:, :2], rtol=1e-3)
        assert np.allclose(a.errors[:, :2], c.errors[:, :2], rtol=3)


def test_stored_losses_are_believed(tmp_path: Path) -> None:
    menus(judging_samples(), cache=tmp_path)
    (path,) = losses_files(tmp_path)
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    assert sorted(tensors)[:2] == ["depthwise:roundings", "depthwise:weights"]
    assert {name: len(tensors[f"{name}:weights"]) for name in ("left", "join", "head")} == {
        "left": 3, "join": 24, "head": 12,
    }  # fmt: skip
    tensors["join:weights"] = torch.arange(24, dtype=torch.float64)
    tensors["left:roundings"] = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    save_checked(path, tensors, f"{path.parent.name}/{path.stem}")
    found = menus(judging_samples(), cache=tmp_path)
    assert found.judged is not None
    assert np.array_equal(np.stack(found.judged["join"]).ravel(), np.arange(24))
    assert found.range_errors["left"].tolist() == [3, 2, 1]


def test_progress_of_judging_comes_last() -> None:
    seen: list[tuple[int, int, str]] = []
    menus(judging_samples(), progress=lambda *told: seen.append(told))
    assert seen[-1] == (30, 30, "expected losses")
    assert [told for told in seen if told[2] == "expected losses"] == seen[-1:]
    assert seen[-2][2] == "menus"


def test_of_a_large_network_the_first_samples_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as gradients are worth taking of."""
    monkeypatch.setattr("autocompress.menus.fisher._LEAST", 10)
    monkeypatch.setattr("autocompress.menus.fisher._MULTIPLY_ADDS", 1)
    model = Pool().eval().requires_grad_(False)
    options = {"weight_bits": (4, 8)}
    some, first, others = (
        menus_of(model, maps(64, 1), judging, **options)
        for judging in (maps(32, 2), maps(32, 2)[:10], torch.cat([maps(32, 2)[:10], maps(22, 3)]))
    )
    for a, b, c in zip(some.problem().layers, first.problem().layers, others.problem().layers, strict=True):
        assert np.array_equal(a.errors, b.errors)
        assert np.array_equal(a.errors, c.errors)


def test_outputs_that_are_not_finite_on_the_judging_samples() -> None:
    broken = judging_samples()
    broken[3, 0, 1, 1] = float("inf")
    with pytest.raises(InputError, match=r"^`model` must give finite outputs, got NaN or infinity"):
        menus(broken)


def test_single_weights_are_judged_too() -> None:
    """Granularity element: four sparsities of each layer. Three quarters of its weights cost more than one."""
    found = menus(judging_samples(), granularity="element")
    assert found.judged is not None
    for name, (table,) in found.judged.items():
        assert table.shape == (4, 3)
        assert table[3, -1] > table[1, -1] > 1e-8, name
        assert table[0, -1] < 1e-10


def test_replaced_tables_make_another_problem(judged: Menus) -> None:
    """The problem is made once for each menus; a copy with other losses does not keep that of the first."""
    assert judged.problem() is judged.problem()
    assert judged.judged is not None
    ones = {name: [np.ones_like(table) for table in tables] for name, tables in judged.judged.items()}
    found = replace(judged, judged=ones).problem()
    assert all((layer.errors[:, :, -1] == 1).all() for layer in found.layers)


def packed(variants: list[Variant], folder: Path) -> tuple[dict[str, torch.Tensor], list[Variant]]:
    """What lies in the file, and what is read of it."""
    store = Store(folder)
    bits = [0] * len(variants)
    found = store.variants("layer", bits, lambda: variants)
    return load_file(folder / "layer.safetensors"), found


def test_values_of_16_bits_take_16_bits_on_disk_and_come_back_exactly(tmp_path: Path) -> None:
    """Values that float16 does not hold exactly stay in 32 bits: too fine, too large, too small."""
    columns, bias = torch.arange(3), torch.tensor([0.1, 0.2])
    fine = randn(2, 3).float()
    half = fine.half().float()
    large, small = half.clone(), half.clone()
    large[0, 0], small[0, 0] = 70_000.0, 1e-9
    half[0, 0] = 65_504.0  # the largest
    codes = torch.tensor([[1, -2, 3], [127, -128, 0]], dtype=torch.int8)
    variants = [Variant(columns, values, None, bias.clone(), 0.5) for values in (half, fine, large, small)]
    variants.append(Variant(columns, codes, torch.tensor([0.5, 0.25]), bias, 0.5))
    stored, found = packed(variants, tmp_path)
    dtypes = [stored[f"{number}.values"].dtype for number in range(5)]
    assert dtypes == [torch.float16, torch.float32, torch.float32, torch.float32, torch.int8]
    for before, after in zip(variants, found, strict=True):
        assert torch.equal(after.values, before.values)
        assert after.values.dtype == before.values.dtype
        assert torch.equal(after.weight(), before.weight())
        assert (torch.equal(after.bias, before.bias), after.error) == (True, 0.5)


def test_a_16_bit_label_is_half_as_large_on_disk_as_a_32_bit_one(plain: Menus, tmp_path: Path) -> None:
    half, full = menus(weight_bits=(16, 32)).variants(layer_of(plain, "right"), {})
    sizes = [_pack([each])["0.values"].nbytes for each in (half, full)]
    assert sizes == [2 * 4 * 18, 4 * 4 * 18]
    assert torch.equal(packed([half], tmp_path)[1][0].weight(), half.weight())
    assert half.weight().dtype == torch.float32
