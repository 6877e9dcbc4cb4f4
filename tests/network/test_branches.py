"""Which channel groups are whole residual branches, on networks small enough to see it."""

from collections.abc import Callable

import pytest
import torch
from tiny_networks import Concat, OptionA, Residual, chain, depthwise
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from autocompress.network import trace


class Frame(nn.Module):
    """Input 2x6x6: a convolution to 4 channels, what is given, and a head that reads 4."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(2, 4, 3, padding=1), body, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(torch.relu(self.stem(x))).mean((2, 3)))


class Block(nn.Module):
    """Two convolutions with norms; how the shortcut joins is given: x and the branch's output to the result."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], hidden: int = 6, inplace: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden)
        self.conv2, self.bn2 = nn.Conv2d(hidden, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu, self.join = nn.ReLU(inplace=inplace), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x, self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


class Inverted(nn.Module):
    """Expansion, depthwise, squeeze-and-excite where asked for, projection, shortcut."""

    def __init__(self, excited: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze, self.excite = (nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)) if excited else (None, None)
        self.project, self.dropout = nn.Conv2d(8, 4, 1), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.depthwise(F.relu6(self.expand(x))))
        if self.squeeze is not None:
            y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.dropout(self.project(y))


class Gated(nn.Module):
    """The shortcut is multiplied by what the branch says, as in squeeze-and-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(4, 3, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))


class Pair(nn.Module):
    """Two branches are summed with each other; the input itself is not."""

    def __init__(self) -> None:
        super().__init__()
        self.a1, self.a2 = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.b1, self.b2 = nn.Conv2d(4, 7, 3, padding=1), nn.Conv2d(7, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a2(torch.relu(self.a1(x))) + self.b2(torch.relu(self.b1(x)))


class Nested(nn.Module):
    """A residual block inside a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)
        self.inner1, self.inner2 = nn.Conv2d(6, 5, 1), nn.Conv2d(5, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        y = y + self.inner2(torch.relu(self.inner1(y)))
        return x + self.leave(torch.relu(y))


class FeedForward(nn.Module):
    """Input (…, 6): a transformer's feed-forward block, of one vector or of every token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 4), nn.Linear(4, 3)
        self.up, self.down = nn.Linear(4, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x if x.ndim == 2 else x.mean(1))


class Waveform(nn.Module):
    """Input 2x9: a branch of one-dimensional convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(2, 4, 3, padding=1), nn.Linear(4, 3)
        self.conv1, self.conv2 = nn.Conv1d(4, 6, 3, padding=1), nn.Conv1d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.conv2(torch.relu(self.conv1(x)))).mean(2))


def owners(model: nn.Module, *shape: int) -> tuple[set[str], set[str]]:
    """Owners of the groups that are branches, and of those that are not."""
    groups = trace(model.eval(), torch.zeros(1, *(shape or (2, 6, 6)))).groups
    found = {
        is_branch: {group.owner for group in groups if group.is_branch == is_branch} for is_branch in (True, False)
    }
    return found[True], found[False]


def added(x: Tensor, y: Tensor) -> Tensor:
    return x + y


def added_in_place(x: Tensor, y: Tensor) -> Tensor:
    y += x
    return torch.relu_(y)


def added_to_the_shortcut(x: Tensor, y: Tensor) -> Tensor:
    x += y
    return x


def read_twice(x: Tensor, y: Tensor) -> Tensor:
    return torch.relu(x + y) + y


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("join", [added, added_in_place, added_to_the_shortcut, read_twice])
def test_a_basic_block_is_a_branch(join: Callable[[Tensor, Tensor], Tensor], inplace: bool) -> None:
    assert owners(Frame(Block(join, inplace=inplace))) == ({"body.conv1"}, {"stem"})


def test_blocks_of_torchvision_add_in_place() -> None:
    model = Frame(nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 4)))
    assert owners(model) == ({"body.0.conv1", "body.1.conv1"}, {"stem"})


def test_a_bottleneck_can_go_at_its_last_convolution_only() -> None:
    """The layer that reads the group before puts out a constant that other layers read on."""
    assert owners(Frame(Bottleneck(4, 1, base_width=128))) == ({"body.conv2"}, {"stem", "body.conv1"})


def test_a_depthwise_layer_goes_with_its_branch() -> None:
    model = Frame(Inverted(excited=False))
    assert owners(model) == ({"body.expand"}, {"stem"})
    group = trace(model, torch.zeros(1, 2, 6, 6)).groups[1]
    assert (set(group.producers), set(group.consumers)) == ({"body.expand", "body.depthwise"}, {"body.project"})


def test_squeeze_and_excite_goes_with_its_branch_but_not_alone() -> None:
    """What it multiplies is gone as well; its own few channels are what a product needs."""
    assert owners(Frame(Inverted(excited=True))) == ({"body.expand"}, {"stem", "body.squeeze"})


def test_a_dropout_before_the_sum_does_nothing() -> None:
    assert owners(Frame(Inverted(excited=False, dropout=0.5))) == ({"body.expand"}, {"stem"})


def test_a_block_behind_a_shortcut_with_a_convolution() -> None:
    """ResNets where the shape changes: the convolution of the shortcut stays alive."""

    class Downsampling(Block):
        def __init__(self) -> None:
            super().__init__(added)
            self.shortcut = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.shortcut(x)

    model = Frame(Downsampling())
    assert owners(model) == ({"body.conv1"}, {"stem"})


