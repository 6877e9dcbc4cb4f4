"""Folded networks compute what the originals compute."""

import timm
import torch
import torchvision
from tiny_networks import Concat, OptionA, Residual, chain, depthwise, shake_norms
from torch import nn

from autocompress.network import fold_batch_norms, trace, unfold_batch_norms


def relative_error(model: nn.Module, x: torch.Tensor) -> float:
    model = shake_norms(model)
    folded = fold_batch_norms(model, trace(model, x))
    assert not folded.training
    with torch.no_grad():
        expected, got = model(x), folded(x)
    return float((expected - got).abs().max() / expected.abs().max())


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in model.modules())


def test_outputs_stay() -> None:
    torch.manual_seed(0)
    for model, shape in [
        (chain(), (3, 1, 4, 4)),
        (Residual(), (3, 1, 4, 4)),
        (Concat(), (3, 2, 3, 3)),
        (depthwise(), (3, 2, 4, 4)),
        (OptionA(), (3, 3, 8, 8)),
    ]:
        assert relative_error(model, torch.randn(shape)) < 1e-5, type(model).__name__


def test_bias_no_affine_and_linear() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=True),
        nn.BatchNorm2d(4, affine=False),
        nn.Flatten(),
        nn.Linear(4 * 36, 5),
        nn.BatchNorm1d(5),
        nn.ReLU(),
    )
    x = torch.randn(2, 3, 8, 8)
    network = trace(model, x)
    assert [layer.norm for layer in network.layers] == ["1", "4"]
    assert relative_error(model, x) < 1e-5
    assert norms(fold_batch_norms(model, network)) == 0


def test_the_numbers_of_one_channel() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1, eps=0.0)).eval()
    with torch.no_grad():
        for tensor, value in [
            (model[0].weight, 6.0),
            (model[0].bias, 5.0),
            (model[1].running_mean, 1.0),
            (model[1].running_var, 4.0),
            (model[1].weight, 3.0),
            (model[1].bias, -2.0),
        ]:
            tensor.fill_(value)
    folded = fold_batch_norms(model, trace(model, torch.zeros(2, 1)))
    assert folded[0].weight.item() == 6 * 3 / 2
    assert folded[0].bias.item() == (5 - 1) * 3 / 2 - 2
    assert isinstance(folded[1], nn.Identity)
    assert model[0].weight.item() == 6.0


def test_norms_that_must_stay() -> None:
    """The layer's result is read twice; the norm runs on another axis; the norm has no statistics; it runs twice."""

    class ReadTwice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    class NormTwice(ReadTwice):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.norm(self.conv(x)))

    tokens = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    no_statistics = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))
    for model, shape in [
        (ReadTwice(), (2, 2, 3, 3)),
        (NormTwice(), (2, 2, 3, 3)),
        (tokens, (2, 4, 4)),
        (no_statistics, (2, 2, 3, 3)),
    ]:
        assert [layer.norm for layer in trace(model, torch.randn(shape)).layers] == [None]


def test_one_module_under_two_names() -> None:
    norm = nn.BatchNorm2d(4)

    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.first_name, self.second_name = nn.Conv2d(3, 4, 1), norm, norm

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second_name(self.conv(x))

    assert relative_error(Aliased(), torch.randn(2, 3, 4, 4)) < 1e-5


def test_zoo() -> None:
    """timm's BatchNormAct2d keeps its activation; torchvision's MobileNetV3 folds every norm."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    assert relative_error(timm.create_model("mobilenetv3_small_050"), x) < 1e-4
    model = torchvision.models.mobilenet_v3_small().eval()
    assert relative_error(model, x) < 1e-4
    assert norms(fold_batch_norms(model, trace(model, x))) == 0


def unfolding(model: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """(folded with other weights, the same unfolded, input); the model stays as it is."""
    model = shake_norms(model)
    x = torch.randn(shape)
    network, before = trace(model, x), {name: value.clone() for name, value in model.state_dict().items()}
    folded = fold_batch_norms(model, network)
    with torch.no_grad():
        for layer in network.layers:
            for parameter in folded.get_submodule(layer.name).parameters():
                parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    result = unfold_batch_norms(model, network, folded).eval()
    assert trace(result, x).fingerprint == network.fingerprint
    assert type(result) is type(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return folded, result, x


def test_unfolded_networks_compute_what_the_folded_ones_do() -> None:
    torch.manual_seed(0)
    own_bias = nn.Sequential(nn.Conv2d(2, 4, 3, bias=True), nn.BatchNorm2d(4, affine=False), nn.Flatten())
    for model, shape in [
        (chain(), (3, 1, 4, 4)),  # layers with a norm, and without
        (Residual(), (3, 1, 4, 4)),
        (Concat(), (3, 2, 3, 3)),  # a norm that stays
        (depthwise(), (3, 2, 4, 4)),
        (OptionA(), (3, 3, 8, 8)),
        (own_bias.append(nn.Linear(16, 3, bias=False)), (3, 2, 4, 4)),
    ]:
        folded, unfolded, x = unfolding(model, shape)
        with torch.no_grad():
            expected, got = folded(x), unfolded(x)
            assert float((expected - got).abs().max() / expected.abs().max()) < 1e-6, type(model).__name__
            refolded = fold_batch_norms(unfolded, trace(unfolded, x))
            assert float((expected - refolded(x)).abs().max() / expected.abs().max()) < 1e-6


def test_unfolded_norms_only_add_the_bias() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1, eps=0.25)).eval()
    network = trace(model, torch.zeros(2, 1))
    folded = fold_batch_norms(model, network)
    with torch.no_grad():
        folded[0].weight.fill_(6.0)
        folded[0].bias.fill_(5.0)
    result = unfold_batch_norms(model, network, folded)
    norm = result[1]
    assert (result[0].weight.item(), result[0].bias.item()) == (6.0, 0.0)
    assert (norm.running_mean.item(), norm.running_var.item(), norm.weight.item(), norm.bias.item()) == (-5, 0.75, 1, 0)
