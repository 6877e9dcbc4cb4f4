"""The command `autocompress train-policy`: a policy from a recipe file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from autocompress.cli.policy import emit_policy
from autocompress.cli.shell import Format, Quiet, reported, watching_progress
from autocompress.config import make_config
from autocompress.errors import InputError

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file of the training.", show_default=False)]
Out = Annotated[Path, typer.Option(metavar="PATH", help="Folder of the policy.", show_default=False)]
Data = Annotated[
    list[str] | None, typer.Option(metavar="NAME=SPEC", help="Replaces a data spec of the recipe; may be repeated.")
]
Cache = Annotated[str | None, typer.Option(metavar="PATH", help="Folder of menus and of the zoo's weights.")]
Device = Annotated[str, typer.Option(metavar="TEXT", help="Torch device, such as cpu or cuda.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue: finished episodes are kept.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the training that lies in the folder.")]


def train_policy(
    recipe: Recipe,
    out: Out,
    data: Data = None,
    cache: Cache = None,
    device: Device = "cpu",
    resume: Resume = False,
    force: Force = False,
    format: Format = "table",
    quiet: Quiet = False,
) -> None:
    """Train a policy that carries over to other networks: build a zoo, explore it, fit the policy to what was seen."""
    from autocompress.policy_training import training

    with reported() as context:
        shown = make_config({"format": format, "quiet": quiet, "cache": cache, "device": device})
        specs = _specs(data or [])
        context.how_to_resume = lambda: _how_to_resume(out, cache, device)
        with watching_progress(shown) as view:
            training.train_policy(
                recipe,
                out,
                data=specs,
                cache=shown.cache,
                device=shown.device,
                resume=resume,
                force=force,
                progress=view,
            )
        emit_policy(out, format)


def _how_to_resume(out: Path, cache: str | None, device: str) -> str:
    """The folder's own recipe holds every data spec that was given; empty where no training was begun."""
    from autocompress.policy_training.training import RECIPE

    recipe = out / RECIPE
    if not recipe.is_file():
        return ""
    machine = (f" --cache {cache}" if cache else "") + (f" --device {device}" if device != "cpu" else "")
    return (
        f" What was explored is kept; continue with: autocompress train-policy {recipe} --out {out}{machine} --resume"
    )


def _specs(given: list[str]) -> Mapping[str, str]:
    pairs = [text.partition("=") for text in given]
    for name, equals, spec in pairs:
        if not (name and equals and spec):
            raise InputError(f"`data` must be NAME=SPEC, got {name + equals + spec!r}; such as cifar10=parquet:FOLDER.")
    return {name: spec for name, _, spec in pairs}
