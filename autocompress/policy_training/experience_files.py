"""Experience on disk: one NumPy archive for each network and kind of menu, without pickles."""

from __future__ import annotations

import dataclasses
import io
import json
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autocompress.errors import InputError, reason_of
from autocompress.evaluation.effects import Effects
from autocompress.files import write_atomically
from autocompress.policy_training.experience import Experience
from autocompress_envs.problem import CostModel, Labeling, LayerNumbers, Problem
from autocompress_envs.problem.tables import Tables, checked_limits

_DAMAGED = (
    OSError, ValueError, LookupError, EOFError, RuntimeError, SyntaxError, TypeError, MemoryError, OverflowError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_LAYER_ARRAYS = ("sparsities", "kept", "weight_bits", "activation_bits", "errors", "ranks")
_COSTS = tuple(
    field.name for field in dataclasses.fields(CostModel) if field.name not in ("kernels", "energy")
)  # no lesson has a budget of time or energy
_LABELING = ("sparsity", "weight_bits", "activation_bits")

Arrays = Mapping[str, npt.NDArray[Any]]


def save_experience(file: Path, made_for: str, experience: Experience | None) -> None:
    """Write an experience; the file is written whole or not at all.

    Args:
        file: path of the archive, with the ending `.npz`.
        made_for: digest of everything that the experience depends on.
        experience: what was measured; None where no budget was of use.
    """
    arrays: dict[str, npt.NDArray[Any]] = {"made_for": np.array(made_for), "is_empty": np.array(experience is None)}
    if experience is not None:
        effects = experience.effects
        arrays |= _problem_arrays(experience.problem)
        arrays |= {
            "probabilities": experience.probabilities,
            "pruning": effects.pruning,
            "rounding": effects.rounding,
            "passes": np.array(effects.passes),
            "losses": experience.losses,
            "shifts": experience.shifts,
            "budgets": np.array(json.dumps([dict(limits) for limits in experience.budgets])),
            **{f"plans_{name}": getattr(experience.labelings, name) for name in _LABELING},
        }
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_atomically(file, content.getvalue())


def load_experience(file: Path, made_for: str) -> tuple[bool, Experience | None]:
    """Read what `save_experience` wrote.

    Args:
        file: path of the archive.
        made_for: digest of everything that the experience must depend on.

    Returns:
        Whether there is such a file, and the experience in it; None where no budget was of use.

    Raises:
        InputError: the file is damaged.
    """
    if not file.is_file():
        return False, None
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if str(arrays["made_for"]) != made_for:
            return False, None
        return True, None if arrays["is_empty"] else _experience(arrays)
    except _DAMAGED as error:
        raise InputError(f"{file} must hold experience, got a damaged file: {reason_of(error)}; remove it.") from error


def _experience(arrays: Arrays) -> Experience:
    problem = _problem(arrays)
    _check(problem, arrays)
    return Experience(
        problem,
        arrays["probabilities"],
        Effects(arrays["pruning"], arrays["rounding"], float(arrays["passes"])),
        Labeling(*(arrays[f"plans_{name}"] for name in _LABELING)),
        arrays["losses"],
        arrays["shifts"],
        tuple(json.loads(str(arrays["budgets"]))),
    )


def _check(problem: Problem, arrays: Arrays) -> None:
    """Raise ValueError unless the arrays have the types and shapes of those that are written, and finite numbers."""
    tables = Tables(problem)
    layers, sparsities, weight_bits, activations = tables.errors.shape
    (samples, classes), count = arrays["probabilities"].shape, len(arrays["losses"])
    known = arrays["pruning"].shape[2]
    wanted = {
        "probabilities": ("<f8", (samples, classes)),
        "pruning": ("<f4", (layers, sparsities, known, classes)),
        "rounding": ("<f4", (layers, weight_bits * activations, known, classes)),
        "passes": ("<f8", ()),
        "losses": ("<f8", (count,)),
        "shifts": ("<f2", (count, samples, classes)),
        **{f"plans_{name}": ("<i8", (count, layers)) for name in _LABELING},
    }
    for name, (kind, shape) in wanted.items():
        array = arrays[name]
        if array.dtype.str != kind or array.shape != shape or not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite {kind} {shape}, got {array.dtype.str} {array.shape}")
    if known > samples or not count:
        raise ValueError("effects must be on some of the samples, and at least one plan must be there")
    plans = np.stack([arrays[f"plans_{name}"] for name in _LABELING], axis=-1)  # (n, L, 3)
    if (plans < 0).any() or (plans >= tables.counts).any():
        raise ValueError("plans must hold positions on the menus")
    budgets = json.loads(str(arrays["budgets"]))
    if not budgets or not all(checked_limits(limits) for limits in budgets):
        raise ValueError("there must be a budget")


def _problem_arrays(problem: Problem) -> dict[str, npt.NDArray[Any]]:
    """A problem as arrays by name: one for each field of the cost model, and of every layer."""
    costs = {f"costs_{name}": np.asarray(getattr(problem.costs, name)) for name in _COSTS}
    layers: dict[str, npt.NDArray[Any]] = {}
    rest = []
    for number, layer in enumerate(problem.layers):
        layers |= {f"layer{number}_{name}": getattr(layer, name) for name in _LAYER_ARRAYS}
        extra = [[owner, errors.tolist()] for owner, errors in layer.extra_sources]
        rest.append(
            {"name": layer.name, "kind": layer.kind, "group": layer.group, "source": layer.source, "extra": extra}
        )
    return {**costs, **layers, "layers": np.array(json.dumps(rest))}


def _problem(arrays: Arrays) -> Problem:
    layers = []
    for number, rest in enumerate(json.loads(str(arrays["layers"]))):
        own: dict[str, Any] = {name: arrays[f"layer{number}_{name}"] for name in _LAYER_ARRAYS}
        extra = tuple((owner, np.array(errors)) for owner, errors in rest.pop("extra"))
        layers.append(LayerNumbers(**rest, **own, extra_sources=extra))
    costs = {name: arrays[f"costs_{name}"] for name in _COSTS}
    plain = {name: value.item() for name, value in costs.items() if not value.ndim}
    return Problem(tuple(layers), CostModel(**{**costs, **plain}))
