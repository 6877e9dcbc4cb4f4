"""H, G and the input samples against explicit loops; nothing borrowed is kept."""

import re

import pytest
import torch
import torch.nn.functional as F
from menu_toys import CONVOLUTIONS, OTHER_PADDING, images, statistics
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.menus.calibration import batch_size, calibrate, output_bytes, shrunk
from autocompress.menus.columns import at_positions, count_positions, extended_columns, weight_order
from autocompress.menus.fisher import random_functions
from autocompress.menus.listening import window_of_module
from autocompress.network import trace


def unfolded_moment(module: nn.Conv2d, x: Tensor) -> Tensor:
    """(g, d + 1, d + 1) by `F.unfold`, one group at a time."""
    moments = []
    for part in x.double().chunk(module.groups, 1):
        columns = F.unfold(part, module.kernel_size, module.dilation, module.padding, module.stride)  # (N, d, T)
        columns = torch.cat([columns, torch.ones_like(columns[:, :1])], 1)
        moments.append(torch.einsum("ndt,net->de", columns, columns) / len(x))
    return torch.stack(moments)


@pytest.mark.parametrize("module", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_moment_of_convolution_inputs(module: nn.Conv2d) -> None:
    x = images(module)
    found = statistics(nn.Sequential(module), x)["0"].second_moment
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), unfolded_moment(module, x), rtol=1e-5, atol=1e-5)


class PadsItself(nn.Conv2d):
    """As timm's Conv2dSame: zeros below and to the right of its input, by an operator of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 2)), self.weight, self.bias, self.stride, groups=self.groups)


PADDED = {
    **OTHER_PADDING,
    "by itself": PadsItself(4, 6, 3, stride=2),
    "groups, by itself": PadsItself(4, 6, 2, groups=2),
}


@pytest.mark.parametrize("module", (CONVOLUTIONS | PADDED).values(), ids=(CONVOLUTIONS | PADDED).keys())
def test_moments_are_those_of_the_operators_inputs(module: nn.Conv1d | nn.Conv2d) -> None:
    """E[y yᵀ] = W H Wᵀ, whatever the module does to its input before its operator sees it."""
    x = images(module)
    layer = trace(nn.Sequential(module), x).layers[0]
    moment = statistics(nn.Sequential(module), x)["0"].second_moment.double()  # (g, d + 1, d + 1)
    bias = torch.zeros(layer.rows) if module.bias is None else module.bias
    weight = torch.cat([module.weight.flatten(1), bias[:, None]], 1).view(module.groups, -1, layer.fan_in + 1).double()
    with torch.no_grad():
        outputs = module(x).movedim(1, 0).flatten(1).view(module.groups, -1, layer.positions * len(x)).double()
        torch.testing.assert_close(weight @ moment @ weight.mT, outputs @ outputs.mT / len(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", [name for name, module in (CONVOLUTIONS | OTHER_PADDING).items() if module.padding_mode == "zeros"]
)
def test_columns_times_weight_is_the_output(name: str) -> None:
    module = (CONVOLUTIONS | OTHER_PADDING)[name]
    x = images(module)
    layer = trace(nn.Sequential(module), x).layers[0]
    columns = extended_columns(x, window_of_module(module))[:, :, weight_order(layer)]  # (g, M, d + 1)
    bias = torch.zeros(layer.rows) if module.bias is None else module.bias
    weight = torch.cat([module.weight.flatten(1), bias[:, None]], 1).view(module.groups, -1, layer.fan_in + 1)
    output = (columns @ weight.mT).permute(1, 0, 2).flatten(1)  # (M, rows)
    torch.testing.assert_close(output, module(x).movedim(1, -1).reshape(-1, layer.rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 3), (6, 4, 3), (6, 2, 4, 3)])
def test_moment_of_linear_inputs(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = statistics(nn.Sequential(nn.Linear(3, 2)), x)["0"].second_moment.double()
    flat = torch.cat([x.reshape(-1, 3), torch.ones(x.numel() // 3, 1)], 1).double()
    torch.testing.assert_close(found, (flat.T @ flat / 6)[None], rtol=1e-5, atol=1e-6)


class Tiny(nn.Module):
    """Input 1x5x5; the ReLU overwrites the convolution's output where `inplace`."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(1, 3, 2, stride=2)
        self.act = nn.ReLU(inplace=inplace)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.head(self.act(self.conv(x)).flatten(1))


