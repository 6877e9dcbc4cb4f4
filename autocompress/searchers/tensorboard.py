"""TensorBoard scalars of a search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
    from torch.utils.tensorboard import SummaryWriter  # here, because importing it takes a second

    with SummaryWriter(str(folder)) as writer:
        best_kl = float("nan")

        def observe(evaluated: Evaluated) -> None:
            nonlocal best_kl
            outcome, step = evaluated.outcome, evaluated.index
            best_kl = outcome.kl if evaluated.is_best else best_kl
            writer.add_scalar("search/kl", outcome.kl, step)
            writer.add_scalar("search/accuracy", outcome.accuracy, step)
            writer.add_scalar("search/reward", evaluated.reward, step)
            writer.add_scalar("search/best_kl", best_kl, step)
            for resource, limit in limits.items():
                writer.add_scalar(f"search/cost_{resource}", outcome.resources[resource] / limit, step)

        yield observe
        writer.flush()
