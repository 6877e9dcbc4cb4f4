"""Folders of finished runs whose every number is written down here; no network is needed."""

import json

import yaml

from autocompress.config import make_config
from autocompress.run.journal import Entry

BYTES, SIZE = 500, 10_000  # of a layer and of the whole file


def layer(name, at, bits=4, sparsity=0.0, left=1000):
    """A layer of 1,000 weights: rounding costs 0.001 nats, pruning 0.0005 where there is any."""
    return {
        "name": name, "kind": "conv", "weight_shape": [10, 10, 1, 10], "parameters": 1000,
        "writes_group": at, "reads_groups": [at - 1] if at else [], "tied_to": None, "fixed_reason": "",
        "label": {"sparsity": sparsity, "weight_bits": bits, "activation_bits": 8},
        "bytes": {"original": 4000, "compressed": BYTES}, "macs": {"original": 9000, "compressed": 9 * left},
        "weights_left": left,
        "expected_loss": {"pruning": 0.0005 if sparsity else 0.0, "rounding": 0.001},
        "by_weight_bits": [
            {"weight_bits": 2, "loss": 0.02, "bytes": 250}, {"weight_bits": 4, "loss": 0.001, "bytes": 500},
            {"weight_bits": 8, "loss": 0.0001, "bytes": 1000},
        ],
        "by_sparsity": [
            {"sparsity": 0.0, "loss": 0.0, "resources": {"size": SIZE + 900}},
            {"sparsity": 0.25, "loss": 0.0002, "resources": {"size": SIZE + 400}},
            {"sparsity": 0.5, "loss": 0.0005, "resources": {"size": SIZE}},
        ],
        "other_plans": {"solver": {"sparsity": 0.0, "weight_bits": 4, "activation_bits": 8}},
    }  # fmt: skip


def outcome(layers, **changed):
    resources = {"size": SIZE, "macs": 9000 * len(layers), "bitops": 1, "memory": 5}
    found = {
        "split": "test", "samples": 400,
        "original": {"accuracy": 0.9, "kl": 0.0, "agreement": 1.0,
                     "resources": {"size": 40_000, "macs": 9000 * len(layers), "bitops": 4, "memory": 10}},
        "compressed": {"accuracy": 0.875, "kl": 0.0123, "agreement": 0.95, "resources": resources},
        "budget": {"limits": {"size": 12_000}, "met": True}, "metrics": {},
        "runtime": {"name": "ONNX Runtime",
                    "median_seconds_by_batch": {"1": {"original": 0.002, "compressed": 0.001}}},
        "file_bytes": {"model.onnx": SIZE}, "verified": True,
        "checks": [{"name": "budget", "passed": True, "detail": "size 10,000 of 12,000"}],
        "evaluations": 3, "stopped_because": "all 3 evaluations are used",
        "versions": {"autocompress": "0.1.0"}, "machine": {"processor": "a <fast> one", "memory_bytes": 8_000_000_000},
    }  # fmt: skip
    return {**found, **changed}


def write_run(folder, names=("first", "second", "head"), model="digits", **changed):
    """A run in a new folder; returns the folder. The second layer is pruned by a half."""
    folder.mkdir(parents=True)
    layers = [layer(name, at) for at, name in enumerate(names)]
    layers[1] = layer(names[1], 1, sparsity=0.5, left=500)
    groups = [
        {"index": at, "owner": name, "width": 10, "kept": 10, "producers": [name], "consumers": [], "is_branch": False}
        for at, name in enumerate(names)
    ]
    groups[1]["kept"] = 5
    nothing = [0] * len(names)
    explained = {
        "version": 1, "layers": layers, "groups": groups,
        "expected_loss": {"chosen": 0.001 * len(names) + 0.0005, "solver": 0.001 * len(names)},
        "simple_plans": [{"name": "the solver's plan", "labels": [nothing] * 3, "expected_loss": 0.003}],
    }  # fmt: skip
    plan = {"version": 1, "granularity": "channel", "labels": {each["name"]: each["label"] for each in layers}}
    config = make_config({"model": model, "budget": "size=0.3", "data": None if model == "digits" else "npz:a b.npz"})
    (folder / "config.yaml").write_text(config.to_yaml())
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    (folder / "layers.json").write_text(json.dumps(explained))
    (folder / "outcome.json").write_text(json.dumps(outcome(names, **changed)))
    (folder / "journal.jsonl").write_text('{"journal": 1}\n' + "".join(entry.to_line() for entry in entries(names)))
    return folder


def entries(names):
    """Three plans: the solver's, a better one, and one beyond the budget."""
    for index, (kl, best, size) in enumerate([(0.02, True, 11_000), (0.01, True, 11_500), (0.005, False, 13_000)]):
        labels = tuple((index,) * len(names) for _ in range(3))
        yield Entry(index, labels, kl, 0.9, 0.9, {"size": size}, 1.0 - kl, best, 0.5)
