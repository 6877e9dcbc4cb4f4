"""ExecuTorch files: the same answers in its runtime, every axis that files cut or mean over, refusals in one line.

The extra `executorch` is not part of `dev`, so CI skips most of this: `pip install -e '.[dev,executorch]'` runs it all.
"""

import dataclasses
import sys

import pytest
import torch
from lowering_toys import KERNELS, Concat, Depthwise, Odds, Plain, Residual, Tokens, close, compress, toy
from removed_toys import Blocks, Wave, lowered
from removed_toys import toy as removed_toy
from torch import nn

from autocompress.errors import ExportError, InputError
from autocompress.execute.compressed import uncompressed
from autocompress.network import fold_batch_norms, trace
from autocompress.samples import Samples
from autocompress.targets.executorch.file import write_executorch
from autocompress.targets.executorch.session import open_executorch
from autocompress.targets.graph.lowering import lower
from autocompress.targets.target import TARGETS

NEEDED = "executorch is not installed"


def answers(compressed, x):
    """(in ExecuTorch, in PyTorch)."""
    given = lower(compressed, x, integer=True)
    with torch.no_grad():
        return open_executorch(write_executorch(given)).run(x), given.graph(x)


@pytest.mark.parametrize("kind", [Residual, Depthwise, Concat, Tokens, Plain])
@pytest.mark.parametrize(
    ("weights", "activations", "most"),
    [
        ((8,), (8,), KERNELS),
        ((4,), (8,), KERNELS),  # stored in 8 bits
        ((16, 32), (32,), KERNELS),
        ((32,), (8,), 0.005),  # sums in another order, rounded: near ties fall to the other side
    ],
)
def test_executorch_answers_like_the_graph(kind, weights, activations, most):
    pytest.importorskip("executorch", reason=NEEDED)
    found, expected = answers(*toy(kind, weights, activations))
    assert close(found, expected, most)
    assert float((found.argmax(1) == expected.argmax(1)).double().mean()) >= 0.99


@pytest.mark.parametrize("kind", [Blocks, Wave])
def test_what_is_left_of_removed_branches_is_added(kind):
    pytest.importorskip("executorch", reason=NEEDED)
    given, x = lowered(kind, True), removed_toy(kind).x
    with torch.no_grad():
        assert close(open_executorch(write_executorch(given)).run(x), given.graph(x), KERNELS)


def test_weights_take_a_byte_each():
    pytest.importorskip("executorch", reason=NEEDED)
    sizes = {}
    for bits in (4, 8, 32):
        compressed, x = toy(Plain, (bits,))
        sizes[bits] = len(write_executorch(lower(compressed, x, integer=True)))
    weights, rows = 12 * 16 + 16 * 16 + 16 * 5, 16 + 16 + 5
    assert sizes[4] == sizes[8]
    assert abs(sizes[32] - sizes[8] - 3 * weights + 2 * 4 * rows) <= 700  # rows' scales; converters between the layers


def test_batches_of_any_size():
    pytest.importorskip("executorch", reason=NEEDED)
    compressed, x = toy(Residual, (8,))
    session = open_executorch(write_executorch(lower(compressed, x, integer=True)))
    whole = session.run(x)
    assert torch.equal(torch.cat([session.run(x[:1]), session.run(x[1:200]), session.run(x[200:])]), whole)
    call = session.prepared(x[:33])  # a file takes 32 at once
    session.run(x[:7])
    call()
    assert torch.equal(session.run(x[:3]), whole[:3])