def test_a_shortcut_without_parameters_that_strides_and_pads() -> None:
    assert owners(OptionA(), 3, 8, 8) == ({"conv1"}, set())


def test_blocks_within_blocks_are_branches_both() -> None:
    assert owners(Frame(Nested())) == ({"body.enter", "body.inner1"}, {"stem"})


def test_several_blocks_are_each_a_branch() -> None:
    model = Frame(nn.Sequential(Block(added), Block(added_in_place), Block(added)))
    assert owners(model) == ({"body.0.conv1", "body.1.conv1", "body.2.conv1"}, {"stem"})


def test_of_two_branches_summed_with_each_other_one_stays() -> None:
    """Without both, nothing of the input would be left of the sum. The head reads the sum's own group."""
    assert owners(Frame(Pair())) == ({"body.a1"}, {"stem", "body.a2", "body.b1"})


def test_two_branches_summed_with_the_shortcut_may_both_go() -> None:
    class Both(Pair):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.a2(torch.relu(self.a1(x))) + self.b2(torch.relu(self.b1(x)))

    assert owners(Frame(Both())) == ({"body.a1", "body.b1"}, {"stem"})


def test_linear_layers_and_one_dimension() -> None:
    assert owners(FeedForward(), 6) == ({"up"}, {"embed"})
    assert owners(Waveform(), 2, 9) == ({"conv1"}, {"stem"})


def test_linear_layers_on_every_token() -> None:
    """PyTorch runs them as a product of matrices between two views; the sum reads the view."""
    assert owners(FeedForward(), 5, 6) == ({"up"}, {"embed"})


def test_toys_that_have_one_or_none() -> None:
    assert owners(Residual(), 1, 4, 4) == ({"conv1"}, {"stem"})
    assert owners(chain(), 1, 4, 4) == (set(), {"0", "3"})
    assert owners(depthwise(), 2, 4, 4) == (set(), {"0", "6"})
    assert owners(Concat(), 2, 3, 3) == (set(), {"left", "right", "join"})


def concatenated(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x[:, :2], y[:, 2:]], 1)


JOINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "an activation before the sum": lambda x, y: x + torch.relu(y),
    "an activation before the sum, in place": lambda x, y: x + torch.sigmoid_(y),
    "a pooling before the sum": lambda x, y: x + F.max_pool2d(y, 3, 1, 1),
    "a factor before the sum": lambda x, y: x + 0.5 * y,
    "a difference": lambda x, y: x - y,
    "a product": lambda x, y: x * y,
    "a gate": lambda x, y: x * torch.sigmoid(y),
    "a sum that is broadcast": lambda x, y: x.mean((2, 3), keepdim=True) + y,
    "a concatenation": concatenated,
    "nothing but the branch": lambda x, y: y,
    "a sum, and something else": lambda x, y: (x + y) * y,
    "a maximum": torch.maximum,
}


@pytest.mark.parametrize("join", JOINS.values(), ids=JOINS)
def test_what_is_not_just_added_is_no_branch(join: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The same block as above, whose end does not reach its sum, or reaches something else."""
    found, others = owners(Frame(Block(join)))
    assert found == set()
    assert "body.conv1" in others


def test_a_branch_of_fewer_positions_is_none() -> None:
    class Pooled(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv2(torch.relu(self.conv1(x.mean((2, 3), keepdim=True))))

    found, others = owners(Frame(Pooled(added)))
    assert found == set()
    assert "body.conv1" in others


def test_a_gate_is_no_branch() -> None:
    assert owners(Frame(Gated())) == (set(), {"stem", "body.squeeze"})


def test_a_constant_that_the_network_puts_out_is_no_branch() -> None:
    """Summed, but the branch's own output is an output of the network too."""

    class Both(Frame):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = torch.relu(self.stem(x))
            y = self.body.conv2(torch.relu(self.body.conv1(x)))
            return self.head((x + y).mean((2, 3))), y

    assert owners(Both(Block(added)))[0] == set()


def test_a_norm_that_no_layer_takes_up_holds_its_group() -> None:
    """Behind an activation, so that it can't be folded, its channels are the group's: a norm of none does not run."""

    class Late(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv2(self.bn1(torch.relu(self.conv1(x))))

    found, others = owners(Frame(Late(added)))
    assert found == set()
    assert "body.conv1" in others


def test_a_layer_that_also_reads_another_group_holds_both() -> None:
    class Joined(Pair):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.last(torch.cat([torch.relu(self.a1(x)), torch.relu(self.b1(x))], 1))

    model = Joined()
    model.last = nn.Conv2d(6 + 7, 4, 1)
    assert owners(Frame(model)) == (set(), {"stem", "body.a1", "body.b1"})


def test_a_channel_that_is_several_inputs_of_its_reader_is_a_branch() -> None:
    """Flattened: a channel of zeros stands in for its 36 columns."""

    class Flattened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Linear(72, 4), nn.Conv2d(2, 5, 3, padding=1)
            self.down, self.head = nn.Linear(5 * 36, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x.flatten(1)) + self.down(torch.relu(self.conv(x)).flatten(1)))

    assert owners(Flattened()) == ({"conv"}, {"stem"})
