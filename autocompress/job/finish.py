"""The end of a job: a finished network is written to files, and the files are verified in their runtime."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autocompress.budget import COUNTED
from autocompress.data import Data
from autocompress.evaluation import measured_at_once
from autocompress.evaluation.measure import Closeness, closeness
from autocompress.evaluation.number_format import CPU
from autocompress.execute.compressed import Compressed
from autocompress.execute.pipeline import Executed, Execution, execute
from autocompress.files import write_atomically
from autocompress.job.load import Loaded
from autocompress.job.prepare import Job
from autocompress.job.results import Finished, TimeClaim
from autocompress.machine import machine
from autocompress.network.interface import plain
from autocompress.plan import Plan
from autocompress.progress import Progress
from autocompress.run.names import CHECKPOINTS, MODEL, OUTCOME
from autocompress.samples import Inputs, fields_of
from autocompress.targets.graph.lowering import Lowered
from autocompress.targets.lengths import check_length, lengths_run
from autocompress.targets.target import TARGETS, Runtime, lowered_for, original_file, target_file
from autocompress.targets.timing import LEADER, Effort, PairedTiming, Session, TimeLimit
from autocompress.targets.verify import (
    BATCHES,
    LATENCY_EFFORT,
    RuntimeOutcome,
    Verification,
    batch_of,
    check_agreement,
    check_budget,
    check_latency,
    check_layers,
    finished_resources,
    latencies,
    outputs_on,
    runtime_outcome,
)
from autocompress.version import versions
from autocompress_envs.problem import Labeling, Outcome

_TIMINGS = 3  # of a finished file whose interval holds the limit
_MOST_KEPT = 2**27  # bytes of the original's outputs that wait for the next verification in the same job


@dataclass(frozen=True, eq=False)
class Files:
    """A finished network, written.

    Attributes:
        contents: content of every file by its name: the packed file, and the target's own where that is another.
        lowered: the network that the files hold; None where torch.export can't follow it.
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


def execute_and_finish(
    job: Job,
    labeling: Labeling,
    limits: Mapping[str, int],
    execution: Execution,
    path: Path,
    watcher: Progress,
    time: TimeLimit | None = None,
) -> Finished:
    """From a plan to verified files in the run folder: `execute`, then `finish`."""
    executed = execute(job.menus, labeling, job.folded, job.teacher, job.data, execution, watcher, job.search_outputs)
    claim = None if time is None else TimeClaim(time)
    return finish(job, executed, labeling, limits, path, watcher, claim)


def finish(
    job: Job,
    executed: Executed,
    labeling: Labeling,
    limits: Mapping[str, int],
    path: Path,
    watcher: Progress,
    time: TimeClaim | None = None,
) -> Finished:
    """Make a finished network's files, verify them, and write them into a run folder.

    They are written last: until then the files of a run that is fine-tuned further stay as they are.

    Args:
        job: the network with its menus.
        executed: the finished network.
        labeling: its plan.
        limits: absolute upper bounds by resource; that of `latency` is taken from `time`.
        path: folder of the run.
        watcher: observer that is told of stages, notes and evaluations.
        time: limit of time. Default: none.

    Raises:
        ExportError: the target can't hold the network.
    """
    files = write_files(executed.compressed, job)
    split = split_used(job.data, "test", watcher)
    finished = files.lowered or executed.compressed
    verified = verify_files(job, executed.compressed.plan, finished, files.contents, limits, split, watcher, time)
    limits, original = _with_time(limits, job.original, verified, time)
    # The packed file last: fine-tuning begins with it, and a kill until then leaves the one that it began with.
    for name, content in sorted(files.contents.items(), key=lambda item: item[0] == MODEL):
        write_atomically(path / name, content)
    return Finished(
        plan=executed.compressed.plan,
        model=plain(executed.compressed.rounded()),
        outcome=_outcome(verified.pytorch, verified.resources),
        original_outcome=Outcome(
            0.0, verified.pytorch.original_accuracy, verified.pytorch.original_agreement, original
        ),
        split=split,
        limits=limits,
        network=job.network,
        problem=job.problem,
        labeling=labeling,
        metrics=verified.pytorch.metrics_by_name(),
        task=job.reading.task.name,
        run_folder=path,
        executed=executed,
        verification=verified,
        time=time,
    )


def _with_time(
    limits: Mapping[str, int], original: Mapping[str, int], verified: Verification, time: TimeClaim | None
) -> tuple[dict[str, int], dict[str, int]]:
    """Limits and the original's resources with `latency` as it was measured beside the file; without it, where not."""
    counted, before = ({name: each[name] for name in each if name in COUNTED} for each in (limits, original))
    if time is None or verified.runtime is None:
        return counted, before
    timing = verified.runtime.timings[time.limit.batch]
    nanoseconds = round(1e9 * timing.original.median.median)
    share, seconds = time.limit.share, time.limit.seconds
    most = share * nanoseconds if share is not None else 1e9 * (seconds or 0.0)
    return {**counted, "latency": int(most)}, {**before, "latency": nanoseconds}


def write_outcome(path: Path, outcome: Mapping[str, Any], device: str) -> None:
    """The last file of a run; what an interrupted run would have needed to go on, goes.

    Args:
        path: folder of the run.
        outcome: measurements of the finished network, as plain data.
        device: torch device that the job ran on.
    """
    made_on = {"versions": versions(), "machine": machine(device)}
    write_atomically(path / OUTCOME, json_text({**outcome, **made_on}))
    for name in CHECKPOINTS:
        (path / name).unlink(missing_ok=True)


