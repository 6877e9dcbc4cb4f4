"""The package from Python: `search`, `inspect`, `evaluate` and `apply`. The command line is a thin shell over these."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress.budget import Budget
from autocompress.config import Config
from autocompress.data import Data
from autocompress.errors import InputError
from autocompress.evaluation import DTYPES, Evaluator, measure
from autocompress.execute.pipeline import Execution, execute
from autocompress.finishing import fine_tuning, finish, split_used, write_outcome
from autocompress.jobs import (
    DataLike,
    Job,
    Loaded,
    ModelLike,
    build_evaluator,
    check_labels,
    configure,
    feasible_limits,
    load,
    load_splits,
    made_on,
    menu_settings,
    prepare,
)
from autocompress.menus import MenuSettings
from autocompress.plan import Plan
from autocompress.policies.files import SavedPolicy
from autocompress.policies.use import chosen_policy
from autocompress.recording import versions, write_policy
from autocompress.report.data import finished_data, result_data
from autocompress.report.inspection import report_layers
from autocompress.report.progress import Progress, Silent
from autocompress.results import Finished, Inspection, Measurement, Result
from autocompress.run_folder import (
    CHECKPOINT,
    JOURNAL,
    PLAN,
    STAGE,
    RunFolder,
    begin,
    claim,
    journal_header,
)
from autocompress.searching import find, search_settings, stamp
from autocompress.stages import check_stages, expanded, load_base, save_base, sparsified, stage_limits
from autocompress_envs import Labeling, Outcome


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
        model: a trained network, which is left as it is, or a spec string.
        data: a `Data`, a spec string, (inputs, labels), or a pair of such pairs: for training and for test. The test
            split is read once, at the end; without one, the result is measured on the search split, and says so.
        budget: such as `size=0.1` or `size=40kB,macs=50%`.
        progress: told what happens.
        **options: every other option of the command line, by name; see `autocompress.config.Config`.

    Raises:
        InputError: an option, the model, the data or the budget breaks a rule. Nothing on disk is changed then.
        OSError: the run folder can't be written. What was written before stays valid.
    """
    config = configure(model, data, options, budget)
    settings, watcher = search_settings(config), progress or Silent()
    policy = chosen_policy(config, settings)
    offered, _ = menu_settings(config), fine_tuning(config, True)
    check_stages(config)
    path, wanted = claim(config), config.required_budget()
    splits = load_splits(data, config)
    check_labels(config, splits)
    job = prepare(load(model, splits, config, watcher), config, offered, watcher)
    limits = feasible_limits(wanted, job, watcher)
    if config.stages > 1 or config.l1_epochs:
        config = config if config.resume else begin(path, config, versions())
        job = _through_stages(job, config, offered, policy, limits, path, watcher)
    evaluator = build_evaluator(job, config, journal_header(path) if config.resume else {})
    with RunFolder(path, config, versions(), made_on(job, evaluator) | stamp(policy)) as folder:
        found = find(job, evaluator, config, policy, limits, folder, watcher)
        write_policy(folder, config, found.policy_state)
        made = _finish(job, found.labeling, limits, config, folder, evaluator.dtype, watcher)
        result = Result(
            **vars(made),
            search_outcome=found.outcome,
            evaluations=found.evaluations,
            stopped_because=found.stopped_because,
        )
        write_outcome(path, result_data(result))
    return result


def inspect(
    model: ModelLike = "digits", data: DataLike | None = None, *, progress: Progress | None = None, **options: Any
) -> Inspection:
    """What of a network can be compressed, what it costs, and how much each label is expected to hurt.

    Args:
        model: as for `search`.
        data: as for `search`; the test split is not read.
        progress: told what happens.
        **options: as for `search`.

    Raises:
        InputError: an option, the model or the data breaks a rule.
    """
    config = configure(model, data, options)
    settings, watcher = menu_settings(config), progress or Silent()
    job = prepare(load(model, load_splits(data, config), config, watcher), config, settings, watcher, must_export=False)
    return Inspection(job.network, job.problem, job.original, report_layers(job.network, job.problem))


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
        model: as for `search`.
        data: as for `search`.
        plan: a plan or its file.
        progress: told what happens.
        **options: as for `search`; `split` says what to measure on, and a `budget` is checked.

    Raises:
        InputError: an option, the model, the data or the plan breaks a rule.
    """
    config = configure(model, data, options)
    plan = _wanted_plan(plan, config)
    watcher = progress or Silent()
    job = prepare(
        load(model, load_splits(data, config), config, watcher),
        config,
        menu_settings(config, plan),
        watcher,
        must_export=False,
    )
    labeling = job.menus.labeling(plan)
    limits = _limits_to_check(config, job)
    return _measure(job, build_evaluator(job, config, {}), labeling, limits, config.split, watcher)


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
        model: as for `search`.
        data: as for `search`.
        plan: a plan or its file. Bit-widths that it uses are added to those on offer.
        progress: told what happens.
        **options: as for `search`; a `budget` is checked.

    Raises:
        InputError: an option, the model, the data or the plan breaks a rule.
        ExportError: the target can't hold the network.
    """
    config = configure(model, data, options)
    fine_tuning(config, True)
    plan = _wanted_plan(plan, config)
    watcher, path = progress or Silent(), claim(config)
    splits = load_splits(data, config)
    check_labels(config, splits)
    job = prepare(load(model, splits, config, watcher), config, menu_settings(config, plan), watcher)
    labeling = job.menus.labeling(plan)
    limits = _limits_to_check(config, job)
    dtype = build_evaluator(job, config, {}).dtype if config.finetune else "float32"
    with RunFolder(path, config, versions(), {}) as folder:
        folder.write(PLAN, job.menus.plan(labeling).to_yaml())
        finished = _finish(job, labeling, limits, config, folder, dtype, watcher)
        write_outcome(path, finished_data(finished))
    return finished


