"""What comes before the last search: fine-tuning under an L1 penalty, and compressing in stages.

Both change the base, the network that is compressed; the original stays the teacher and the measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from autocompress.execute.compressed import uncompressed
from autocompress.execute.pipeline import Execution, execute, tune
from autocompress.execute.tuning import FineTuning, KeptParts
from autocompress.files import sweep, writing
from autocompress.job.base import expanded, load_base, save_base, with_base
from autocompress.job.load import Loaded
from autocompress.job.options import SearchRequest, fine_tuning
from autocompress.job.prepare import Job, build_evaluator, made_on, prepare, tuning_dtype
from autocompress.job.search import find, policy_digest
from autocompress.job.searching import execution_of
from autocompress.network import unfold_batch_norms
from autocompress.progress import Progress
from autocompress.run.folder import RunFolder
from autocompress.run.journal import journal_header
from autocompress.run.names import CHECKPOINT, JOURNAL, STAGE
from autocompress.version import versions


def through_stages(
    job: Job,
    asked: SearchRequest,
    tuning: FineTuning | None,
    limits: Mapping[str, int],
    path: Path,
    watcher: Progress,
) -> Job:
    """The job of the last stage: its base has been through the L1 penalty and the stages before, or some of both.

    Args:
        job: the network with its menus.
        asked: the search that was asked for.
        tuning: settings of the fine-tuning between stages.
        limits: absolute upper bounds by resource, of the last stage.
        path: folder of the run; each stage has a folder in it.
        watcher: observer that is told of stages, notes and evaluations.
    """
    config = asked.config
    current: Loaded = job
    for number in range(0 if config.l1_epochs else 1, config.stages):  # 0 is the L1 penalty
        folder = path / f"{STAGE}{number}"
        with writing(folder):
            folder.mkdir(exist_ok=True)
        sweep(folder)
        done = load_base(folder, job) if config.resume else None
        if done is None and number == 0:
            done = _penalised(current, asked, folder, watcher)
        elif done is None:
            assert tuning is not None, "stages ask for fine-tuning"
            watcher.stage(f"stage {number} of {config.stages}")
            between = stage_limits(limits, job.original, number, config.stages)
            prepared = prepare(current, asked.menus, config, watcher)
            done = _stage(prepared, asked, tuning, between, folder, watcher)
        save_base(folder, done.base)
        (folder / CHECKPOINT).unlink(missing_ok=True)
        current = done
    return prepare(current, asked.menus, config, watcher)


def _penalised(loaded: Loaded, asked: SearchRequest, path: Path, watcher: Progress) -> Loaded:
    """The network with a base that was fine-tuned under the L1 penalty of the options."""
    config = asked.config
    tuning = fine_tuning(config, config.seed, has_labels=bool(loaded.data.classes), epochs=config.l1_epochs)
    assert tuning is not None, "there are epochs"
    execution = execution_of(config, tuning, tuning_dtype(loaded, config), path)
    return sparsified(loaded, config.l1_weight, tuning, execution, watcher)


def _stage(
    job: Job, asked: SearchRequest, tuning: FineTuning, limits: Mapping[str, int], path: Path, watcher: Progress
) -> Loaded:
    """One stage before the last: what its search found, fine-tuned, is the base of the next."""
    config = asked.config
    config = config.model_copy(update={"out": path, "resume": config.resume and (path / JOURNAL).is_file()})
    evaluator = build_evaluator(job, config, journal_header(path) if config.resume else None, watcher)
    with RunFolder(path, config, versions(), made_on(job, evaluator) | policy_digest(asked.policy)) as folder:
        found = find(job, evaluator, replace(asked, config=config), limits, folder, watcher)
        execution = execution_of(config, tuning, evaluator.dtype, path)
        executed = execute(
            job.menus, found.labeling, job.folded, job.teacher, job.data, execution, watcher, job.search_outputs
        )
    assert executed.tuned is not None, "the execution has settings of fine-tuning"
    return expanded(job, job.menus, found.labeling, executed.tuned)


def stage_limits(limits: Mapping[str, int], original: Mapping[str, int], stage: int, stages: int) -> dict[str, int]:
    """The budget after `stage` of `stages`: each takes the same factor off.

    >>> stage_limits({"macs": 250}, {"macs": 1000}, 1, 2)
    {'macs': 500}
    """
    share = stage / stages
    return {name: round(original[name] * (limit / original[name]) ** share) for name, limit in limits.items()}


def sparsified(loaded: Loaded, l1_weight: float, tuning: FineTuning, settings: Execution, watcher: Progress) -> Loaded:
    """The network with a base that was fine-tuned under an L1 penalty, so that less of it matters (Han et al. 2015).

    Args:
        loaded: the network.
        l1_weight: weight of the penalty in the loss.
        tuning: all other settings of the fine-tuning.
        settings: device, dtype and checkpoint of the fine-tuning.
        watcher: observer that is told of stages, notes and evaluations.
    """
    watcher.stage(f"fine-tuning with an L1 penalty before pruning: {tuning.epochs:g} epochs")
    penalised = replace(tuning, objective=replace(tuning.objective, l1=l1_weight))
    whole = uncompressed(loaded.folded, loaded.network)
    weights = {name: layer.weight() for name, layer in whole.layers.items()}  # all of its own
    kept = KeptParts(weights, {layer.name: torch.arange(layer.width) for layer in loaded.network.layers})
    tuned = tune(whole, loaded.teacher, loaded.data, settings, penalised, kept, watcher)
    return with_base(loaded, unfold_batch_norms(loaded.model, loaded.network, tuned.compressed.model))
