"""Renormalized networks have the original's means and spreads behind every layer that can take them."""

import copy

import numpy as np
import pytest
import torch
from evaluation_toys import NETWORKS, Tied, menus_of, network, original_labels, outputs, random_labels
from torch import Tensor, nn

from autocompress.evaluation import Evaluator
from autocompress.evaluation.measure import compare
from autocompress.evaluation.renormalize import Affine, Moments, Renormalizer, renormalizing_samples
from autocompress.evaluation.stitch import kept_rows, resolve, rows_left
from autocompress.network import fold_batch_norms, trace
from autocompress.network.structure import Layer


class Repeated(nn.Module):
    """Input 6 tokens: a table, a layer that runs twice, a layer without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.same = nn.Embedding(10, 8), nn.Linear(8, 8)
        self.plain, self.head = nn.Linear(8, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.same(torch.relu(self.same(self.table(x)))))
        return self.head(torch.relu(self.plain(x)).mean(1))


def behind(model: nn.Module, x: Tensor, names: list[str]) -> dict[str, Tensor]:
    """The outputs of layers by name."""
    found, model = {}, copy.deepcopy(model)
    for name in names:
        module = model.get_submodule(name)
        module.register_forward_hook(lambda _, __, y, name=name: found.update({name: y.detach().clone()}))
    outputs(model, x)
    return found


def layer(**fields: object) -> Layer:
    given = {
        "name": "layer", "kind": "conv", "weight_shape": (2, 1, 1, 1), "groups": 1, "positions": 2,
        "input_shape": (1, 1, 2), "output_shape": (2, 1, 2), "norm": None, "has_bias": True, "reads": (),
        "writes": None,
    }  # fmt: skip
    return Layer(**given | fields)  # type: ignore[arg-type]


def test_moments_by_hand() -> None:
    """Channel 0 is 1, 3, 5, 7, with mean 4 and variance (9 + 1 + 1 + 9) / 4 = 5; channel 1 is 2 throughout."""
    images = torch.tensor([[[[1.0, 3.0]], [[2.0, 2.0]]], [[[5.0, 7.0]], [[2.0, 2.0]]]])  # (2, 2, 1, 2)
    tokens = images.permute(0, 2, 3, 1)  # channels last
    for found in (
        Moments.of(layer(), images),
        Moments.of(layer(kind="linear", weight_shape=(2, 1)), tokens),
        Moments.of(layer(), images.bfloat16()),
    ):
        assert found.mean.tolist() == [4, 2]
        assert found.spread.tolist() == pytest.approx([5**0.5, 0])
    without = Moments.of(layer(has_bias=False), images)  # root mean squares: (1 + 9 + 25 + 49) / 4 = 21
    assert without.mean.tolist() == [0, 0]
    assert without.spread.tolist() == pytest.approx([21**0.5, 2])


def test_changes_by_hand() -> None:
    """Scales 1.2; 2, which is too much; 0.5, which is too little; constant now; constant in the original."""
    current = Moments(torch.tensor([1.0, 1.0, 1.0, 3.0, 3.0]), torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0]))
    wanted = Moments(torch.tensor([2.0, 2.0, 2.0, 5.0, 5.0]), torch.tensor([1.2, 2.0, 0.5, 1.0, 0.0]))
    change = Affine.between(current, wanted)
    assert change.scale.tolist() == pytest.approx([1.2, 1.25, 0.8, 1, 0.8])
    assert change.shift.tolist() == pytest.approx([0.8, 0.75, 1.2, 2, 2.6])
    weight, bias = torch.ones(5, 2, 3), torch.full((5,), 10.0)
    assert change.weight(weight)[:, 1, 2].tolist() == pytest.approx([1.2, 1.25, 0.8, 1, 0.8])
    assert change.bias(bias).tolist() == pytest.approx([12.8, 13.25, 9.2, 12, 10.6])
    assert change.outputs_(torch.ones(2, 5, 3), 1)[1, :, 2].tolist() == pytest.approx([2, 2, 2, 3, 3.4])
    assert change.weight(weight.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_has_the_originals_moments(name: str) -> None:
    """Of random plans: means to float32's precision, spreads wherever a scale within the bounds is enough."""
    model, x = network(name)
    menus = menus_of(model, x)
    folded, names = fold_batch_norms(model, menus.network), [each.name for each in menus.network.layers]
    original, rng, reached = behind(folded, x, names), np.random.default_rng(2), 0
    plain = Evaluator(model, menus.network, menus, x, None, dtype="float32")
    evaluate = Evaluator(model, menus.network, menus, x, None, renormalized_on=x, dtype="float32")
    for _ in range(5):
        labeling = random_labels(menus.problem(), rng)
        model_now = evaluate.stitched(labeling)
        before, now = plain.stitched(labeling), behind(model_now, x, names)
        for each, choice in zip(menus.network.layers, resolve(menus, labeling), strict=True):
            rows = kept_rows(menus, each, choice)
            wanted, found = (
                Moments.of(each, original[each.name]).of_rows(rows),
                Moments.of(each, now[each.name]),
            )
            torch.testing.assert_close(found.mean, wanted.mean, rtol=1e-4, atol=1e-4)
            scale = (model_now.get_submodule(each.name).weight / before.get_submodule(each.name).weight).nan_to_num(1)
            scale = scale.flatten(1).amax(1)
            free = (scale > 0.801) & (scale < 1.249) & (found.spread > 0.01)
            torch.testing.assert_close(found.spread[free], wanted.spread[free], rtol=1e-3, atol=1e-4)
            assert ((scale > 0.799) & (scale < 1.251)).all()
            reached += int(free.sum())
    assert reached > 40


