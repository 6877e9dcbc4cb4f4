"""The menu store: variants on disk, one safetensors file for each layer and set of kept columns.

A folder holds the menus of one network: its name is a hash of weights, calibration data and settings. Files
are written under a temporary name and renamed, so that two runs that share the cache never see a half-written
file; both may build the same file, and both write the same bytes. Every file carries a checksum, of its name too.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from autocompress.checked_tensors import load_checked, save_checked
from autocompress.files import sweep, writing
from autocompress.menus.criteria import CRITERIA
from autocompress.menus.quantizers import QUANTIZERS
from autocompress.menus.settings import MenuSettings
from autocompress.menus.variants import FirstFactor, Variant
from autocompress.network.structure import Network

_FORMAT = 9  # to be raised whenever the same settings give other menus


def content_key(model: nn.Module, network: Network, data_fingerprint: str, settings: MenuSettings) -> str:
    """Name of the folder of one network's menus, which are the same wherever it is the same.

    Machines and versions of PyTorch do not count: `autocompress.cache` says why. Criteria and quantizers from outside
    count with their source files.

    Args:
        model: network whose parameters and buffers count.
        network: its trace, of which the architecture and the operators with their constants count.
        data_fingerprint: fingerprint of the calibration data.
        settings: settings of the menus.

    Returns:
        24 hex digits of SHA-256.
    """
    named = asdict(settings)
    for later in ("ranks", "steps_from"):  # menus without them are those of versions that knew of none
        if not named[later]:
            del named[later]
    content = [_FORMAT, network.fingerprint, network.computation, data_fingerprint, named]
    sources = [CRITERIA.source_of(settings.criterion), QUANTIZERS.source_of(settings.quantizer)]
    digest = hashlib.sha256(json.dumps(content + sources if any(sources) else content).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]


class Store:
    """A folder of tensors by name, and of variants.

    Args:
        folder: folder of the files, which is created where it is missing; None takes a temporary folder that
            is removed together with the store.
    """

    def __init__(self, folder: Path | None) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="autocompress-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary is not None else Path(folder or "")
        self.written, self.damaged = 0, list[Path]()
        self._checked: set[str] = set()  # files whose checksum this process has seen to match
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)

    def tensors(self, name: str, build: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a file, memory-mapped.

        Args:
            name: name of the file, without its suffix.
            build: function that makes the tensors; called where the file is missing or damaged, which is then
                written.
        """
        path, of = self.folder / f"{name}.safetensors", f"{self.folder.name}/{name}"
        found = load_checked(path, of, check=name not in self._checked)
        if found is None:
            if path.exists():
                self.damaged.append(path)
            tensors = build()
            with writing(path):
                self.folder.mkdir(parents=True, exist_ok=True)  # a user may have removed it
            save_checked(path, tensors, of)
            self.written += 1
            found = load_checked(path, of, check=False)
            assert found is not None, f"{path} was just written"
        self._checked.add(name)
        return found

    def variants(self, name: str, formats: Sequence[object], build: Callable[[], list[Variant]]) -> list[Variant]:
        """The variants of a file.

        Args:
            name: name of the file, without its suffix.
            formats: formats of the variants, in the order of the file.
            build: function that makes the variants; called where the file is missing or damaged, which is
                then written.

        Returns:
            One variant for each of `formats`.
        """
        return _unpack(self.tensors(name, lambda: _pack(build())), len(formats))


def _pack(variants: Sequence[Variant]) -> dict[str, Tensor]:
    """Variants of the same columns as named tensors."""
    tensors = {"columns": variants[0].columns}
    for index, variant in enumerate(variants):
        tensors |= {f"{index}.values": _packed(variant.values), f"{index}.bias": variant.bias}
        tensors[f"{index}.error"] = torch.tensor(variant.error, dtype=torch.float64)
        if variant.scale is not None:
            tensors[f"{index}.scale"] = variant.scale
        if variant.first is not None:
            tensors[f"{index}.first.values"] = _packed(variant.first.values)
            if variant.first.scale is not None:
                tensors[f"{index}.first.scale"] = variant.first.scale
    return tensors


def _packed(values: Tensor) -> Tensor:
    """Floats as float16 where that holds them exactly, as it does those of 16-bit labels."""
    half = values.half() if values.is_floating_point() else values
    return half if torch.equal(half.to(values.dtype), values) else values


def _unpack(tensors: dict[str, Tensor], count: int) -> list[Variant]:
    """The `count` variants that `_pack` made the tensors from."""
    return [
        Variant(
            tensors["columns"],
            _unpacked(tensors[f"{index}.values"]),
            tensors.get(f"{index}.scale"),
            tensors[f"{index}.bias"],
            float(tensors[f"{index}.error"]),
            _first_factor(tensors, index),
        )
        for index in range(count)
    ]


def _first_factor(tensors: dict[str, Tensor], index: int) -> FirstFactor | None:
    """The first factor of a variant of low rank; None: it has none."""
    values = tensors.get(f"{index}.first.values")
    return None if values is None else FirstFactor(_unpacked(values), tensors.get(f"{index}.first.scale"))


def _unpacked(values: Tensor) -> Tensor:
    return values.float() if values.dtype == torch.float16 else values
