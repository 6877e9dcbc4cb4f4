"""Options on the command line: a command gets those of the parts in `autocompress.config.options`.

Values stay text until `Config` checks them, so a wrong value gives the same one-line error from the command line, a
file and Python.
"""

from __future__ import annotations

import inspect as python_inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from autocompress.cli.shell import Trust, reported
from autocompress.config import OPTIONS, Config, Part, RunOptions, load_config, names_of, part_of
from autocompress.run.folder import default_path, options_file
from autocompress.run.names import JOURNAL, NEXT_CONFIG


def with_options(*parts: type[Part]) -> Callable[[Callable[[Config], None]], Callable[..., None]]:
    """A decorator that gives a command the options of these parts, and reports errors as one line."""
    names = [name for name in names_of(*parts) if name != "model"]

    def decorate(command: Callable[[Config], None]) -> Callable[..., None]:
        def run(config_file: str | None, trust: bool = False, **given: Any) -> None:
            with reported() as context:
                config = _load(config_file, given, RunOptions in parts, trust=trust)
                context.how_to_resume = lambda: _how_to_resume(command.__name__, config)
                command(config)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = {}
        parameters = [*_common_parameters(), *map(_parameter, names)]
        run.__signature__ = python_inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def _common_parameters() -> list[python_inspect.Parameter]:
    """The parameters of every command with options: the network, a file of options, and whether a run's is trusted.

    `trust` is no option of `Config`, which files can set.
    """
    model = typer.Argument(metavar="MODEL", help=help_of("model"), show_default=False)
    config = typer.Option(
        "--config", metavar="FILE", help="YAML file with options; options on the command line override the file's."
    )
    trust = python_inspect.Parameter("trust", python_inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Trust)
    return [
        _keyword("model", Annotated[str | None, model]),
        _keyword("config_file", Annotated[str | None, config]),
        trust,
    ]


def _parameter(name: str) -> python_inspect.Parameter:
    """The command-line parameter of an option. Its value stays text, or None if it is not given."""
    flag = f"--{name.replace('_', '-')}"
    extra: dict[str, Any] = {"help": help_of(name), "rich_help_panel": part_of(name).TITLE, "show_default": False}
    annotation = Config.model_fields[name].annotation
    if annotation in (bool, bool | None):
        return _keyword(name, Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", **extra)])
    return _keyword(name, Annotated[str | None, typer.Option(flag, metavar=_metavar(annotation), **extra)])


def _keyword(name: str, annotation: Any) -> python_inspect.Parameter:
    """A keyword parameter with the default None."""
    return python_inspect.Parameter(name, python_inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _metavar(annotation: Any) -> str:
    """The placeholder of a value in help texts, by its type."""
    kinds = [get_origin(kind) or kind for kind in (annotation, *get_args(annotation))]
    metavars = ((tuple, "LIST"), (Path, "PATH"), (int, "N"), (float, "X"))
    return next((metavar for kind, metavar in metavars if kind in kinds), "TEXT")


def help_of(name: str) -> str:
    """The help text of an option, with its default where it has one."""
    field = Config.model_fields[name]
    text, default = field.description or "", field.default
    if default in (None, False, {}) or "Default:" in text:
        return text
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text} Default: {shown}."


def _load(config_file: str | None, given: Mapping[str, Any], makes_run: bool, *, trust: bool) -> Config:
    """The options of a command: those given on the command line, over those of a file, over the defaults.

    Args:
        config_file: path of a YAML file; if None, `--resume` reads the options of the run in `--out`.
        given: options of the command line by name; None for those that were not given.
        makes_run: whether the command makes a run folder, which then gets a default name.
        trust: whether functions that a run's file of options names may run.
    """
    path = None if config_file is None else Path(config_file)
    if path is None and given.get("resume") and given.get("out"):
        own = options_file(Path(given["out"]))  # of the run that is resumed
        path = own if own.is_file() else None
    config = load_config(path, given)
    if path is not None and (path.parent / JOURNAL).exists():
        _check_trusted(config, given, path.parent, trust)
    if makes_run and config.out is None and not config.resume:
        return config.model_copy(update={"out": default_path(config.model, config.budget)})
    return config


def _check_trusted(config: Config, given: Mapping[str, Any], folder: Path, trust: bool) -> None:
    """Raise InputError where the options of a run's folder name a function that may not run."""
    from autocompress.job.trust import check_trusted, named_functions

    named = [function for function in named_functions(vars(config)) if given.get(function.option) is None]
    check_trusted(named, folder, trust=trust)


def _how_to_resume(command: str, config: Config) -> str:
    """A sentence with the command that continues the run; empty where there is none."""
    if config.out is None or not any((config.out / name).is_file() for name in (JOURNAL, NEXT_CONFIG)):
        return ""
    return f" What was evaluated is kept; continue with: autocompress {command} --out {config.out} --resume"


def arguments_of(config: Config) -> dict[str, Any]:
    """All options by name, as the functions of `autocompress.api` take them."""
    return {name: getattr(config, name) for name in OPTIONS}
