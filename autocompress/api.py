"""The package from Python: `search`, `inspect`, `evaluate` and `apply`. The command line is a thin shell over these."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from autocompress.budget import Budget
from autocompress.data import Data
from autocompress.errors import InputError
from autocompress.execute.own_training import Train
from autocompress.execute.tuning import FineTuning
from autocompress.files import write_atomically
from autocompress.job.chance import chance_note
from autocompress.job.ending import write_ending
from autocompress.job.finish import execute_and_finish
from autocompress.job.finished_run import export, verify
from autocompress.job.finished_run import finetune as _finetune
from autocompress.job.front import Front, budgets_of, check_front, front_path, search_front
from autocompress.job.held_out import held_out
from autocompress.job.inspection import check_plot, report_layers
from autocompress.job.kernel_times import timed
from autocompress.job.load import check_labels, load, load_splits
from autocompress.job.measure_plan import measure_plan
from autocompress.job.measured_labels import measured_labels
from autocompress.job.measured_layers import measure_layers
from autocompress.job.options import (
    DataLike,
    ModelLike,
    Request,
    SearchRequest,
    fine_tuning,
    given_plan,
    request,
    search_request,
)
from autocompress.job.prepare import (
    Job,
    build_evaluator,
    feasible_limits,
    limits_to_check,
    prepare,
    tuning_dtype,
)
from autocompress.job.result_data import finished_data
from autocompress.job.results import Finished, Inspection, Measurement, Result
from autocompress.job.searching import execution_of, search_and_finish
from autocompress.job.stages import through_stages
from autocompress.job.tolerance import Smallest, check_tolerance
from autocompress.job.tolerance import smallest as find_smallest
from autocompress.job.trust import named_functions, remember
from autocompress.memory import reusing_freed
from autocompress.plan import Plan
from autocompress.progress import Progress, Silent
from autocompress.report.front_page import front_among, write_front
from autocompress.report.measured import measured_page
from autocompress.report.model_card import write_card
from autocompress.report.run_page import write_comparison, write_report
from autocompress.run.folder import RunFolder, begin
from autocompress.run.journal import journal_header
from autocompress.run.lock import locked
from autocompress.run.names import FRONT, PLAN, REPORT, TOLERANCE
from autocompress.run.opening import opened
from autocompress.targets.timing import TimeLimit
from autocompress.version import versions

__all__ = [
    "apply", "evaluate", "export", "finetune", "inspect", "measure_layers", "pareto", "report", "search", "smallest",
    "verify",
]  # fmt: skip


@reusing_freed()
def search(
    model: ModelLike = "digits",
    data: DataLike | None = None,
    budget: str | Budget | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Find the plan that keeps the network's outputs best within a budget; make it real, export it and verify it.

    Args:
        model: a trained network, which is left as it is and on its device, or a spec string. The option `device` says
            where it is run; the compressed network that comes back is on the CPU.
        data: a `Data`, a spec string, (inputs, labels), or a pair of such pairs: for training and for test; tensors may
            lie on any device. The test split is read once, at the end; without one, the result is measured on the
            search split, and says so.
        budget: upper bounds such as `size=0.1` or `size=40kB,macs=50%`.
        progress: observer that is told of stages, notes and evaluations; see `autocompress.progress`.
        **options: every other option of the command line, by name; see `autocompress.config.Config`. The option
            `method` may also be a function (task, settings, recorder); see `autocompress.register_searcher`.

    Raises:
        InputError: an option, the model, the data or the budget breaks a rule, or another process writes into the run
            folder. Nothing on disk is changed then.
        WriteError: the run folder can't be written. What was written before stays valid.
    """
    asked, watcher = search_request(model, data, options, budget=budget), progress or Silent()
    wanted = asked.config.required_budget()
    with opened(asked.config, "search", versions()) as (path, config):
        return _search(replace(asked, config=config), wanted, path, watcher)


def _search(asked: SearchRequest, wanted: Budget, path: Path, watcher: Progress) -> Result:
    """`search`, in a folder that this process alone writes."""
    splits = load_splits(asked)
    check_labels(asked, splits)
    tuning = _fine_tuning(asked, splits)
    job = _prepared(asked, splits, watcher)
    if asked.time is not None:
        job = timed(job, asked.time, watcher)
    limits = feasible_limits(wanted, job, watcher)
    if asked.config.stages > 1 or asked.config.l1_epochs:
        begun = asked.config if asked.config.resume else begin(path, asked.config, versions())
        asked = replace(asked, config=begun)
        job = through_stages(job, asked, tuning, limits, path, watcher)
        if asked.time is not None:
            job = timed(job, asked.time, watcher)
    config = asked.config
    before = journal_header(path) if config.resume else None
    result = search_and_finish(
        job, asked, tuning, limits, lambda: build_evaluator(job, config, before, watcher), path, watcher
    )
    _write_pages(path)
    return result


