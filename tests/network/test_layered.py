"""What `layered` replaces: transposed convolutions, Conv1D of Hugging Face, modules with the same parameters."""

import pytest
import torch
from torch import Tensor, nn

from autocompress.network import trace
from autocompress.network.layered import layered
from autocompress.network.transposed import TransposedConv
from autocompress.network.written_out import as_convolutions

TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"stride": 3, "groups": 2, "dilation": 2},
        {"padding": 4, "bias": False},  # more than the kernel reaches: a part of the input is cut off
    ],
)
def test_transposed_convolutions_compute_the_same(axes: int, settings: dict[str, int]) -> None:
    torch.manual_seed(0)
    original = TRANSPOSED[axes](4, 6, 3, **settings)
    made, x = layered(original), torch.randn(2, 4, *[7] * axes)
    assert isinstance(made, TransposedConv)
    assert made.weight.shape == (6, 4 // original.groups, *[3] * axes)
    torch.testing.assert_close(made(x), original(x), atol=1e-6, rtol=1e-5)
    with as_convolutions():
        torch.testing.assert_close(made(x), original(x), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_attention_of_torchvisions_swin_calls_its_layers(version: str) -> None:
    swin = pytest.importorskip("torchvision", reason="needs the extra vision").models.swin_transformer
    block = swin.SwinTransformerBlockV2 if version == "v2" else swin.SwinTransformerBlock
    downsample = swin.PatchMergingV2 if version == "v2" else swin.PatchMerging
    torch.manual_seed(0)
    form = {"patch_size": [4, 4], "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4], "window_size": [3, 3]}
    original = swin.SwinTransformer(**form, num_classes=5, block=block, downsample_layer=downsample).eval()
    attention = original.features[1][1].attn
    with torch.no_grad():
        attention.qkv.bias.normal_()  # the second version leaves the keys' out at every pass
    made = layered(original)
    for size in (32, 24):  # 8 positions are no multiple of the window
        x = torch.randn(2, 3, size, size)
        assert torch.equal(made(x), original(x))
    names = [layer.name for layer in trace(made, x[:1]).layers]
    assert [name for name in names if ".attn." in name and "cpb_mlp" not in name] == [
        f"features.{stage}.{block}.attn.{layer}" for stage in (1, 3) for block in (0, 1) for layer in ("qkv", "proj")
    ]
    assert type(attention).__module__ == swin.__name__  # that of the original is as it was
    assert torch.equal(torch.export.export(made, (x,)).module()(x), original(x))


def test_an_output_size_is_followed() -> None:
    original, x = nn.ConvTranspose2d(2, 3, 3, stride=2), torch.randn(1, 2, 5, 5)
    torch.testing.assert_close(layered(original)(x, output_size=(12, 12)), original(x, output_size=(12, 12)))


def test_costs_of_a_transposed_convolution_by_hand() -> None:
    """A weight multiplies once at every input position; the norm behind is folded, and channels can go."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    network = trace(layered(model.eval()), torch.zeros(1, 2, 5, 5))
    first, up, last = network.layers
    assert (up.kind, up.weight_shape, up.norm) == ("transposed", (6, 4, 3, 3), "2")
    assert (up.input_positions, up.positions, up.macs) == (25, 121, 25 * 4 * 6 * 9)
    assert (first.macs, last.macs) == (25 * 8, 121 * 18)
    assert [group.owner for group in network.groups] == ["0", "1"]
    assert network.groups[0].consumers["1"].shape == (4, 9)


def test_costs_along_three_axes_by_hand() -> None:
    model = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 3, 2), nn.Flatten())
    network = trace(model.eval(), torch.zeros(1, 2, 3, 4, 5))
    assert [layer.macs for layer in network.layers] == [60 * 4 * 2 * 27, 2 * 3 * 4 * 3 * 4 * 8]
    assert network.layers[0].norm == "1"
    assert network.fixed_operators == {}


def test_conv1d_of_hugging_face_becomes_linear() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils", reason="transformers is not installed").Conv1D
    torch.manual_seed(0)
    model, x = nn.Sequential(conv1d(5, 4), nn.Tanh(), conv1d(3, 5)), torch.randn(2, 7, 4)
    made = layered(model)
    assert [type(module) for module in made] == [nn.Linear, nn.Tanh, nn.Linear]
    assert made[0].weight.shape == (5, 4)
    torch.testing.assert_close(made(x), model(x))
    assert [layer.macs for layer in trace(made, x).layers] == [7 * 20, 7 * 15]
    assert type(model[0]) is conv1d


class Twins(nn.Module):
    """Input 4: two linear layers with the same weight and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.second.weight, self.second.bias = self.first.weight, self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def test_twins_are_one_layer_that_runs_twice() -> None:
    model, x = Twins(), torch.randn(2, 4)
    made = layered(model)
    assert made.first is made.second
    assert model.first is not model.second
    network = trace(made, x)
    assert [(layer.name, layer.macs, layer.fixed_reason) for layer in network.layers] == [
        ("first", 32, "runs more than once"),
        ("head", 8, "network output"),
    ]
    assert (network.shared_weights, network.fixed_operators) == ({}, {})


class NextToken(nn.Module):
    """Tokens (6,): a table of 20 rows whose transpose gives the outputs, by a module or without one."""

    def __init__(self, with_module: bool) -> None:
        super().__init__()
        self.table, self.hidden = nn.Embedding(20, 8), nn.Linear(8, 8)
        if with_module:
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.table.weight
        self.with_module = with_module

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.tanh(self.hidden(self.table(tokens).mean(1)))
        return self.head(x) if self.with_module else x @ self.table.weight.T


@pytest.mark.parametrize(
    ("with_module", "reasons"),
    [
        (True, {"table": "its weight is also that of head", "head": "its weight is also that of table"}),
        (False, {"table": "its weight is also used outside it"}),
    ],
)
def test_a_table_that_gives_the_outputs_too_is_no_layer(with_module: bool, reasons: dict[str, str]) -> None:
    network = trace(layered(NextToken(with_module)), torch.zeros(1, 6, dtype=torch.int64))
    assert [layer.name for layer in network.layers] == ["hidden"]
    assert network.shared_weights == reasons
    assert network.fixed_operators == {"aten.mm": 160}
