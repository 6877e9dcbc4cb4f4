"""Factors of low rank against closed forms, and what menus make of them."""

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.errors import InputError
from autocompress.menus import MenuSettings, build_menus
from autocompress.menus.algebra import covariance, damped
from autocompress.menus.low_rank import Format, first_factor, low_rank_variants, offered_ranks
from autocompress.menus.rounding import code_range
from autocompress.menus.store import content_key
from autocompress.menus.variants import LayerSource, channel_variants
from autocompress.network import trace
from autocompress.network.structure import LINEAR, Layer
from autocompress.plan import Label, Plan
from autocompress_envs.problem import Labeling
from tests.menus.menu_toys import branches, gradient_moment, moment, randn

SETTINGS = MenuSettings(damping=1e-6)


def layer(rows: int, columns: int, kind: str = LINEAR, shape: tuple[int, ...] = ()) -> Layer:
    return Layer("fc", kind, (rows, columns, *shape), 1, 1, (), (), None, True, (), None)


def source(rows: int = 10, columns: int = 14, rank: int | None = None, seed: int = 0) -> LayerSource:
    """Random weight with a bias, of a rank; correlated inputs whose mean is not 0."""
    weight = randn(rows, columns, seed=seed)
    if rank is not None:
        weight = randn(rows, rank, seed=seed) @ randn(rank, columns, seed=seed + 1)
    weight = torch.cat([weight, randn(rows, 1, seed=seed + 2)], 1)
    moments = moment(columns, seed=seed)[None].float(), gradient_moment(rows, seed=seed).float()
    return LayerSource(layer(rows, columns), weight, *moments)


def variants(of: LayerSource, formats: list[Format], columns: torch.Tensor | None = None, **options: object):
    kept = torch.arange(of.layer.fan_in) if columns is None else columns
    return low_rank_variants(of, kept, formats, MenuSettings(**{"damping": 1e-6} | options))  # type: ignore[arg-type]


def test_a_weight_of_that_rank_is_reproduced():
    exact, lower = variants(source(rank=4), [Format(4, 32), Format(3, 32)])
    assert exact.values.shape == (10, 4)
    assert exact.first is not None
    assert exact.first.values.shape == (4, 14)
    assert exact.error < 1e-7 < 1e-3 < lower.error
    assert (exact.weight() - source(rank=4).weight[:, :-1].float()).abs().max() < 1e-3


@pytest.mark.parametrize("rank", [1, 3, 7, 9])
def test_the_loss_is_half_of_the_discarded_squared_singular_values(rank):
    """½ Σ σ² of Rᵀ W L beyond the rank, with G = 3 I and the covariance of the inputs: the mean is the bias's."""
    of = source()
    of = LayerSource(of.layer, of.weight, of.second_moment, 3 * torch.eye(10))
    root = torch.linalg.cholesky(covariance(of.second_moment[0].double()))
    singular = torch.linalg.svdvals(3**0.5 * of.weight[:, :-1] @ root)
    found = variants(of, [Format(rank, 32)], damping=1e-9)[0]
    assert found.error == pytest.approx(0.5 * float(singular[rank:].square().sum()), rel=1e-4)


def test_gradients_say_which_outputs_count():
    """Only the first two outputs matter, and a bit of all others: rank 2 keeps those, not the largest weights."""
    of = source(rows=6)
    weights = of.weight.clone()
    weights[2:] *= 3
    gradients = torch.diag(torch.tensor([1e4, 1e4, 1e-6, 1e-6, 1e-6, 1e-6]))
    weighted = variants(LayerSource(of.layer, weights, of.second_moment, gradients), [Format(2, 32)])[0]
    plain = variants(LayerSource(of.layer, weights, of.second_moment, torch.eye(6)), [Format(2, 32)])[0]

    def of_first(variant):
        return float((variant.weight() - weights[:, :-1].float())[:2].square().sum())

    assert of_first(weighted) < 0.3 * of_first(plain)


