"""A network from a packed file takes its tensors by the names that the original's `forward` gave them."""

import inspect

import pytest
import torch
from packed_toys import rounded_layers
from torch import nn

from autocompress.network.interface import interfaced
from autocompress.samples import from_tree
from autocompress.targets.graph.lowering import lower
from autocompress.targets.loading import load
from autocompress.targets.packed.file import pack
from autocompress.targets.packed.graph_json import are_arguments


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(6, 3)

    def forward(self, image):
        return self.head(image)


class Nameless(Net):
    def forward(self, *tensors):
        return self.head(tensors[0] + tensors[1])


class Awkward(Net):
    def forward(self, torch):
        return self.head(torch)


class Pair(Net):
    def forward(self, left, right, scale=1.0):
        return self.head(left + scale * right)


def loaded(network, inputs, folder):
    """The network after its way through a file."""
    compressed = rounded_layers(network.eval(), ["head"], "", (8,), (8,), "channel")
    content = pack(lower(compressed, inputs, integer=False))
    (folder / "model.safetensors").write_bytes(content)
    return load(folder / "model.safetensors")


def names_of(module):
    return list(inspect.signature(module.forward).parameters)


def test_the_name_of_the_only_tensor_is_kept(tmp_path):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    module = loaded(Net(), x, tmp_path)
    assert names_of(module) == ["image"]
    assert torch.equal(module(image=x), module(x))
    again = lower(rounded_layers(Net().eval(), ["head"], "", (8,), (8,), "channel"), x, integer=False)
    assert again.arguments == ("image",)


def test_a_name_that_no_graph_can_have_becomes_x(tmp_path):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    module = loaded(Awkward(), x, tmp_path)
    assert names_of(module) == ["x"]
    assert module(x=x).shape == (5, 3)


def test_tensors_without_names_are_numbered(tmp_path):
    inputs = from_tree((torch.randn(5, 6), torch.randn(5, 6)))
    module = loaded(interfaced(Nameless(), inputs), inputs, tmp_path)
    assert names_of(module) == ["input_0", "input_1"]


def test_tensors_that_were_given_by_position_have_their_names(tmp_path):
    left, right = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    inputs = from_tree((left, right))
    module = loaded(interfaced(Pair(), inputs), inputs, tmp_path)
    assert names_of(module) == ["left", "right"]
    assert torch.equal(module(right=right, left=left), module(left, right))


@pytest.mark.parametrize("name", ["", "1a", "a b", "lambda", "self", "torch", "x" * 65, "é", "a\n", None, 3])
def test_what_is_no_name_of_an_argument(name):
    assert not are_arguments([name], 1)
    assert are_arguments(["a", "_b1"], 2)
    assert not are_arguments(["a", "a"], 2)
    assert not are_arguments(["a"], 2)
