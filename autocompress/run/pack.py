"""A run or a policy as one file that is safe to open: a ZIP archive of plain files, each with its checksum.

Nothing in it is a pickle or Python code, no name leads out of the folder that it is unpacked into, and no more is
written than its manifest says.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from autocompress.errors import InputError
from autocompress.files import regular_file, replacing, strict_json, writing

RUN, POLICY = "run", "policy"
MANIFEST = "manifest.json"
PACK_VERSION = 1
_SUFFIXES = (".yaml", ".json", ".jsonl", ".md", ".html", ".onnx", ".safetensors", ".pt2", ".xml", ".bin", ".gguf")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MOST_FILES, _MOST_MANIFEST = 64, 100_000  # files; bytes
_CHUNK = 1 << 20
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DATE = (1980, 1, 1, 0, 0, 0)  # of every file in it, so that equal folders give equal files


def pack(folder: Path, names: Iterable[str], kind: str, out: Path) -> None:
    """Write files of a folder into one file.

    Args:
        folder: folder of the files.
        names: names of the files; those that the folder lacks are left out.
        kind: what it is, `run` or `policy`; `unpack` asks for the same.
        out: the file, which is replaced where it exists.

    Raises:
        InputError: a file has a name or a form that no pack may hold.
        WriteError: the file can't be written.
    """
    present = [name for name in dict.fromkeys(names) if regular_file(folder / name)]
    for name in present:
        _check_name(name, folder)
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": _digest(folder / name)} for name in present}
    manifest = {"autocompress_pack": PACK_VERSION, "kind": kind, "files": files}
    with replacing(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_entry(MANIFEST), json.dumps(manifest, indent=1))
        for name in present:
            with (folder / name).open("rb") as source, archive.open(_entry(name), "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, _CHUNK)


def unpack(file: Path, kind: str, out: Path) -> list[str]:
    """Write the files of a pack into a new folder, after all of them were checked.

    Args:
        file: the pack.
        kind: what it must be, `run` or `policy`.
        out: the folder; it must not exist, or be empty.

    Returns:
        Names of the files.

    Raises:
        InputError: the file is no pack of that kind, is damaged, or holds what no pack may hold; or the folder has
            files already. Nothing is written then.
        WriteError: the folder can't be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"`out` must be a new or empty folder, got {out}, which holds something.")
    with _opened(file) as archive:
        files = _manifest(archive, file, kind)
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
                for name, about in files.items():
                    _extract(archive, name, about, Path(folder) / name, file)
                out.mkdir(exist_ok=True)
                for name in files:
                    (Path(folder) / name).rename(out / name)
    return list(files)


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    """The archive. Raises InputError where there is none, or a part of it can't be read."""
    if not regular_file(file):
        raise InputError(f"`file` must be a file that pack has written, got {file}, which does not exist.")
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except InputError:
        raise
    except _DAMAGED as error:
        raise InputError(
            f"`file` must be a file that pack has written, got {file}, which is damaged: {error}."
        ) from None


def _manifest(archive: zipfile.ZipFile, file: Path, kind: str) -> Mapping[str, Mapping[str, Any]]:
    """Bytes and checksum of every file in the archive by name, checked against what the archive lists."""
    listed = [entry.filename for entry in archive.infolist()]
    if MANIFEST not in listed or len(listed) > _MOST_FILES + 1 or len(set(listed)) != len(listed):
        raise InputError(f"`file` must be a file that pack has written, got {file}, which has no such list of files.")
    if any(entry.compress_type not in _METHODS or entry.header_offset < 0 for entry in archive.infolist()):
        raise InputError(f"`file` must be a file that pack has written, got {file}, which is compressed otherwise.")
    with archive.open(MANIFEST) as source:
        content = source.read(_MOST_MANIFEST + 1)
    found = strict_json(content) if len(content) <= _MOST_MANIFEST else None
    if not isinstance(found, dict) or found.get("autocompress_pack") != PACK_VERSION:
        raise InputError(f"`file` must be a pack of version {PACK_VERSION}, got {file}, which is none.")
    if found.get("kind") != kind:
        raise InputError(f"`file` must hold a {kind}, got {file}, which holds a {found.get('kind')!r}.")
    files = found.get("files")
    if not isinstance(files, dict) or set(files) != set(listed) - {MANIFEST}:
        raise InputError(f"`file` must hold what its manifest lists, got {file}, which does not.")
    for name, about in files.items():
        _check_name(name, file)
        if not isinstance(about, dict) or type(about.get("bytes")) is not int or about["bytes"] < 0:
            raise InputError(f"`file` must say how large {name} is, got {file}, which does not.")
    return files


def _extract(archive: zipfile.ZipFile, name: str, about: Mapping[str, Any], path: Path, file: Path) -> None:
    """Write one file, at most as many bytes as the manifest says. Raises InputError where it is another's."""
    digest, left = hashlib.sha256(), int(about["bytes"])
    with archive.open(name) as source, path.open("xb") as target:
        while part := source.read(min(_CHUNK, left + 1)):
            left -= len(part)
            if left < 0:
                break
            digest.update(part)
            target.write(part)
    if left != 0 or digest.hexdigest() != about.get("sha256"):
        raise InputError(f"`file` must hold {name} as it was packed, got {file}, where it is damaged.")


def _check_name(name: str, where: Path) -> None:
    """Raise InputError for a name that is no plain one, or a form that may hold code."""
    if not _NAME.fullmatch(name) or not name.endswith(_SUFFIXES):
        raise InputError(f"a pack holds plain files of {', '.join(_SUFFIXES)} only, got {name!r} in {where}.")


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    return entry


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return _sum(file)


def _sum(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while part := file.read(_CHUNK):
        digest.update(part)
    return digest.hexdigest()
