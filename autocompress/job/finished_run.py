"""What can be done with a finished run: fine-tune it further, export it to other formats, verify it again."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autocompress.budget import RESOURCES
from autocompress.config import Config, load_config
from autocompress.errors import InputError, unknown_name
from autocompress.evaluation import AUTO
from autocompress.execute.compressed import Compressed
from autocompress.execute.own_training import Train, train_own
from autocompress.execute.pipeline import Executed, Execution, kept_parts, tune
from autocompress.execute.tuning import FineTuning, Tuned
from autocompress.files import strict_json, write_atomically
from autocompress.job.finish import finish, split_used, verify_files, write_outcome
from autocompress.job.load import Loaded, load, load_splits
from autocompress.job.options import DataLike, ModelLike, Request, fine_tuning, request
from autocompress.job.prepare import Job, prepare, tuning_dtype
from autocompress.job.result_data import finished_data
from autocompress.job.results import Finished, TimeClaim
from autocompress.job.trust import check_trusted, named_functions
from autocompress.plan import Plan
from autocompress.progress import Progress, Silent
from autocompress.run.folder import check_finished
from autocompress.run.journal import are_costs, is_number
from autocompress.run.lock import locked
from autocompress.run.names import (
    CHECKPOINT,
    CONFIG,
    EXPORTED,
    MODEL,
    MODEL_ONNX,
    MODEL_PT2,
    MODEL_PTE,
    MODEL_TFLITE,
    OUTCOME,
    PLAN,
)
from autocompress.targets.executorch.file import write_executorch
from autocompress.targets.graph.lowering import Lowered, lower
from autocompress.targets.litert.file import write_litert
from autocompress.targets.loading import check_network, restore, restored
from autocompress.targets.onnxruntime.file import write_onnx
from autocompress.targets.openvino.ir import write_openvino
from autocompress.targets.packed.file import load_packed, load_packed_weights, rebuilt
from autocompress.targets.pt2.archive import write_pt2
from autocompress.targets.target import TARGETS
from autocompress.targets.timing import Machine, TimeLimit
from autocompress.targets.verify import Check, Verification
from autocompress_envs.problem import Labeling

_ACCURACY_SLACK = 0.002  # by which an accuracy may miss the one that was written down: other machines round otherwise


def finetune(
    run: str | Path,
    model: ModelLike | None = None,
    data: DataLike | None = None,
    *,
    train: Train | None = None,
    trust: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Finished:
    """`autocompress.api.finetune`, which says what the arguments are, without the pages that it writes anew."""
    path, watcher = Path(run), progress or Silent()
    _config_of(path, {})  # a folder that holds no run gets no lock
    with locked(path, "run", "finetune"):
        return _finetune(path, model, data, options, watcher, trust, train)


def _finetune(
    path: Path,
    model: ModelLike | None,
    data: DataLike | None,
    options: Mapping[str, Any],
    watcher: Progress,
    trust: bool,
    train: Train | None,
) -> Finished:
    """`finetune`, in a folder that this process alone writes."""
    asked, plan = asked_of(path, model, data, options, trust=trust)
    before = _outcome_of(path)
    loaded = load(asked, load_splits(asked), watcher)
    config = asked.config
    tuning = fine_tuning(config, config.seed, has_labels=bool(loaded.data.classes))
    if tuning is None and train is None:
        raise InputError("`epochs` must be above 0, got 0; pass --epochs 2.")
    job = prepare(loaded, asked.menus_of(loaded.network), config, watcher)
    labeling = job.menus.labeling(plan)
    compressed = restore(path / MODEL, job.model, job.network)
    if train is not None:
        watcher.stage("training: your own function")
        tuned = train_own(compressed, job.model, job.data, train)
    else:
        assert tuning is not None, "checked above"
        tuned = _distilled(compressed, job, labeling, tuning, config, path, watcher)
    executed = Executed(tuned.compressed, bool(before.get("recalibrated")), tuned)
    limit = _time_of(before)
    time = None if limit is None else TimeClaim(limit.limit)  # it has to be kept here, anew
    finished = finish(job, executed, labeling, _limits_of(before), path, watcher, time)
    write_outcome(path, {**before, **finished_data(finished)}, config.device)
    _remove_stale(path, job.target.file_name, watcher)
    return finished


def _distilled(
    compressed: Compressed,
    job: Job,
    labeling: Labeling,
    tuning: FineTuning,
    config: Config,
    path: Path,
    watcher: Progress,
) -> Tuned:
    """Our own fine-tuning."""
    dtype = tuning_dtype(job, config)
    settings = Execution(0, tuning, config.device, dtype, path / CHECKPOINT, job.memory)
    watcher.stage(f"fine-tuning: {tuning.epochs:g} epochs, learning from the original")
    kept = kept_parts(job.menus, labeling)
    return tune(compressed, job.teacher, job.data, settings, tuning, kept, watcher)


def verify(
    run: str | Path,
    model: ModelLike | None = None,
    data: DataLike | None = None,
    *,
    trust: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Verification:
    """Run a run's files again and look at every claim: the plan's, the budget's, and those of outcome.json.

    Args:
        run: folder of a finished run; nothing in it is changed.
        model: original network, where the run was made with a module and not a spec string.
        data: data of the run, where the run was made with tensors and not a spec string.
        trust: whether functions of somebody's own that the folder names may run; see `autocompress.job.trust`.
            Default: only those that you named in making the run, or name anew.
        progress: observer that is told of stages, notes and evaluations; see `autocompress.progress`.
        **options: options that differ from the run's.

    Raises:
        InputError: the folder holds no finished run, or its files are damaged.
    """
    path, watcher = Path(run), progress or Silent()
    asked, plan = asked_of(path, model, data, options, trust=trust)
    claims = _outcome_of(path)
    loaded = load(asked, load_splits(asked), watcher)
    weights = load_packed_weights(path / MODEL)
    check_network(weights, loaded.network)
    has_graph = weights.graph is not None
    found = rebuilt(weights, path / MODEL) if has_graph else restored(weights, loaded.model, loaded.network)
    files = dict.fromkeys([MODEL, MODEL_ONNX, loaded.target.file_name])
    names = [name for name in files if (path / name).is_file()]
    if loaded.target.file_name not in names:
        raise InputError(f"`run` must hold {loaded.target.file_name}, got {path} without it; export it again.")
    contents = {name: (path / name).read_bytes() for name in names}
    split = split_used(loaded.data, str(claims.get("split", "test")), watcher)
    limits, time = _limits_of(claims), _time_of(claims)
    verified = verify_files(loaded, found.plan, found, contents, limits, split, watcher, time)
    checks = (*verified.checks, *_claimed(claims, verified, found.plan, plan))
    return replace(verified, checks=checks)


def export(
    run: str | Path,
    formats: str,
    model: ModelLike | None = None,
    data: DataLike | None = None,
    *,
    trust: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Write a run's network in another format, into the run's folder.

    Args:
        run: folder of a finished run.
        formats: `onnx`, `packed`, `openvino`, `litert`, `executorch` or `pt2`; several with commas between.
        model: original network, where the run was made with a module and not a spec string.
        data: data of the run, where the run was made with tensors and not a spec string.
        trust: whether functions of somebody's own that the folder names may run; see `autocompress.job.trust`.
            Default: only those that you named in making the run, or name anew.
        progress: observer that is told of stages, notes and evaluations; see `autocompress.progress`.

    Returns:
        The files.

    Raises:
        InputError: the folder holds no finished run, another process writes there, or a format is unknown.
        ExportError: the format can't hold the network.
    """
    path, watcher = Path(run), progress or Silent()
    wanted = formats.split(",")
    for name in wanted:
        if name not in EXPORTS:
            raise unknown_name("format", name, EXPORTS)
    target = TARGETS.find(_config_of(path, {}).target)

    def load_original() -> Loaded:
        asked, _ = asked_of(path, model, data, {}, trust=trust)
        return load(asked, load_splits(asked), watcher)

    source = _Source(path, target.integer_kernels, load_original)
    with locked(path, "run", "export"):
        return [file for name in wanted for file in EXPORTS[name](source)]


