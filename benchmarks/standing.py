"""Where methods stand: the share of the gap from the solver on measured sensitivities to the best plan known.

python benchmarks/standing.py digits=runs/digits resnet20-pruning=runs/r20p,runs/r20p-best …

Every task is a name and the folders of its comparisons (`autocompress compare`); where these hold several budgets, one
of them follows behind an @: resnet20-2.4-bits=runs/r20b@size=8.512%. The best-known KL is
the least that any search of these folders found, those with more evaluations among them; a method's numbers are of its
cells with at most `--episodes`.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from autocompress.comparison.summary import RESAMPLES, spread

LEVELS = (2.5, 97.5)  # percentiles: 95 % lie between them

REFERENCE, OURS = "measured", "rl"
INTERACTING = ("pruning", "joint", "digits")  # tasks whose layers interact, by a part of their names


@dataclass(frozen=True)
class Standing:
    """One task: the KL of every method's seeds (nats, search split), the same on the test split, the least KL known."""

    kl: Mapping[str, Sequence[float]]
    test_kl: Mapping[str, Sequence[float]]
    best: float

    def closed(self, method: str) -> list[float]:
        """By seed: 0 is the reference and 1 the best known."""
        start = float(np.mean(self.kl[REFERENCE]))
        return [(start - kl) / (start - self.best) for kl in self.kl[method]]

    def relative(self, method: str) -> list[float]:
        """By seed: KL over the reference's."""
        return [kl / float(np.mean(self.kl[REFERENCE])) for kl in self.kl[method]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", metavar="TASK=FOLDER[,FOLDER][@BUDGET]")
    parser.add_argument("--episodes", type=int, default=400)
    arguments = parser.parse_args()
    named = (task.split("=", 1) for task in arguments.tasks)
    standings = {name: read(where, arguments.episodes) for name, where in named}
    for name, standing in standings.items():
        show(name, standing)
    _show_all(standings)


def read(where: str, episodes: int) -> Standing:
    """The task that the comparisons in folders share; where several have a method's seed, the last one counts."""
    folders, _, budget = where.partition("@")
    rows = [row for folder in folders.split(",") for row in pq.read_table(Path(folder) / "results.parquet").to_pylist()]
    finished = [row for row in rows if row["status"] == "finished" and budget in ("", row["budget"])]
    cells = {(row["method"], row["seed"]): row for row in finished if row["evaluations"] <= episodes}
    kl, test_kl = defaultdict(list), defaultdict(list)
    for (method, _), row in cells.items():
        kl[method].append(row["kl"])
        test_kl[method].append(row["test_kl"])
    return Standing(dict(kl), dict(test_kl), min(row["kl"] for row in finished))


def show(name: str, standing: Standing) -> None:
    """Print the table of a task."""
    print(f"\n{name}: best known {standing.best:.4f}")
    print("| method | seeds | KL | worst | gap closed | KL over the solver's | test KL |\n" + "| --- " * 7 + "|")
    for method in sorted(standing.kl, key=lambda each: float(np.mean(standing.kl[each]))):
        found, relative = spread(standing.kl[method]), np.mean(standing.relative(method))
        interval = f" [{found.low:.4f}, {found.high:.4f}]" if found.n > 1 else ""
        print(
            f"| {method} | {found.n} | {found.mean:.4f}{interval} | {max(standing.kl[method]):.4f} "
            f"| {np.mean(standing.closed(method)):.0%} | {relative:.3f} | {np.mean(standing.test_kl[method]):.4f} |"
        )


def _show_all(standings: Mapping[str, Standing]) -> None:
    mean, low, high = _over_tasks([each.closed(OURS) for each in standings.values()])
    print(f"\n{OURS} over {len(standings)} tasks: gap closed {mean:.0%} [{low:.0%}, {high:.0%}]")
    lowest = sum(_is_lowest(each) for each in standings.values())
    worse = [kl > np.mean(each.kl[REFERENCE]) for each in standings.values() for kl in each.kl[OURS]]
    print(
        f"lowest mean KL on {lowest} of {len(standings)} tasks; worse than {REFERENCE} in {sum(worse)} of {len(worse)}"
    )
    interacting = [each for name, each in standings.items() if any(part in name for part in INTERACTING)]
    mean, low, high = np.exp(_over_tasks([np.log(each.relative(OURS)).tolist() for each in interacting]))
    print(f"KL over {REFERENCE} where layers interact: {mean:.3f} [{low:.3f}, {high:.3f}] (geometric mean)")


def _is_lowest(standing: Standing) -> bool:
    """Whether no other method has a lower mean; variants of ours do not count."""
    means = {method: float(np.mean(kl)) for method, kl in standing.kl.items() if not method.startswith(f"{OURS} ")}
    return means[OURS] <= min(means.values())


def _over_tasks(values: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Mean over tasks of means over seeds, and its 95 % bootstrap interval: seeds are drawn again within each task."""
    rng = np.random.default_rng(0)
    drawn = [rng.choice(np.array(seeds), (RESAMPLES, len(seeds))).mean(1) for seeds in values]
    low, high = np.percentile(np.mean(drawn, axis=0), LEVELS)
    return float(np.mean([np.mean(seeds) for seeds in values])), float(low), float(high)


if __name__ == "__main__":
    main()
