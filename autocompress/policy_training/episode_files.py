"""Episodes on disk: one NumPy archive for each network and task, without pickles."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autocompress.errors import InputError
from autocompress.files import write_atomically
from autocompress.policies.files import first_line
from autocompress.policy_training.episodes import Budgeted

_DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
_ARRAYS = ("made_for", "resource", "limits", "observations", "counts", "parts", "losses")


def save_episodes(file: Path, made_for: str, episodes: Sequence[Budgeted]) -> None:
    """Write all episodes of a network and task, at once or not at all.

    Args:
        file: `.npz`.
        made_for: says what they depend on.
        episodes: of one kind of budget; may be none.
    """
    content = io.BytesIO()
    layers, features = episodes[0].observations.shape if episodes else (0, 0)
    np.savez_compressed(
        content,
        made_for=np.array(made_for),
        resource=np.array(next(iter(episodes[0].limits)) if episodes else ""),
        limits=np.array([amount for under in episodes for amount in under.limits.values()], dtype=np.int64),
        observations=np.array([under.observations for under in episodes]).reshape(len(episodes), layers, features),
        counts=np.array([len(under.losses) for under in episodes], dtype=np.int64),
        parts=np.concatenate([under.parts for under in episodes] or [np.zeros((0, layers, 2))]),
        losses=np.concatenate([under.losses for under in episodes] or [np.zeros(0)]),
    )
    write_atomically(file, content.getvalue())


def load_episodes(file: Path, made_for: str) -> list[Budgeted] | None:
    """What was saved; None where there is no file, or it depends on something else.

    Raises:
        InputError: the file is damaged.
    """
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in _ARRAYS}
    except _DAMAGED as error:
        raise InputError(f"{file} must hold episodes, got a damaged file: {first_line(error)}; remove it.") from error
    if str(arrays["made_for"]) != made_for:
        return None
    resource, ends = str(arrays["resource"]), np.cumsum(arrays["counts"])[:-1]
    parts, losses = np.split(arrays["parts"], ends), np.split(arrays["losses"], ends)
    rows = zip(arrays["limits"].tolist(), arrays["observations"], parts, losses, strict=False)
    return [Budgeted({resource: limit}, seen, each, loss) for limit, seen, each, loss in rows]
