"""TensorBoard scalars of a search."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autocompress.files import writing
from autocompress.searchers.base import Evaluated

Observe = Callable[[Evaluated], None]
"""Takes every new evaluation of a search, in order."""


@contextmanager
def tensorboard_observer(folder: Path, limits: dict[str, int]) -> Iterator[Observe]:
    """An observer that writes TensorBoard scalars, one step per evaluation, until the block ends.

    Tags: `search/kl` (nats), `search/accuracy`, `search/reward`, `search/best_kl` (nats, the best plan's so
    far), and `search/cost_RESOURCE` (share of the limit that the plan uses) for every limited resource.

    Args:
        folder: folder to which the event files are written; made where it is missing.
        limits: upper bound of every limited resource, in absolute units.
    """
    with scalars(folder) as add:
        best_kl = float("nan")

        def observe(evaluated: Evaluated) -> None:
            nonlocal best_kl
            outcome, step = evaluated.outcome, evaluated.index
            best_kl = outcome.kl if evaluated.is_best else best_kl
            add("search/kl", outcome.kl, step)
            add("search/accuracy", outcome.accuracy, step)
            add("search/reward", evaluated.reward, step)
            add("search/best_kl", best_kl, step)
            for resource, limit in limits.items():
                add(f"search/cost_{resource}", outcome.resources[resource] / limit, step)

        yield observe


@contextmanager
def scalars(folder: Path) -> Iterator[Callable[[str, float, int], None]]:
    """A function that writes a TensorBoard scalar (tag, value, step), until the block ends.

    Args:
        folder: folder to which the event files are written; made where it is missing.

    Raises:
        WriteError: a file can't be written. It is found by a thread of the writer's own, so a later scalar, or the end
            of the block, raises it; the thread's traceback is not printed.
    """
    from torch.utils.tensorboard import SummaryWriter  # here, because importing it takes a second

    before = threading.excepthook

    def told(failed: threading.ExceptHookArgs) -> None:
        if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__name__ == "_AsyncWriterThread"):
            before(failed)

    threading.excepthook = told
    try:
        with writing(folder):
            writer = SummaryWriter(str(folder))

        def add(tag: str, value: float, step: int) -> None:
            with writing(folder):
                writer.add_scalar(tag, value, step)

        try:
            yield add
            with writing(folder):
                writer.flush()
        finally:
            with suppress(OSError):  # what could not be written has been said
                writer.close()
    finally:
        threading.excepthook = before
