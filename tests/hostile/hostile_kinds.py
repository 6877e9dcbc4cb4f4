"""The kinds of files that the package reads: how each is damaged, how it is read, and what it says to another reader."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import hostile_mutations as change
import numpy as np
import torch
import yaml
from hostile_child import Read, Told
from hostile_files import RUN
from hostile_mutations import Mutation, Mutator
from PIL import Image
from pyarrow import parquet
from torch import Tensor

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
from autocompress.data.imagefolder import IMAGE_SUFFIXES
from autocompress.execute.finetune import FineTuning, finetune
from autocompress.job.base import load_base
from autocompress.job.load import load, load_splits
from autocompress.job.options import request, search_request
from autocompress.job.prepare import Job, build_evaluator, prepare
from autocompress.job.trust import NamedFunction, check_trusted
from autocompress.models import load_model
from autocompress.models.weights import load_weights_
from autocompress.plan import Plan
from autocompress.policies.files import load_policy
from autocompress.policy_training import training
from autocompress.policy_training.episode_files import load_episodes
from autocompress.policy_training.recipe import read_recipe
from autocompress.policy_training.training import load_all
from autocompress.policy_training.zoo import trained
from autocompress.progress import Silent
from autocompress.run.folder import RunFolder
from autocompress.run.journal import journal_header, read_journal, stamped
from autocompress.run.lock import locked
from autocompress.run.shifts import ShiftFile
from autocompress.targets.loading import restore
from autocompress.targets.packed import file as packed
from autocompress_envs.problem import Labeling


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: name in reports.
        source: folder of its clean files, below that of all.
        files: patterns of the files that are damaged, one at a time.
        mutators: what happens to them.
        read: reads the folder as the package does; raises what the package raises.
        says: what another reader finds in the folder, to compare with a result that is not the clean one; True where
            the file says something else than the clean one, and this reader can't say what. None: files of this kind
            have checksums, so they are the clean one or damaged.
        weight: inputs of this kind, relative to the others.
        texts: whether the files of the folder are mixed, and mutators are chosen by suffix.
    """

    name: str
    source: str
    files: tuple[str, ...]
    mutators: list[Mutator]
    read: Callable[[Path], Read]
    says: Callable[[Path], str | bool | None] | None = None
    weight: float = 1.0


def digest(*values: Any) -> str:
    """A short digest of tensors, arrays and plain data."""
    found = hashlib.sha256()
    for each in values:
        if isinstance(each, Tensor):
            each = each.detach().cpu().contiguous().float().numpy()
        if isinstance(each, Mapping) and any(isinstance(part, Tensor) for part in each.values()):
            each = digest(*[part for name in sorted(each) for part in (name, each[name])])
        found.update(each.tobytes() if isinstance(each, np.ndarray) else repr(each).encode())
    return found.hexdigest()[:16]


