"""The commands `autocompress policy …`: show, measure and pack policies."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autocompress.cli.shell import Cluster, Format, Quiet, emit, reported, watching_progress
from autocompress.config import make_config
from autocompress.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

policy_app = typer.Typer(
    help="Show, measure and pack policies, which write plans for networks that they were not trained on.",
    no_args_is_help=True,
)

Where = Annotated[
    str,
    typer.Argument(
        metavar="POLICY",
        help="The policy: default (shipped with the package), its folder or one of its two files.",
        show_default=False,
    ),
]
On = Annotated[
    Path,
    typer.Option(
        metavar="PATH",
        help="YAML file with a list of networks: options of search for each, and its budgets.",
        show_default=False,
    ),
]
Episodes = Annotated[
    str,
    typer.Option(
        metavar="N",
        help="Numbers of evaluations such as 10,40: for each, every network and every budget, a search without the "
        "policy and one with it are run; 0: only plans without an evaluation are measured.",
    ),
]
Seed = Annotated[str, typer.Option(metavar="N", help="Seed of these searches.")]
Jobs = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Number of processes that measure; PyTorch's threads are divided between them. With --cluster, most "
        "networks and budgets at once. Default: 1, or as many as the cluster has CPUs.",
    ),
]

Out = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER", help="Folder that the policy is written into; it must not hold one.", show_default=False
    ),
]
PackFile = Annotated[Path, typer.Option(metavar="FILE", help="The file.", show_default=False)]
PackedFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="File that policy pack has written.", show_default=False)
]

_ALWAYS_SHOWN = ("networks", "scores", "licence")
_NOT_RECORDED = "not recorded"


@policy_app.command()
def show(where: Where, format: Format = "table") -> None:
    """Show a policy's size and versions, what it was trained on, its scores and its licence."""
    with reported():
        emit_policy(where, format)


@policy_app.command(name="eval")
def eval_(
    where: Where,
    on: On,
    episodes: Episodes = "0",
    seed: Seed = "0",
    jobs: Jobs = None,
    cluster: Cluster = None,
    format: Format = "table",
    quiet: Quiet = False,
) -> None:
    """Measure a policy on the networks of a file, beside the solver, uniform labels and a search without it."""
    with reported():
        shown = make_config({"format": format, "quiet": quiet, "seed": seed, "jobs": jobs})
        counts = _counts(episodes)
        from autocompress.files import or_none
        from autocompress.policies.files import load_policy
        from autocompress.policy_training.evaluation import evaluate_policy, summarised

        saved = load_policy(where)
        with watching_progress(shown) as view:
            scores = evaluate_policy(
                saved, on, episodes=counts, seed=shown.seed, jobs=shown.jobs, cluster=cluster, progress=view
            )
        summary = [
            {name: or_none(value) if isinstance(value, float) else value for name, value in vars(each).items()}
            for each in summarised(scores, counts)
        ]
        rows = [{**vars(score), "kl": {name: or_none(value) for name, value in score.kl.items()}} for score in scores]
        data = {"policy": saved.name, "summary": summary, "scores": rows}
        emit(shown, data, lambda console: _print_scores(console, data))


@policy_app.command()
def pack(where: Where, out: PackFile) -> None:
    """Write a policy into one file, with checksums."""
    with reported():
        from autocompress.policies.files import load_policy, policy_files
        from autocompress.run.pack import POLICY
        from autocompress.run.pack import pack as write_pack

        load_policy(where)  # what is damaged must not be handed on
        files = policy_files(where)
        write_pack(files[0].parent, [file.name for file in files], POLICY, out)
        typer.echo(f"{out}: {out.stat().st_size:,} bytes")


@policy_app.command()
def unpack(file: PackedFile, out: Out) -> None:
    """Unpack a policy into a new folder. Its files are checked first, and nothing in them is run."""
    with reported():
        from autocompress.run.pack import POLICY
        from autocompress.run.pack import unpack as read_pack

        read_pack(file, POLICY, out)
        emit_policy(out, "table")


def _print_scores(console: Console, data: Mapping[str, Any]) -> None:
    from rich.table import Table

    writers = list(data["scores"][0]["kl"])
    table = Table(
        title=f"KL divergence from the original in nats, on the search split; policy {data['policy']}",
        title_justify="left",
    )
    for column in ("network", "budget", *writers):
        table.add_column(column, justify="right" if column in writers else "left")
    for row in data["scores"]:
        cells = ["" if row["kl"][name] is None else f"{row['kl'][name]:.4f}" for name in writers]
        table.add_row(row["network"], row["budget"], *cells)
    console.print(table)
    for each in data["summary"]:
        if each["rows"]:
            line = (
                f"{each['writer']} / {each['beside']}: {each['ratio']:.3f} (geometric mean, 95 % interval "
                f"{each['low']:.3f} to {each['high']:.3f}); better in {100 * each['better']:.0f} % of "
                f"{each['rows']} rows"
            )
            console.print(line, soft_wrap=True, markup=False, highlight=False)


def emit_policy(where: str | Path, format: str) -> None:
    """Write everything known about a policy to standard output.

    Args:
        where: `default`, the policy's folder or one of its two files.
        format: form of the output, `table` or `json`.
    """
    config = make_config({"format": format})
    data = _policy_data(where)
    emit(config, data, lambda console: _print(console, data))


def _counts(text: str) -> tuple[int, ...]:
    """Numbers of evaluations, from a text such as 10,40; 0 and nothing mean none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise InputError(f"`episodes` must be whole numbers such as 10,40, got {text!r}.")
    return tuple(count for count in dict.fromkeys(map(int, parts)) if count)


def _policy_data(where: str | Path) -> dict[str, Any]:
    """A policy's name, size, versions and training record as JSON data."""
    from autocompress.policies.files import ACTION_VERSION, load_policy, policy_files
    from autocompress_envs.labeling.observation import OBSERVATION_VERSION

    saved = load_policy(where)
    files = policy_files(where)
    return {
        "name": saved.name,
        "folder": str(files[0].parent),
        "members": len(saved.policy.members),
        "width": saved.policy.width,
        "parameters": sum(parameter.numel() for parameter in saved.policy.parameters()),
        "file_bytes": sum(file.stat().st_size for file in files),
        "observation_version": OBSERVATION_VERSION,  # policies of another version are refused
        "action_version": ACTION_VERSION,
        "record": dict(saved.record),
    }


def _print(console: Console, data: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    record = {**dict.fromkeys(_ALWAYS_SHOWN, _NOT_RECORDED), **data["record"]}
    own = {name.replace("_", " "): value for name, value in data.items() if name != "record"}
    table = Table(title="Policy", title_justify="left", show_header=False)
    for name, value in [*own.items(), *_rows(record)]:
        table.add_row(Text(_printable(name)), Text(_printable(_text(value)), overflow="fold"))
    console.print(table)


def _rows(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of a record; the names of nested mappings are joined by dots."""
    for name, value in record.items():
        if isinstance(value, dict) and value:
            yield from _rows(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(value: Any) -> str:
    if isinstance(value, list) and value and not any(isinstance(each, dict | list) for each in value):
        return ", ".join(map(_text, value))
    if type(value) is int:
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value)


def _printable(text: str) -> str:
    """Text with escapes for characters that steer a terminal or can't be encoded: files come from others."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
