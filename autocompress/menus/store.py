"""The menu store: variants on disk, one safetensors file for each layer and set of kept columns.

A folder holds the menus of one network: its name is a hash of weights, calibration data and settings. Files
are written under a temporary name and renamed, so that two runs that share the cache never see a half-written
file; both may build the same file, and both write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from autocompress.menus.criteria import CRITERIA
from autocompress.menus.quantizers import QUANTIZERS
from autocompress.menus.settings import MenuSettings
from autocompress.menus.variants import Variant
from autocompress.network.structure import Network

_FORMAT = 6  # to be raised whenever the same settings give other menus


def default_cache() -> Path:
    """Folder of the cache: `$AUTOCOMPRESS_CACHE`, or `autocompress` below the user's own cache folder."""
    if "AUTOCOMPRESS_CACHE" in os.environ:
        return Path(os.environ["AUTOCOMPRESS_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autocompress"


def content_key(model: nn.Module, network: Network, data_fingerprint: str, settings: MenuSettings) -> str:
    """Name of the folder of one network's menus, which are the same wherever it is the same.

    Criteria and quantizers from outside count with their source files.

    Args:
        model: network whose parameters and buffers count.
        network: its trace, of which the architecture and the operators with their constants count.
        data_fingerprint: fingerprint of the calibration data.
        settings: settings of the menus.

    Returns:
        24 hex digits of SHA-256.
    """
    content = [_FORMAT, network.fingerprint, network.computation, data_fingerprint, asdict(settings)]
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
        self.folder.mkdir(parents=True, exist_ok=True)

    def tensors(self, name: str, build: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a file, memory-mapped.

        Args:
            name: name of the file, without its suffix.
            build: function that makes the tensors; called where the file is missing or damaged, which is then
                written.
        """
        path = self.folder / f"{name}.safetensors"
        found = _read(path)
        if found is None:
            _write(path, build())
            found = _read(path)
            assert found is not None, f"{path} was just written"
        return found

    def variants(self, name: str, bits: Sequence[int], build: Callable[[], list[Variant]]) -> list[Variant]:
        """The variants of a file.

        Args:
            name: name of the file, without its suffix.
            bits: bit-widths of the variants, in the order of the file.
            build: function that makes the variants; called where the file is missing or damaged, which is
                then written.

        Returns:
            One variant for each of `bits`.
        """
        return _unpack(self.tensors(name, lambda: _pack(build())), len(bits))


def _read(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file; None where it is missing or cut short, as by a run that filled the disk."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError:
        return None


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file under a temporary name, and rename it: nobody reads it before it is whole."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _pack(variants: Sequence[Variant]) -> dict[str, Tensor]:
    """Variants of the same columns as named tensors."""
    tensors = {"columns": variants[0].columns}
    for index, variant in enumerate(variants):
        tensors |= {f"{index}.values": _packed(variant.values), f"{index}.bias": variant.bias}
        tensors[f"{index}.error"] = torch.tensor(variant.error, dtype=torch.float64)
        if variant.scale is not None:
            tensors[f"{index}.scale"] = variant.scale
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
        )
        for index in range(count)
    ]


def _unpacked(values: Tensor) -> Tensor:
    return values.float() if values.dtype == torch.float16 else values
