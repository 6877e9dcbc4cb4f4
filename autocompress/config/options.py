"""Every option of autocompress, once, in one small typed part for each part of a job.

The command line, YAML files and the Python API all read these tables. `Config` has the options of all parts, flat, as
files and command lines have them. A function asks for the parts that it reads, so its signature says which options can
change what it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import field_validator

from autocompress.budget import Budget, parse_bytes
from autocompress.config.execution import ExecutionOptions
from autocompress.config.front import ParetoOptions
from autocompress.config.menus import MenuOptions
from autocompress.config.part import Part, as_tuple, as_tuple_or_none, option
from autocompress.config.tolerance import ToleranceOptions
from autocompress.errors import InputError
from autocompress.files import parse_yaml

MOST_SEED = 2**32 - 1
"""Largest seed: NumPy's older generators, which Stable-Baselines3 uses, take no larger ones."""


class NetworkOptions(Part):
    """Which network, on which data, and how the data is split."""

    TITLE: ClassVar[str] = "Network and data"

    model: str = option(
        "digits",
        "Network: digits, resnet20|32|44|56|110 (CIFAR), torchvision:NAME, timm:NAME, hf:FOLDER, FILE.onnx, "
        "package.module:callable or file.py:callable.",
    )
    weights: Path | None = option(None, "Trained weights: .safetensors, .pt or .pth.")
    task: str = option(
        "auto",
        "What the outputs are: classification, regression, embedding, token-classification, segmentation or detection. "
        "Default: what their shapes and the labels look like.",
    )
    model_args: dict[str, Any] = option({}, "Keyword arguments of the network, as YAML or JSON.")
    data: str | None = option(
        None,
        "Data: digits, parquet:FOLDER, imagefolder:FOLDER, audio:FOLDER, npz:FILE, hf-dataset:FOLDER, "
        "tsv|csv|jsonl|lines:FILE|FOLDER (texts), prodigy:FILE|FOLDER, labelbox:FILE|FOLDER, "
        "package.module:callable or file.py:callable. "
        "Default: digits with the network digits.",
    )
    data_args: dict[str, Any] = option(
        {},
        "Keyword arguments of a data callable, columns of a table (text or image, label), or features of sounds, as "
        "YAML or JSON.",
    )
    tokenizer: Path | None = option(None, "Folder with tokenizer.json, for texts.")
    max_tokens: int = option(128, "Most tokens of a text; the rest is cut off.", ge=1)
    audio_seconds: float | None = option(
        None,
        "Length that sounds are padded with zeros or cut to. Default: that of the longest training file.",
        gt=0,
    )
    image_size: int | None = option(None, "Edge in pixels that images are resized to.", ge=1)
    mean: tuple[float, ...] | None = option(
        None, "Mean of every channel on [0, 1] pixels. Default: ImageNet's for RGB."
    )
    std: tuple[float, ...] | None = option(
        None, "Standard deviation of every channel on [0, 1] pixels. Default: ImageNet's for RGB."
    )
    search_samples: int = option(
        1000, "Training samples set aside to compare plans on; at most half of the training data.", ge=1
    )
    calibration_samples: int = option(
        512, "Training samples that the menus are calibrated on; at most a third of the training data.", ge=1
    )
    seed: int = option(0, "Seed of the splits, of the menus and of the search.", ge=0, le=MOST_SEED)

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        return as_tuple(value)

    @field_validator("model_args", "data_args", mode="before")
    @classmethod
    def _read_mapping(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return parse_yaml("the text", value, "it")
        except InputError:
            return value  # the type check that follows reports it

    def required_data(self) -> str:
        """The data spec. Raises InputError where none is given and the network has no data of its own."""
        if self.data is None and self.model != "digits":
            raise InputError(f"`data` must be given for the network {self.model}, such as --data parquet:FOLDER.")
        return self.data or "digits"


class BudgetOptions(Part):
    """What the result may cost at most."""

    TITLE: ClassVar[str] = "Budget"

    budget: str | None = option(
        None,
        "Upper bounds: size, macs, bitops, memory, energy (modelled) or latency, as a fraction of the original or "
        "absolute, such as size=0.1 or size=40kB,macs=50% or latency=0.5 or latency=5ms or energy=0.5.",
    )
    batch: int = option(1, "Number of samples that are run at once where a budget of latency is measured.", ge=1)
    threads: int = option(1, "Number of threads that the runtime may use where a budget of latency is measured.", ge=1)
    runner: str | None = option(
        None,
        "Command that runs Python on another machine, where files are timed, such as 'ssh pi@board python3 -'. "
        "Default: this machine.",
    )

    @field_validator("budget", mode="before")
    @classmethod
    def _check_budget(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            value = [f"{resource}={amount}" for resource, amount in value.items()]
        text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        if isinstance(text, str):
            Budget.parse(text)
        return text

    def required_budget(self) -> Budget:
        """Raises InputError where no budget is given."""
        if self.budget is None:
            raise InputError("`budget` must be given, such as --budget size=0.1 (a tenth of the original's bytes).")
        return Budget.parse(self.budget)


class SearchOptions(Part):
    """Who writes plans, and how many of them are evaluated."""

    TITLE: ClassVar[str] = "Search"

    method: str = option(
        "rl",
        "Search method: rl (an agent); without learning solver, exact, greedy, measured, uniform, random, "
        "local, local-measured, posterior, mixed, evolution, tpe, cmaes or nsga2; as published amc, haq, galen or "
        "releq.",
    )
    agent: str = option(
        "labeling",
        "Agent of the method rl: labeling (a policy labels layer after layer in the environment; a model of the "
        "outputs learns from every plan, and plans on); model-based (the same without the environment); "
        "ppo, a2c, ddpg, td3, sac or maskable-ppo (with discrete actions); agents that learn offsets from the prices "
        "that an explorer proposes: anchored-ppo, anchored-td3, posterior-ppo or posterior-td3.",
    )
    policy: str | None = option(
        None,
        "Policy that the agent begins with: default (shipped with the package, trained on other networks), none, or a "
        "folder written by train-policy. Default: default, for agents that act by prices.",
    )
    action: str = option(
        "auto",
        "What an agent of Stable-Baselines3 decides at a layer: price (how much the layer's expected loss weighs), "
        "label, or discrete (one label by its number); auto: the first of these that it takes.",
    )
    reward: str = option(
        "kl",
        "What the agent maximises: kl (a low divergence from the original), accuracy, balanced (accuracy less a price "
        "on what a plan takes), or a published reward: amc_error, amc_flops, haq, galen.",
    )
    episodes: int = option(
        200,
        "Most plans to evaluate; first-order effects around a plan count as the evaluations that they take as long as. "
        "0: the policy's own plan, without any evaluation.",
        ge=0,
    )
    begin_with: tuple[Path, ...] = option(
        (),
        "Plans that the agent evaluates first, as they are and made to fit the budget: run folders or plan files, such "
        "as runs/first,mine.yaml. Default: none.",
    )
    selection_samples: int = option(
        1000,
        "Unused training samples on which the plans that led the search and the simple plans are compared at the end. "
        "0: the search split decides, as it does where fewer samples are left than that split has.",
        ge=0,
    )
    patience: int = option(0, "Stop after this many evaluations without a better plan; 0: never.", ge=0)
    environments: int = option(
        0, "Environments that a Stable-Baselines3 agent acts in side by side; 0: as many as suit the agent.", ge=0
    )
    price_scale: float = option(
        2.0,
        "Range of price actions: an action of 1 multiplies a layer's expected loss by e to this power, an action of -1 "
        "divides it by as much.",
        gt=0,
    )

    @field_validator("begin_with", mode="before")
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        return as_tuple_or_none(value)

    @field_validator("method", mode="before")
    @classmethod
    def _name_function(cls, value: Any) -> Any:
        """A function that is given as the method goes by its name in files and messages."""
        named = callable(value) and hasattr(value, "__qualname__")
        return f"{value.__module__}:{value.__qualname__}" if named else value


class MeasureOptions(Part):
    """Which plan is measured, and on which samples."""

    TITLE: ClassVar[str] = "Measure"

    plan: Path | None = option(None, "The plan to measure: plan.yaml of a run, or your own.")
    split: Literal["test", "search"] = option(
        "test", "Samples to measure on: test, or search while you edit a plan by hand."
    )


class InspectOptions(Part):
    """What `inspect` measures beside what it counts."""

    TITLE: ClassVar[str] = "Inspect"

    measure: int = option(
        0, "Number of single labels, drawn at random, whose expected losses are compared with measured ones.", ge=0
    )
    plot: Path | None = option(None, "HTML file for a plot of these labels, expected against measured loss.")


class MachineOptions(Part):
    """Where and how fast a job runs; nothing here changes what is asked for."""

    TITLE: ClassVar[str] = "Machine"

    device: str = option(
        "auto", "Torch device that networks run on, such as cpu or cuda; auto is CUDA where there is one, else the CPU."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Floating-point type of evaluations; auto picks the fastest that leaves the outputs as they are."
    )
    jobs: int | None = option(None, "Threads that build menus. Default: one for each core.", ge=1)
    memory: str | None = option(
        None, "Most memory that the job may take, such as 4GB. Default: 70 % of what is available."
    )
    cache: Path | None = option(
        None, "Folder of the menu cache. Default: $AUTOCOMPRESS_CACHE or ~/.cache/autocompress."
    )

    @field_validator("memory", mode="before")
    @classmethod
    def _check_memory(cls, value: Any) -> Any:
        text = str(value) if isinstance(value, (int, float)) else value
        if isinstance(text, str):
            parse_bytes(text, "memory")
        return text

    def memory_bytes(self) -> int | None:
        """Most bytes that the job may take; None where nobody says."""
        return None if self.memory is None else parse_bytes(self.memory, "memory")


class RunOptions(Part):
    """The folder that a run is kept in."""

    TITLE: ClassVar[str] = "Run"

    out: Path | None = option(None, "Run folder. Default: runs/MODEL-BUDGET.")
    force: bool = option(False, "Replace the run that lies in the run folder.")
    resume: bool = option(False, "Continue the interrupted run in the run folder given by --out.")


class WatchOptions(Part):
    """Watching a job in a browser."""

    TITLE: ClassVar[str] = "Output"

    watch: bool = option(
        False, "Also show the job on a page of this machine while it runs; its address goes to standard error."
    )


class OutputOptions(Part):
    """What a command prints."""

    TITLE: ClassVar[str] = "Output"

    quiet: bool = option(False, "No progress, only the result.")
    format: Literal["table", "json"] = option("table", "Form of the result on standard output: table or json.")


PARTS: tuple[type[Part], ...] = (
    NetworkOptions,
    BudgetOptions,
    MenuOptions,
    SearchOptions,
    ExecutionOptions,
    MeasureOptions,
    InspectOptions,
    ParetoOptions,
    ToleranceOptions,
    MachineOptions,
    RunOptions,
    WatchOptions,
    OutputOptions,
)


class Config(
    OutputOptions,
    WatchOptions,
    RunOptions,
    MachineOptions,
    ToleranceOptions,
    ParetoOptions,
    InspectOptions,
    MeasureOptions,
    ExecutionOptions,
    SearchOptions,
    MenuOptions,
    BudgetOptions,
    NetworkOptions,
):
    """The options of all parts, flat. (Pydantic lists the fields of the last base first.)"""

    def to_yaml(self) -> str:
        """Every option with its value, as a file that `--config` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def names_of(*parts: type[Part]) -> tuple[str, ...]:
    """Names of the options of some parts, in their order.

    >>> names_of(BudgetOptions, OutputOptions)
    ('budget', 'batch', 'threads', 'runner', 'quiet', 'format')
    """
    return tuple(name for part in parts for name in part.model_fields)


OPTIONS = names_of(*PARTS)
"""Names of all options."""


def part_of(option: str) -> type[Part]:
    """The part that an option belongs to."""
    return next(part for part in PARTS if option in part.model_fields)