def _through_stages(
    job: Job,
    config: Config,
    offered: MenuSettings,
    policy: SavedPolicy | None,
    limits: Mapping[str, int],
    path: Path,
    watcher: Progress,
) -> Job:
    """The job of the last stage: its base has been through the L1 penalty and the stages before, or some of both."""
    loaded: Loaded = job
    for number in range(0 if config.l1_epochs else 1, config.stages):  # 0 is the L1 penalty
        folder = path / f"{STAGE}{number}"
        folder.mkdir(exist_ok=True)
        done = load_base(folder, job) if config.resume else None
        if done is None and number == 0:
            execution = _execution(config, job.data, build_evaluator(job, config, {}).dtype, folder)
            tuning = fine_tuning(config.model_copy(update={"finetune": config.l1_epochs}), bool(job.data.classes))
            assert tuning is not None, "epochs are above 0"
            done = sparsified(loaded, config, tuning, execution, watcher)
        elif done is None:
            watcher.stage(f"stage {number} of {config.stages}")
            between = stage_limits(limits, job.original, number, config.stages)
            done = _stage(prepare(loaded, config, offered, watcher), config, policy, between, folder, watcher)
        save_base(folder, done.base)
        (folder / CHECKPOINT).unlink(missing_ok=True)
        loaded = done
    return prepare(loaded, config, offered, watcher)


def _stage(
    job: Job, config: Config, policy: SavedPolicy | None, limits: Mapping[str, int], path: Path, watcher: Progress
) -> Loaded:
    """One stage before the last: what its search found, fine-tuned, is the base of the next."""
    inner = config.model_copy(update={"out": path, "resume": config.resume and (path / JOURNAL).is_file()})
    evaluator = build_evaluator(job, inner, journal_header(path) if inner.resume else {})
    with RunFolder(path, inner, versions(), made_on(job, evaluator) | stamp(policy)) as folder:
        found = find(job, evaluator, inner, policy, limits, folder, watcher)
        execution = _execution(inner, job.data, evaluator.dtype, path)
        executed = execute(job.menus, found.labeling, job.folded, job.teacher, job.data, execution, watcher)
    assert executed.tuned is not None, "check_stages asks for fine-tuning"
    return expanded(job, job.menus, found.labeling, executed.tuned)


def _execution(config: Config, data: Data, dtype: str, path: Path) -> Execution:
    tuning = fine_tuning(config, bool(data.classes))
    return Execution(config.recalibration_samples, tuning, config.device, DTYPES[dtype], path / CHECKPOINT)


def _finish(
    job: Job,
    labeling: Labeling,
    limits: Mapping[str, int],
    config: Config,
    folder: RunFolder,
    dtype: str,
    watcher: Progress,
) -> Finished:
    """From a plan to verified files in the run folder."""
    execution = _execution(config, job.data, dtype, folder.path)
    executed = execute(job.menus, labeling, job.folded, job.teacher, job.data, execution, watcher)
    return finish(job, executed, labeling, limits, folder.path, watcher)


def _limits_to_check(config: Config, job: Job) -> dict[str, int]:
    """Absolute limits of the budget; empty without one."""
    return Budget.parse(config.budget).resolve(job.original) if config.budget else {}


def _measure(
    job: Job, evaluator: Evaluator, labeling: Labeling, limits: Mapping[str, int], split: str, watcher: Progress
) -> Measurement:
    """Measure the menus' weights of a plan and the original together."""
    split = split_used(job.data, split, watcher)
    watcher.stage(f"measuring the original and the plan on the {split} split")
    compressed = evaluator.stitched(labeling)
    batches = job.data.test_batches() if split == "test" else [job.data.search()]
    measured = measure(job.model, compressed, batches)
    resources = job.problem.resources(labeling)
    outcome = Outcome(measured.kl, measured.accuracy, measured.agreement, resources)
    original = Outcome(0.0, measured.original_accuracy, 1.0, dict(job.original))
    plan = job.menus.plan(labeling)
    return Measurement(plan, compressed, outcome, original, split, limits, job.network, job.problem, labeling)


def _wanted_plan(plan: Plan | str | Path | None, config: Config) -> Plan:
    wanted = plan if plan is not None else config.plan
    if wanted is None:
        raise InputError("`plan` must be given, such as --plan runs/demo/plan.yaml.")
    return wanted if isinstance(wanted, Plan) else Plan.load(wanted)
