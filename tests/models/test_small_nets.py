"""The zoo's networks: parameters counted by hand, and layers and channel groups as a trace finds them."""

import pytest
import torch
import torch.nn.functional as F

from autocompress.models import load_model
from autocompress.models.small_nets import MixerBlock, SmallMixer, SmallMobileNet, SmallResNet, SmallVgg
from autocompress.network import trace

TINY = {
    "resnet": SmallResNet((1, 1), width=4, channels=1),
    "vgg": SmallVgg(((4,), (6,)), channels=1, hidden=5),
    "mobilenet": SmallMobileNet((1, 1), width=4, expansion=2, stride=1, channels=1),
    "mixer": SmallMixer(depth=1, width=6, edge=8, patch=4, channels=1),
}
for network in TINY.values():
    network.eval()


def norm(width):
    return 2 * width


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "resnet",
            (4 * 1 * 9 + norm(4))  # stem
            + 2 * (4 * 4 * 9 + norm(4))  # first stage, with a shortcut that has no weights
            + (8 * 4 * 9 + norm(8)) + (8 * 8 * 9 + norm(8)) + (8 * 4 + norm(8))  # second, 1x1 beside it
            + (10 * 8 + 10),
        ),
        ("vgg", (4 * 1 * 9 + norm(4)) + (6 * 4 * 9 + norm(6)) + (5 * 6 + 5) + (10 * 5 + 10)),
        (
            "mobilenet",
            (4 * 1 * 9 + norm(4))
            + (8 * 4 + norm(8)) + (8 * 9 + norm(8)) + (4 * 8 + norm(4))  # 4 -> 8 -> 8 -> 4
            + (8 * 4 + norm(8)) + (8 * 9 + norm(8)) + (8 * 8 + norm(8))  # 4 -> 8 -> 8 -> 8
            + (16 * 8 + norm(16)) + (10 * 16 + 10),
        ),
        (
            "mixer",
            (6 * 1 * 16 + 6)  # patches of 4x4
            + 2 * norm(6) + (8 * 4 + 8) + (4 * 8 + 4)  # over 4 patches, twice as wide within
            + (12 * 6 + 12) + (6 * 12 + 6)  # over 6 channels
            + norm(6) + (10 * 6 + 10),
        ),
    ],
)  # fmt: skip
def test_parameters(name, expected):
    assert sum(parameter.numel() for parameter in TINY[name].parameters()) == expected


@pytest.mark.parametrize(
    ("name", "kinds", "groups"),
    [
        (
            "resnet",
            [*["conv"] * 6, "linear"],
            {"stem.0": 4, "blocks.0.conv1": 4, "blocks.1.conv1": 8, "blocks.1.conv2": 8},
        ),
        ("vgg", ["conv", "conv", "linear", "linear"], {"features.0.0": 4, "features.3.0": 6, "hidden.0": 5}),
        (
            "mobilenet",
            ["conv", *["conv", "depthwise", "conv"] * 2, "conv", "linear"],
            {"stem.0": 4, "blocks.0.expand.0": 8, "blocks.1.expand.0": 8, "blocks.1.project.0": 8, "head.0": 16},
        ),
        ("mixer", ["conv", *["linear"] * 5], {"blocks.0.patches1": 8, "blocks.0.channels1": 12}),
    ],
)
def test_a_trace_finds_every_layer_and_group(name, kinds, groups):
    found = trace(TINY[name], torch.zeros(1, 1, 8, 8))
    assert [layer.kind for layer in found.layers] == kinds
    assert {group.owner: group.width for group in found.groups} == groups
    assert found.unknown_operators == {}


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet", [(4, 8, 8)] * 3 + [(8, 4, 4)] * 3),
        ("vgg", [(4, 8, 8), (6, 4, 4), (5,)]),
        ("mobilenet", [(4, 8, 8), (8, 8, 8), (8, 8, 8), (4, 8, 8), (8, 8, 8), (8, 4, 4), (8, 4, 4), (16, 4, 4)]),
        ("mixer", [(6, 2, 2), (8,), (4,), (12,), (6,)]),
    ],
)
def test_what_every_layer_gives(name, shapes):
    found = trace(TINY[name], torch.zeros(1, 1, 8, 8))
    assert [layer.output_shape for layer in found.layers] == [*shapes, (10,)]
    assert TINY[name](torch.rand(3, 1, 8, 8)).shape == (3, 10)


def test_depths_widths_and_classes_follow_the_arguments():
    """Layers: 1 + 2 x 6 + 2 shortcuts + 1; 1 + 3 x 4 + 2; conv + 4 x 3 + linear."""
    resnet = SmallResNet((2, 2, 2), width=8, channels=3, num_classes=7).eval()
    mobile = SmallMobileNet((2, 2), width=8, expansion=3, stride=2).eval()
    mixer = SmallMixer(depth=3, width=8, edge=32, patch=8).eval()
    assert [len(trace(net, torch.zeros(1, 3, 32, 32)).layers) for net in (resnet, mobile, mixer)] == [16, 15, 14]
    assert resnet(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert mobile.stem(torch.zeros(1, 3, 32, 32)).shape == (1, 8, 16, 16)
    assert (mobile.blocks[2].filter[0].weight.shape, mobile.head[0].weight.shape) == ((24, 1, 3, 3), (32, 16, 1, 1))


def test_vgg_without_a_hidden_layer():
    net = SmallVgg(((4, 4), (8,)), channels=3).eval()
    assert [layer.name for layer in trace(net, torch.zeros(1, 3, 8, 8)).layers] == [
        "features.0.0", "features.2.0", "features.5.0", "linear",
    ]  # fmt: skip


def test_inverted_residuals_add_where_the_shape_stays():
    blocks = SmallMobileNet((2, 2), width=4).blocks
    assert [block.adds for block in blocks] == [True, True, False, True]


def test_mixer_block_mixes_patches_then_channels():
    """With its last weights 0 a block is the identity; with only those over patches, channels stay apart."""
    block, x = MixerBlock(4, 6), torch.rand(2, 4, 6)
    for layer in (block.patches2, block.channels2):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    assert torch.equal(block(x), x)
    torch.nn.init.eye_(block.patches2.weight)
    normed = block.norm1(x).transpose(1, 2)
    expected = x + F.gelu(block.patches1(normed))[..., :4].transpose(1, 2)
    torch.testing.assert_close(block(x), expected)


def test_by_spec_the_weights_are_always_the_same():
    spec, arguments = "autocompress.models.small_nets:SmallResNet", {"blocks": [1], "width": 4, "channels": 1}
    first, again = (load_model(spec, None, arguments) for _ in range(2))
    assert torch.equal(first.stem[0].weight, again.stem[0].weight)
    assert not first.training