def test_factors_share_the_singular_values():
    """What B hands on has the singular values as variances, and the columns of A have them as squared norms (G = I)."""
    of = source()
    moments = damped(of.second_moment.double(), 1e-6)[0]
    factor = first_factor(of.weight, moments, torch.eye(10, dtype=torch.float64), 5)
    handed = factor @ covariance(moments) @ factor.T
    singular = torch.linalg.svdvals(of.weight[:, :-1] @ torch.linalg.cholesky(covariance(moments)))[:5]
    # G of the identity is damped to 1.1 times that: its root scales all singular values alike.
    ratios = handed.diagonal() / singular
    assert torch.allclose(handed, handed.diagonal().diag(), atol=1e-9 * float(handed.max()))
    assert torch.allclose(ratios, ratios[0].expand(5), rtol=1e-6)


def test_ranks_beyond_the_weights_are_padded_with_zeros():
    found = variants(source(), [Format(12, 32), Format(12, 4)])
    for variant in found:
        assert variant.first is not None
        assert variant.first.values.shape == (12, 14)
        assert not variant.first.weight()[10:].any()
        assert variant.values.shape == (10, 12)
    assert found[0].error < 1e-7


@pytest.mark.parametrize("quantizer", ["gptq", "nearest", "mse", "fixed-point"])
def test_both_factors_are_codes(quantizer):
    for variant, bits in zip(
        variants(source(), [Format(5, bits) for bits in (2, 4, 8)], quantizer=quantizer), (2, 4, 8), strict=True
    ):
        low, high = code_range(bits)
        first = variant.first
        assert first is not None
        assert first.scale is not None
        assert variant.scale is not None
        for codes, scale in ((variant.values, variant.scale), (first.values, first.scale)):
            assert codes.dtype == torch.int8
            assert low <= int(codes.min()) <= int(codes.max()) <= high
            assert scale.dtype == torch.float32
            assert bool((scale > 0).all())
        assert torch.equal(variant.weight(), variant.own_weight() @ first.weight())


def test_the_second_factor_makes_up_for_the_first_ones_rounding():
    """Over 5 layers, refitting to the rounded B loses less than the best A with the same B (4 bits, A in floats)."""
    gains = []
    for seed in range(5):
        of = source(rows=24, columns=30, seed=seed)
        whole, coarse = variants(of, [Format(8, 32), Format(8, 4)])
        assert coarse.first is not None
        # The A of the unrounded factors with the rounded B, each of its rows scaled the same.
        change = of.change(whole).double()
        change[:, :-1] += (whole.own_weight() @ (coarse.first.weight() - whole.first.weight())).double()
        naive = 0.5 * float(((of.gradient_moment.double() @ change) * (change @ of.second_moment[0].double())).sum())
        gains.append(coarse.error / naive)
    assert sorted(gains)[2] < 1.0


def test_more_ranks_and_bits_lose_less():
    of = source(rows=24, columns=30)
    losses = torch.tensor([each.error for each in variants(of, [Format(r, b) for r in (4, 8, 12) for b in (3, 5, 8)])])
    losses = losses.view(3, 3)
    assert bool((losses.diff(dim=0) < 0).all())
    assert bool((losses.diff(dim=1) < 0).all())


def test_columns_that_go_are_made_up_for_first():
    """At full rank the factors are the re-fitted weight."""
    of, columns = source(), torch.tensor([0, 2, 3, 4, 7, 8, 9, 11, 12, 13])
    found = variants(of, [Format(10, 32)], columns)[0]
    expected = channel_variants(of, columns, (32,), SETTINGS)[0]
    assert found.columns.tolist() == columns.tolist()
    assert torch.allclose(found.weight(), expected.weight(), atol=1e-3)
    assert found.error == pytest.approx(expected.error, rel=1e-4)


