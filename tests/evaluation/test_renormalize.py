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
    """Channel 0 is 1, 3 and 5, 7, with means 2 and 6 and variance 1; channel 1 is 2 throughout."""
    images = torch.tensor([[[[1.0, 3.0]], [[2.0, 2.0]]], [[[5.0, 7.0]], [[2.0, 2.0]]]])  # (2, 2, 1, 2)
    for found in (
        Moments.of(layer(), images),
        Moments.of(layer(kind="linear", weight_shape=(2, 1)), images.permute(0, 2, 3, 1)),  # channels last
        Moments.of(layer(), images.bfloat16()),
    ):
        assert found.means.tolist() == [[2, 2], [6, 2]]
        assert found.variances.tolist() == [[1, 0], [1, 0]]
        assert found.about(torch.tensor([4.0, 0.0])).tolist() == [[5, 4], [5, 4]]
        assert found.of_rows(torch.tensor([1])).means.tolist() == [[2], [2]]
    vectors = Moments.of(layer(kind="linear", weight_shape=(2, 1)), torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
    assert vectors.means.tolist() == [[1, 2], [3, 2]]
    assert vectors.variances.tolist() == [[0, 0], [0, 0]]


def alike(mean: list[float], spread: list[float]) -> Moments:
    """Moments of four samples that are all alike: nothing is chance."""
    means, variances = torch.tensor(mean).expand(4, -1), torch.tensor(spread).square().expand(4, -1)
    return Moments(means.clone(), variances.clone())


def test_what_becomes_of_outputs_by_hand() -> None:
    """Scales 1.2; 2, which is too much; 0.5, which is too little; constant now; constant in the original."""
    current = alike([1.0, 1.0, 1.0, 3.0, 3.0], [1.0, 1.0, 1.0, 0.0, 1.0])
    wanted = alike([2.0, 2.0, 2.0, 5.0, 5.0], [1.2, 2.0, 0.5, 1.0, 0.0])
    affine = Affine.between(current, wanted, has_bias=True)
    assert affine.scale.tolist() == pytest.approx([1.2, 1.25, 0.8, 1, 1])
    assert affine.shift.tolist() == pytest.approx([0.8, 0.75, 1.2, 2, 2])
    weight, bias = torch.ones(5, 2, 3), torch.full((5,), 10.0)
    assert affine.weight(weight)[:, 1, 2].tolist() == pytest.approx([1.2, 1.25, 0.8, 1, 1])
    assert affine.bias(bias).tolist() == pytest.approx([12.8, 13.25, 9.2, 12, 12])
    assert affine.outputs_(torch.ones(2, 5, 3), 1)[1, :, 2].tolist() == pytest.approx([2, 2, 2, 3, 3])
    assert affine.weight(weight.bfloat16()).dtype == torch.bfloat16
    among = affine.among(7, torch.tensor([0, 1, 3, 4, 6]))
    assert among.scale.tolist() == pytest.approx([1.2, 1.25, 1, 0.8, 1, 1, 1])
    assert among.shift.tolist() == pytest.approx([0.8, 0.75, 0, 1.2, 2, 0, 2])


def test_without_a_bias_root_mean_squares_count() -> None:
    """(1 + 3) to (4 + 5): √(9 / 4) is too much; (1 + 3) to (4 + 0.41): 1.05."""
    current = alike([1.0, 1.0], [3**0.5, 3**0.5])
    affine = Affine.between(current, alike([2.0, 2.0], [5**0.5, 0.41**0.5]), has_bias=False)
    assert affine.scale.tolist() == pytest.approx([1.25, 1.05])
    assert affine.shift.tolist() == [0, 0]


def test_what_is_chance_is_left_alone() -> None:
    """Four samples miss their means by 1 ± 2 and 1 ± 0: of the squares 1 + 1, 16 / 3 / 4 are chance, so a third stays.

    Where they miss them by more than that, nothing is certain, and so with one sample."""
    ones = torch.ones(4, 2)
    wanted = Moments(torch.tensor([[3.0, 1.0], [-1.0, 1.0], [3.0, 1.0], [-1.0, 1.0]]), ones - 0)
    current = Moments(torch.zeros(4, 2), ones)

    def missed(wanted: Moments) -> list[float]:
        """What is added to outputs that are at their mean, 0."""
        return Affine.between(current, wanted, has_bias=True).shift.tolist()

    unit = (1 + 4) ** 0.5  # of channel 0, whose means differ too; in it, 1 / 5 + 1 less 4 / 3 / 5 is certain
    share = 1 - (4 * 4 / 3 / 4 / unit**2) / (1 / unit**2 + 1)
    assert missed(wanted) == pytest.approx([share, share])
    noisy = Moments(wanted.means * torch.tensor([1.0, 0.0]), ones)
    assert missed(noisy) == [0, 0]
    alone = Affine.between(Moments(current.means[:1], ones[:1]), Moments(wanted.means[:1], ones[:1] * 2), has_bias=True)
    assert (alone.scale.tolist(), alone.shift.tolist()) == ([1, 1], [0, 0])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_has_the_originals_moments(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of random plans, where nothing is taken for chance: means to float32's precision, spreads wherever a scale within
    the bounds is enough."""
    monkeypatch.setattr("autocompress.evaluation.renormalize._certain", lambda found, samples: found)
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
            mean, spread = overall(each, now[each.name])
            wanted_mean, wanted_spread = (part[rows] for part in overall(each, original[each.name]))
            torch.testing.assert_close(mean, wanted_mean, rtol=1e-4, atol=1e-4)
            scale = (model_now.get_submodule(each.name).weight / before.get_submodule(each.name).weight).nan_to_num(1)
            scale = scale.flatten(1).amax(1)
            free = (scale > 0.801) & (scale < 1.249) & (spread > 0.01)
            torch.testing.assert_close(spread[free], wanted_spread[free], rtol=1e-3, atol=1e-4)
            assert ((scale > 0.799) & (scale < 1.251)).all()
            reached += int(free.sum())
    assert reached > 40


def overall(layer: Layer, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """(channels,) means and standard deviations over all samples and positions; no mean where it can't be changed."""
    moments = Moments.of(layer, outputs)
    mean = moments.means.mean(0) * layer.has_bias
    return mean, moments.about(mean).mean(0).sqrt()


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
    torch.testing.assert_close(squares[2][free], squares[0][free], rtol=5e-3, atol=1e-6)
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
    assert (samples(1), samples(31), samples(400)) == (128, 600_000_000 // (32 * 262_144), 32)
