"""Calibration and menus of recurrent matrices, transposed convolutions and convolutions along three axes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.menus import MenuSettings, build_menus
from autocompress.menus.calibration import calibrate
from autocompress.menus.changes import Changes
from autocompress.menus.coherence import Coherence
from autocompress.menus.responses import responses
from autocompress.network import trace
from autocompress.network.layered import layered
from autocompress_envs.problem import Labeling

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "gru": (lambda: Last(nn.GRU(3, 4, batch_first=True)), (5, 3), "body.weight_hh_l0"),
    "lstm": (lambda: Last(nn.LSTM(3, 4, batch_first=True)), (5, 3), "body.weight_ih_l0"),
    "rnn": (lambda: Last(nn.RNN(3, 4, 2, batch_first=True)), (5, 3), "body.weight_hh_l1"),
    "transposed": (lambda: Pooled(nn.ConvTranspose2d(2, 4, 3, 2, 1)), (2, 4, 4), "body"),
    "transposed in groups": (lambda: Pooled(nn.ConvTranspose1d(4, 4, 4, 2, 1, groups=2)), (4, 5), "body"),
    "three axes": (lambda: Pooled(nn.Conv3d(2, 4, 2, stride=(1, 2, 1), padding=(1, 0, 0))), (2, 3, 4, 3), "body"),
}


class Last(nn.Module):
    """A recurrent layer of 4 hidden values, the last of its outputs."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])


class Pooled(nn.Module):
    """A convolution of 4 channels, the mean of what is positive."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)).flatten(2).mean(2))


def built(name: str, samples: int = 40) -> tuple[nn.Module, Tensor, str]:
    torch.manual_seed(3)
    build, shape, layer = MODELS[name]
    return layered(build().eval()).requires_grad_(False), torch.randn(samples, *shape), layer


def test_moments_of_a_gru_are_those_of_its_inputs_and_hidden_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hidden states that a step reads are the outputs of the step before; the first reads zeros."""
    monkeypatch.setattr(Coherence, "share", 0.0)
    model, x, _ = built("gru")
    found = calibrate(model, trace(model, x[:1]), x)
    outputs = model.body(x)[0]
    hidden = torch.cat([torch.zeros(40, 1, 4), outputs[:, :-1]], 1)
    for name, values in (("body.weight_ih_l0", x), ("body.weight_hh_l0", hidden)):
        rows = torch.cat([values, torch.ones(40, 5, 1)], 2).flatten(0, 1)
        torch.testing.assert_close(found[name].second_moment[0], rows.T @ rows / 40, atol=1e-5, rtol=1e-5)
    gradient = found["body.weight_hh_l0"].gradient_moment
    assert gradient.shape == (12, 12)
    assert torch.linalg.eigvalsh(gradient).min() > -1e-7


def test_moment_of_a_transposed_convolution_by_hand() -> None:
    """One input of 2 values, kernel 2, stride 2: every output reads one value, and a zero between."""
    model = layered(nn.Sequential(nn.ConvTranspose1d(1, 2, 2, 2), nn.Flatten()).eval()).requires_grad_(False)
    found = calibrate(model, trace(model, torch.zeros(1, 1, 2)), torch.tensor([[[3.0, 5.0]]]))["0"]
    # outputs 3 w0, 3 w1, 5 w0, 5 w1: columns (3, 0), (0, 3), (5, 0), (0, 5), each with a 1 for the bias
    assert found.second_moment[0].tolist() == [[34.0, 0.0, 8.0], [0.0, 34.0, 8.0], [8.0, 8.0, 4.0]]


@pytest.mark.parametrize("name", MODELS)
def test_responses_are_the_derivatives_of_the_network_as_it_runs(name: str) -> None:
    """⟨g, dW⟩ of each sample, with g by autograd through PyTorch's own operator."""
    model, x, layer_name = built(name, samples=6)
    layer = next(each for each in trace(model, x[:1]).layers if each.name == layer_name)
    module = model.get_submodule(layer_name)
    changes = [torch.randn(layer.rows, layer.fan_in + 1) for _ in range(3)]
    of_layer = Changes(layer, 3, lambda: iter(changes), [None])
    got = responses(model, [of_layer], x, lambda _, outputs: [outputs[:, c].sum() for c in range(3)])[layer_name]
    assert got.shape == (6, 3, 4)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    for sample in range(6):
        outputs = model(x[sample : sample + 1])[0]
        for c in range(3):
            by_weight, by_bias = torch.autograd.grad(outputs[c], [module.weight, module.bias], retain_graph=True)
            gradient = torch.cat([by_weight.flatten(1), by_bias[:, None]], 1)
            expected = torch.stack([(gradient * change).sum() for change in changes])
            torch.testing.assert_close(got[sample, c, :3], expected, atol=1e-4, rtol=1e-4)


def test_recurrent_matrices_have_bits_only_and_read_floats() -> None:
    model, x, _ = built("gru")
    settings = MenuSettings(weight_bits=(4, 8, 32), activation_bits=(8, 32), granularity="element")
    menus = build_menus(model, trace(model, x[:1]), x, settings, data_fingerprint="", jobs=1)
    inputs, hidden, head = menus.network.layers
    assert menus.sparsities(inputs) == menus.sparsities(hidden) == (0.0,)
    assert len(menus.sparsities(head)) > 1
    assert menus.ranges[hidden.name] == [None, None]
    none = np.zeros(3, np.int64)
    plan = menus.plan(Labeling(none, none, none))
    assert [plan.labels[layer.name].activation_bits for layer in menus.network.layers] == [32, 32, 8]
    # macs: 5 steps of 12 x 3 and 12 x 4, 3 x 4; 4 bits by 32, by 32 and by 8
    assert menus.problem().resources(Labeling(none, none, none))["bitops"] == 5 * 36 * 128 + 5 * 48 * 128 + 12 * 32
    losses = menus.problem().layers[1].errors[0, :, 0]
    assert losses[0] > 10 * losses[1] > 0 == losses[2]


@pytest.mark.parametrize("name", ["transposed", "transposed in groups", "three axes"])
def test_fewer_bits_cost_more_and_rounding_beats_nearest(name: str) -> None:
    model, x, layer_name = built(name)
    losses = {}
    for quantizer in ("gptq", "nearest"):
        settings = MenuSettings(weight_bits=(2, 4, 8), activation_bits=(8,), quantizer=quantizer, sparsity_levels=1)
        menus = build_menus(model, trace(model, x[:1]), x, settings, data_fingerprint="", jobs=1)
        index = menus.network.layer_index()[layer_name]
        losses[quantizer] = menus.problem().layers[index].errors[0, :, 0]
    assert losses["gptq"][0] > losses["gptq"][1] > losses["gptq"][2]
    assert losses["gptq"][0] < losses["nearest"][0]
