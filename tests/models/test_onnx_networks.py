"""Whole networks through ONNX and back: the same outputs, layers and channel groups as the PyTorch original."""

import io
import logging
import warnings
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from autocompress.models import load_model
from autocompress.models.onnx import load_onnx
from autocompress.network import trace

FASTESTDET = Path(__file__).parents[2] / "../shared/models/fastestdet.onnx"
OLD, NEW = False, True  # PyTorch's older exporter, and the one on torch.export

# network, exporter, whether its groups are compared: that takes seconds
ZOO = [
    ("digits", OLD, True),
    ("digits", NEW, True),
    ("resnet18", OLD, True),
    ("mobilenet_v3_small", OLD, True),
    ("squeezenet1_1", OLD, True),
    ("shufflenet_v2_x0_5", OLD, False),
    ("efficientnet_b0", OLD, False),
    ("googlenet", OLD, False),
    ("densenet", OLD, True),
    ("timm:convnext_atto", OLD, True),
    ("timm:vit", OLD, True),
    ("timm:vit", NEW, True),
    ("timm:mobilevit_xxs", OLD, False),
]


def build(name):
    """A network with random weights and norms' statistics, and samples for it."""
    torch.manual_seed(0)
    if name == "digits":
        return load_model("digits"), torch.randn(3, 1, 8, 8)
    source, _, rest = name.rpartition(":")
    if rest == "vit":
        model = timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5
        )
    elif rest == "densenet":  # shorter than the published ones
        model = torchvision.models.DenseNet(8, (2, 2), 16, num_classes=5)
    elif rest == "googlenet":
        model = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=False)
    else:
        model = timm.create_model(rest) if source else torchvision.models.get_model(rest)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.std() < 1e-6:  # ones and zeros, of which exporters keep one for many
                parameter.add_(0.05 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval(), torch.randn(3, 3, *[32 if rest == "vit" else 64] * 2)


def export(model, x, path, exporter, open_batch=True):
    """Write the network as an ONNX file with an input `image` and an output `scores`."""
    settings = {"input_names": ["image"], "output_names": ["scores"], "verbose": False}
    if exporter is NEW:
        settings |= {"dynamo": True, "external_data": False}
        settings |= {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},)} if open_batch else {}
    else:
        settings |= {"dynamo": False, "dynamic_axes": {"image": {0: "n"}, "scores": {0: "n"}} if open_batch else {}}
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(model, (x if open_batch else x[:1],), str(path), **settings)
    finally:
        logging.disable(level)


def relative(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


def groups(network):
    """Width and members of every group but those of attention's heads, whose number a module keeps as an integer."""
    return {
        (group.owner, group.width, *sorted(group.producers), *sorted(group.consumers))
        for group in network.groups
        if not group.scaled
    }


@pytest.mark.parametrize(("name", "exporter", "compares"), ZOO)
def test_a_network_comes_back_as_it_was(name, exporter, compares, tmp_path):
    model, x = build(name)
    export(model, x, tmp_path / "net.onnx", exporter)
    network = load_onnx(tmp_path / "net.onnx")
    assert network.difference <= 1e-5
    assert (network.input_names, network.output_names) == (("image",), ("scores",))
    with torch.no_grad():
        assert relative(network(x), model(x)) <= 1e-5
    if not compares:
        return
    found, original = trace(network, x[:1]), trace(model, x[:1])
    assert {layer.name: layer.weight_shape for layer in found.layers} == {
        layer.name: layer.weight_shape for layer in original.layers
    }
    assert groups(found) == groups(original)
    assert not any(group.scaled for group in found.groups)  # files fix the number of heads
    assert found.unknown_operators == original.unknown_operators


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "timm:vit"])
def test_a_file_for_one_sample_takes_any_number(name, tmp_path):
    model, x = build(name)
    export(model, x, tmp_path / "net.onnx", OLD, open_batch=False)
    network = load_onnx(tmp_path / "net.onnx")
    assert network.fixed_batch is None
    with torch.no_grad():
        assert relative(network(x), model(x)) <= 1e-5


def test_channel_shuffles_lose_channels(tmp_path):
    """torch-pruning can't read the original, whose channels are split by `chunk`; the import has prunable groups."""
    model, x = build("shufflenet_v2_x0_5")
    export(model, x, tmp_path / "net.onnx", OLD)
    network = load_onnx(tmp_path / "net.onnx")
    split = [step for step in network.program.steps if "_share" in str(step.call)]
    assert len(split) == 26  # both halves in each of 13 units: none of them with a number of channels written down
    assert not [step for step in network.program.steps if "_sliced" in str(step.call)]


@pytest.mark.skipif(not FASTESTDET.is_file(), reason="needs ../shared/models/fastestdet.onnx")
def test_a_detector_of_opset_11():
    network = load_onnx(FASTESTDET)
    assert network.difference <= 1e-4
    kinds = [type(module) for module in network.modules()]
    assert kinds.count(nn.Conv2d) == 70
    assert network.fixed_batch is None
    found = trace(network, torch.randn(1, 3, 352, 352))
    assert len(found.layers) == 70
    assert found.unknown_operators == {}


def test_torch_export_follows_the_network_with_an_open_batch(tmp_path):
    model, x = build("digits")
    export(model, x, tmp_path / "net.onnx", OLD)
    network = load_onnx(tmp_path / "net.onnx")
    program = torch.export.export(network, (x[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    assert torch.allclose(program.module()(torch.cat([x, x])), network(torch.cat([x, x])), atol=1e-5)


class Padded(nn.Module):
    """Pads to a multiple of 4 that it works out from the input's size, which the older exporter does by a matrix."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        rest = [(4 - x.shape[axis] % 4) % 4 for axis in (2, 3)]
        return self.conv(nn.functional.pad(x, (0, rest[1], 0, rest[0]))).mean((2, 3))


class Recurrent(nn.Module):
    """A GRU that begins with zeros which it makes itself."""

    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.gru(x)[0][:, -1])


@pytest.mark.parametrize(("build_one", "shape"), [(Padded, (3, 3, 10, 9)), (Recurrent, (3, 7, 6))])
def test_sizes_and_zeros_that_a_network_makes_itself(build_one, shape, tmp_path):
    torch.manual_seed(0)
    model, x = build_one().eval(), torch.randn(shape)
    export(model, x, tmp_path / "net.onnx", OLD)
    network = load_onnx(tmp_path / "net.onnx")
    assert network.fixed_batch is None
    with torch.no_grad():
        assert relative(network(x), model(x)) <= 1e-5
    assert len(trace(network, x[:1]).layers) == len(trace(model, x[:1]).layers) == 1
