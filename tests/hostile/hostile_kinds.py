"""The kinds of files that the package reads: how each is damaged, how it is read, and what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_mutations as change
import numpy as np
import torch
from hostile_child import Read, Told
from hostile_lies import image_lie, packed_lie, pt_lie, resealed, table_lie
from hostile_tools import (
    Kind,
    digest,
    images_in,
    parsed,
    read_independently,
    said,
    says_other,
    splits_digest,
    state_digest,
    tools,
    zoo_network,
)
from pyarrow import parquet

import autocompress
from autocompress.comparison import folder as comparison
from autocompress.comparison.report import _plots
from autocompress.comparison.session import requests_of
from autocompress.comparison.shared import SharedEvaluations
from autocompress.comparison.suite import read_suite
from autocompress.comparison.summary import summarise
from autocompress.comparison.tables import cells_table, latex, terminal_tables
from autocompress.config import load_config
from autocompress.data import load_data
from autocompress.job.base import load_base
from autocompress.job.options import search_request
from autocompress.job.trust import NamedFunction, check_trusted
from autocompress.models import load_model
from autocompress.models.weights import load_weights_
from autocompress.plan import Plan
from autocompress.policies.files import load_policy
from autocompress.policy_training.experience_files import load_experience
from autocompress.policy_training.number_formats import NumberFormats
from autocompress.policy_training.recipe import read_recipe
from autocompress.policy_training.zoo import trained
from autocompress.run.folder import RunFolder
from autocompress.run.journal import journal_header, read_journal, stamped
from autocompress.run.lock import locked
from autocompress.run.shifts import ShiftFile


def kinds(clean: Path) -> list[Kind]:
    """All kinds, for clean files in a folder."""
    return [*_texts(clean), *_runs(clean), *_networks(clean), *_data(clean), *_trainings(clean), *_caches(clean)]


def _texts(clean: Path) -> list[Kind]:
    def plan(folder: Path) -> Read:
        found = Plan.load(folder / "plan.yaml")
        tools(clean).job.menus.labeling(found)
        return Read(_labels(found.to_dict()))

    def config(folder: Path) -> Read:
        found = load_config(folder / "config.yaml", {})
        search_request(found.model, None, vars(found))
        return Read(digest(found.model_dump(mode="json")))

    def suite(folder: Path) -> Read:
        found = read_suite(folder / "suite.yaml")
        requests_of(found)
        return Read(digest(found.to_yaml()))

    def recipe(folder: Path) -> Read:
        return Read(digest(read_recipe(folder / "recipe.yaml").model_dump(mode="json")))

    def says_plan(folder: Path) -> str | None:
        try:
            return _labels(parsed(folder / "plan.yaml"))
        except Exception:
            return None

    return [
        Kind("plan", "run", ("plan.yaml",), change.YAML, plan, says_plan, 2),
        Kind("config", "run", ("config.yaml",), change.YAML, config, says_other(clean / "run"), 2),
        Kind("suite", "suite", ("suite.yaml",), change.YAML, suite, says_other(clean / "suite")),
        Kind("recipe", "recipe", ("recipe.yaml",), change.YAML, recipe, says_other(clean / "recipe")),
    ]


def _labels(plan: Any) -> str:
    """A digest of a plan as data."""
    labels = {
        name: [float(label.get(key, default)) for key, default in _LABEL.items()]
        for name, label in plan["labels"].items()
    }
    return digest(str(plan.get("granularity", "channel")), list(labels.items()))


_LABEL = {"sparsity": 0.0, "weight_bits": 32, "activation_bits": 32}


def _runs(clean: Path) -> list[Kind]:
    header, entries = read_journal(clean / "run" / "journal.jsonl")
    made_on = {name: value for name, value in header.items() if name != "journal"}

    def journal(folder: Path) -> Read:
        config = load_config(folder / "config.yaml", {}).model_copy(update={"out": folder, "resume": True})
        journal_header(folder)
        with RunFolder(folder, config, {}, made_on) as run:
            found = run.replayed
        if repr(found) == repr(entries[: len(found)]):
            return Read(digest(entries), rebuilt=len(found) < len(entries))
        return Read(digest(found))

    def shifts(folder: Path) -> Read:
        shape = (64, 10)
        with ShiftFile(folder / "journal.f16", shape) as file:
            found = [file.read(entry.index, entry.shift) for entry in entries]
        with ShiftFile(clean / "run" / "journal.f16", shape) as file:
            before = [file.read(entry.index, entry.shift) for entry in entries]
        same = all(now is None or np.array_equal(now, then) for now, then in zip(found, before, strict=True))
        return Read("same" if same else "other", rebuilt=any(each is None for each in found))

    def verify(folder: Path) -> Read:
        found = autocompress.verify(folder)
        for check in found.checks:
            if not check.passed:
                raise Told(str(check))
        return Read(digest(found.pytorch.accuracy, found.pytorch.kl, sorted(found.resources.items())))

    def lock(folder: Path) -> Read:
        with locked(folder, "out", "search"):
            return Read("held")

    def functions(folder: Path) -> Read:
        check_trusted([NamedFunction("model", "nets.py:small", {})], folder, trust=False)
        return Read("trusted")

    run, lines = clean / "run", change.line_lie(stamped)
    return [
        Kind("journal", "run", ("journal.jsonl",), [lines, lines, *change.BYTES], journal, None, 2),
        Kind("shifts", "run", ("journal.f16",), change.BYTES, shifts),
        Kind("outcome", "run", ("outcome.json",), change.JSON, verify, says_other(run), 1.5),
        Kind("run folder", "run", ("plan.yaml", "config.yaml"), change.YAML, verify, says_other(run), 0.7),
        Kind("lock", "lock", (".lock",), change.JSON, lock, lambda folder: True, 0.3),
        Kind("remembered functions", "functions", ("functions",), change.BYTES, functions, None, 0.2),
        Kind("checkpoint", "checkpoint", ("finetune.pt",), [pt_lie, *change.BYTES], _tuned(clean)),
        Kind("base of a stage", "stage", ("base.safetensors",), [resealed, *change.SAFETENSORS], _based(clean)),
    ]


def _tuned(clean: Path) -> Callable[[Path], Read]:
    return lambda folder: tools(clean).tuned(folder / "finetune.pt")


def _based(clean: Path) -> Callable[[Path], Read]:
    def base(folder: Path) -> Read:
        found = load_base(folder, tools(clean).job)
        return Read("none") if found is None else Read(digest(found.base.state_dict()))

    return base


def _networks(clean: Path) -> list[Kind]:
    def weights(name: str) -> Callable[[Path], Read]:
        def read(folder: Path) -> Read:
            model = load_model("digits", None, {})
            load_weights_(model, folder / name)
            return Read(state_digest(model.state_dict()))

        return read

    def says_safetensors(folder: Path) -> str | None:
        try:
            return state_digest(read_independently((folder / "weights.safetensors").read_bytes()))
        except Exception:
            return None

    def says_torch(folder: Path) -> str | None:
        try:
            found = torch.load(folder / "old.pth", weights_only=True)
            return state_digest(found.get("state_dict", found.get("model", found)))
        except Exception:
            return None

    def run_packed(folder: Path) -> Read:
        model = autocompress.load(folder / "model.safetensors")
        with torch.no_grad():
            outputs = model(torch.linspace(0, 1, 128).view(2, 1, 8, 8))
        return Read(digest(outputs))

    def policy(folder: Path) -> Read:
        found = load_policy(folder)
        return Read(digest(found.policy.state_dict(), _plain(found.record)))

    def says_policy(folder: Path) -> str | None:
        content = parsed(folder / "policy.json")
        state = load_policy(clean / "policy").policy.state_dict()
        return digest(state, _plain({**content["record"], "kinds": content["kinds"]}))

    pt, old, safe = "weights.pt", "old.pth", "weights.safetensors"
    return [
        Kind("weights .safetensors", "weights", (safe,), change.SAFETENSORS, weights(safe), says_safetensors, 2),
        Kind("weights .pt", "weights", (pt,), [pt_lie, pt_lie, *change.BYTES], weights(pt), None, 2),
        Kind("weights .pt before 1.6", "weights", (old,), change.BYTES, weights(old), says_torch),
        Kind("packed", "run", ("model.safetensors",), [packed_lie, *change.SAFETENSORS], run_packed, None, 2),
        Kind("policy", "policy", ("policy.json",), change.JSON, policy, says_policy),
        Kind("policy's weights", "policy", ("policy.safetensors",), change.SAFETENSORS, policy, None, 0.5),
    ]


def _plain(record: Any) -> str:
    return json.dumps(record, sort_keys=True)


def _data(clean: Path) -> list[Kind]:
    def npz(folder: Path) -> Read:
        return Read(splits_digest(load_data(f"npz:{folder / 'data.npz'}", mean=[0.0], std=[1.0])))

    def table(folder: Path) -> Read:
        return Read(splits_digest(load_data(f"parquet:{folder}", mean=[0.0] * 3, std=[1.0] * 3)))

    def images(folder: Path) -> Read:
        return Read(splits_digest(load_data(f"imagefolder:{folder}", mean=[0.0] * 3, std=[1.0] * 3)))

    def says_table(folder: Path) -> str | None:
        try:
            rows = {part: parquet.read_table(folder / f"{part}.parquet") for part in ("train", "test")}
            contents = {part: row["image"].to_pylist() for part, row in rows.items()}
            return said(contents, {part: row["label"].to_pylist() for part, row in rows.items()})
        except Exception:
            return None

    def says_images(folder: Path) -> str | None:
        try:
            files = {part: images_in(folder / part) for part in ("train", "test")}
            contents = {part: [file.read_bytes() for file in each] for part, each in files.items()}
            labels = {part: [int(file.parent.name[-1]) for file in files[part]] for part in files}
            return said(contents, labels, ("class0", "class1", "class2"))
        except Exception:
            return None

    return [
        Kind("npz", "npz", ("data.npz",), change.NPZ, npz, None, 2),
        Kind("parquet", "parquet", ("*.parquet",), [table_lie, table_lie, *change.BYTES], table, says_table, 2),
        Kind("imagefolder", "images", ("*/*/*",), [image_lie, *change.BYTES], images, says_images, 1.5),
    ]


def _trainings(clean: Path) -> list[Kind]:
    def experience(folder: Path) -> Read:
        is_there, found = load_experience(folder / "experience.npz", "made for")
        if not is_there:
            return Read(experience(clean / "experience").digest, rebuilt=True)
        assert found is not None
        found.output_model()
        layers = [part for layer in found.problem.layers for part in vars(layer).values()]
        parts = [*vars(found.problem.costs).values(), *vars(found.labelings).values(), *vars(found.effects).values()]
        return Read(digest(*layers, *parts, found.probabilities, found.losses, found.shifts, found.budgets))

    def settled(folder: Path) -> Read:
        picks = NumberFormats(folder / "settled.json")
        return Read(digest(sorted(picks.items())))

    def compared(folder: Path) -> Read:
        suite = read_suite(folder / "suite.yaml")
        found = list(comparison.kept(folder, suite).values())
        summaries = summarise(found)
        if found:
            cells_table(found)
            terminal_tables(summaries)
            latex(suite, summaries)
            _plots(suite, found, summaries)
        conditions, policies = comparison.read_conditions(folder), comparison.read_policies(folder)
        return Read(digest(suite.to_yaml(), [vars(each) for each in found], conditions, policies))

    def shared(folder: Path) -> Read:
        def numbers(where: Path) -> dict[bytes, Any]:
            file = next((where / "evaluations").glob("*.jsonl"))
            return SharedEvaluations(file, lambda _: 1 / 0)._numbers

        before, found = numbers(clean / "comparison"), numbers(folder)
        same = all(repr(before.get(key)) == repr(outcome) for key, outcome in found.items())
        return Read("same" if same else "other", rebuilt=len(found) < len(before))

    files, lines = ("cells/*.json", "evaluations/*.json", "policies.json"), change.line_lie(stamped)
    return [
        Kind("experience", "experience", ("experience.npz",), change.NPZ, experience),
        Kind("settled.json", "settled", ("settled.json",), change.JSON, settled, says_other(clean / "settled"), 0.5),
        Kind("comparison", "comparison", files, change.JSON, compared, says_other(clean / "comparison"), 1.5),
        Kind("shared evaluations", "comparison", ("evaluations/*.jsonl",), [lines, *change.BYTES], shared, None, 0.5),
    ]


def _caches(clean: Path) -> list[Kind]:
    def zoo(folder: Path) -> Read:
        network, data = zoo_network(clean)
        file = next(folder.glob("*.safetensors"))
        before = file.read_bytes()
        torch.manual_seed(0)
        found = trained(network, data, folder, {f"training {network.name}": "float32"})
        if file.read_bytes() != before:  # trained anew, which gives other weights than the untrained clean ones
            return Read(state_digest(_clean_zoo(clean)), rebuilt=True)
        return Read(state_digest(found.state_dict()))

    def menus(folder: Path) -> Read:
        return tools(clean).cached(folder)

    mutators = [resealed, *change.SAFETENSORS]
    return [
        Kind("menu cache", "cache", ("menus/*/*.safetensors",), mutators, menus, None, 2.5),
        Kind("zoo weights", "zoo", ("*.safetensors",), mutators, zoo, None, 0.5),
    ]


def _clean_zoo(clean: Path) -> dict[str, Any]:
    return read_independently(next((clean / "zoo").glob("*.safetensors")).read_bytes())
