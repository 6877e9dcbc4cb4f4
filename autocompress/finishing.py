"""The end of a job: a finished network is written to files, and the files are verified in their runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autocompress.config import Config
from autocompress.data import Data
from autocompress.evaluation.measure import Closeness, compare
from autocompress.execute.compressed import Compressed
from autocompress.execute.distillation import Objective
from autocompress.execute.finetune import FineTuning
from autocompress.execute.pipeline import Executed
from autocompress.jobs import Job, Loaded
from autocompress.plan import Plan
from autocompress.recording import outcome_text
from autocompress.report.progress import Progress
from autocompress.results import Finished
from autocompress.run_folder import CHECKPOINT, MODEL_ONNX, OUTCOME, write_atomically
from autocompress.targets.lowering import Lowered
from autocompress.targets.onnx_runtime import open_session
from autocompress.targets.target import TARGETS, lowered_for, target_file
from autocompress.targets.verify import (
    Verification,
    check_agreement,
    check_budget,
    check_layers,
    finished_resources,
    latencies,
    outputs_on,
    runtime_outcome,
)
from autocompress_envs.numbers import Labeling, Outcome

_HARD_WEIGHT = 0.5  # of hard labels, where nothing else is said and there are any
_STRONG_FEATURES = 0.1  # weight of matched features in strong distillation, where none is given


@dataclass(frozen=True, eq=False)
class Files:
    """A finished network, written.

    Attributes:
        contents: by file name: the packed file, and the target's own where that is another.
        lowered: what they hold; None where torch.export can't follow the network.
    """

    contents: Mapping[str, bytes]
    lowered: Lowered | None


def write_files(compressed: Compressed, job: Loaded) -> Files:
    """The files that every run ends with.

    Raises:
        ExportError: the target can't hold the network.
    """
    lowered = lowered_for(job.target, compressed, job.inputs)
    targets = {target.file_name: target for target in (TARGETS["packed"], job.target)}
    contents = {name: target_file(target, compressed, lowered, job.inputs) for name, target in targets.items()}
    return Files(contents, lowered)


def finish(
    job: Job,
    executed: Executed,
    labeling: Labeling,
    limits: Mapping[str, int],
    path: Path,
    watcher: Progress,
) -> Finished:
    """Make a finished network's files, verify them, and write them into a run folder.

    They are written last: until then the files of a run that is fine-tuned further stay as they are.

    Raises:
        ExportError: the target can't hold the network.
    """
    files = write_files(executed.compressed, job)
    split = split_used(job.data, "test", watcher)
    finished = files.lowered or executed.compressed
    verified = verify_files(job, executed.compressed.plan, finished, files.contents, limits, split, watcher)
    for name, content in files.contents.items():
        write_atomically(path / name, content)
    return Finished(
        plan=executed.compressed.plan,
        model=executed.compressed.rounded(),
        outcome=_outcome(verified.pytorch, verified.resources),
        original_outcome=Outcome(0.0, verified.pytorch.original_accuracy, 1.0, dict(job.original)),
        split=split,
        limits=limits,
        network=job.network,
        problem=job.problem,
        labeling=labeling,
        run_folder=path,
        executed=executed,
        verification=verified,
    )


def write_outcome(path: Path, outcome: Mapping[str, Any]) -> None:
    """The last file of a run; what an interrupted run would have needed to go on, goes."""
    write_atomically(path / OUTCOME, outcome_text(outcome))
    (path / CHECKPOINT).unlink(missing_ok=True)


def _outcome(closeness: Closeness, resources: Mapping[str, int]) -> Outcome:
    return Outcome(closeness.kl, closeness.accuracy, closeness.agreement, dict(resources))


def split_used(data: Data, wanted: str, watcher: Progress) -> str:
    """The split to measure on."""
    if wanted == "test" and data.test is None:
        watcher.note("the data has no test split; measured on the search split, which chose the plan")
        return "search"
    return wanted


def verify_files(
    job: Loaded,
    plan: Plan,
    compressed: Compressed | Lowered,
    contents: Mapping[str, bytes],
    limits: Mapping[str, int],
    split: str,
    watcher: Progress,
) -> Verification:
    """Run the files and look at every claim; the only place where a finished network meets the test split.

    Args:
        job: whose target runs.
        plan: what is claimed.
        compressed: the finished network.
        contents: its files.
        limits: of the budget, absolute; empty without one.
        split: `test` or `search`.
        watcher: told what happens.
    """
    watcher.stage(f"verification: the files in their runtime and the original on the {split} split")
    module = compressed.graph if isinstance(compressed, Lowered) else compressed.rounded()
    session = open_session(contents[MODEL_ONNX]) if MODEL_ONNX in contents else None
    batches = job.data.test_batches() if split == "test" else iter([job.data.search()])
    reference, pytorch, runtime, labels = outputs_on(job.model, module, session, batches)
    resources = finished_resources(job.network, plan, compressed.layers, len(contents[job.target.file_name]))
    checks = [*check_layers(job.network, plan, compressed.layers), *check_budget(limits, resources)]
    found = None
    if session is not None and runtime is not None:
        found = runtime_outcome("ONNX Runtime", reference, pytorch, runtime, labels)
        checks.append(check_agreement(found))
        found = replace(found, seconds=latencies(job.original_session, session, job.inputs))
    sizes = {name: len(content) for name, content in contents.items()}
    return Verification(tuple(checks), compare(reference, pytorch, labels), found, sizes, resources)


def fine_tuning(config: Config, has_labels: bool) -> FineTuning | None:
    """The settings of fine-tuning; None where none is wanted.

    Args:
        config: of the job.
        has_labels: whether the data has labels.

    Raises:
        InputError: a value is out of range.
    """
    if config.finetune == 0:
        return None
    return FineTuning(
        epochs=config.finetune,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        labels=config.labels,
        objective=Objective(
            soft=config.soft_weight,
            hard=_hard_weight(config, has_labels),
            features=config.features_weight or (_STRONG_FEATURES if config.distillation == "strong" else 0.0),
            temperature=config.temperature,
        ),
        augmentation=config.augmentation,
        mixup=config.mixup,
        clip=config.clip,
        seed=config.seed,
        method=config.distillation,
    )


def _hard_weight(config: Config, has_labels: bool) -> float:
    if config.hard_weight is not None:
        return config.hard_weight
    return _HARD_WEIGHT if has_labels or config.labels == "teacher" else 0.0