@dataclass(frozen=True)
class _Source:
    """A run to export from; the original is loaded only where the format needs another graph than the run has."""

    path: Path
    has_integer_kernels: bool
    load: Callable[[], Loaded]

    def as_run(self) -> Lowered:
        return load_packed(self.path / MODEL)

    def for_integer_kernels(self) -> Lowered:
        if self.has_integer_kernels:
            return self.as_run()
        loaded = self.load()
        return lower(restore(self.path / MODEL, loaded.model, loaded.network), loaded.inputs, integer=True)


def _export_onnx(source: _Source) -> list[Path]:
    write_atomically(source.path / MODEL_ONNX, write_onnx(source.for_integer_kernels()))
    return [source.path / MODEL_ONNX]


def _export_openvino(source: _Source) -> list[Path]:
    return list(write_openvino(write_onnx(source.for_integer_kernels()), source.path))


def _export_litert(source: _Source) -> list[Path]:
    write_atomically(source.path / MODEL_TFLITE, write_litert(source.for_integer_kernels()))
    return [source.path / MODEL_TFLITE]


def _export_executorch(source: _Source) -> list[Path]:
    write_atomically(source.path / MODEL_PTE, write_executorch(source.for_integer_kernels()))
    return [source.path / MODEL_PTE]


def _export_pt2(source: _Source) -> list[Path]:
    write_atomically(source.path / MODEL_PT2, write_pt2(source.as_run()))
    return [source.path / MODEL_PT2]


def _export_packed(source: _Source) -> list[Path]:
    load_packed_weights(source.path / MODEL)  # every run has it; what is damaged must not pass for exported
    return [source.path / MODEL]


EXPORTS: Mapping[str, Callable[[_Source], list[Path]]] = {
    "onnx": _export_onnx,
    "packed": _export_packed,
    "openvino": _export_openvino,
    "litert": _export_litert,
    "executorch": _export_executorch,
    "pt2": _export_pt2,
}


