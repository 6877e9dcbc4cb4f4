"""Timing plans: their files are written with the menus' weights, and run in turns with the original's.

What a file takes depends on its shapes and kernels and not on the numbers in it. So a plan can be timed before it is
re-calibrated or fine-tuned.
"""

from __future__ import annotations

from autocompress.execute.compressed import from_menus, uncompressed
from autocompress.job.prepare import Job
from autocompress.targets.graph.lowering import lower
from autocompress.targets.target import Runtime, lowered_for, target_file
from autocompress.targets.timing import Effort, PairedTiming, Session, TimeLimit, time_pair
from autocompress.targets.verify import batch_of
from autocompress_envs.problem import Labeling


class Timer:
    """Times plans of one network beside its original.

    Args:
        job: network with its menus; its target has a runtime.
        limit: what is timed: batch and threads.
    """

    def __init__(self, job: Job, limit: TimeLimit) -> None:
        assert job.target.runtime is not None, "options are checked"
        self._job, self._limit = job, limit
        self._runtime: Runtime = job.target.runtime
        self._batch = batch_of(job.inputs, limit.batch)
        self._found: dict[tuple[bytes, Effort], PairedTiming] = {}
        self._original: Session | None = None

    @property
    def runtime(self) -> Runtime:
        """The runtime that files are timed in."""
        return self._runtime

    @property
    def original(self) -> Session:
        """The original's float32 file, loaded."""
        if self._original is None:
            job = self._job
            unchanged = lower(uncompressed(job.teacher, job.network), job.inputs, integer=False)
            self._original = self._runtime.load(job.target.write(unchanged), self._limit.threads)
        return self._original

    def time(self, labeling: Labeling, effort: Effort) -> PairedTiming:
        """The times of the original and of a plan's file. A plan that was timed with the same effort is not again."""
        key = labeling.key(), effort
        if key not in self._found:
            self._found[key] = time_pair(self.original, self._session(labeling), self._batch, effort)
        return self._found[key]

    def _session(self, labeling: Labeling) -> Session:
        """A plan's file, loaded."""
        job = self._job
        made = from_menus(job.menus, labeling, job.folded)
        content = target_file(job.target, made, lowered_for(job.target, made, job.inputs), job.inputs)
        return self._runtime.load(content, self._limit.threads)
