"""The command line: a thin shell over `autocompress.api`.

Results go to standard output, all else to standard error.
A command gets its options from the parts in `autocompress.config.options` (`options.with_options`). The values stay
text until `Config` checks them, so a wrong value gives the same one-line error from the command line, a file
and Python.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autocompress.cli.cache import cache_app
from autocompress.cli.compare import compare
from autocompress.cli.doctor import doctor
from autocompress.cli.mcp import mcp
from autocompress.cli.options import arguments_of, help_of, with_options
from autocompress.cli.pack import pack, unpack_
from autocompress.cli.policy import policy_app
from autocompress.cli.report import report
from autocompress.cli.shell import Format, Quiet, Trust, emit, on_a_page, reported, watching_progress
from autocompress.cli.train_policy import train_policy
from autocompress.config import (
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
    RunOptions,
    SearchOptions,
    ToleranceOptions,
    WatchOptions,
    make_config,
)
from autocompress.errors import AutocompressError, InputError
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


@app.command()
@with_options(
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
    from autocompress.report.front_tables import print_smallest
    from autocompress.report.tables import print_result

    if tolerates:
        with watching_progress(config) as view:
            found = api.smallest(**arguments_of(config), progress=view)
        emit(config, found.data(), lambda console: print_smallest(console, found))
        return
    with watching_progress(config) as view, on_a_page(config, view) as (progress, finish):
        result = api.search(**arguments_of(config), progress=progress)
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
@with_options(
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
    from autocompress.report.front_tables import print_front

    with watching_progress(config) as view:
        front = api.pareto(**arguments_of(config), progress=view)
    emit(config, front.data(), lambda console: print_front(console, front))
    if not front.verified:
        raise AutocompressError("verification failed: a point of the front has claims that do not hold")


@app.command()
@with_options(NetworkOptions, MenuOptions, InspectOptions, MachineOptions, OutputOptions)
def inspect(config: Config) -> None:
    """Show a network's layers and channel groups: costs, labels on offer, and each label's expected loss.

    With --measure, some labels are measured too, which says how far the expected losses can be trusted.
    """
    from autocompress import api
    from autocompress.job.result_data import inspection_data
    from autocompress.report.tables import print_inspection

    with watching_progress(config) as view:
        inspection = api.inspect(**arguments_of(config), progress=view)
    emit(config, inspection_data(inspection), lambda console: print_inspection(console, inspection))


@app.command()
@with_options(NetworkOptions, BudgetOptions, MenuOptions, MeasureOptions, MachineOptions, OutputOptions)
def evaluate(config: Config) -> None:
    """Measure a plan beside the original network; the plan may be edited by hand."""
    from autocompress import api
    from autocompress.job.result_data import measurement_data
    from autocompress.report.tables import print_measurement

    with watching_progress(config) as view:
        measured = api.evaluate(**arguments_of(config), progress=view)
    emit(config, measurement_data(measured), lambda console: print_measurement(console, measured))


@app.command()
@with_options(
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
        finished = api.apply(**arguments_of(config), progress=progress)
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
Device = Annotated[str | None, typer.Option(metavar="TEXT", help=help_of("device"))]


@app.command()
def finetune(
    run: RunFolder,
    epochs: Annotated[
        str, typer.Option(metavar="X", help="Number of passes over the training samples; fractions are allowed.")
    ],
    learning_rate: Annotated[str | None, typer.Option(metavar="X", help=help_of("learning_rate"))] = None,
    batch_size: Annotated[str | None, typer.Option(metavar="N", help=help_of("batch_size"))] = None,
    distillation: Annotated[str | None, typer.Option(metavar="TEXT", help=help_of("distillation"))] = None,
    labels: Annotated[str | None, typer.Option(metavar="TEXT", help=help_of("labels"))] = None,
    hard_weight: Annotated[str | None, typer.Option(metavar="X", help=help_of("hard_weight"))] = None,
    augmentation: Annotated[str | None, typer.Option(metavar="TEXT", help=help_of("augmentation"))] = None,
    mixup: Annotated[str | None, typer.Option(metavar="X", help=help_of("mixup"))] = None,
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
            "--format",
            metavar="LIST",
            help="Formats to write: some of onnx, packed, openvino, litert, executorch, pt2, such as onnx,pt2.",
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


app.command()(compare)
app.command()(report)
app.command()(doctor)
app.command()(mcp)
app.command()(pack)
app.command(name="unpack")(unpack_)
app.add_typer(policy_app, name="policy")
app.add_typer(cache_app, name="cache")
app.command(name="train-policy")(train_policy)