def test_only_what_gets_smaller_is_offered():
    for shares in ((0.25, 0.5, 0.9), (0.99,)):
        for rows, columns in [(384, 1536), (96, 96), (10, 64), (3, 3), (1, 50)]:
            for rank in offered_ranks([layer(rows, columns)], shares):
                assert 0 < rank * (rows + columns) < rows * columns
                assert rank < 8 or rank % 8 == 0
    assert offered_ranks([layer(384, 384), layer(64, 384)], (0.5,)) == (24,)  # as the smaller: 27.4, rounded down
    assert offered_ranks([layer(16, 16, "conv", (1, 1))], (0.5,)) == (4,)
    for other in (layer(16, 16, "conv", (3, 1)), layer(16, 16, "embedding"), layer(16, 16, "depthwise", (1, 1))):
        assert offered_ranks([other], (0.5,)) == ()


def menus(**options):
    model, inputs = branches()
    settings = MenuSettings(**{"weight_bits": (2, 8), "sparsity_levels": 2, "ranks": (0.5, 0.9)} | options)
    return build_menus(model, trace(model, inputs[:1]), inputs, settings, data_fingerprint="", jobs=1)


def test_menus_offer_ranks_first():
    found = menus()
    problem = found.problem()
    by_name = {numbers.name: numbers for numbers in problem.layers}
    # `point` is 8 x 8 at 1 x 1: as many weights at rank 4; `right` is 3 x 3 and `depthwise` in groups.
    assert by_name["point"].weight_ranks.tolist() == [2, 2, 3, 3, 0, 0]
    assert by_name["point"].weight_bits.tolist() == [2, 8, 2, 8, 2, 8]
    assert by_name["right"].weight_ranks.tolist() == by_name["depthwise"].weight_ranks.tolist() == [0, 0]
    for name in ("point", "join", "head"):
        losses = by_name[name].errors[0, :, -1]
        assert losses[1] > losses[3] > losses[5]  # at 8 bits, by rank
    none = [0] * len(problem.layers)
    for numbers in problem.layers:
        position = len(numbers.weight_bits) - 1
        assert numbers.weight_bits[position] == 8
        assert numbers.weight_ranks[position] == 0
    plan_bits = [int((numbers.weight_ranks == numbers.weight_ranks.max()).argmax()) for numbers in problem.layers]
    labeling = Labeling(np.array(none), np.array(plan_bits), np.array(none))
    plan = found.plan(labeling)
    assert plan.labels["point"].rank == 3
    assert plan.labels["right"].rank == 0
    assert found.labeling(plan).key() == labeling.key()


def test_a_rank_that_is_not_offered_is_refused():
    found = menus()
    labels = {each.name: Label(0.0, 8, 8) for each in found.network.layers}
    with pytest.raises(InputError) as error:
        found.labeling(Plan(labels | {"point": Label(0.0, 8, 8, 4)}))
    assert str(error.value) == "Layer point: `rank` must be one of 0, 2, 3, got 4; set --ranks."
    with pytest.raises(InputError) as error:
        found.labeling(Plan(labels | {"right": Label(0.0, 8, 8, 2)}))
    assert str(error.value) == "Layer right: `rank` must be one of 0, got 2; set --ranks."


def test_layers_of_branches_that_may_go_are_not_cut():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.inner, self.outer = nn.Linear(8, 16), nn.Linear(16, 24), nn.Linear(24, 16)
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            return self.head(torch.relu(x + self.outer(torch.relu(self.inner(x)))))

    model, inputs = Block().eval(), torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    network, cut = trace(model, inputs[:1]), {}
    for remove in (False, True):
        settings = MenuSettings(weight_bits=(8,), sparsity_levels=2, ranks=(0.5,), remove_branches=remove)
        found = build_menus(model, network, inputs, settings, data_fingerprint="", jobs=1)
        cut[remove] = [each.name for each in network.layers if found.ranks(each)]
    assert cut == {False: ["stem", "inner", "outer", "head"], True: ["stem", "head"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ranks": (0.5, 0.5)},
            "`ranks` must be ascending shares above 0 and below 1 of a layer's multiply-accumulates, such as "
            "0.25,0.5,0.75, got [0.5, 0.5].",
        ),
        (
            {"ranks": (0.5, 1.0)},
            "`ranks` must be ascending shares above 0 and below 1 of a layer's multiply-accumulates, such as "
            "0.25,0.5,0.75, got [0.5, 1.0].",
        ),
        (
            {"ranks": (0.5,), "granularity": "2:4"},
            "`ranks` must be none with the granularity 2:4, whose single weights two factors don't have, got [0.5]; "
            "leave out --ranks or --granularity.",
        ),
    ],
)
def test_wrong_ranks(options, message):
    with pytest.raises(InputError) as error:
        MenuSettings(**options)
    assert str(error.value) == message


