"""LiteRT files: the same answers in its interpreter, 4-bit weights in 4 bits, refusals in one line."""

import dataclasses
import sys

import pytest
import torch
from lowering_toys import KERNELS, Concat, Depthwise, Odds, Plain, Residual, Tokens, close, compress, toy
from torch import nn

from autocompress.errors import ExportError, InputError
from autocompress.execute.compressed import uncompressed
from autocompress.network import fold_batch_norms, trace
from autocompress.targets.graph.lowering import lower
from autocompress.targets.litert.file import write_litert
from autocompress.targets.litert.session import open_litert
from autocompress.targets.litert.windows import Window
from autocompress.targets.target import TARGETS

NEEDED = "ai-edge-litert is not installed"


def answers(compressed, x):
    """(in LiteRT, in PyTorch)."""
    lowered = lower(compressed, x, integer=True)
    with torch.no_grad():
        return open_litert(write_litert(lowered)).run(x), lowered.graph(x)


@pytest.mark.parametrize("kind", [Residual, Depthwise, Concat, Tokens, Plain])
@pytest.mark.parametrize(
    ("weights", "activations", "most"),
    [
        ((8,), (8,), KERNELS),
        ((4, 8, 16, 32), (32,), KERNELS),
        ((32,), (8,), 0.005),  # sums in another order, rounded: near ties fall to the other side
        ((4,), (8,), 0.02),  # LiteRT's own kernels for INT4 convolutions round twice
    ],
)
def test_litert_answers_like_the_graph(kind, weights, activations, most):
    pytest.importorskip("ai_edge_litert", reason=NEEDED)
    found, expected = answers(*toy(kind, weights, activations))
    assert close(found, expected, most)
    assert float((found.argmax(1) == expected.argmax(1)).double().mean()) >= 0.98


def test_weights_are_packed_in_their_bits():
    """Between labels of 4 and 8 bits a weight's INT4 and INT8 differ by half its number of bytes, but for padding."""
    pytest.importorskip("ai_edge_litert", reason=NEEDED)
    sizes = {}
    for bits in (4, 8, 16, 32):
        compressed, x = toy(Plain, (bits,))
        sizes[bits] = len(write_litert(lower(compressed, x, integer=True)))
    weights, padding = 12 * 16 + 16 * 16 + 16 * 5, 3 * 16
    assert abs(sizes[8] - sizes[4] - weights / 2) <= padding
    assert abs(sizes[32] - sizes[16] - 2 * weights) <= 700  # a DEQUANTIZE and a tensor for each of three layers


def test_batches_of_any_size_and_threads():
    pytest.importorskip("ai_edge_litert", reason=NEEDED)
    compressed, x = toy(Residual, (8,))
    content = write_litert(lower(compressed, x, integer=True))
    whole = open_litert(content, threads=2).run(x)
    session = open_litert(content)
    assert torch.equal(torch.cat([session.run(x[:1]), session.run(x[1:200]), session.run(x[200:])]), whole)
    call = session.prepared(x[:3])
    session.run(x[:7])  # another size in between
    call()
    assert torch.equal(session.run(x[:3]), whole[:3])


@pytest.mark.parametrize(("weights", "activations"), [((32,), (32,)), ((8,), (8,)), ((4,), (32,))])
def test_operators_of_many_kinds(weights, activations):
    pytest.importorskip("ai_edge_litert", reason=NEEDED)
    torch.manual_seed(0)
    found, expected = answers(*compress(Odds(torch.softmax).eval(), torch.randn(64, 3, 12, 10), weights, activations))
    assert close(found, expected, 1e-2 if activations == (8,) else 1e-4)


class Sorted(nn.Module):
    """Input 4: an operator that files can't hold."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.cumsum(self.first(x), 1))


def test_an_operator_that_files_cannot_hold_is_named():
    pytest.importorskip("ai_edge_litert", reason=NEEDED)
    model, x = Sorted().eval(), torch.randn(4, 4)
    network = trace(model, x[:1])
    lowered = lower(uncompressed(fold_batch_norms(model, network), network), x, integer=True)
    with pytest.raises(ExportError) as error:
        write_litert(lowered)
    assert str(error.value) == (
        "`model` must have operators that a LiteRT file holds, got aten.cumsum (cumsum); "
        "pass --target onnxruntime or packed."
    )


def test_activations_of_other_bits_are_refused():
    compressed, x = toy(Plain, (8,), (6,))
    with pytest.raises(InputError) as error:
        write_litert(lower(compressed, x, integer=True))
    assert str(error.value) == (
        "`plan` must round activations to 8 bits or not at all for a LiteRT file, got 6 bits for 0; "
        "search with `--target litert`."
    )


def test_damaged_files_are_refused_in_one_line():
    pytest.importorskip("ai_edge_litert", reason=NEEDED)
    with pytest.raises(InputError, match=r"\A`path` must be a file that LiteRT loads, got 4 bytes: [^\n]+\Z"):
        open_litert(b"TFL3")


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.schema_py_generated", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    compressed, x = toy(Plain, (8,))
    message = "`target` litert needs the extra litert: pip install 'autocompress[litert]'."
    for call in (
        lambda: write_litert(lower(compressed, x, integer=True)),
        lambda: open_litert(b""),
        dataclasses.replace(TARGETS["litert"], extra=("litert", "a_module_that_nobody_has")).check_installed,
    ):
        with pytest.raises(InputError) as error:
            call()
        assert str(error.value) == message


@pytest.mark.parametrize(
    ("window", "scheme"),
    [
        (Window.of((8, 8), 3, 1, 1), "same"),
        (Window.of((8, 8), (3, 3), (1, 1), (2, 2), 2), "same"),
        (Window.of((9, 9), 3, 2, 1), "same"),  # 5 windows: one zero before and one behind
        (Window.of((8, 8), 3, 2, 1), "pad"),  # 4 windows: SAME pads behind, PyTorch before
        (Window.of((8, 8), 2, 1, "same"), "same"),
        (Window.of((8, 8), 3, 2, 0), "valid"),
        (Window.of((8,), 3, 1, 1), "same"),
        (Window.of((8, 8), 5, 1, 1), "pad"),
    ],
)
def test_padding_is_litert_s_own_where_it_is_the_same(window, scheme):
    assert ("valid" if window.is_valid else "same" if window.is_same else "pad") == scheme
