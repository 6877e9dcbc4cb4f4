"""The options of a job: one table in parts, and how they are read from YAML, a command line or Python."""

from autocompress.config.execution import ExecutionOptions
from autocompress.config.front import ParetoOptions
from autocompress.config.menus import MenuOptions
from autocompress.config.options import (
    MOST_SEED,
    OPTIONS,
    PARTS,
    BudgetOptions,
    Config,
    InspectOptions,
    MachineOptions,
    MeasureOptions,
    NetworkOptions,
    OutputOptions,
    RunOptions,
    SearchOptions,
    WatchOptions,
    names_of,
    part_of,
)
from autocompress.config.part import Part
from autocompress.config.reading import first_difference, load_config, make_config, one_line, read_options
from autocompress.config.tolerance import ToleranceOptions

__all__ = [
    "MOST_SEED",
    "OPTIONS",
    "PARTS",
    "BudgetOptions",
    "Config",
    "ExecutionOptions",
    "InspectOptions",
    "MachineOptions",
    "MeasureOptions",
    "MenuOptions",
    "NetworkOptions",
    "OutputOptions",
    "ParetoOptions",
    "Part",
    "RunOptions",
    "SearchOptions",
    "ToleranceOptions",
    "WatchOptions",
    "first_difference",
    "load_config",
    "make_config",
    "names_of",
    "one_line",
    "part_of",
    "read_options",
]
