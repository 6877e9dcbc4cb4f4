"""Files of the third step of training a policy: a NumPy archive of episodes for each network and task."""

from __future__ import annotations

import io
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autocompress.errors import InputError
from autocompress.files import write_atomically
from autocompress.policies.files import first_line
from autocompress.policy_training.episodes import EpisodesUnderBudget

_DAMAGED = (
    OSError, ValueError, LookupError, EOFError, RuntimeError, SyntaxError, TypeError, MemoryError, OverflowError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_ARRAYS = ("made_for", "resource", "limits", "observations", "counts", "parts", "losses")


def save_episodes(file: Path, made_for: str, episodes: Sequence[EpisodesUnderBudget]) -> None:
    """Write all episodes of one network in one task; the file is written whole or not at all.

    Args:
        file: path of the archive, with the ending `.npz`.
        made_for: digest of everything that the episodes depend on.
        episodes: episodes under each budget; all budgets limit the same resource; may be empty.
    """
    content = io.BytesIO()
    layers, features = episodes[0].observations.shape if episodes else (0, 0)
    observations = np.array([one_budget.observations for one_budget in episodes])
    np.savez_compressed(
        content,
        made_for=np.array(made_for),
        resource=np.array(next(iter(episodes[0].limits)) if episodes else ""),
        limits=np.array([amount for one_budget in episodes for amount in one_budget.limits.values()], dtype=np.int64),
        observations=observations.reshape(len(episodes), layers, features),
        counts=np.array([len(one_budget.losses) for one_budget in episodes], dtype=np.int64),
        parts=np.concatenate([one_budget.parts for one_budget in episodes] or [np.zeros((0, layers, 2))]),
        losses=np.concatenate([one_budget.losses for one_budget in episodes] or [np.zeros(0)]),
    )
    write_atomically(file, content.getvalue())


def load_episodes(file: Path, made_for: str) -> list[EpisodesUnderBudget] | None:
    """Read the episodes that `save_episodes` wrote.

    Args:
        file: path of the archive.
        made_for: digest of everything that the episodes must depend on.

    Returns:
        The episodes under each budget; None where there is no file, or its episodes depend on something else.

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
    if not _are_episodes(arrays):
        raise InputError(f"{file} must hold episodes, got arrays that do not fit each other; remove it.")
    resource, ends = str(arrays["resource"]), np.cumsum(arrays["counts"])[:-1]
    parts, losses = np.split(arrays["parts"], ends), np.split(arrays["losses"], ends)
    rows = zip(arrays["limits"].tolist(), arrays["observations"], parts, losses, strict=False)
    return [EpisodesUnderBudget({resource: limit}, seen, each, loss) for limit, seen, each, loss in rows]


def _are_episodes(arrays: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether the arrays have the types and shapes of those that `save_episodes` writes, and finite numbers."""
    counts, observations, parts, losses = (arrays[name] for name in ("counts", "observations", "parts", "losses"))
    numbers = (counts, arrays["limits"], observations, parts, losses)
    if any(array.dtype.kind != kind for array, kind in zip(numbers, "iifff", strict=True)) or observations.ndim != 3:
        return False
    budgets, layers = observations.shape[:2]
    wanted = [(budgets,), (budgets,), observations.shape, (len(losses.ravel()), layers, 2), (int(counts.sum()),)]
    shapes_fit = [array.shape for array in numbers] == wanted and (counts >= 0).all()
    return bool(shapes_fit) and all(bool(np.isfinite(array).all()) for array in numbers)