def test_other_settings_keep_their_key(tmp_path):
    """Menus without ranks are those of a cache that knows of none; with ranks they have another."""
    model, inputs = branches()
    network = trace(model, inputs[:1])
    plain, with_ranks = (content_key(model, network, "x", MenuSettings(ranks=ranks)) for ranks in ((), (0.5,)))
    assert plain != with_ranks
    assert plain == content_key(model, network, "x", MenuSettings())


def test_variants_come_back_from_the_store(tmp_path):
    model, inputs = branches()
    network = trace(model, inputs[:1])
    settings = MenuSettings(weight_bits=(2, 16), sparsity_levels=1, ranks=(0.5,))
    made, read = (
        build_menus(model, network, inputs, settings, data_fingerprint="", jobs=1, cache=tmp_path) for _ in range(2)
    )
    assert made.store.written
    assert not read.store.written
    for each in network.layers:
        for one, other in zip(made.variants(each, {}), read.variants(each, {}), strict=True):
            assert torch.equal(one.weight(), other.weight())
            assert (one.first is None) == (other.first is None)


def test_menus_that_are_not_built_beforehand_give_the_same_weights(monkeypatch):
    eager = menus()
    monkeypatch.setattr("autocompress.menus.build._EAGER_WEIGHTS", 0)
    lazy = menus()
    assert eager.eager
    assert not lazy.eager
    each = next(each for each in eager.network.layers if each.name == "point")
    kept = {read: 4 for read in each.reads}
    for position, expected in enumerate(eager.variants(each, kept)):
        assert torch.equal(lazy.variant(each, kept, 0.0, position).weight(), expected.weight())


def test_linear_layers_of_one_tie_share_their_ranks():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.gate, self.up, self.down = nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(64, 32)
            self.head = nn.Linear(32, 3)

        def forward(self, x):
            return self.head((x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))).mean(1))

    model, inputs = Gated().eval(), torch.randn(16, 5, 32, generator=torch.Generator().manual_seed(0))
    network = trace(model, inputs[:1])
    settings = MenuSettings(weight_bits=(8,), sparsity_levels=1, ranks=(0.5,))
    found = build_menus(model, network, inputs, settings, data_fingerprint="", jobs=1)
    tied = [each for each in network.layers if each.tied_to]
    assert [each.name for each in tied] == ["up"]
    leader = found.problem().layers[network.layer_index()["gate"]]
    assert leader.weight_ranks.tolist() == [8, 0]
    assert found.ranks(tied[0]) == (8,)
    # 2 first factors of 8 x 32, and 128 x 8, at 5 positions; without a rank 128 x 32.
    none = np.zeros(len(network.layers), int)
    low, whole = none.copy(), none.copy()
    whole[network.layer_index()["gate"]] = 1
    macs = [found.problem().resources(Labeling(none, bits, none))["macs"] for bits in (low, whole)]
    assert macs[1] - macs[0] == 5 * (128 * 32 - (2 * 8 * 32 + 128 * 8))
    plan = found.plan(Labeling(none, low, none))
    assert plan.labels["gate"].rank == plan.labels["up"].rank == 8