class Strict(yaml.SafeLoader):
    """YAML without keys that are there twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            raise yaml.YAMLError("a key twice")
        return found


def parsed(file: Path) -> Any:
    """What a file of YAML or JSON says, such as nothing; `NotImplemented` where it is no such file."""
    try:
        return yaml.load(file.read_text(), Strict)
    except Exception:
        return NotImplemented


def says_other(clean: Path) -> Callable[[Path], bool]:
    """Whether any file of text in a folder says something else than the clean one, its keys once each."""

    def says(folder: Path) -> bool:
        files = [file for file in folder.rglob("*") if file.suffix in (".yaml", ".json")]
        pairs = [(parsed(file), parsed(clean / file.relative_to(folder))) for file in files]
        return any(now is not NotImplemented and repr(now) != repr(before) for now, before in pairs)

    return says


@dataclass(frozen=True)
class Tools:
    """What reading needs: the network with its menus, from a warm cache."""

    folder: Path
    made: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def job(self) -> Job:
        return self.prepared(self.folder / "cache")

    def prepared(self, cache: Path) -> Job:
        asked = request("digits", None, {**RUN, "budget": "size=0.12", "cache": cache, "data": "digits"})
        if "loaded" not in self.made:
            self.made["loaded"] = load(asked, load_splits(asked), Silent())
        return prepare(self.made["loaded"], asked.menus, asked.config, Silent())

    def cached(self, cache: Path) -> Read:
        """The menus, effects and outcomes of two plans of a cache."""
        job = self.prepared(cache)
        evaluator = build_evaluator(job, request("digits", None, RUN).config, {"dtype": "float32", "batch_size": 64})
        found = [job.original, *(vars(layer) for layer in job.problem.layers)]
        effects = evaluator.effects()
        found += [value for _, value in sorted(vars(effects).items())]
        for index in (0, 1):
            outcome = evaluator(self.labeling(job, index))
            found += [outcome.kl, outcome.agreement, sorted(outcome.resources.items())]
        store = job.menus.store
        return Read(digest(*found), rebuilt=bool(store.written))

    def labeling(self, job: Job, index: int) -> Labeling:
        """The plan with nothing removed, or half of everything that can be."""
        layers = job.problem.layers
        removed = [min(index, len(layer.sparsities) - 1) for layer in layers]
        return Labeling(*(np.array(each) for each in (removed, [0] * len(layers), [0] * len(layers))))

    def tuned(self, checkpoint: Path) -> Read:
        """What fine-tuning makes of a network, from a checkpoint."""
        if "restored" not in self.made:
            self.made["restored"] = restore(self.folder / "run" / "model.safetensors", self.job.model, self.job.network)
        settings = FineTuning(epochs=0.02, batch_size=8)
        result = finetune(self.made["restored"], self.job.folded, self.job.data, settings, checkpoint=checkpoint)
        values = [layer.values for layer in result.compressed.layers.values()]
        return Read(digest(result.steps, result.best_step, *values))


_TOOLS: dict[Path, Tools] = {}


def tools(folder: Path) -> Tools:
    """The tools of the clean files, once a process."""
    return _TOOLS.setdefault(folder, Tools(folder))


def zoo_network(folder: Path) -> Any:
    """The network of the recipe, and its data."""
    recipe = read_recipe(folder / "recipe" / "recipe.yaml")
    network = recipe.networks[0]
    return network, load_all(recipe)[network.data]


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
        Kind("checkpoint", "checkpoint", ("finetune.pt",), [_pt_lie, *change.BYTES], _tuned(clean)),
        Kind("base of a stage", "stage", ("base.safetensors",), [_resealed, *change.SAFETENSORS], _based(clean)),
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
            return Read(_state(model.state_dict()))

        return read

    def says_safetensors(folder: Path) -> str | None:
        try:
            return _state(_read_independently((folder / "weights.safetensors").read_bytes()))
        except Exception:
            return None

    def says_torch(folder: Path) -> str | None:
        try:
            found = torch.load(folder / "old.pth", weights_only=True)
            return _state(found.get("state_dict", found.get("model", found)))
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
        Kind("weights .pt", "weights", (pt,), [_pt_lie, _pt_lie, *change.BYTES], weights(pt), None, 2),
        Kind("weights .pt before 1.6", "weights", (old,), change.BYTES, weights(old), says_torch),
        Kind("packed", "run", ("model.safetensors",), [_packed_lie, *change.SAFETENSORS], run_packed, None, 2),
        Kind("policy", "policy", ("policy.json",), change.JSON, policy, says_policy),
        Kind("policy's weights", "policy", ("policy.safetensors",), change.SAFETENSORS, policy, None, 0.5),
    ]


def _plain(record: Any) -> str:
    return json.dumps(record, sort_keys=True)


def _state(state: Mapping[str, Any]) -> str:
    """A digest of weights, whatever their precision; the counts of batches do not matter."""
    kept = {name.removeprefix("module."): np.asarray(each, dtype=np.float32) for name, each in state.items()}
    return digest(*[part for name in sorted(kept) if "batches" not in name for part in (name, kept[name])])


_NUMPY = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "I64": "<i8", "I32": "<i4"}


def _read_independently(content: bytes) -> dict[str, Any]:
    header, data = change.split_safetensors(content)
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            if entry["dtype"] == "BF16":
                numbers = (np.frombuffer(data[start:end], "<u2").astype("<u4") << 16).view("<f4")
            else:
                numbers = np.frombuffer(data[start:end], _NUMPY[entry["dtype"]])
            found[name] = numbers.reshape(entry["shape"])
    return found


def _pt_lie(content: bytes, draw: random.Random, _: list[bytes]) -> Mutation:
    """A PyTorch file that is whole, with other things in it."""
    state = torch.load(io.BytesIO(content), weights_only=True)
    flat = state["model"] if "model" in state and isinstance(state["model"], dict) else state
    name = draw.choice(list(flat))
    tensor = flat[name] if isinstance(flat[name], Tensor) else torch.zeros(2)
    lies: dict[str, Any] = {
        "int8": tensor.to(torch.int8), "complex": tensor.to(torch.complex64), "sparse": tensor.to_sparse(),
        "NaN": torch.full(tensor.shape, torch.nan), "transposed": tensor.t() if tensor.ndim == 2 else tensor[None],
        "text": "a", "none": None, "expanded": torch.zeros(1).expand(2**40), "code": change.Touch(),
        "float8": tensor.float().to(torch.float8_e4m3fn), "meta": tensor.to("meta"), "list": [1, 2],
    }  # fmt: skip
    way = draw.choice([*lies, "missing", "part", "wrapped", "other part"])
    if way == "missing":
        del flat[name]
    elif way == "wrapped":
        state = {"state_dict": state}
    elif way in ("part", "other part"):
        part = draw.choice(list(state))
        state[part] = change.value(draw) if way == "part" else {}
    else:
        flat[name] = lies[way]
    out = io.BytesIO()
    torch.save(state, out)
    return Mutation(f"{name} {way}", out.getvalue(), sealed=way in ("wrapped", "missing"))


def _resealed(content: bytes, draw: random.Random, others: list[bytes]) -> Mutation:
    """Another file of the same kind, whole; a checksum that fits a lie."""
    if others and draw.random() < 0.5:
        return Mutation("another file in its place", draw.choice(others))
    lie = change.safetensors_lie(content, draw, others)
    return lie


def _packed_lie(content: bytes, draw: random.Random, _: list[bytes]) -> Mutation:
    """A packed file that is whole in itself: its plan, its shapes, its graph or its tensors lie under a checksum."""
    header, data = change.split_safetensors(content)
    metadata = header.pop("__metadata__")
    line, *graph = zlib.decompress(base64.b85decode(metadata["content"])).decode().split("\n")
    first, part, name = json.loads(line), draw.choice(["first", "graph", "graph", "header", "data"]), ""
    if part == "first":
        name, first = change.lied(first, draw)
    elif part == "graph":
        name, changed = change.lied(json.loads(graph[0]), draw)
        graph = [json.dumps(changed)] if draw.random() < 0.9 else [change.nested(draw).decode()]
    elif part == "header":
        lie = change.safetensors_lie(change.joined_safetensors(header, data), draw, [])
        name = lie.name
        try:
            header, data = change.split_safetensors(lie.content)
        except (ValueError, RecursionError, TypeError):
            return Mutation(name, lie.content)
    else:
        start = draw.randrange(len(data))
        data = data[:start] + draw.choice([b"\xff\xff\xff\x7f", b"\0\0\xc0\x7f"]) + data[start + 4 :]
        data = data[: len(content)]
    try:
        if isinstance(first, dict):
            first["checksum"] = packed._checksum(header, data)
        text = base64.b85encode(zlib.compress("\n".join([json.dumps(first), *graph]).encode())).decode()
        whole = packed._joined({**metadata, "content": text}, header, data)
    except (TypeError, AttributeError, ValueError):
        whole = content[:50]
    return Mutation(f"{part} {name}", whole, sealed=True)


def _data(clean: Path) -> list[Kind]:
    def npz(folder: Path) -> Read:
        return Read(_splits(load_data(f"npz:{folder / 'data.npz'}", mean=[0.0], std=[1.0])))

    def table(folder: Path) -> Read:
        return Read(_splits(load_data(f"parquet:{folder}", mean=[0.0] * 3, std=[1.0] * 3)))

    def images(folder: Path) -> Read:
        return Read(_splits(load_data(f"imagefolder:{folder}", mean=[0.0] * 3, std=[1.0] * 3)))

    def says_table(folder: Path) -> str | None:
        try:
            rows = {part: parquet.read_table(folder / f"{part}.parquet") for part in ("train", "test")}
            return _said({part: [each.as_py() for each in row["image"]] for part, row in rows.items()},
                         {part: [int(each.as_py()) for each in row["label"]] for part, row in rows.items()})  # fmt: skip
        except Exception:
            return None

    def says_images(folder: Path) -> str | None:
        try:
            files = {part: _images_in(folder / part) for part in ("train", "test")}
            contents = {part: [file.read_bytes() for file in each] for part, each in files.items()}
            labels = {part: [int(file.parent.name[-1]) for file in files[part]] for part in files}
            return _said(contents, labels, ("class0", "class1", "class2"))
        except Exception:
            return None

    return [
        Kind("npz", "npz", ("data.npz",), change.NPZ, npz, None, 2),
        Kind("parquet", "parquet", ("*.parquet",), [_table_lie, _table_lie, *change.BYTES], table, says_table, 2),
        Kind("imagefolder", "images", ("*/*/*",), [_image_lie, *change.BYTES], images, says_images, 1.5),
    ]


def _splits(data: Any) -> str:
    """A digest of all inputs and labels, in order."""
    found: list[Any] = [data.classes]
    for source in (data.train, data.test):
        inputs, labels = source.load(list(range(len(source))))
        if not bool(torch.isfinite(inputs).all()):
            return "not finite"
        found += [inputs, labels]
    return digest(*found)


def _said(contents: Mapping[str, list[bytes]], labels: Mapping[str, list[int]], names: tuple[str, ...] = ()) -> str:
    """The same digest by another way."""
    top = max(max(each) for each in labels.values())
    classes = names or tuple(str(number) for number in range(top + 1))
    found: list[Any] = []
    for part in ("train", "test"):
        pixels = [np.asarray(Image.open(io.BytesIO(each)).convert("RGB"), np.float32) / 255 for each in contents[part]]
        found += [np.stack(pixels).transpose(0, 3, 1, 2), np.array(labels[part])]
    return digest(classes, *[np.ascontiguousarray(each, dtype=np.float32) for each in found])


def _images_in(folder: Path) -> list[Path]:
    """Files of the kinds of images that a folder of images may hold."""
    return sorted(file for file in folder.glob("*/*") if file.suffix in IMAGE_SUFFIXES)


def _image(draw: random.Random) -> bytes:
    """An image that is hostile, or no image."""
    import struct

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    width, height = draw.choice([(1, 60_000), (60_000, 60_000), (2**31 - 1, 1), (0, 0), (30_000, 30_000), (8, 8)])
    header = struct.pack(">IIBBBBB", width, height, draw.choice([1, 8, 16]), draw.choice([0, 2, 3, 6]), 0, 0, 0)
    body = zlib.compress(bytes(draw.choice([10, 100_000, 20_000_000])))
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000)))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    png += (text if draw.random() < 0.2 else b"") + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(" + change.MARK.encode() + b") (w) file\nshowpage\n"
    return draw.choice([png, png, png, eps, b"", b"<svg/>", b"GIF89a" + bytes(20), b"BM" + b"\xff" * 60])


def _image_lie(content: bytes, draw: random.Random, _: list[bytes]) -> Mutation:
    return Mutation("hostile image", _image(draw))


def _table_lie(content: bytes, draw: random.Random, _: list[bytes]) -> Mutation:
    """A table that is whole, with other columns, types and values."""
    import pyarrow

    table = parquet.read_table(io.BytesIO(content))
    rows, out = len(table), io.BytesIO()
    images, labels = table["image"].to_pylist(), table["label"].to_pylist()
    index = draw.randrange(rows)
    way = draw.choice(["image", "image", "label", "labels", "images", "names", "empty", "structs", "bomb"])
    if way == "image":
        images[index] = _image(draw)
    elif way == "label":
        labels[index] = draw.choice([None, -1, 255, 2_000_000_000, 2**62])
    elif way == "labels":
        labels = draw.choice([[str(each) for each in labels], [0.5] * rows, [[1]] * rows, [None] * rows, [True] * rows])
    elif way == "images":
        images = draw.choice([labels, [None] * rows, ["text"] * rows, [[1, 2]] * rows])
    elif way == "structs":
        images = [{"bytes": each, "path": "/dev/zero"} for each in images]
    elif way == "empty":
        images, labels = [], []
    elif way == "bomb":
        images[index] = bytes(400_000_000)
    names = ["picture", "label"] if way == "names" else ["image", "label"]
    made = pyarrow.table([pyarrow.array(images), pyarrow.array(labels)], names=names)
    parquet.write_table(made, out, compression="zstd")
    return Mutation(way, out.getvalue(), sealed=way in ("structs", "labels"))


def _trainings(clean: Path) -> list[Kind]:
    def episodes(folder: Path) -> Read:
        found = load_episodes(folder / "episodes.npz", "made for")
        if found is None:
            return Read(episodes(clean / "episodes").digest, rebuilt=True)
        for each in found:
            assert each.parts.shape[1:] == (len(each.observations), 2)
            assert each.losses.shape == (len(each.parts),)
        return Read(digest(*[part for each in found for part in (each.limits, each.observations, each.parts, each.losses)]))

    def settled(folder: Path) -> Read:
        picks = training._NumberFormats(folder / "settled.json")
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
        Kind("episodes", "episodes", ("episodes.npz",), change.NPZ, episodes),
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
            return Read(_state(_clean_zoo(clean)), rebuilt=True)
        return Read(_state(found.state_dict()))

    def menus(folder: Path) -> Read:
        return tools(clean).cached(folder)

    mutators = [_resealed, *change.SAFETENSORS]
    return [
        Kind("menu cache", "cache", ("menus/*/*.safetensors",), mutators, menus, None, 2.5),
        Kind("zoo weights", "zoo", ("*.safetensors",), mutators, zoo, None, 0.5),
    ]


def _clean_zoo(clean: Path) -> dict[str, Any]:
    return _read_independently(next((clean / "zoo").glob("*.safetensors")).read_bytes())


assert dataclasses.is_dataclass(Kind)