class Cuts(nn.Module):
    """Input 3x9x10: padded twice, steps from any place of an axis of any length, seven inputs joined, other means."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(20, 3)

    def forward(self, x):
        x = torch.relu(self.first(nn.functional.pad(x, (1, 0, 0, 1))))
        parts = [x[:, :, ::2, ::2], x[:, :, 1::2, 1::2], x[:, :, ::3, :9:3], x[:, 1::2, 3:7:2, 2:9:4]]
        means = [each.mean((1, 2)) for each in parts] + [x.mean((2, 3)), x.mean(3)[:, :, 0], x.mean((1, 2))[:, 4:5]]
        return self.head(torch.relu(torch.cat(means, 1))[:, :20])


@pytest.mark.parametrize(
    ("model", "shape", "weights", "activations", "most"),
    [
        (Odds, (3, 12, 10), (32,), (32,), 1e-4),
        (Odds, (3, 12, 10), (8,), (8,), 1e-2),
        (Cuts, (3, 9, 10), (8,), (8,), KERNELS),
        (Cuts, (3, 9, 10), (32,), (32,), KERNELS),
    ],
)
def test_operators_of_many_kinds(model, shape, weights, activations, most):
    pytest.importorskip("executorch", reason=NEEDED)
    torch.manual_seed(0)
    found, expected = answers(*compress(model().eval(), torch.randn(64, *shape), weights, activations))
    assert close(found, expected, most)


class Upwards(nn.Sequential):
    """Input 2x6x6: the result of its last convolution is its output, and not rounded."""

    def __init__(self, last):
        super().__init__(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), last, nn.Flatten())


@pytest.mark.parametrize(
    ("last", "most"),
    [
        (nn.Conv2d(8, 3, 1), KERNELS),  # a linear layer at every pixel
        (nn.Conv2d(8, 3, 3, stride=2, padding=1), 0.01),  # its rounded input is rounded once more, on its own range
    ],
)
def test_convolutions_whose_result_is_not_rounded(last, most):
    pytest.importorskip("executorch", reason=NEEDED)
    torch.manual_seed(0)
    found, expected = answers(*compress(Upwards(last).eval(), torch.randn(64, 2, 6, 6), (8,)))
    assert close(found, expected, most)


@pytest.mark.parametrize(
    ("activations", "last", "kind", "message"),
    [
        (
            (8,), nn.Conv2d(8, 8, 3, groups=8), ExportError,
            "`model` must round the results of depthwise convolutions with 8-bit weights for an ExecuTorch file, got "
            "one of 8 channels whose result is not rounded; pass --weight-bits 32, --target onnxruntime or packed.",
        ),
        (
            (32,), nn.Conv2d(8, 8, 1), InputError,
            "`plan` must round the inputs of convolutions with 8-bit weights for an ExecuTorch file, got 32 bits for "
            "one of 2 channels; search with `--target executorch`.",
        ),
        (
            (6,), nn.Conv2d(8, 8, 1), InputError,
            "`plan` must round activations to 8 bits or not at all for an ExecuTorch file, got 6 bits for 0; search "
            "with `--target executorch`.",
        ),
    ],
)  # fmt: skip
def test_what_xnnpack_has_no_kernel_for_is_refused(activations, last, kind, message):
    compressed, x = compress(Upwards(last).eval(), torch.randn(64, 2, 6, 6), (8,), activations)
    with pytest.raises(kind) as error:
        write_executorch(lower(compressed, x, integer=True))
    assert str(error.value) == message


class Several(nn.Module):
    """Inputs 3 and 4: two tensors come in; three go out, of which two are one, and one comes in."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 5), nn.Linear(4, 5)

    def forward(self, a, b):
        y = torch.relu(self.left(a) - self.right(b))
        return y, y, b


def test_several_inputs_and_outputs():
    pytest.importorskip("executorch", reason=NEEDED)
    torch.manual_seed(0)
    model, x = Several().eval(), Samples((torch.randn(40, 3), torch.randn(40, 4)), ("a", "b"))
    network = trace(model, x[:1])
    given = lower(uncompressed(fold_batch_norms(model, network), network), x, integer=True)
    found = open_executorch(write_executorch(given)).run(x)
    with torch.no_grad():
        expected = given.graph(*x.tensors)
    assert [torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True)] == [True] * 3


class Sorted(nn.Module):
    """Input 4: an operator that files can't hold."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.cumsum(self.first(x), 1))


class Words(nn.Module):
    """Takes 4 numbers of words."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.words(x).mean(1))


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (
            Sorted, torch.randn(4, 4),
            "`model` must have operators that an ExecuTorch file holds, got aten.cumsum (cumsum); pass --target "
            "onnxruntime or packed.",
        ),
        (
            Words, torch.randint(9, (4, 4)),
            "`model` must take float32 numbers for an ExecuTorch file, got int64 for input; pass --target onnxruntime "
            "or packed.",
        ),
    ],
)  # fmt: skip
def test_networks_that_files_cannot_hold(model, x, message):
    model = model().eval()
    network = trace(model, x[:1])
    given = lower(uncompressed(fold_batch_norms(model, network), network), x, integer=True)
    with pytest.raises(ExportError) as error:
        write_executorch(given)
    assert str(error.value) == message


def test_damaged_files_are_refused_in_one_line(capfd):
    pytest.importorskip("executorch", reason=NEEDED)
    compressed, x = toy(Plain, (8,))
    content = write_executorch(lower(compressed, x, integer=True))
    for damaged in (b"ET12", content[:-700], content.replace(b"XH00", b"XH01")):
        with pytest.raises(
            InputError, match=r"\A`path` must be a file that ExecuTorch loads, got [0-9,]+ bytes: [^\n]+\Z"
        ):
            open_executorch(damaged)
    assert capfd.readouterr().err == ""


def test_missing_extra_is_named(monkeypatch):
    compressed, x = toy(Plain, (8,))
    given = lower(compressed, x, integer=True)
    for name in ("executorch", "executorch.extension", "executorch.extension.pybindings.portable_lib"):
        monkeypatch.setitem(sys.modules, name, None)
    message = "`target` executorch needs the extra executorch: pip install 'autocompress[executorch]'."
    for call in (
        lambda: write_executorch(given),
        lambda: open_executorch(b""),
        dataclasses.replace(TARGETS["executorch"], extra=("executorch", "a_module_that_nobody_has")).check_installed,
    ):
        with pytest.raises(InputError) as error:
            call()
        assert str(error.value) == message
