"""The command `autocompress train-policy`: trains a policy by a recipe file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from autocompress.cli.policy import emit_policy
from autocompress.cli.shell import Cluster, Format, Quiet, Trust, reported, watching_progress
from autocompress.config import make_config
from autocompress.errors import InputError

Recipe = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE", help="YAML file of the networks, tasks and settings to train with.", show_default=False
    ),
]
Out = Annotated[
    Path,
    typer.Option(metavar="PATH", help="Folder that the policy and its training are written into.", show_default=False),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=SPEC",
        help="Data in place of the recipe's data NAME, in the form of search --data, such as cifar10=parquet:FOLDER; "
        "may be given several times.",
    ),
]
Cache = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Folder of the menu cache, which also keeps the trained networks. Default: $AUTOCOMPRESS_CACHE or "
        "~/.cache/autocompress.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="TEXT",
        help="Torch device that networks are evaluated on, such as cpu or cuda; auto is CUDA where there is one, else "
        "the CPU.",
    ),
]
Jobs = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Number of processes that train and measure the recipe's networks; PyTorch's threads are divided between "
        "them. With --cluster, most networks at once. Default: 1, or as many as the cluster has CPUs.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Continue the training in the folder by the same recipe: finished episodes are kept."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the training that is in the folder.")]


def train_policy(
    recipe: Recipe,
    out: Out,
    data: Data = None,
    cache: Cache = None,
    device: Device = "auto",
    jobs: Jobs = None,
    cluster: Cluster = None,
    resume: Resume = False,
    force: Force = False,
    trust: Trust = False,
    format: Format = "table",
    quiet: Quiet = False,
) -> None:
    """Train a policy: train the recipe's networks, evaluate plans for them, fit the policy to the outcomes."""
    with reported() as context:
        from autocompress.policy_training import training  # here, where an interruption is told in one line

        shown = make_config({"format": format, "quiet": quiet, "cache": cache, "device": device, "jobs": jobs})
        specs = _specs(data or [])
        context.how_to_resume = lambda: _how_to_resume(out, cache, device)
        with watching_progress(shown) as view:
            training.train_policy(
                recipe,
                out,
                data=specs,
                cache=shown.cache,
                device=shown.device,
                jobs=shown.jobs,
                cluster=cluster,
                resume=resume,
                force=force,
                trust=trust,
                progress=view,
            )
        emit_policy(out, format)


def _how_to_resume(out: Path, cache: str | None, device: str) -> str:
    """A sentence with the command that continues the training; empty where none was begun.

    The recipe in the folder holds all data that was given, so the command needs no --data.
    """
    from autocompress.policy_training.training import RECIPE

    recipe = out / RECIPE
    if not recipe.is_file():
        return ""
    machine = (f" --cache {cache}" if cache else "") + (f" --device {device}" if device != "auto" else "")
    return (
        f" What was explored is kept; continue with: autocompress train-policy {recipe} --out {out}{machine} --resume"
    )


def _specs(given: list[str]) -> Mapping[str, str]:
    """Data by the recipe's names, from texts NAME=SPEC."""
    pairs = [text.partition("=") for text in given]
    for name, equals, spec in pairs:
        if not (name and equals and spec):
            raise InputError(f"`data` must be NAME=SPEC, got {name + equals + spec!r}; such as cifar10=parquet:FOLDER.")
    return {name: spec for name, _, spec in pairs}