def _prepared(asked: Request, splits: Data, watcher: Progress) -> Job:
    """The job of a command that runs the user's own functions, which are trusted from here on."""
    loaded = load(asked, splits, watcher)
    if note := chance_note(loaded):
        watcher.note(note)
    job = prepare(loaded, asked.menus_of(loaded.network), asked.config, watcher)
    remember(named_functions(vars(asked.config)))
    return job


@reusing_freed()
def pareto(
    model: ModelLike = "digits", data: DataLike | None = None, *, progress: Progress | None = None, **options: Any
) -> Front:
    """Search under many budgets of one resource, sharing menus, effects and evaluations; files of every point.

    Args:
        model: a trained network, or a spec string, as for `search`.
        data: data, or a spec string, as for `search`.
        progress: observer that is told of stages, notes and evaluations; see `autocompress.progress`.
        **options: options by name, as for `search`; `resource` and `budgets` or `points` say which budgets, and a
            `budget` of other resources holds for all of them. `episodes` are those of one search: the points together
            take one and a half times as many.

    Raises:
        InputError: an option, the model or the data breaks a rule, or a budget is below the smallest plan.
        WriteError: the folder can't be written. What was written before stays valid.
    """
    asked, watcher = search_request(model, data, options), progress or Silent()
    check_front(asked.config)
    path = front_path(asked.config)
    with locked(path, "out", "pareto"):
        splits = load_splits(asked)
        check_labels(asked, splits)
        tuning = _fine_tuning(asked, splits)
        job = _prepared(asked, splits, watcher)
        if asked.time is not None:
            job = timed(job, asked.time, watcher)
        (path / TOLERANCE).unlink(missing_ok=True)  # of an earlier search in this folder, which --force replaces
        front = search_front(job, asked, tuning, budgets_of(asked.config, job), path, watcher)
        for point in front.points:
            _write_pages(point.run_folder)
        write_front(path)
    return front


@reusing_freed()
def smallest(
    model: ModelLike = "digits", data: DataLike | None = None, *, progress: Progress | None = None, **options: Any
) -> Smallest:
    """Find the least of a resource at a loss that is tolerated: `autocompress search --max-drop 1% --minimize size`.

    Args:
        model: a trained network, or a spec string, as for `search`.
        data: data, or a spec string, as for `search`.
        progress: observer that is told of stages, notes and evaluations; see `autocompress.progress`.
        **options: options by name, as for `search`; `max_drop` or `max_kl` is the loss, `minimize` the resource, and a
            `budget` of other resources holds as well. Budgets are tried one after the other, each with a run folder.

    Raises:
        InputError: an option, the model or the data breaks a rule, or even the mildest plan loses more.
        WriteError: the folder can't be written. What was written before stays valid.
    """
    asked, watcher = search_request(model, data, options), progress or Silent()
    config = asked.config
    check_tolerance(config)
    path = front_path(config)
    with locked(path, "out", "search"):
        splits = load_splits(asked)
        check_labels(asked, splits)
        splits = replace(splits, kept_out=held_out(config, splits))
        tuning = _fine_tuning(asked, splits)
        job = _prepared(asked, splits, watcher)
        if asked.time is not None or config.minimize == "latency":
            job = timed(job, asked.time or TimeLimit(1.0, None, config.batch, config.threads), watcher)
        (path / FRONT).unlink(missing_ok=True)  # of an earlier front in this folder, which --force replaces
        found = find_smallest(job, asked, tuning, path, watcher)
        for each in found.tries:
            _write_pages(each.point.run_folder)
        write_front(path)
    return found


@reusing_freed()
def inspect(
    model: ModelLike = "digits", data: DataLike | None = None, *, progress: Progress | None = None, **options: Any
) -> Inspection:
    """What of a network can be compressed, what it costs, and how much each label is expected to hurt.

    Args:
        model: a trained network, or a spec string, as for `search`.
        data: data, or a spec string, as for `search`; the test split is not read.
        progress: observer that is told of stages, notes and evaluations; see `autocompress.progress`.
        **options: options by name, as for `search`; `measure` labels are measured too, and drawn into the file `plot`.

    Raises:
        InputError: an option, the model or the data breaks a rule.
        OSError: the plot can't be written.
    """
    asked, watcher = request(model, data, options), progress or Silent()
    config = asked.config
    check_plot(config)
    loaded = load(asked, load_splits(asked), watcher)
    job = prepare(loaded, asked.menus, config, watcher, must_export=False)
    measured = measured_labels(job, config, config.measure, config.seed, watcher) if config.measure else None
    if measured is not None and config.plot is not None:
        write_atomically(config.plot, measured_page(measured))
    return Inspection(job.network, job.problem, job.original, report_layers(job.network, job.problem), measured)