def explicit_gradient_moments(model: Tiny, x: Tensor, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """(G of conv, G of head) sample by sample."""
    generator = torch.Generator().manual_seed(seed)
    conv_moment, head_moment = torch.zeros(3, 3), torch.zeros(4, 4)
    for sample in x:  # every sample is a batch: there are fewer than blocks
        for each in torch.randint(0, 2, (draws, 4), generator=generator) * 2.0 - 1:
            conv = model.conv(sample[None]).detach().requires_grad_()
            head = model.head(torch.relu(conv).flatten(1))
            logs = (3 * head).log_softmax(1)[0]
            loss = (each * logs.detach().exp().sqrt() * logs).sum()
            conv_grad, head_grad = torch.autograd.grad(loss, (conv, head))
            for row in range(2):
                for column in range(2):
                    g = conv_grad[0, :, row, column]
                    conv_moment += torch.outer(g, g) / 4
            head_moment += torch.outer(head_grad[0], head_grad[0])
    return conv_moment / (draws * len(x)), head_moment / (draws * len(x))


@pytest.mark.parametrize("inplace", [False, True])
def test_gradient_moments(inplace: bool) -> None:
    model = Tiny(inplace)
    x = torch.randn(7, 1, 5, 5, generator=torch.Generator().manual_seed(2))
    conv, head = explicit_gradient_moments(Tiny(False), x, draws=3, seed=11)
    found = statistics(model, x, draws=3, seed=11)
    assert conv.diagonal().min() > 0.01
    torch.testing.assert_close(found["conv"].gradient_moment.float(), conv, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["head"].gradient_moment.float(), head, rtol=1e-4, atol=1e-6)


class Repeated(nn.Module):
    """The layer sees 3 positions: along an axis, as samples, or in three runs; it computes the same."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layer, self.how = nn.Linear(2, 3), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "axis":
            y = self.layer(x)
        elif self.how == "samples":
            y = self.layer(x.flatten(0, 1)).view(len(x), 3, 3)
        else:
            y = torch.stack([self.layer(x[:, position]) for position in range(3)], 1)
        return y.square().sum(1)


@pytest.mark.parametrize("how", ["samples", "runs"])
def test_positions_count_alike_however_the_layer_sees_them(how: str) -> None:
    x = torch.randn(8, 3, 2, generator=torch.Generator().manual_seed(2))
    expected, found = (statistics(Repeated(which), x)["layer"] for which in ("axis", how))
    torch.testing.assert_close(found.second_moment, expected.second_moment)
    torch.testing.assert_close(found.gradient_moment, expected.gradient_moment)
    torch.testing.assert_close(found.channel_activation, expected.channel_activation)


def test_batches_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(7, 1, 5, 5, generator=torch.Generator().manual_seed(2))
    whole = statistics(Tiny(True), x)["conv"]
    monkeypatch.setattr("autocompress.menus.calibration.batch_size", lambda layers, device: 3)
    monkeypatch.setattr("autocompress.menus.calibration._BLOCKS", 1)
    seen: list[tuple[int, int]] = []
    model = Tiny(True).requires_grad_(False)
    parts = calibrate(model, trace(model, x), x, progress=lambda done, total: seen.append((done, total)))["conv"]
    assert seen == [(3, 7), (6, 7), (7, 7)]
    torch.testing.assert_close(parts.second_moment, whole.second_moment, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts.channel_activation, whole.channel_activation)
    assert (parts.input_sample[0], parts.input_sample[-1]) == (x[..., :, :].min(), x.max())


def test_channel_activation_is_the_mean_magnitude() -> None:
    x = torch.tensor([[[[1.0, -3.0]], [[0.0, 2.0]]], [[[5.0, -1.0]], [[0.0, 0.0]]]])  # (2, 2, 1, 2)
    found = statistics(nn.Sequential(nn.Conv2d(2, 2, 1)), x)["0"]
    assert found.channel_activation.tolist() == [2.5, 0.5]


def test_input_sample_sees_every_pixel() -> None:
    """Strided sampling would see 2 of the 64 pixels here: 64 · 32 · 64 values, every 32nd."""
    x = torch.arange(64.0).view(1, 1, 8, 8).expand(64, 32, 8, 8).contiguous()
    sample = statistics(nn.Sequential(nn.Conv2d(32, 2, 1)), x)["0"].input_sample
    assert sample.unique().tolist() == list(range(64))
    assert torch.equal(sample, sample.sort().values)
    assert abs(float(sample.mean()) - 31.5) < 1.5


def test_long_input_samples_are_thinned_and_keep_their_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.menus.calibration._RANGE_SAMPLES", 50)
    x = torch.randn(9, 1, 5, 5, generator=torch.Generator().manual_seed(2))
    sample = statistics(Tiny(False), x)["conv"].input_sample
    assert len(sample) == 50
    assert (sample[0], sample[-1]) == (x.min(), x.max())


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


@pytest.mark.parametrize("broken", [False, True])
def test_nothing_borrowed_is_kept(broken: bool) -> None:
    model = Tiny(True).eval().requires_grad_(False)
    x = torch.randn(7, 1, 5, 5)
    network, before, random_state = trace(model, x), x.clone(), torch.get_rng_state()
    if broken:
        model.head.bias.fill_(float("nan"))
        message = "`weights` must give finite outputs, got NaN or infinity on the calibration data."
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            calibrate(model, network, x)
    else:
        calibrate(model, network, x)
    assert hooks(model) == 0
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_draws_follow_the_seed() -> None:
    x = torch.randn(7, 1, 5, 5, generator=torch.Generator().manual_seed(2))
    first, again, other = (statistics(Tiny(True), x, seed=seed)["conv"].gradient_moment for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("module", (CONVOLUTIONS | OTHER_PADDING).values(), ids=(CONVOLUTIONS | OTHER_PADDING).keys())
def test_drawn_columns_are_some_of_all(module: nn.Conv1d | nn.Conv2d) -> None:
    if module.padding_mode != "zeros":
        pytest.skip("other padding is an operator before the convolution")
    x, window = images(module), window_of_module(module)
    every = extended_columns(x, window)
    assert count_positions(x, window) == every.shape[1]
    drawn = torch.randint(every.shape[1], (40,), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(extended_columns(x, window, drawn), every[:, drawn], rtol=0, atol=0)


@pytest.mark.parametrize("axis", [1, -1])
def test_values_at_drawn_positions(axis: int) -> None:
    x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    every = x.movedim(axis, -1).flatten(0, 2)  # (M, channels)
    assert torch.equal(at_positions(x, axis, None), every)
    drawn = torch.tensor([0, len(every) - 1, 3])
    assert torch.equal(at_positions(x, axis, drawn), every[drawn])


def test_large_maps_are_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 of 1,024 positions a sample: the moment is right within the chance of the draw, and its scale in full."""
    monkeypatch.setattr("autocompress.menus.calibration._LEAST_COLUMNS", 2_400)
    monkeypatch.setattr("autocompress.menus.calibration._COLUMNS_AN_UNKNOWN", 1)
    module = nn.Conv2d(3, 4, 3, padding=1)
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)) + 1
    found, exact = statistics(nn.Sequential(module), x)["0"].second_moment.double(), unfolded_moment(module, x)
    assert not torch.allclose(found, exact, rtol=1e-3)  # drawn
    assert float(found[0, -1, -1]) == pytest.approx(1024, rel=1e-6)  # positions, counted in full
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0.1 * float(exact.abs().max()))


