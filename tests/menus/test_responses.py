"""Responses against the derivatives of each sample alone, one change after the other."""

import copy
import re
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from menu_toys import CONVOLUTIONS, OTHER_PADDING, images, seeded
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.menus.activations import ActivationRange
from autocompress.menus.calibration import calibrate
from autocompress.menus.responses import Changes, pass_bytes, responses
from autocompress.network import trace

ROUNDINGS = [ActivationRange(4, 0.25, 6, 0.0), None, ActivationRange(4, 0.5, 3, 0.0)]
CLASSES = 4


def two_functions(first: int, outputs: Tensor) -> list[Tensor]:
    """Not linear, and other ones for every sample."""
    weights = torch.randn(2, 100, CLASSES, generator=seeded(9))[:, first : first + len(outputs)].to(outputs)
    return [(weights[0] * outputs.sin()).sum(), (weights[1] * outputs.square()).sum()]


def changes_of(model: nn.Module, x: Tensor, count: int = 3) -> list[Changes]:
    """Changes of every layer at random, the bias of a layer without one included: nothing may read it."""
    found = []
    for number, layer in enumerate(trace(model, x[:1]).layers):
        made = torch.randn(count, layer.rows, layer.fan_in + 1, generator=seeded(number))
        if getattr(model.get_submodule(layer.name), "bias", None) is None:
            made[..., -1] = 0

        def weights(made: Tensor = made) -> Iterator[Tensor]:
            return iter(made)

        found.append(Changes(layer, count, weights, ROUNDINGS))
    return found


def of_weights(model: nn.Module, x: Tensor, changes: Changes, functions: Callable) -> Tensor:
    """(N, Q, V) products of a sample's gradient, by autograd, with every change."""
    module = model.get_submodule(changes.layer.name)
    parameters = [parameter for parameter in (module.weight, module.bias) if parameter is not None]
    rows = []
    for number, sample in enumerate(x):
        wanted = functions(number, model(sample[None]))
        for function in wanted:
            gradients = torch.autograd.grad(function, parameters, retain_graph=True, allow_unused=True)
            flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
            products = []
            for change in changes.weights():
                parts = [change[:, :-1].flatten(), change[:, -1]]
                products.append(sum(float(g.flatten() @ part) for g, part in zip(flat, parts, strict=False)))
            rows.append(torch.tensor(products))
    return torch.stack(rows).view(len(x), -1, changes.count)


def of_rounding(model: nn.Module, x: Tensor, name: str, rounding: ActivationRange, functions: Callable) -> Tensor:
    """(N, Q) derivatives by t where the layer puts out y + t (its output of the rounded input - y)."""
    module, rows = model.get_submodule(name), []
    step = torch.zeros((), requires_grad=True)

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        with torch.no_grad():
            moved = type(module).forward(module, rounding.apply(inputs[0])) - output
        return output + step * moved

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    handle = module.register_forward_hook(hook)
    for number, sample in enumerate(x):
        wanted = functions(number, model(sample[None]))
        rows.append([float(torch.autograd.grad(each, step, retain_graph=True)[0]) for each in wanted])
    handle.remove()
    return torch.tensor(rows)


def agree(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()) + 1e-6)


def check(model: nn.Module, x: Tensor, functions: Callable = two_functions) -> dict[str, Tensor]:
    """All layers of a network, weights and roundings; not in vain. Returns the responses."""
    model = model.eval()
    frozen = copy.deepcopy(model).requires_grad_(False)
    changes = changes_of(frozen, x)
    found = responses(frozen, changes, x, functions)
    for each in changes:
        name = each.layer.name
        expected = of_weights(model.requires_grad_(True), x, each, functions)
        assert found[name].shape == (len(x), expected.shape[1], 3 + 3)
        assert found[name].dtype == torch.float32
        agree(found[name][..., :3], expected)
        assert expected.abs().median() > 1e-4
        for place, rounding in enumerate(ROUNDINGS):
            of_place = found[name][..., 3 + place]
            if rounding is None:
                assert not of_place.any()
            else:
                expected = of_rounding(copy.deepcopy(model), x, name, rounding, functions)
                agree(of_place, expected)
                assert expected.abs().max() > 1e-5
    return found


