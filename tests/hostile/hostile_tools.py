"""What reading needs: the network with its menus, digests of results, and readers other than the package."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import hostile_mutations as change
import numpy as np
import torch
import yaml
from hostile_child import Read
from hostile_files import RUN
from hostile_mutations import Mutator
from PIL import Image
from torch import Tensor

from autocompress.data.imagefolder import IMAGE_SUFFIXES
from autocompress.execute.finetune import finetune
from autocompress.execute.tuning import FineTuning
from autocompress.job.load import load, load_splits
from autocompress.job.options import request
from autocompress.job.prepare import Job, build_evaluator, prepare
from autocompress.policy_training.gathering import load_all
from autocompress.policy_training.recipe import read_recipe
from autocompress.progress import Silent
from autocompress.targets.loading import restore
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


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def parsed(file: Path) -> Any:
    """What a file of YAML or JSON says, such as nothing; `NotImplemented` where it is no such file."""
    try:
        if file.suffix == ".json":  # whose text may hold characters that YAML's may not
            return json.loads(file.read_text(), object_pairs_hook=_once)
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


def state_digest(state: Mapping[str, Any]) -> str:
    """A digest of weights, whatever their precision; the counts of batches do not matter."""
    kept = {name.removeprefix("module."): np.asarray(each, dtype=np.float32) for name, each in state.items()}
    return digest(*[part for name in sorted(kept) if "batches" not in name for part in (name, kept[name])])


_NUMPY = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "I64": "<i8", "I32": "<i4"}


def read_independently(content: bytes) -> dict[str, Any]:
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


def splits_digest(data: Any) -> str:
    """A digest of all inputs and labels, in order."""
    found: list[Any] = [data.classes]
    for source in (data.train, data.test):
        inputs, labels = source.load(list(range(len(source))))
        if not bool(torch.isfinite(inputs).all()):
            return "not finite"
        found += [inputs, labels]
    return digest(*found)


def said(contents: Mapping[str, list[bytes]], labels: Mapping[str, list[int]], names: tuple[str, ...] = ()) -> str:
    """The same digest by another way."""
    top = max(max(each) for each in labels.values())
    classes = names or tuple(str(number) for number in range(top + 1))
    found: list[Any] = []
    for part in ("train", "test"):
        pixels = [np.asarray(Image.open(io.BytesIO(each)).convert("RGB"), np.float32) / 255 for each in contents[part]]
        found += [np.stack(pixels).transpose(0, 3, 1, 2), np.array(labels[part])]
    return digest(classes, *[np.ascontiguousarray(each, dtype=np.float32) for each in found])


def images_in(folder: Path) -> list[Path]:
    """Files of the kinds of images that a folder of images may hold."""
    return sorted(file for file in folder.glob("*/*") if file.suffix in IMAGE_SUFFIXES)
