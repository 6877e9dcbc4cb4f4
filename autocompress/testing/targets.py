"""The check of targets: files of a small network under several plans."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.execute.compressed import from_menus
from autocompress.menus import Menus, MenuSettings, build_menus
from autocompress.network import fold_batch_norms, trace
from autocompress.targets import Target, counted_on_file
from autocompress.targets.target import lowered_for, target_file
from autocompress.testing.contract import require
from autocompress_envs.problem import Labeling

AGREEMENT = 0.95  # of samples with the same answer; on 64 samples of random weights, near ties flip a few
CLOSENESS = 0.02  # root mean square difference of outputs, relative to their standard deviation
_RANDOM_PLANS = 3
_WRITTEN_TWICE = 2  # plans: the cheapest and the dearest


class SmallNetwork(nn.Module):
    """Input 2x8x8: a residual block with a batch norm, a depthwise layer, pooling and a linear layer; 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.inner, self.norm = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.outer = nn.Conv2d(6, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.outer(torch.relu(self.norm(self.inner(x)))))
        logits: Tensor = self.head(torch.relu(self.depthwise(x)).mean((2, 3)))
        return logits


def check_target(target: Target) -> None:
    """Check a target with the files of a small network: the cheapest plan, the dearest, and three at random.

    Every label that the target calls legal must be possible; a file must have at most the bytes that were counted for
    its plan; writing the first two twice must give the same bytes; and where the target has a runtime, the file must
    answer there as the graph that it was written from does, at any batch size.

    Args:
        target: as for `autocompress.register_target`.

    Raises:
        ContractError: a rule is broken.
        ExportError: the target can't hold the network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = SmallNetwork().eval(), torch.randn(64, 2, 8, 8)
    folded = fold_batch_norms(model, trace(model, inputs[:1])).float().eval()
    menus, original_bytes = counted_on_file(target, _menus(target, model, inputs), folded, inputs)
    require(original_bytes > 0, "The float32 file must have bytes", original_bytes)
    for number, labeling in enumerate(_plans(menus)):
        compressed = from_menus(menus, labeling, folded)
        lowered = lowered_for(target, compressed, inputs)
        content = target_file(target, compressed, lowered, inputs)
        require(isinstance(content, bytes) and bool(content), "`write` must return bytes", type(content).__name__)
        if number < _WRITTEN_TWICE:
            again = target_file(target, compressed, lowered_for(target, compressed, inputs), inputs)
            require(content == again, "The same network must give the same bytes", f"{len(again)} other bytes")
        counted = menus.problem().resources(labeling)["size"]
        require(len(content) <= counted, f"A file must have at most the {counted:,} bytes counted", f"{len(content):,}")
        if target.runtime is not None and lowered is not None:
            _check_outputs(target, content, lowered.graph, inputs)


def _only(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    require(isinstance(outputs, Tensor), "A runtime must return the only output as a tensor", type(outputs).__name__)
    assert isinstance(outputs, Tensor)
    return outputs


def _menus(target: Target, model: nn.Module, inputs: Tensor) -> Menus:
    settings = MenuSettings(weight_bits=target.weight_bits, activation_bits=target.activation_bits, sparsity_levels=4)
    network = trace(model, inputs[:1])
    return build_menus(model, network, inputs, settings, data_fingerprint=target.name, cache=None)


def _plans(menus: Menus) -> list[Labeling]:
    """The plan of the cheapest labels, that of the dearest, and three at random."""
    layers = menus.problem().layers
    counts = [
        np.array([len(getattr(layer, menu)) for layer in layers])
        for menu in ("sparsities", "weight_bits", "activation_bits")
    ]
    sparsities, weight_bits, activation_bits = counts
    none, rng = np.zeros(len(layers), dtype=np.int64), np.random.default_rng(0)
    ends = [Labeling(sparsities - 1, none, none), Labeling(none, weight_bits - 1, activation_bits - 1)]
    return ends + [Labeling(*(rng.integers(0, count) for count in counts)) for _ in range(_RANDOM_PLANS)]


def _check_outputs(target: Target, content: bytes, graph: nn.Module, inputs: Tensor) -> None:
    assert target.runtime is not None, "the caller looks"
    session, name = target.runtime.open(content), target.runtime.name
    with torch.no_grad():
        expected = graph(inputs)
    found = _only(session.run(inputs))
    require(found.shape == expected.shape, f"{name} must return outputs {tuple(expected.shape)}", tuple(found.shape))
    difference = float((found - expected).square().mean().sqrt() / expected.std().clamp(min=1e-12))
    require(difference <= CLOSENESS, f"Outputs in {name} may differ by {CLOSENESS} of their spread", difference)
    agreement = float((found.argmax(1) == expected.argmax(1)).float().mean())
    require(agreement >= AGREEMENT, f"{name} must agree on {AGREEMENT:.0%} of the samples", f"{agreement:.1%}")
    pieces = [_only(session.run(inputs[a:b])) for a, b in itertools.pairwise((0, 1, 8, 64))]
    apart = float((torch.cat(pieces) - found).abs().max())
    require(apart <= CLOSENESS * float(expected.std()), "Outputs must not depend on the batch size", apart)
