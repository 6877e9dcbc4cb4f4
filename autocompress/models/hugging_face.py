"""Networks from a local folder in the form of Hugging Face: `hf:FOLDER` with config.json and model.safetensors."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from torch import nn

from autocompress.errors import InputError, reason_of

_HEADS = ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification")
# What transformers raises on folders that lack something, or where arguments don't fit.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError)


def load_hugging_face(place: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network of a folder, with its own weights. Nothing is downloaded, and no code of the folder is run.

    Attention is computed in plain operators, as exporters and the counting of operators want it.

    Args:
        place: the folder.
        arguments: keyword arguments of `from_pretrained`. `num_classes`, which other networks are built with, is left
            out: a trained network has the outputs that it has.

    Raises:
        InputError: the folder lacks a file or some weights, transformers is not installed, or the network is none for
            classification.
    """
    folder = Path(place)
    name = _architecture(folder)
    try:
        transformers = importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise InputError(
            "`model` hf:FOLDER needs the package transformers, got none; run pip install 'autocompress[text]'."
        ) from error
    kind = getattr(transformers, name, None)
    if kind is None:
        raise InputError(f"`model` hf:FOLDER must be of an architecture of transformers, got {name!r} in {folder}.")
    given = {"attn_implementation": "eager", **{key: value for key, value in arguments.items() if key != "num_classes"}}
    _check_arguments(given, folder)
    try:
        with _quiet(transformers):
            model, found = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **given,
            )
    except _UNREADABLE as error:
        reason = reason_of(error).rstrip("!")
        raise InputError(f"`model` hf:FOLDER must be a whole network of {name}, got {folder}: {reason}.") from error
    if missing := sorted(found["missing_keys"]):
        raise InputError(
            f"`model` hf:FOLDER must hold all weights of {name}, got {folder} without {missing[0]} and "
            f"{len(missing) - 1} others."
        )
    loaded: nn.Module = model.float()
    return loaded


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the progress bars and reports that transformers prints: what matters is raised."""
    log = transformers.utils.logging
    verbosity, shows_progress = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        log.set_verbosity(verbosity)
        if shows_progress:
            log.enable_progress_bar()


def _architecture(folder: Path) -> str:
    """Name of the class in config.json. Raises InputError where it is missing, or none for classification."""
    try:
        content = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"`model` hf:FOLDER must be a folder with config.json, got {folder}.") from error
    names = content.get("architectures") if isinstance(content, dict) else None
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    if not name.endswith(_HEADS):
        wanted = ", ".join(f"…{head}" for head in _HEADS)
        raise InputError(
            f"`model` hf:FOLDER must be a classifier ({wanted}), got {name or 'no architecture'} in {folder}."
        )
    if "auto_map" in content:
        raise InputError(f"`model` hf:FOLDER must be of a class of transformers, got code of its own in {folder}.")
    return name


def _check_arguments(arguments: Mapping[str, Any], folder: Path) -> None:
    refused = {"trust_remote_code", "local_files_only", "use_safetensors", "cache_dir", "token", "revision"}
    wrong = sorted(refused & arguments.keys())
    if wrong:
        raise InputError(
            f"`model_args` of hf:{folder} must not say where anything is loaded from, got {', '.join(wrong)}."
        )
