"""Groups whose indices multiply, as torch-pruning's do where it misreads reshapes, end in a reason, not in hours."""

from functools import partial

import pytest
import torch
import torch_pruning
from torch import nn

from autocompress.network import dependency_graph, groups, trace
from autocompress.network.dependency_graph import TooManySteps, bounded_search
from autocompress.network.groups import UNREADABLE


def flattened() -> nn.Sequential:
    """The first group takes few steps, the second 4 x 64 flattened indices and more."""
    layers = [nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)]
    return nn.Sequential(*layers).eval()


def test_a_group_of_too_many_steps_is_not_offered_and_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "bounded_search", partial(bounded_search, 200))
    network = trace(flattened(), torch.zeros(1, 3, 8, 8))
    assert [group.owner for group in network.groups] == ["0"]
    first, second, last = network.layers
    assert first.fixed_reason == ""
    assert second.fixed_reason == (
        f"{UNREADABLE}: it ties more than 200 channels to one layer's, which are misread reshapes"
    )
    assert last.fixed_reason == "network output"


def test_all_groups_of_the_same_network_take_few_steps_of_those_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "bounded_search", partial(bounded_search, dependency_graph.MOST_STEPS // 1_000))
    network = trace(flattened(), torch.zeros(1, 3, 8, 8))
    assert [group.owner for group in network.groups] == ["0", "2"]


def test_indices_are_counted_before_they_are_made_and_torch_pruning_is_as_before() -> None:
    members, mapping = torch_pruning.dependency.Group, torch_pruning.dependency.index_mapping._FlattenIndexMapping
    before = members.add_dep, mapping.__call__
    indices = [torch_pruning._helpers._HybridIndex(index, index) for index in range(10)]
    with bounded_search(1_000):
        assert len(mapping(stride=100)(indices)) == 1_000
        with pytest.raises(TooManySteps, match="more than 1,000 channels"):
            mapping(stride=10**12)(indices)  # would not fit into any memory
    assert (members.add_dep, mapping.__call__) == before
