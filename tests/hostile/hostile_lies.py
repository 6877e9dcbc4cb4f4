"""Files that are whole in themselves and lie: their checksums fit."""

from __future__ import annotations

import base64
import io
import json
import random
import zlib
from typing import Any

import hostile_mutations as change
import torch
from hostile_mutations import Mutation
from pyarrow import parquet
from torch import Tensor

from autocompress.targets.packed import file as packed


def pt_lie(content: bytes, draw: random.Random, _: list[bytes]) -> Mutation:
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


def resealed(content: bytes, draw: random.Random, others: list[bytes]) -> Mutation:
    """Another file of the same kind, whole; a checksum that fits a lie."""
    if others and draw.random() < 0.5:
        return Mutation("another file in its place", draw.choice(others))
    lie = change.safetensors_lie(content, draw, others)
    return lie


def packed_lie(content: bytes, draw: random.Random, _: list[bytes]) -> Mutation:
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


def image_lie(content: bytes, draw: random.Random, _: list[bytes]) -> Mutation:
    return Mutation("hostile image", _image(draw))


def table_lie(content: bytes, draw: random.Random, _: list[bytes]) -> Mutation:
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