def test_chance_correlations_are_shrunk_and_true_ones_are_not() -> None:
    """Independent inputs, fewer samples than inputs: correlations are chance. Tied ones: they are not."""
    noise = torch.randn(64, 200, generator=torch.Generator().manual_seed(1))
    tied = torch.randn(64, 1, generator=torch.Generator().manual_seed(2)) + 0.1 * noise
    linear = nn.Linear(200, 2)
    by_chance, true = (float(statistics(nn.Sequential(linear), x)["0"].shrinkage) for x in (noise, tied))
    assert 0.22 < by_chance <= 0.25
    assert true < 0.01
    few, many = (
        float(statistics(nn.Sequential(nn.Linear(4, 2)), x @ torch.randn(4, 4))["0"].shrinkage)
        for x in (noise[:16, :4], torch.randn(2048, 4))
    )
    assert many < few


def test_shrinking_keeps_means_and_variances() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)) @ torch.randn(3, 3) + torch.tensor(
        [1.0, 2.0, 3.0]
    )
    x = torch.cat([x, torch.ones(50, 1)], 1)
    moment = (x.T @ x / 50)[None]
    half, whole = shrunk(moment, 0.5), shrunk(moment, 1.0)
    assert torch.equal(shrunk(moment, 0.0), moment)
    for found in (half, whole):
        torch.testing.assert_close(found[:, -1], moment[:, -1])
        torch.testing.assert_close(found.diagonal(dim1=1, dim2=2), moment.diagonal(dim1=1, dim2=2))
    mean = moment[0, -1, :-1]
    torch.testing.assert_close(whole[0, :-1, :-1] - torch.outer(mean, mean), torch.diag(x[:, :3].var(0, correction=0)))
    torch.testing.assert_close(half, (moment + whole) / 2)


