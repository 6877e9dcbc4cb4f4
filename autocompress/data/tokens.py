"""Texts as tokens, by the tokenizer of a folder as Hugging Face keeps it (`tokenizer.json`)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autocompress.data.pixels import Normalization
from autocompress.data.sources import TensorSource
from autocompress.errors import InputError
from autocompress.files import check_regular
from autocompress.samples import Samples

MAX_TOKENS = 128
_PADS = ("[PAD]", "<pad>", "<|endoftext|>")  # names of padding tokens, where the tokenizer's own file says nothing


def token_sources(
    texts: Mapping[str, Sequence[str]], labels: Mapping[str, Tensor | None], tokenizer: Path | None, max_tokens: int
) -> dict[str, TensorSource]:
    """The source of every split: token numbers `input_ids` and `attention_mask`, all of one length.

    Args:
        texts: texts of every split, at least one in each.
        labels: (N,) int64 labels of every split, or None.
        tokenizer: folder of the tokenizer, or its `tokenizer.json`.
        max_tokens: most tokens of a text, at least 1; what lies behind is cut off.

    Raises:
        InputError: no tokenizer is given, it can't be read, or has no padding token.
    """
    encode = _tokenizer(tokenizer, max_tokens)
    encoded = encode(list(itertools.chain.from_iterable(texts.values())))
    ids = torch.tensor([each.ids for each in encoded])
    mask = torch.tensor([each.attention_mask for each in encoded])
    found, start = {}, 0
    for part, each in texts.items():
        rows = slice(start, start := start + len(each))
        samples = Samples((ids[rows], mask[rows]), ("input_ids", "attention_mask"))
        found[part] = TensorSource(samples, labels[part], Normalization())
    return found


def _tokenizer(place: Path | None, max_tokens: int) -> Callable[[list[str]], list[Any]]:
    """Function from texts to their encodings. Raises InputError where there is no tokenizer that can be read."""
    if place is None:
        raise InputError("`tokenizer` must be given for texts, got none; pass --tokenizer FOLDER.")
    try:
        from tokenizers import Tokenizer  # type: ignore[import-not-found, unused-ignore]
    except ModuleNotFoundError as error:
        raise InputError(
            "`data` of texts needs the package tokenizers, got none; run pip install 'autocompress[text]'."
        ) from error
    path = place / "tokenizer.json" if place.is_dir() else place
    if not path.is_file():
        raise InputError(f"`tokenizer` must be a folder with tokenizer.json, got {place}.")
    check_regular("`tokenizer`", path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"`tokenizer` must be a file of the library tokenizers, got {path}: {error}.") from error
    pad = next(
        (name for name in (_named_pad(path.parent), *_PADS) if name and tokenizer.token_to_id(name) is not None), None
    )
    if pad is None:
        raise InputError(f"`tokenizer` must have a padding token, such as {_PADS[0]}, got none in {path}.")
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    encode: Callable[[list[str]], list[Any]] = tokenizer.encode_batch
    return encode


def _named_pad(folder: Path) -> str | None:
    """The padding token that a tokenizer's configuration names."""
    try:
        content = json.loads((folder / "tokenizer_config.json").read_text())
    except (OSError, ValueError, RecursionError):
        return None
    pad = content.get("pad_token") if isinstance(content, dict) else None
    named = pad.get("content") if isinstance(pad, dict) else pad
    return named if isinstance(named, str) else None