def test_the_original_is_left_as_it_is() -> None:
    model, x = network("inverted residual")
    menus = menus_of(model, x)
    folded = fold_batch_norms(model, menus.network)
    network_now = copy.deepcopy(folded)
    rows = rows_left(menus, original_labels(menus.problem()))
    changes = Renormalizer(folded, menus.network, x).apply_(network_now, rows)
    assert set(changes) == {each.name for each in menus.network.layers}
    for parameter, other in zip(folded.parameters(), network_now.parameters(), strict=True):
        assert torch.equal(parameter, other)


def test_some_layers_keep_their_weights() -> None:
    """A table, a layer that runs twice, and those that are named; one without a bias is scaled alone."""
    torch.manual_seed(0)
    model, x = Repeated().eval(), torch.randint(10, (40, 6))
    traced = trace(model, x[:1])
    rows = {each.name: torch.arange(each.rows) for each in traced.layers}
    renormalizer, disturbed = Renormalizer(model, traced, x), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in disturbed.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    before = copy.deepcopy(disturbed)
    assert set(renormalizer.apply_(disturbed, rows, keeping=["head"])) == {"plain"}
    for name in ("table", "same", "head"):
        assert torch.equal(disturbed.get_submodule(name).weight, before.get_submodule(name).weight)
    assert not torch.equal(disturbed.plain.weight, before.plain.weight)
    squares = [behind(each, x, ["plain"])["plain"].square().mean((0, 1)) for each in (model, before, disturbed)]
    ratio = (squares[0] / squares[1]).sqrt()
    free = (ratio > 0.8) & (ratio < 1.25)
    assert free.sum() >= 6
    torch.testing.assert_close(squares[2][free], squares[0][free], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(squares[1][free], squares[0][free], rtol=1e-2)
    assert not any(module._forward_hooks for module in disturbed.modules())


def test_layers_with_one_weight_get_their_own() -> None:
    torch.manual_seed(0)
    model, x = Tied().eval(), torch.randn(40, 6)
    menus = menus_of(model, x)
    evaluate = Evaluator(model, menus.network, menus, x, None, renormalized_on=x, dtype="float32")
    labeling = random_labels(menus.problem(), np.random.default_rng(0))
    assert evaluate(labeling).kl == pytest.approx(
        compare(outputs(model, x), outputs(evaluate.stitched(labeling), x), None).kl, rel=1e-4
    )


def test_an_evaluation_leaves_nothing_behind() -> None:
    """The next plan starts from the menus' weights again, whatever came between."""
    model, x = network("concat")
    menus = menus_of(model, x)
    rng = np.random.default_rng(1)
    plans = [random_labels(menus.problem(), rng) for _ in range(4)]

    def evaluator() -> Evaluator:
        return Evaluator(model, menus.network, menus, x, None, renormalized_on=x, dtype="float32", batch_size=16)

    once = evaluator()
    assert [once(plan).kl for plan in plans] == [evaluator()(plan).kl for plan in plans]


def test_fewer_samples_of_large_images() -> None:
    """The memory of all activations at once decides, within 32 and 128 samples."""

    def samples(width: int) -> int:
        model = nn.Sequential(nn.Conv2d(1, width, 1), nn.Conv2d(width, 1, 1))
        return renormalizing_samples(trace(model, torch.zeros(1, 1, 256, 256)))

    # 256 x 256 floats are 262,144 bytes; width + 1 channels at the peak.
    assert (samples(1), samples(63), samples(400)) == (128, 10**9 // (64 * 262_144), 32)
