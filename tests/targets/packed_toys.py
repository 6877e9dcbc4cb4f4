"""Networks compressed by hand, and packed files taken apart and put together from the description of the format."""

import base64
import json
import zlib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from autocompress.errors import InputError
from autocompress.execute.compressed import Compressed, LayerWeights
from autocompress.menus.activations import calibrate_range
from autocompress.menus.rounding import code_range
from autocompress.network import fold_batch_norms, trace
from autocompress.plan import Label, Plan
from autocompress.targets.graph.lowering import lower
from autocompress.targets.packed.file import load_packed, pack


def by_hand(model, x, bits=(1, 2, 3, 4, 5, 6, 7, 8, 16, 32), activation_bits=(8, 32, 4), granularity="channel"):
    """Norms folded, every layer rounded to nearest. No channel is removed, half of the single weights are."""
    network = trace(model, x[:1])
    folded = fold_batch_norms(model, network)
    names = [layer.name for layer in network.layers]
    return rounded_layers(folded, names, network.fingerprint, bits, activation_bits, granularity)


def rounded_layers(model, names, fingerprint, bits, activation_bits, granularity):
    """The layers of a model, which is changed, rounded in place; bit-widths in turn."""
    layers, labels = {}, {}
    model.requires_grad_(False)
    for index, name in enumerate(names):
        module = model.get_submodule(name)
        width, input_bits = bits[index % len(bits)], activation_bits[index % len(activation_bits)]
        fan_in = module.weight[0].numel()
        is_sparse = granularity == "element" or (granularity == "2:4" and fan_in % 4 == 0)
        mask = kept_half(module.weight, granularity) if is_sparse else torch.ones_like(module.weight)
        layers[name] = LayerWeights(
            *rounded(module.weight * mask, mask, width),
            bias=None if module.bias is None else module.bias.clone(),
            bits=width,
            sparsity=0.5 if is_sparse else 0.0,
            input_range=None if input_bits == 32 else calibrate_range(torch.randn(500) * (index + 1), input_bits),
        )
        module.weight.copy_(layers[name].weight())
        labels[name] = Label(layers[name].sparsity, width, input_bits)
    return Compressed(model, layers, Plan(labels, granularity, fingerprint))


def kept_half(weight, granularity):
    """1 for the larger half of the weights, of all or of each four."""
    blocks = weight.abs().view(1, -1) if granularity == "element" else weight.abs().view(-1, 4)
    removed = blocks.argsort(1)[:, : blocks.shape[1] // 2]
    return torch.ones_like(blocks).scatter_(1, removed, 0.0).view_as(weight)


def rounded(weight, mask, bits):
    """(values, scale)"""
    if bits >= 16:
        return (weight.half().float() if bits == 16 else weight.clone()), None
    if bits == 1:
        codes = torch.where(weight < 0, -1.0, 1.0) * mask
        return codes.to(torch.int8), weight.flatten(1).abs().mean(1) + 0.01
    low, high = code_range(bits)
    scale = weight.flatten(1).abs().amax(1) / high + 1e-6
    codes = (weight / scale.view(-1, *[1] * (weight.ndim - 1))).round().clamp(low, high)
    return codes.to(torch.int8), scale


def taken_apart(raw):
    """(first line, graph, tensors) of a packed file."""
    size = int.from_bytes(raw[:8], "little")
    content = json.loads(raw[8 : 8 + size])["__metadata__"]["content"]
    first, graph = zlib.decompress(base64.b85decode(content)).decode().split("\n")
    return json.loads(first), json.loads(graph), load(raw)


def put_together(first, graph, tensors, **metadata):
    """A packed file of what may be nonsense, with the right checksum."""
    plain = save(tensors)
    end = 8 + int.from_bytes(plain[:8], "little")
    header = json.dumps(json.loads(plain[8:end]), separators=(",", ":"), sort_keys=True).encode()
    first = {**first, "checksum": zlib.crc32(plain[end:], zlib.crc32(header))} if isinstance(first, dict) else first
    lines = json.dumps(first) + ("" if graph is None else "\n" + json.dumps(graph))
    content = base64.b85encode(zlib.compress(lines.encode())).decode()
    return save(tensors, {"format": "autocompress", "version": "1", "content": content, **metadata})


def mutated(value, rng):
    """JSON with one leaf or branch replaced, at random."""
    pool = [
        None,
        True,
        -1,
        0,
        3,
        10**30,
        1.5,
        "",
        "x",
        "%1",
        "%0",
        "%99",
        "@fc.weight",
        "&fc.bias",
        "!a.b",
        "dint",
        "f1",
    ]
    pool += [
        [],
        {},
        [[[[[[]]]]]],
        {"a": 1},
        "aten.relu.default",
        "operator.add",
        [10**9, 10**9],
        "fnan",
        "@forward",
        "D",
    ]
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        copied = value.copy()
        if rng.random() < 0.1:
            copied.pop(key)
        else:
            copied[key] = mutated(value[key], rng)
        return copied
    return rng.choice(pool)


class Small(nn.Module):
    """Input 1x4x4: a convolution, an unfolded norm, a buffer, a shortcut, a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)
        self.register_buffer("shift", torch.tensor([0.5, -0.25]))

    def forward(self, x):
        y = self.conv(x)
        y = torch.relu(self.norm(y) + y)
        return self.fc(y.mean((2, 3))) + self.shift


def refusal(path, read=load_packed):
    """What the error says after the path."""
    with pytest.raises(InputError) as caught:
        read(path)
    text = str(caught.value)
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def assert_same_layers(read, written):
    assert list(read) == list(written)
    for name, layer in written.items():
        assert torch.equal(read[name].values, layer.values)
        assert read[name].values.dtype == layer.values.dtype
        assert (read[name].bits, read[name].sparsity) == (layer.bits, layer.sparsity)
        for own, other in ((read[name].scale, layer.scale), (read[name].bias, layer.bias)):
            assert own is other is None or torch.equal(own, other)
        own, other = read[name].input_range, layer.input_range
        assert own is other is None or replace(own, noise=0.0) == replace(other, noise=0.0)


def packed_small():
    """(packed bytes, lowered network, its model)"""
    torch.manual_seed(0)
    model = Small().eval()
    model.norm.running_var.uniform_(0.5, 2.0)
    x = torch.randn(8, 1, 4, 4)
    compressed = by_hand(model, x, bits=(3, 8))
    lowered = lower(compressed, x, integer=False)
    return pack(lowered), lowered, compressed
