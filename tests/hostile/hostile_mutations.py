"""What happens to a file before the package reads it: flips, cuts, lies and bombs, drawn from a seeded generator."""

from __future__ import annotations

import copy
import io
import json
import math
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import yaml

MARK = "/tmp/hostile-code-ran"  # what the hostile pickles touch; nobody may


class Mutation(NamedTuple):
    """A changed file.

    Attributes:
        name: what was done, for reports.
        content: the file's new content.
        sealed: whether it is whole in itself (checksums fit), so that another result is what the file says.
    """

    name: str
    content: bytes
    sealed: bool = False


Mutator = Callable[[bytes, random.Random, list[bytes]], Mutation]
"""Gives the mutation of a content; the last argument holds the contents of other files."""

_NUMBERS = [0, -1, 1, 3, 7.5, 1e308, -1e308, 2**31, 2**63, 2**64, -(2**63), 10**30, math.nan, math.inf, -math.inf]
_TEXTS = ["", "a", "../../etc/passwd", "\x00", "ü" * 50, "9" * 5000, "size=1e400", "1e999", "subprocess:call", "💥"]
_OTHERS = [None, True, False, [], {}, [[]], [1, "a", None], {"a": {"b": []}}, [[1, 2], [3]]]


def value(draw: random.Random) -> Any:
    """A value that does not belong where it is put."""
    return copy.deepcopy(draw.choice([*_NUMBERS, *_TEXTS, *_OTHERS]))


def flipped(content: bytes, draw: random.Random, _: list[bytes]) -> Mutation:
    changed, times = bytearray(content or b"\0"), draw.choice([1, 1, 1, 2, 8])
    for _ in range(times):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return Mutation(f"{times} bits flipped", bytes(changed))


def cut(content: bytes, draw: random.Random, _: list[bytes]) -> Mutation:
    end = draw.choice([0, 1, 8, len(content) - 1, draw.randrange(len(content) + 1), draw.randrange(len(content) + 1)])
    return Mutation(f"cut at byte {end}", content[:end])


def overwritten(content: bytes, draw: random.Random, _: list[bytes]) -> Mutation:
    """Zeros, ones, noise or the largest numbers over a stretch of the file, often at its beginning."""
    size = draw.choice([1, 2, 4, 8, 64])
    start = draw.choice([0, draw.randrange(min(200, len(content)) or 1), draw.randrange(len(content) or 1)])
    noise = bytes(draw.randrange(256) for _ in range(size))
    largest = [b"\xff" * size, b"\0" * size, (b"\xff" * (size - 1)) + b"\x7f", b"\x80" + b"\0" * (size - 1)]
    put = draw.choice([*largest, noise])
    return Mutation(f"{size} bytes over byte {start}", content[:start] + put + content[start + size :])


def rearranged(content: bytes, draw: random.Random, others: list[bytes]) -> Mutation:
    """A stretch doubled, removed, moved, or from another file; or all of another file."""
    one, two = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    other = draw.choice(others) if others else b""
    ways = {
        "doubled": content[:two] + content[one:],
        "removed": content[:one] + content[two:],
        "moved to the end": content[:one] + content[two:] + content[one:two],
        "of another file": content[:one] + other[one:two] + content[two:],
        "followed by another file": content + other,
        "replaced by another file": other,
        "followed by zeros": content + bytes(draw.choice([1, 100, 5000])),
    }
    name = draw.choice(list(ways))
    return Mutation(name, ways[name])


