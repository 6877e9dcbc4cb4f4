"""The command line: a thin shell over `autocompress.api`.

Results go to standard output, all else to standard error.
A command gets its options from the parts in `autocompress.config.options` (`_with_options`). The values stay
text until `Config` checks them, so a wrong value gives the same one-line error from the command line, a file
and Python.
"""

from __future__ import annotations

import inspect as python_inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer

from autocompress.cli.cache import cache_app
from autocompress.cli.compare import compare
from autocompress.cli.doctor import doctor
from autocompress.cli.mcp import mcp
from autocompress.cli.pack import pack, unpack_
from autocompress.cli.policy import policy_app
from autocompress.cli.report import report
from autocompress.cli.shell import Format, Quiet, Trust, emit, on_a_page, reported, watching_progress
from autocompress.cli.train_policy import train_policy
from autocompress.config import (
    OPTIONS,
    BudgetOptions,
    Config,
    ExecutionOptions,
    InspectOptions,
    MachineOptions,
    MeasureOptions,
    MenuOptions,
    NetworkOptions,
    OutputOptions,
    ParetoOptions,
    Part,
    RunOptions,
    SearchOptions,
    ToleranceOptions,
    WatchOptions,
    load_config,
    make_config,
    names_of,
    part_of,
)
from autocompress.errors import AutocompressError, InputError
from autocompress.run.folder import default_path, options_file
from autocompress.run.names import JOURNAL, NEXT_CONFIG
from autocompress.version import __version__

if TYPE_CHECKING:
    from autocompress.targets.verify import Verification

app = typer.Typer(
    help="Compress a trained neural network to a hard budget: a search chooses the sparsity and the bit-widths of "
    "every layer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the command `autocompress`."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"autocompress {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    pass


def _with_options(*parts: type[Part]) -> Callable[[Callable[[Config], None]], Callable[..., None]]:
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
    model = typer.Argument(metavar="MODEL", help=_help("model"), show_default=False)
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
    extra: dict[str, Any] = {"help": _help(name), "rich_help_panel": part_of(name).TITLE, "show_default": False}
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


def _help(name: str) -> str:
    """The help text of an option, with its default where it has one."""
    field = Config.model_fields[name]
    text, default = field.description or "", field.default
    if default in (None, False, {}) or "Default:" in text:
        return text
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text} Default: {shown}."


@app.command()
@_with_options(
    NetworkOptions,
    BudgetOptions,
    ToleranceOptions,
    MenuOptions,
    SearchOptions,
    ExecutionOptions,
    MachineOptions,
    RunOptions,
    WatchOptions,
    OutputOptions,
)
def search(config: Config) -> None:
    """Search for the best plan within a budget, compress the network by it, export and verify it.

    With --max-drop or --max-kl, search for the smallest network that loses no more.
    """
    tolerates = config.max_drop is not None or config.max_kl is not None or config.minimize is not None
    _check_enough(config, needs_budget=not tolerates)
    from autocompress import api
    from autocompress.job.result_data import result_data
    from autocompress.report.tables import print_result, print_smallest

    if tolerates:
        with watching_progress(config) as view:
            found = api.smallest(**_arguments(config), progress=view)
        emit(config, found.data(), lambda console: print_smallest(console, found))
        return
    with watching_progress(config) as view, on_a_page(config, view) as (progress, finish):
        result = api.search(**_arguments(config), progress=progress)
        finish(result.run_folder)
    emit(config, result_data(result), lambda console: print_result(console, result))
    _stop_unless(result.verification)


OWN_NETWORK = """For a network of your own, two functions in a file mine.py and one command will do:
  def net(): return the trained torch.nn.Module
  def data(): return (inputs, labels), (test_inputs, test_labels)     # tensors; labels may be None
  autocompress search mine.py:net --data mine.py:data --budget size=0.1
To see it work first: autocompress search --budget size=0.12            # a small network that comes with the package"""


def _check_enough(config: Config, *, needs_budget: bool) -> None:
    """Raise InputError with the lines that would do, where the budget or the data of a search is missing."""
    try:
        config.required_data()
        if needs_budget:
            config.required_budget()
    except InputError as error:
        raise InputError(f"{error}\n{OWN_NETWORK}") from None


@app.command()
@_with_options(
    NetworkOptions,
    ParetoOptions,
    BudgetOptions,
    MenuOptions,
    SearchOptions,
    ExecutionOptions,
    MachineOptions,
    RunOptions,
    OutputOptions,
)
def pareto(config: Config) -> None:
    """Search under many budgets of one resource at once: a front, with the files of every point."""
    from autocompress import api
    from autocompress.report.tables import print_front

    with watching_progress(config) as view:
        front = api.pareto(**_arguments(config), progress=view)
    emit(config, front.data(), lambda console: print_front(console, front))
    if not front.verified:
        raise AutocompressError("verification failed: a point of the front has claims that do not hold")


@app.command()
@_with_options(NetworkOptions, MenuOptions, InspectOptions, MachineOptions, OutputOptions)
def inspect(config: Config) -> None:
    """Show a network's layers and channel groups: costs, labels on offer, and each label's expected loss.

    With --measure, some labels are measured too, which says how far the expected losses can be trusted.
    """
    from autocompress import api
    from autocompress.job.result_data import inspection_data
    from autocompress.report.tables import print_inspection

    with watching_progress(config) as view:
        inspection = api.inspect(**_arguments(config), progress=view)
    emit(config, inspection_data(inspection), lambda console: print_inspection(console, inspection))


