"""Timing plans: their files are written with the menus' weights, and run in turns with the original's.

What a file takes depends on its shapes and kernels and not on the numbers in it. So a plan can be timed before it is
re-calibrated or fine-tuned.
"""

from __future__ import annotations

from autocompress.execute.compressed import from_menus
from autocompress.job.prepare import Job
from autocompress.targets.target import Runtime, original_file, roughly_ranged_file
from autocompress.targets.timing import Effort, Machine, PairedTiming, Session, TimeLimit, time_pair
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
        self._original_file: bytes | None = None
        self._where: tuple[Machine, str] | None = None

    @property
    def runtime(self) -> Runtime:
        """The runtime that files are timed in."""
        return self._runtime

    @property
    def where(self) -> tuple[Machine, str]:
        """The machine that files are timed on, and name and version of the runtime there."""
        if self._where is None:
            self._where = self._runtime.where()
        return self._where

    @property
    def original_file(self) -> bytes:
        """The original's float32 file."""
        if self._original_file is None:
            job = self._job
            self._original_file = original_file(job.target, job.teacher, job.network, job.inputs)
        return self._original_file

    @property
    def original(self) -> Session:
        """The original's float32 file, loaded."""
        if self._original is None:
            self._original = self._runtime.load(self.original_file, self._limit.threads)
        return self._original

    def time(self, labeling: Labeling, effort: Effort) -> PairedTiming:
        """The times of the original and of a plan's file. A plan that was timed with the same effort is not again."""
        key = labeling.key(), effort
        if key not in self._found:
            self._found[key] = self._timed(self._file(labeling), effort)
        return self._found[key]

    def _timed(self, content: bytes, effort: Effort) -> PairedTiming:
        """The times of the original and of a file, here or where the runner is."""
        threads = self._limit.threads
        if self._runtime.runner is not None:
            return self._runtime.time((self.original_file, content), self._batch, effort, threads)
        return time_pair(self.original, self._runtime.load(content, threads), self._batch, effort)

    def _file(self, labeling: Labeling) -> bytes:
        """A plan's file."""
        job = self._job
        return roughly_ranged_file(job.target, from_menus(job.menus, labeling, job.folded), job.inputs)