@reusing_freed()
def evaluate(
    model: ModelLike = "digits",
    data: DataLike | None = None,
    plan: Plan | str | Path | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Measurement:
    """Measure a plan, also one edited by hand. Bit-widths that the plan uses are added to those on offer.

    Args:
        model: a trained network, or a spec string, as for `search`.
        data: data, or a spec string, as for `search`.
        plan: a plan or its file.
        progress: observer that is told of stages, notes and evaluations; see `autocompress.progress`.
        **options: options by name, as for `search`; `split` says what to measure on, and a `budget` is checked.

    Raises:
        InputError: an option, the model, the data or the plan breaks a rule.
    """
    asked, watcher = request(model, data, options, plan=(wanted := given_plan(plan))), progress or Silent()
    if asked.time is not None:
        raise InputError("`budget` of latency is measured on files, which `evaluate` does not write; use `apply`.")
    loaded = load(asked, load_splits(asked), watcher)
    job = prepare(loaded, asked.menus_of(loaded.network), asked.config, watcher, must_export=False)
    labeling = job.menus.labeling(wanted)
    limits = limits_to_check(asked.config.budget, job)
    evaluator = build_evaluator(job, asked.config, watcher=watcher)
    return measure_plan(job, evaluator, labeling, limits, asked.config.split, watcher)


@reusing_freed()
def apply(
    model: ModelLike = "digits",
    data: DataLike | None = None,
    plan: Plan | str | Path | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Finished:
    """Make a plan real without a search: remove channels, re-calibrate, fine-tune, export, verify; into a run folder.

    Args:
        model: a trained network, or a spec string, as for `search`.
        data: data, or a spec string, as for `search`.
        plan: a plan or its file. Bit-widths that it uses are added to those on offer.
        progress: observer that is told of stages, notes and evaluations; see `autocompress.progress`.
        **options: options by name, as for `search`; a `budget` is checked.

    Raises:
        InputError: an option, the model, the data or the plan breaks a rule.
        ExportError: the target can't hold the network.
    """
    asked, watcher = request(model, data, options, plan=(wanted := given_plan(plan))), progress or Silent()
    with opened(asked.config, "apply", versions()) as (path, config):
        return _apply(replace(asked, config=config), wanted, path, watcher)


def _apply(asked: Request, wanted: Plan, path: Path, watcher: Progress) -> Finished:
    """`apply`, in a folder that this process alone writes."""
    config, splits = asked.config, load_splits(asked)
    check_labels(asked, splits)
    tuning = _fine_tuning(asked, splits)
    job = _prepared(asked, splits, watcher)
    labeling = job.menus.labeling(wanted)
    limits = limits_to_check(config.budget, job)
    dtype = tuning_dtype(job, config) if tuning else "float32"
    with RunFolder(path, config, versions(), {}) as folder:
        folder.write(PLAN, job.menus.plan(labeling).to_yaml())
        execution = execution_of(config, tuning, dtype, path)
        finished = execute_and_finish(job, labeling, limits, execution, path, watcher, asked.time)
        write_ending(path, job, labeling, limits, asked, finished_data(finished))
    _write_pages(path)
    return finished


@reusing_freed()
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
    """Fine-tune a run's network further, export and verify it anew.

    Args:
        run: folder of a finished run; its files are replaced when everything has gone well.
        model: original network, where the run was made with a module and not a spec string.
        data: data of the run, where the run was made with tensors and not a spec string.
        train: function that trains in the place of ours: from (network, original, data) to the trained network, or None
            where it trained in place; see `autocompress.execute.own_training`. Default: distillation from the original.
        trust: whether functions of somebody's own that the folder names may run; see `autocompress.job.trust`.
            Default: only those that you named in making the run, or name anew.
        progress: observer that is told of stages, notes and evaluations; see `autocompress.progress`.
        **options: options that differ from the run's; `finetune` is the number of epochs.

    Raises:
        InputError: the folder holds no finished run, another process writes there, or an option breaks a rule.
        WriteError: the folder can't be written; the run is as it was.
    """
    finished = _finetune(run, model, data, train=train, trust=trust, progress=progress, **options)
    _write_pages(run)
    return finished


def report(*runs: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a finished run, of several side by side, or of a front: one HTML file that needs no network.

    Args:
        runs: folders of finished runs, or the folder of one front or of one search for the least of a resource.
        out: the file. Default: report.html in the run's folder; of several runs, in the current folder.

    Returns:
        The file.

    Raises:
        InputError: no folder, one that holds no finished run, a front beside others, or a damaged file.
        WriteError: the file can't be written.
    """
    if not runs:
        raise InputError("`runs` must be at least one folder of a finished run, got none.")
    if front_among(runs) is not None:
        return write_front(runs[0], out)
    return write_report(runs[0], out) if len(runs) == 1 else write_comparison(runs, out or REPORT)


def _write_pages(run: str | Path) -> None:
    """The page and the card that show what a run's files say."""
    write_report(run)
    write_card(run)


def _fine_tuning(asked: Request, data: Data) -> FineTuning | None:
    return fine_tuning(asked.config, asked.config.seed, has_labels=bool(data.classes))