class Around(nn.Module):
    """A convolution behind another one, an activation in place, and a head."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        super().__init__()
        torch.manual_seed(2)
        kind = nn.Conv2d if x.ndim == 4 else nn.Conv1d
        self.stem, self.module = kind(x.shape[1], x.shape[1], 1), copy.deepcopy(module)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(self.module(self.stem(x)).flatten(1).shape[1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.module(self.stem(x).tanh())).flatten(1))


# Tracing goes on and on where a circular sequence lies between two layers.
BETWEEN = {name: module for name, module in (CONVOLUTIONS | OTHER_PADDING).items() if name != "sequence, circular"}


@pytest.mark.parametrize("module", BETWEEN.values(), ids=BETWEEN.keys())
def test_convolutions(module: nn.Module) -> None:
    """Strides, dilations, groups, paddings, one dimension; the first layer, and a head with one position."""
    x = images(module, samples=4)
    check(Around(module, x), x)


@pytest.mark.parametrize(
    "module", [CONVOLUTIONS["stride"], OTHER_PADDING["sequence"], OTHER_PADDING["sequence, circular"]]
)
def test_a_convolution_that_comes_first(module: nn.Module) -> None:
    """Its output begins the graph, and is overwritten in place."""
    x, torch_module = images(module, samples=4), copy.deepcopy(module)
    width = torch_module(x).flatten(1).shape[1]
    torch.manual_seed(3)
    check(nn.Sequential(torch_module, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(width, CLASSES)), x)


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6)], ids=["(N, d)", "(N, T, d)", "(N, T, U, d)"])
def test_linear_layers(shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    x = torch.randn(4, *shape)
    width = 7 * x[0].numel() // 6
    check(nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 7), nn.Flatten(), nn.Linear(width, CLASSES)), x)


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_convolutions_with_one_position(groups: int) -> None:
    """Taken one by one: squeeze-and-excite layers, a kernel as large as the map, the map padded."""
    torch.manual_seed(3)
    x = torch.randn(4, 6, 3, 3)
    model = nn.Sequential(
        nn.Conv2d(6, 6, 3, groups=groups), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 1, groups=groups, bias=False),
        nn.Tanh(), nn.Conv2d(6, 6, 3, padding=1, groups=groups), nn.Flatten(), nn.Linear(6, CLASSES),
    )  # fmt: skip
    assert [each.one_by_one for each in changes_of(model, x)] == [True] * 4
    check(model, x)


class Positions(nn.Module):
    """Input 3x6: the layer sees 3 positions of every sample, in one way or another; it computes the same."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layer, self.head, self.how = nn.Linear(6, 5), nn.Linear(15, CLASSES), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "axis":
            y = self.layer(x)
        elif self.how == "samples":
            y = self.layer(x.flatten(0, 1)).view(len(x), 3, 5)
        elif self.how == "samples, positions first":
            y = self.layer(x.transpose(0, 1).flatten(0, 1)).view(3, len(x), 5).transpose(0, 1)
        elif self.how == "second axis":
            y = self.layer(x.transpose(0, 1)).transpose(0, 1)
        else:
            y = torch.stack([self.layer(x[:, position]) for position in range(3)], 1)
        return self.head(torch.tanh(y).flatten(1))


@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("how", ["axis", "samples", "samples, positions first", "second axis", "runs"])
def test_however_a_layer_sees_its_positions(how: str, scale: float) -> None:
    """Large inputs and small ones."""
    x = torch.randn(5, 3, 6, generator=seeded(2))
    model = Positions(how)
    model.layer.weight.data.div_(scale)
    frozen = model.requires_grad_(False).eval()
    changes = changes_of(frozen, x)
    found = responses(frozen, changes, scale * x, two_functions)
    expected = of_weights(copy.deepcopy(model).requires_grad_(True), scale * x, changes[0], two_functions)
    agree(found["layer"][..., :3], expected)
    assert expected.abs().median() > 1e-2 * scale
    if scale == 1:
        check(Positions(how), x)


