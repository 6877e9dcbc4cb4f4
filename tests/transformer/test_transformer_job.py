"""The whole job on tiny transformers: budgets hold on the file, ties hold in the plan, heads go."""

import pytest
import torch
from transformer_toys import TOYS

import autocompress
from autocompress.samples import Samples


@pytest.mark.parametrize(("name", "budget"), [("bert", "size=0.3,macs=0.5"), ("timm", "macs=0.5")])
def test_budgets_hold_on_the_file(name: str, budget: str, tmp_path) -> None:
    toy = TOYS[name]
    torch.manual_seed(0)
    model, samples = toy.build().eval(), toy.samples(300)

    def part(of: slice) -> object:
        tensors = samples[of]
        return dict(zip(tensors.names, tensors.tensors, strict=True)) if isinstance(tensors, Samples) else tensors

    result = autocompress.search(
        model, ((part(slice(200)), None), (part(slice(200, None)), None)), budget=budget, out=tmp_path / "run",
        cache=tmp_path / "cache", search_samples=60, calibration_samples=80, episodes=3, sparsity_levels=4,
        selection_samples=0, recalibration_samples=32,
    )  # fmt: skip
    assert result.verification.passed, result.verification.failures()
    file = tmp_path / "run" / "model.onnx"
    found = {**result.verification.resources, "size": file.stat().st_size}
    assert sorted(result.limits) == sorted(part.split("=")[0] for part in budget.split(","))
    assert all(found[resource] <= limit for resource, limit in result.limits.items())
    labels = result.plan.labels
    for layer in result.network.layers:
        if layer.tied_to is not None:
            assert labels[layer.name].weight_bits == labels[layer.tied_to].weight_bits
    names = [check.name for check in result.verification.checks]
    assert ("length" in names) == isinstance(samples, Samples)
    owners = [group for group in result.network.groups if any(part in group.owner for part in toy.heads)]
    kept = [group.width * (1 - labels[group.owner].sparsity) for group in owners]
    assert all(abs(count - round(count)) < 1e-6 for count in kept)
    assert sum(kept) < sum(group.width for group in owners)