def asked_of(
    path: Path, model: ModelLike | None, data: DataLike | None, options: Mapping[str, Any], *, trust: bool
) -> tuple[Request, Plan]:
    """What the run was asked for, with other options where some are given, and its plan, which the menus offer.

    Raises:
        InputError: the folder holds no finished run, or names a function that may not run, or an option breaks a rule.
    """
    config, plan = _config_of(path, options), Plan.load(path / PLAN)
    given = {option: value for option, value in (("model", model), ("data", data)) if value is not None}
    named = [each for each in named_functions(vars(config)) if each.option not in {**given, **options}]
    check_trusted(named, path, trust=trust)
    for option, value in given.items():
        if value != getattr(config, option) and f"{option}_args" not in options:
            config = config.model_copy(update={f"{option}_args": {}})  # they belong to the run's own
    return request(config.model if model is None else model, data, vars(config), plan=plan), plan


def _config_of(path: Path, options: Mapping[str, Any]) -> Config:
    """The options of a finished run, with others where some are given. Raises InputError where there is no run."""
    check_finished(path, (CONFIG, PLAN, MODEL, OUTCOME))
    return load_config(path / CONFIG, {"device": AUTO, **options, "out": path})  # the run's device may be elsewhere


def _outcome_of(path: Path) -> dict[str, Any]:
    try:
        found = strict_json((path / OUTCOME).read_bytes())
    except ValueError as error:
        raise InputError(f"{path / OUTCOME} must be JSON, got a damaged file: {error}.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path / OUTCOME} must be a mapping, got a {type(found).__name__}.")
    for name, rule in _CLAIMS.items():
        if found.get(name) is not None and not rule(found[name]):
            raise InputError(
                f"`{name}` of {path / OUTCOME} must be as it was written, got {reprlib.repr(found[name])}."
            )
    return found


def _has_accuracy(value: object) -> bool:
    return isinstance(value, dict) and (value.get("accuracy") is None or is_number(value["accuracy"]))


def _are_limits(value: Any) -> bool:
    return are_costs(value) and set(value) <= set(RESOURCES)


_CLAIMS: Mapping[str, Callable[[Any], bool]] = {
    "budget": lambda value: isinstance(value, dict) and _are_limits(value.get("limits")),
    "latency": lambda value: _is_time(value),
    "file_bytes": are_costs,
    "compressed": _has_accuracy,
    "runtime": _has_accuracy,
    "split": lambda value: value in ("test", "search"),
}
"""What of outcome.json is read again, and the rule of each."""


def _limits_of(outcome: Mapping[str, Any]) -> dict[str, int]:
    budget = outcome.get("budget")
    return dict(budget["limits"]) if budget else {}


def _time_of(outcome: Mapping[str, Any]) -> TimeClaim | None:
    """The limit of time that a run claims to keep, with the machine that it was kept on."""
    said = outcome.get("latency")
    return None if said is None else TimeClaim(TimeLimit.from_data(said["limit"]), Machine.of(said["machine"]))


def _is_time(value: Any) -> bool:
    try:
        return _time_of({"latency": value}) is not None
    except (KeyError, TypeError, ValueError):
        return False


def _claimed(claims: Mapping[str, Any], verified: Verification, found: Plan, plan: Plan) -> list[Check]:
    """What outcome.json and plan.yaml say, against what was found."""
    checks = [_same_labels(plan, found)]
    for name, claimed in (claims.get("file_bytes") or {}).items():
        size = verified.file_bytes.get(name, 0)
        checks.append(Check("bytes", size == claimed, f"{name} has {size:,} bytes, {OUTCOME} says {claimed:,}"))
    pairs = [("PyTorch", claims.get("compressed"), verified.pytorch.accuracy)]
    if verified.runtime is not None:
        pairs.append((verified.runtime.runtime, claims.get("runtime"), verified.runtime.closeness.accuracy))
    for where, claim, accuracy in pairs:
        said = (claim or {}).get("accuracy")
        if said is not None:
            detail = f"{100 * accuracy:.2f} % in {where}, {OUTCOME} says {100 * said:.2f} %"
            checks.append(Check("accuracy", abs(accuracy - said) <= _ACCURACY_SLACK, detail))
    return checks


def _same_labels(plan: Plan, found: Plan) -> Check:
    names = sorted({*plan.labels, *found.labels})
    differing = [name for name in names if plan.labels.get(name) != found.labels.get(name)]
    if differing:
        return Check("plan", False, f"{PLAN} and {MODEL} hold other labels for {', '.join(differing)}")
    return Check("plan", True, f"{PLAN} and {MODEL} hold the same labels")


def _remove_stale(path: Path, kept: str, watcher: Progress) -> None:
    """Other formats hold the network as it was before."""
    stale = [name for name in EXPORTED if name not in (MODEL, kept) and (path / name).is_file()]
    for name in stale:
        (path / name).unlink()
    if stale:
        watcher.note(f"{', '.join(stale)} held the network before fine-tuning, so they were removed; export them again")