def json_text(data: Mapping[str, Any]) -> str:
    """Plain data as the text of a JSON file."""
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


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
    time: TimeClaim | None = None,
) -> Verification:
    """Run the files and look at every claim; the only place where a finished network meets the test split.

    Args:
        job: the original, its data and the target.
        plan: labels that the files are claimed to have.
        compressed: the finished network.
        contents: content of its files by name.
        limits: absolute upper bounds by resource; empty without a budget. Time has its own, `time`.
        split: `test` or `search`.
        watcher: observer that is told of stages, notes and evaluations.
        time: limit of time. Default: none.
    """
    watcher.stage(f"verification: the files in their runtime and the original on the {split} split")
    module = compressed.graph if isinstance(compressed, Lowered) else compressed.rounded()
    opened = _opened(job, contents, 1 if time is None else time.limit.threads)
    session = None if opened is None else opened.compressed
    batches = job.data.test_batches() if split == "test" else iter([job.data.search()])
    at_once, in_runtime = (measured_at_once(job.network, job.memory, each) for each in (job.device, CPU))
    reference, pytorch, runtime = outputs_on(
        job.kept_outputs.get(split, job.model),
        *(module, session, batches, job.device, watcher.note, at_once, in_runtime, job.reading),
    )
    if reference.bytes <= _MOST_KEPT:
        job.kept_outputs[split] = reference
    resources = finished_resources(job.network, plan, compressed.layers, len(contents[job.target.file_name]))
    checks = [*check_layers(job.network, plan, compressed.layers), *check_budget(_counted(limits), resources)]
    found = None
    if opened is not None and runtime is not None:
        found = runtime_outcome(opened.runtime.name, reference, pytorch, runtime)
        checks.append(check_agreement(found))
        if isinstance(compressed, Lowered):
            length = check_length(
                *(opened.runtime.name, compressed.graph, opened.compressed, job.inputs, job.network),
                has_answers=job.reading.has_answers,
            )
            checks += [] if length is None else [length]
        found = _timed(found, opened, job.inputs, time)
        for note in {note: None for timing in found.timings.values() for note in timing.notes()}:
            watcher.note(note)
        if time is not None:
            timing = found.timings[time.limit.batch]
            checks.append(check_latency(time.limit, timing, time.machine))
            resources["latency"] = _nanoseconds(time.limit, timing)
    sizes = {name: len(content) for name, content in contents.items()}
    shapes = {field.name: field.shape for field in fields_of(job.inputs)} if found else {}
    lengths = lengths_run(compressed.graph, job.inputs) if found and isinstance(compressed, Lowered) else ()
    return Verification(tuple(checks), closeness(reference, pytorch), found, sizes, resources, shapes, lengths)


def _counted(limits: Mapping[str, int]) -> dict[str, int]:
    return {name: limit for name, limit in limits.items() if name in COUNTED}


def _timed(found: RuntimeOutcome, opened: _Opened, inputs: Inputs, time: TimeClaim | None) -> RuntimeOutcome:
    """With the times at the usual batch sizes, and at that of a limit of time, which are measured more closely."""
    threads = 1 if time is None else time.limit.threads
    timings = opened.latencies(inputs, BATCHES, LATENCY_EFFORT, threads)
    if time is None:
        return replace(found, timings=timings)
    batch = time.limit.batch
    closely = _decided(lambda: opened.latencies(inputs, [batch], LEADER, threads)[batch], time.limit)
    return replace(found, timings={**timings, batch: closely}, threads=time.limit.threads)


def _decided(timed: Callable[[], PairedTiming], limit: TimeLimit) -> PairedTiming:
    """A timing that says whether the limit is kept: on a busy machine the closest of several, whatever it says."""
    found = timed()
    for _ in range(_TIMINGS - 1):
        used = limit.used(found)
        if found.settled or used.high <= 1.0 or used.low > 1.0:
            break
        found = min(found, timed(), key=lambda each: each.ratio.tightness)
    return found


def _nanoseconds(limit: TimeLimit, timing: PairedTiming) -> int:
    """Median time of the file, rounded up; from the ratio where the limit is one."""
    if limit.share is None:
        return math.ceil(1e9 * timing.compressed.median.median)
    return math.ceil(timing.ratio.median * round(1e9 * timing.original.median.median))


@dataclass(frozen=True)
class _Opened:
    """The finished network and the original in float32, both loaded in a runtime; and their files, in that order."""

    runtime: Runtime
    compressed: Session
    original: Session
    files: tuple[bytes, bytes]

    def latencies(
        self, inputs: Inputs, batches: Iterable[int], effort: Effort, threads: int
    ) -> dict[int, PairedTiming]:
        """Times by batch size: here, or where the runtime's runner is."""
        if self.runtime.runner is None:
            return latencies(self.original, self.compressed, inputs, batches, effort)
        compressed, original = self.files
        return {
            batch: self.runtime.time((original, compressed), batch_of(inputs, batch), effort, threads)
            for batch in batches
        }


def _opened(job: Loaded, contents: Mapping[str, bytes], threads: int) -> _Opened | None:
    """In the runtime of the job's target, else in that of a built-in one whose file is there; None without any."""
    for target in (job.target, *TARGETS.built_in()):
        if target.runtime is not None and target.file_name in contents:
            original = original_file(target, job.teacher, job.network, job.inputs)
            files = (contents[target.file_name], original)
            compressed, unchanged = (target.runtime.load(content, threads) for content in files)
            return _Opened(target.runtime, compressed, unchanged, files)
    return None