def test_random_functions_have_the_fisher_matrix_as_second_moment() -> None:
    """Of the logits: diag(p) - p pᵀ."""
    logits = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
    p = logits.detach().softmax(1)[0]
    generator, total = torch.Generator().manual_seed(0), torch.zeros(3, 3)
    for function in random_functions(logits, 4000, generator):
        (gradient,) = torch.autograd.grad(function, logits, retain_graph=True)
        total += torch.outer(gradient[0], gradient[0]) / 4000
    torch.testing.assert_close(total, torch.diag(p) - torch.outer(p, p), atol=0.01, rtol=0.05)


class Windowed(nn.Module):
    """Tokens (N, 6, 4) in windows of two, which a linear layer sees as samples, then all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        windows = self.first(x.reshape(-1, 2, 4)).relu()
        return self.head(self.second(windows.reshape(len(x), 6, 5)).mean(1))


@pytest.mark.parametrize(
    ("model", "example", "values"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)), torch.randn(1, 3, 8, 8), 4 * 6 * 6 + 2),
        (Windowed(), torch.randn(1, 6, 4), 6 * 5 + 6 * 3 + 2),
        (nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 3), nn.Flatten()), torch.arange(7)[None], 7 * 8 + 7 * 3),
    ],
)
def test_outputs_are_counted_at_all_positions(model: nn.Module, example: Tensor, values: int) -> None:
    """Once, tokens were not counted: batches of DeiT-small took 27 samples for 2, and 9.7 GB."""
    assert output_bytes(trace(model, example).layers) == 4 * values


def test_batches_of_tokens_fit_into_memory() -> None:
    """A quarter of a gigabyte for three copies of 512 x 4,096 outputs in float32, and of the two last ones'."""
    model = nn.Sequential(nn.Linear(8, 4_096), nn.ReLU(), nn.Linear(4_096, 8), nn.Flatten(), nn.Linear(4_096, 2))
    layers = trace(model, torch.randn(1, 512, 8)).layers
    assert batch_size(layers, torch.device("cpu")) == 256_000_000 // (3 * 4 * (512 * 4_096 + 512 * 8 + 2)) == 10