BYTES: list[Mutator] = [flipped, flipped, cut, overwritten, rearranged]


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every value in nested lists and mappings, the outermost first."""
    found = [path]
    if isinstance(content, (dict, list)):
        for key in content if isinstance(content, dict) else range(len(content)):
            found += places(content[key], (*path, key))
    return found


def lied(content: Any, draw: random.Random) -> tuple[str, Any]:
    """A copy of nested data with one value replaced, removed, added or doubled."""
    content = copy.deepcopy(content)
    path = draw.choice(places(content))
    if not path:
        return "all of it replaced", value(draw)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    key, where = path[-1], ".".join(map(str, path))[:60]
    way = draw.choice(["replaced", "replaced", "replaced", "removed", "added", "scaled"])
    if way == "replaced":
        parent[key] = put = value(draw)
        return f"{where} = {str(put)[:20]!r}", content
    if way == "removed":
        del parent[key]
    elif way == "scaled":
        parent[key] = parent[key] * -1000 if type(parent[key]) in (int, float) else [parent[key]]
    elif isinstance(parent, dict):
        parent[draw.choice(["", "new", "__class__", 7, None])] = value(draw)
    else:
        parent.append(copy.deepcopy(draw.choice([parent[key], value(draw)])))
    return f"{where} {way}", content


def nested(draw: random.Random) -> bytes:
    """Text of lists or mappings in one another, deeper than recursion reaches."""
    depth = draw.choice([90, 200, 2000, 100_000])
    opened, closed = draw.choice([("[", "]"), ('{"a":', "}")])
    return (opened * depth + "1" + closed * draw.choice([depth, 0])).encode()


_LAUGHS = "a: &a0 [1]\n" + "".join(f"b{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(12))
_YAML_BOMBS = [
    _LAUGHS.encode(),
    b"labels: &x {y: *x}\nversion: 1\n",
    b"a: !!python/object/apply:os.system ['touch " + MARK.encode() + b"']\n",
    b"? [a, b]\n: 1\n",
    b"a: !!timestamp 9999-99-99\n",
    b"a: !!binary ====\n",
    b"a: !!int 0x\n",
    b"a: !!set {b}\n",
    b"- 1\n--- 2\n",
    b"\xff\xfe\x00",
    b"a: " + b"9" * 10_000 + b"\n",
    b"a: 2024-13-45\n",
    b"{" * 50,
    b"a: 'b\n",
    b"%YAML 9.9\n---\na: 1\n",
]


def yaml_lie(content: bytes, draw: random.Random, _: list[bytes]) -> Mutation:
    name, changed = lied(yaml.safe_load(content), draw)
    return Mutation(name, yaml.safe_dump(changed, sort_keys=False).encode())


def yaml_bomb(content: bytes, draw: random.Random, _: list[bytes]) -> Mutation:
    bomb = draw.choice([*_YAML_BOMBS, nested(draw)])
    return Mutation(f"bomb {bomb[:16]!r}", draw.choice([bomb, content + bomb]))


def doubled_line(content: bytes, draw: random.Random, _: list[bytes]) -> Mutation:
    """A line twice, the second time with another end: a key of YAML that is there twice."""
    lines = content.splitlines(keepends=True)
    index = draw.randrange(len(lines))
    again = lines[index].replace(b"8", b"4").replace(b"0", b"1")
    return Mutation(f"line {index} twice", b"".join([*lines[: index + 1], again, *lines[index + 1 :]]))


YAML: list[Mutator] = [yaml_lie, yaml_lie, yaml_lie, yaml_bomb, doubled_line, *BYTES]


def json_lie(content: bytes, draw: random.Random, _: list[bytes]) -> Mutation:
    name, changed = lied(json.loads(content), draw)
    return Mutation(name, json.dumps(changed, indent=1).encode())


def json_bomb(content: bytes, draw: random.Random, _: list[bytes]) -> Mutation:
    bomb = draw.choice([nested(draw), nested(draw), b"9" * 10_000, b'{"a": 1, "a": 2}', b"\xff\xfe", b"NaN", b"[]"])
    place = content.rfind(b":") + 1
    return Mutation(f"bomb {bomb[:16]!r}", draw.choice([bomb, content[:place] + bomb + b"}"]))


JSON: list[Mutator] = [json_lie, json_lie, json_lie, json_bomb, doubled_line, *BYTES]


def line_lie(seal: Callable[[dict[str, Any]], str]) -> Mutator:
    """Mutations of a file of JSON lines: a value that lies under a checksum that fits; lines twice, gone or swapped."""

    def mutate(content: bytes, draw: random.Random, _: list[bytes]) -> Mutation:
        lines = content.splitlines(keepends=True)
        index = draw.randrange(len(lines))
        way = draw.choice(["lie", "lie", "lie", "twice", "gone", "swapped"])
        if way == "lie":
            values = json.loads(lines[index])
            values.pop("crc32", None)
            name, changed = lied(values, draw)
            try:
                lines[index] = seal(changed).encode()
            except (TypeError, ValueError):  # values that only an unsealed line can hold
                lines[index] = json.dumps(changed).encode() + b"\n"
            return Mutation(f"line {index}: {name}", b"".join(lines), sealed=True)
        if way == "twice":
            lines.insert(index, lines[index])
        elif way == "gone":
            del lines[index]
        else:
            lines[index], lines[-1] = lines[-1], lines[index]
        return Mutation(f"line {index} {way}", b"".join(lines))

    return mutate


def split_safetensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header, parsed, and the data of a safetensors file."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:end]), content[end:]


def joined_safetensors(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def safetensors_lie(content: bytes, draw: random.Random, _: list[bytes]) -> Mutation:
    """A header that lies: other types, shapes, offsets and names; also bombs in it, and huge lengths."""
    header, data = split_safetensors(content)
    way = draw.choice(["lie", "lie", "type", "shape", "name", "length", "nested", "twice", "nan"])
    names = [name for name in header if name != "__metadata__"]
    name = draw.choice(names)
    if way == "lie":
        what, changed = lied(header, draw)
        return Mutation(f"header: {what}", joined_safetensors(changed, data))
    if way == "type":
        header[name]["dtype"] = draw.choice(["F64", "F16", "BF16", "I32", "I8", "BOOL", "F8_E4M3", "U64", "C64", "X"])
    elif way == "shape":
        header[name]["shape"] = draw.choice([[2**40, 2**40], [-1], [0], [], header[name]["shape"][::-1], [2**62, 4]])
    elif way == "name":
        header[draw.choice(["new", "", "module." + name, name[:-1]])] = header.pop(name)
    elif way == "length":
        return Mutation("length of the header", struct.pack("<Q", draw.choice([2**63, 2**40, 10**8, 0])) + content[8:])
    elif way == "nested":
        return Mutation("nested header", joined_safetensors(nested(draw), data))
    elif way == "twice":
        text = json.dumps(header)[:-1] + f', "{name}": {json.dumps(header[names[0]])}}}'
        return Mutation(f"{name} twice", joined_safetensors(text.encode(), data))
    else:
        start, end = header[name]["data_offsets"]
        bad = struct.pack("<f", draw.choice([math.nan, math.inf, -math.inf, 1e38]))
        data = data[:start] + (bad + data[start + 4 : end])[: end - start] + data[end:]
    return Mutation(f"{name}: {way}", joined_safetensors(header, data))


SAFETENSORS: list[Mutator] = [safetensors_lie, safetensors_lie, *BYTES]


def _stored(arrays: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in arrays.items():
            archive.writestr(f"{name}.npy", content)
    return out.getvalue()


def _npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(array), allow_pickle=True)
    return out.getvalue()


def _header(shape: Any, kind: str, length: int = 64) -> bytes:
    """A file of an array whose header promises what it likes."""
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(length)


class Touch:
    """Unpickling it touches `MARK`."""

    def __reduce__(self) -> Any:
        return (open, (MARK, "w"))


def npz_lie(content: bytes, draw: random.Random, _: list[bytes]) -> Mutation:
    """An archive with an array of another shape, type or values, or whose header or size lies."""
    arrays = dict(np.load(io.BytesIO(content)))
    name, files = draw.choice(list(arrays)), {key: _npy(array) for key, array in arrays.items()}
    array = arrays[name]
    lies: dict[str, Any] = {
        "transposed": array.T,
        "of another length": array[: len(array) // 2] if array.ndim else array,
        "empty": np.zeros(0),
        "a number": np.array(3),
        "text": np.array(["a"] * 3),
        "objects": np.array([Touch()], dtype=object),
        "complex": array.astype(complex) if array.dtype.kind in "fiu" else array,
        "NaN": np.full(array.shape, np.nan),
        "huge": np.full(array.shape, 2_000_000_000),
        "largest": np.full(array.shape, 2**63 - 1),
        "negative": np.full(array.shape, -1),
        "of more dimensions": np.zeros((1, 1, 1, 1, 1, 2)),
    }
    way = draw.choice([*lies, "missing", "header", "header", "bomb"])
    if way == "missing":
        del files[name]
    elif way == "header":
        shape = draw.choice(["(2**40,)", "(10**18, 10**18)", "(-1,)", "(1.5,)", "[]", "None", "('a',)", "(1,) * 9"])
        files[name] = _header(shape, draw.choice(["'<f4'", "'<f8'", "'|O'", "'<U9999999'", "[('a', '<f4')]", "'x'"]))
    elif way == "bomb":
        files[name] = _header("(300000000,)", "'<f4'", 1_200_000_000 if draw.random() < 0.2 else 64)
    else:
        files[name] = _npy(lies[way])
    return Mutation(f"{name} {way}", _stored(files), sealed=True)


NPZ: list[Mutator] = [npz_lie, npz_lie, npz_lie, *BYTES]