class Convolved(nn.Module):
    """Input 2x3x6x5: a convolution that sees both halves of a sample, as samples, then as runs."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layer, self.head, self.how = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(8, CLASSES), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "samples":
            y = self.layer(x.flatten(0, 1)).view(len(x), 2, 4, 6, 5)
        else:
            y = torch.stack([self.layer(x[:, 0]), self.layer(x[:, 1])], 1)
        return self.head(torch.tanh(y).mean((3, 4)).flatten(1))


def test_convolutions_that_see_a_sample_as_several() -> None:
    x = torch.randn(5, 2, 3, 6, 5, generator=seeded(2))
    one, other = (check(Convolved(how), x) for how in ("samples", "runs"))
    agree(one["layer"], other["layer"])


class Unread(nn.Module):
    """Input 6: a layer whose output has no derivative, with one position or three."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.one, self.three, self.head = nn.Linear(6, CLASSES), nn.Linear(2, CLASSES), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        unread = self.one(x).round() + self.three(x.unflatten(1, (3, 2))).sum(1).detach()
        return self.head(x) + unread


def test_layers_that_no_function_depends_on() -> None:
    model, x = Unread().eval().requires_grad_(False), torch.randn(4, 6, generator=seeded(1))
    found = responses(model, changes_of(model, x), x, two_functions)
    assert [found[name].shape for name in ("one", "three", "head")] == [(4, 2, 6)] * 3
    assert not found["one"].any()
    assert not found["three"].any()
    assert found["head"][..., :3].abs().min() > 1e-4


def test_without_changes_nothing_responds() -> None:
    model, x = Positions("axis").eval().requires_grad_(False), torch.randn(4, 3, 6)
    changes = [Changes(each.layer, 0, lambda: iter(())) for each in changes_of(model, x)]
    assert {name: found.shape for name, found in responses(model, changes, x, two_functions).items()} == {
        "layer": (4, 2, 0), "head": (4, 2, 0),
    }  # fmt: skip


class Three(nn.Module):
    """Input 2x5x5: layers of 3 · 19, 4 · 4, 4 · 37 and 4 · 5 parameters, of which the last go one by one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.third, self.head = nn.Conv2d(4, 4, 3), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.third(torch.relu_(self.second(torch.relu_(self.first(x))))).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("most_bytes", "passes"),
    [(10**9, 1), (12 * (57 + 16 + 148), 1), (12 * (57 + 16 + 148) - 1, 2), (12 * (57 + 16) - 1, 3), (0, 3)],
)
def test_layers_wait_for_another_pass_where_memory_is_short(most_bytes: int, passes: int) -> None:
    """3 float32 changes of each; the head's are not held. The responses are the same to the last bit."""
    model, x = Three().eval().requires_grad_(False), torch.randn(7, 2, 5, 5, generator=seeded(1))
    changes, seen = changes_of(model, x), []
    whole = responses(model, changes, x, two_functions)
    assert [each.bytes_held for each in changes] == [12 * 57, 12 * 16, 12 * 148, 0]
    found = responses(model, changes, x, two_functions, most_bytes=most_bytes, progress=lambda *done: seen.append(done))
    assert seen == [(7 * (number + 1), 7 * passes) for number in range(passes)]
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