@app.command()
@_with_options(NetworkOptions, BudgetOptions, MenuOptions, MeasureOptions, MachineOptions, OutputOptions)
def evaluate(config: Config) -> None:
    """Measure a plan beside the original network; the plan may be edited by hand."""
    from autocompress import api
    from autocompress.job.result_data import measurement_data
    from autocompress.report.tables import print_measurement

    with watching_progress(config) as view:
        measured = api.evaluate(**_arguments(config), progress=view)
    emit(config, measurement_data(measured), lambda console: print_measurement(console, measured))


@app.command()
@_with_options(
    NetworkOptions,
    BudgetOptions,
    MenuOptions,
    ExecutionOptions,
    MeasureOptions,
    MachineOptions,
    RunOptions,
    WatchOptions,
    OutputOptions,
)
def apply(config: Config) -> None:
    """Compress a network by a given plan: prune, re-calibrate, fine-tune, export and verify it."""
    from autocompress import api
    from autocompress.job.result_data import finished_data
    from autocompress.report.tables import print_finished

    with watching_progress(config) as view, on_a_page(config, view) as (progress, finish):
        finished = api.apply(**_arguments(config), progress=progress)
        finish(finished.run_folder)
    emit(config, finished_data(finished), lambda console: print_finished(console, finished))
    _stop_unless(finished.verification)


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.", show_default=False)]
OwnModel = Annotated[
    str | None, typer.Option("--model", metavar="TEXT", help="Network in place of the one that the run's folder names.")
]
OwnData = Annotated[
    str | None, typer.Option("--data", metavar="TEXT", help="Data in place of that which the run's folder names.")
]
Device = Annotated[str | None, typer.Option(metavar="TEXT", help=_help("device"))]


@app.command()
def finetune(
    run: RunFolder,
    epochs: Annotated[
        str, typer.Option(metavar="X", help="Number of passes over the training samples; fractions are allowed.")
    ],
    learning_rate: Annotated[str | None, typer.Option(metavar="X", help=_help("learning_rate"))] = None,
    batch_size: Annotated[str | None, typer.Option(metavar="N", help=_help("batch_size"))] = None,
    distillation: Annotated[str | None, typer.Option(metavar="TEXT", help=_help("distillation"))] = None,
    labels: Annotated[str | None, typer.Option(metavar="TEXT", help=_help("labels"))] = None,
    hard_weight: Annotated[str | None, typer.Option(metavar="X", help=_help("hard_weight"))] = None,
    augmentation: Annotated[str | None, typer.Option(metavar="TEXT", help=_help("augmentation"))] = None,
    mixup: Annotated[str | None, typer.Option(metavar="X", help=_help("mixup"))] = None,
    device: Device = None,
    model: OwnModel = None,
    data: OwnData = None,
    trust: Trust = False,
    format: Format = "table",
    quiet: Quiet = False,
) -> None:
    """Fine-tune a run's network further, export and verify it. If it is interrupted, repeat the command."""
    given = {"learning_rate": learning_rate, "distillation": distillation, "labels": labels, "finetune": epochs}
    given |= {
        "hard_weight": hard_weight,
        "augmentation": augmentation,
        "mixup": mixup,
        "batch_size": batch_size,
        "device": device,
    }
    with reported() as context:
        context.how_to_resume = lambda: " The run is as it was; the same command goes on."
        from autocompress import api  # here, where an interruption is told in one line: it takes seconds
        from autocompress.job.result_data import finished_data
        from autocompress.report.tables import print_finished

        config = make_config({"format": format, "quiet": quiet})
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        with watching_progress(config) as view:
            finished = api.finetune(run, model, data, trust=trust, progress=view, **options)
        emit(config, finished_data(finished), lambda console: print_finished(console, finished))
        _stop_unless(finished.verification)


@app.command()
def export(
    run: RunFolder,
    format: Annotated[
        str,
        typer.Option(
            "--format", metavar="LIST", help="Formats to write: some of onnx, packed, openvino, pt2, such as onnx,pt2."
        ),
    ],
    model: OwnModel = None,
    data: OwnData = None,
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Write a run's network in other formats, into the run's folder."""
    with reported():
        from autocompress import api

        with watching_progress(make_config({"quiet": quiet})) as view:
            files = api.export(run, format, model, data, trust=trust, progress=view)
        for file in files:
            typer.echo(f"{file}: {file.stat().st_size:,} bytes")


@app.command()
def verify(
    run: RunFolder,
    device: Device = None,
    model: OwnModel = None,
    data: OwnData = None,
    trust: Trust = False,
    format: Format = "table",
    quiet: Quiet = False,
) -> None:
    """Check every claim of a run's plan and outcome on its files; exit code 1 if a claim fails."""
    with reported():
        from autocompress import api
        from autocompress.job.result_data import verification_data
        from autocompress.report.tables import print_verification

        config = make_config({"format": format, "quiet": quiet})
        with watching_progress(config) as view:
            options = {} if device is None else {"device": device}
            verified = api.verify(run, model, data, trust=trust, progress=view, **options)
        emit(config, verification_data(verified), lambda console: print_verification(console, verified))
        _stop_unless(verified)


def _stop_unless(verified: Verification) -> None:
    """Raise an error, which ends the command with exit code 1, if a claim does not hold."""
    for line in verified.failures():
        raise AutocompressError(f"verification failed: {line}")


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


def _arguments(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in OPTIONS}


app.command()(compare)
app.command()(report)
app.command()(doctor)
app.command()(mcp)
app.command()(pack)
app.command(name="unpack")(unpack_)
app.add_typer(policy_app, name="policy")
app.add_typer(cache_app, name="cache")
app.command(name="train-policy")(train_policy)
