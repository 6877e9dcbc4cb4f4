"""The options of a job: one table in parts, and how they are read from YAML, a command line or Python."""

from autocompress.config.options import (
    OPTIONS,
    PARTS,
    BudgetOptions,
    Config,
    ExecutionOptions,
    MachineOptions,
    MeasureOptions,
    MenuOptions,
    NetworkOptions,
    OutputOptions,
    Part,
    RunOptions,
    SearchOptions,
    names_of,
    part_of,
)
from autocompress.config.reading import first_difference, load_config, make_config, one_line, read_options

__all__ = [
    "OPTIONS",
    "PARTS",
    "BudgetOptions",
    "Config",
    "ExecutionOptions",
    "MachineOptions",
    "MeasureOptions",
    "MenuOptions",
    "NetworkOptions",
    "OutputOptions",
    "Part",
    "RunOptions",
    "SearchOptions",
    "first_difference",
    "load_config",
    "make_config",
    "names_of",
    "one_line",
    "part_of",
    "read_options",
]