@pytest.mark.parametrize("batch", [1, 3])
def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """And functions are told which samples they see."""
    model, x = Three().eval().requires_grad_(False), torch.randn(7, 2, 5, 5, generator=seeded(1))
    changes, seen = changes_of(model, x), []
    whole = responses(model, changes, x, two_functions)
    monkeypatch.setattr("autocompress.menus.responses._MOST_SAMPLES", batch)

    def functions(first: int, outputs: Tensor) -> Sequence[Tensor]:
        seen.append((first, len(outputs)))
        return two_functions(first, outputs)

    found = responses(model, changes, x, functions)
    assert seen == [(first, min(batch, 7 - first)) for first in range(0, 7, batch)]
    for name in whole:
        torch.testing.assert_close(found[name], whole[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bytes_held", [0, 8_000, 10**9])
@pytest.mark.parametrize("module", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_however_many_gradients_are_held_and_wherever_channels_lie(
    monkeypatch: pytest.MonkeyPatch, module: nn.Module, bytes_held: int
) -> None:
    """One function's at a time, two of five, or all of them; with the channels last in memory."""
    monkeypatch.setattr("autocompress.menus.responses._GRADIENT_BYTES", {"cpu": bytes_held})
    x, last = images(module, samples=2), torch.channels_last

    def functions(first: int, outputs: Tensor) -> list[Tensor]:
        return [(outputs**power).sum() for power in range(1, 6)]

    check(Around(module, x).to(memory_format=last), x.contiguous(memory_format=last), functions)


@pytest.mark.parametrize("count", [1, 5])
def test_as_many_functions_as_are_given(count: int) -> None:
    def functions(first: int, outputs: Tensor) -> list[Tensor]:
        return [(outputs**power).sum() for power in range(1, count + 1)]

    x = torch.randn(3, 2, 5, 5, generator=seeded(1))
    found = check(Three(), x, functions)
    assert {each.shape for each in found.values()} == {(3, count, 6)}


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


@pytest.mark.parametrize("broken", [False, True])
def test_nothing_borrowed_is_kept(broken: bool) -> None:
    """Parameters that require gradients too; where outputs are not finite, a message."""
    model, x = Three().eval(), torch.randn(7, 2, 5, 5, generator=seeded(1))
    model.second.weight.requires_grad_(False)
    changes, before = changes_of(model, x), x.clone()
    random_state, wanted = torch.get_rng_state(), [parameter.requires_grad for parameter in model.parameters()]
    if broken:
        model.head.bias.data[1] = float("nan")
        message = "`model` must give finite outputs, got NaN or infinity; check the weights and the data."
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            responses(model, changes, x, two_functions)
    else:
        responses(model, changes, x, two_functions)
    assert hooks(model) == 0
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (torch.equal(x, before), x.requires_grad) == (True, False)


class Magnitudes(nn.Module):
    """A spectrum's magnitudes between two layers: their derivative at 0 is none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8, bias=False), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        real, imaginary = self.first(x).chunk(2, -1)
        return self.second((real.square() + imaginary.square()).sqrt())


def test_roots_of_silence_spoil_nothing() -> None:
    torch.manual_seed(0)
    model, x = Magnitudes().eval().requires_grad_(False), torch.randn(5, 6)
    silent = torch.cat([x[:2], torch.zeros(1, 6), x[2:]])
    changes = changes_of(model, x)

    def sums(first: int, outputs: Tensor) -> list[Tensor]:
        return [outputs.square().sum()]

    alone, among = (responses(model, changes, each, sums) for each in (x, silent))
    for name, rows in among.items():
        torch.testing.assert_close(torch.cat([rows[:2], rows[3:]]), alone[name])
    assert not among["first"][2].any()  # what has no derivative counts as 0
    assert among["second"][2].isfinite().all()
    found = calibrate(model, trace(model, x[:1]), silent)
    assert all(each.gradient_moment.isfinite().all() for each in found.values())


@pytest.mark.parametrize(
    ("edge", "expected"),
    [
        (4, 13 * 64 * 128),  # 64 samples, 2 x 16 numbers of 4 bytes each: three times, and ten gradients
        (1024, 3 * 10 * 8_388_608 + 512_000_000),  # ten samples within 256 MB, and as many gradients as are held
    ],
)
def test_the_bytes_of_a_pass(edge: int, expected: int) -> None:
    layers = trace(nn.Sequential(nn.Conv2d(1, 2, 1)), torch.zeros(1, 1, edge, edge)).layers
    assert pass_bytes(layers, torch.device("cpu")) == expected
