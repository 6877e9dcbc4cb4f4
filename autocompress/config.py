"""Every option of autocompress, once: the command line, YAML files and the Python API all read this one table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from autocompress.budget import Budget
from autocompress.errors import InputError
from autocompress.yaml_files import read_yaml

Panel = Literal["Network and data", "Menus", "Budget", "Search", "Execution", "Measure", "Machine", "Run", "Output"]
NOT_COMPARED = frozenset({"out", "jobs", "cache", "force", "resume", "plan", "split", "quiet", "format"})
"""Options that may change between a run and its resumption: they don't change what is searched."""

_TUNING = frozenset(
    {"distillation", "learning_rate", "batch_size", "labels", "soft_weight", "hard_weight", "features_weight"}
    | {"temperature", "augmentation", "mixup", "clip"}
)


def _option(default: Any, panel: Panel, help_text: str, **rules: Any) -> Any:
    return Field(default, description=help_text, json_schema_extra={"panel": panel}, **rules)


class Config(BaseModel):
    """All options, flat. Unknown keys are errors; values given as text (command line) are read as YAML would be."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str = _option(
        "digits",
        "Network and data",
        "Network: digits, resnet20|32|44|56|110 (CIFAR), torchvision:NAME, timm:NAME, package.module:callable "
        "or file.py:callable.",
    )
    weights: Path | None = _option(None, "Network and data", "Trained weights: .safetensors, .pt or .pth.")
    model_args: dict[str, Any] = _option({}, "Network and data", "Keyword arguments of the network, as YAML or JSON.")
    data: str | None = _option(
        None,
        "Network and data",
        "Data: digits, parquet:FOLDER, imagefolder:FOLDER, npz:FILE, package.module:callable or file.py:callable. "
        "Default: digits with the network digits.",
    )
    data_args: dict[str, Any] = _option({}, "Network and data", "Keyword arguments of a data callable, YAML or JSON.")
    image_size: int | None = _option(None, "Network and data", "Edge in pixels that images are resized to.", ge=1)
    mean: tuple[float, ...] | None = _option(
        None, "Network and data", "Mean of every channel on [0, 1] pixels. Default: ImageNet's for RGB."
    )
    std: tuple[float, ...] | None = _option(
        None, "Network and data", "Standard deviation of every channel on [0, 1] pixels. Default: ImageNet's for RGB."
    )
    search_samples: int = _option(
        1000, "Network and data", "Training samples set aside to compare plans on; at most half of them.", ge=1
    )
    calibration_samples: int = _option(
        512, "Network and data", "Training samples that menus are built from; at most a third of them.", ge=1
    )
    seed: int = _option(0, "Network and data", "Of the splits, the menus and the search.", ge=0)

    budget: str | None = _option(
        None,
        "Budget",
        "Upper bounds: size, macs, bitops or memory, as a fraction of the original or absolute, "
        "such as size=0.1 or size=40kB,macs=50%.",
    )

    criterion: str = _option(
        "obs", "Menus", "What is pruned first: obs (second order), l1, l2, activation, taylor or random."
    )
    quantizer: str = _option("gptq", "Menus", "How weights are rounded: gptq, nearest, mse, fixed-point or binary.")
    granularity: str = _option("channel", "Menus", "What is pruned: channel, element or n:m such as 2:4.")
    weight_bits: tuple[int, ...] | None = _option(
        None,
        "Menus",
        "Weight bit-widths on offer: 1 to 8, 16, 32. Default: 2,4,8, with the target packed 2,3,4,5,6,8.",
    )
    activation_bits: tuple[int, ...] = _option((8,), "Menus", "Bit-widths of layer inputs on offer: 4 to 8, 32.")
    sparsity_levels: int = _option(8, "Menus", "Sparsities on offer: 0, 1/levels, 2/levels, …; 1: no pruning.", ge=1)
    remove_branches: bool = _option(
        False,
        "Menus",
        "Also offer sparsity 1 where a residual branch can go whole: what saves time where thinner layers do not.",
    )

    method: str = _option(
        "rl",
        "Search",
        "Who writes the plans: rl (an agent); without learning solver, exact, greedy, measured, uniform, random, "
        "local, local-measured, posterior, mixed, evolution, tpe, cmaes or nsga2; as published amc, haq, galen or "
        "releq.",
    )
    agent: str = _option(
        "model-based",
        "Search",
        "Agent of the method rl: model-based (learns what plans do to the network's outputs, and plans in that model); "
        "ppo, a2c, ddpg, td3, sac or maskable-ppo (for discrete); around the solver's prices: anchored-ppo, "
        "anchored-td3, posterior-ppo or posterior-td3.",
    )
    policy: str | None = _option(
        None,
        "Search",
        "Policy that the agent begins with: default (trained on other networks, part of the package), none, or the "
        "folder of one of train-policy. Default: default, for agents that act by prices.",
    )
    action: str = _option("price", "Search", "What the agent decides at a layer: price, label or discrete.")
    reward: str = _option(
        "kl",
        "Search",
        "What the agent maximises: kl (least divergence), accuracy, or what was published: amc_error, amc_flops, haq, "
        "galen.",
    )
    episodes: int = _option(
        200, "Search", "Plans to evaluate at most, other work on plans counted too; 0: the policy's own plan.", ge=0
    )
    selection_samples: int = _option(
        1000,
        "Search",
        "Unused training samples on which the plans that led the search are compared in the end. 0: the best on the "
        "search split is taken, as where fewer are left than that split has.",
        ge=0,
    )
    patience: int = _option(0, "Search", "Stop after this many evaluations without a better plan; 0: never.", ge=0)
    environments: int = _option(
        0, "Search", "Environments that the agent walks side by side; 0: as many as suit it.", ge=0
    )
    price_scale: float = _option(
        2.0, "Search", "The action price at 1 weighs a layer's error e to this power times as much.", gt=0
    )

    recalibration_samples: int = _option(
        1024,
        "Execution",
        "Training samples, without labels, that the finished plan's layers are fitted to anew; 0: none.",
        ge=0,
    )
    finetune: float = _option(0.0, "Execution", "Epochs of fine-tuning; 0: calibration only.", ge=0)
    stages: int = _option(
        1, "Execution", "Compress in this many steps, each searched and fine-tuned, the budget shrinking alike.", ge=1
    )
    l1_epochs: float = _option(0.0, "Execution", "Epochs of fine-tuning with an L1 penalty before pruning.", ge=0)
    l1_weight: float = _option(1e-5, "Execution", "Of that penalty: the sum of all weights' magnitudes.", ge=0)
    distillation: Literal["standard", "weak", "strong"] = _option(
        "standard",
        "Execution",
        "How the original teaches: standard (all training samples), weak (the calibration split only, outputs only), "
        "strong (begins with the original's own kept weights, and its features are matched).",
    )
    learning_rate: float = _option(
        5e-3, "Execution", "Of fine-tuning (Adam) at its peak, relative to the size of each layer's weights.", gt=0
    )
    batch_size: int = _option(128, "Execution", "Of fine-tuning.", ge=1)
    labels: Literal["data", "teacher"] = _option(
        "data", "Execution", "Who gives fine-tuning's hard labels: the data, or the original (teacher)."
    )
    soft_weight: float = _option(1.0, "Execution", "Of the divergence from the original in fine-tuning's loss.", ge=0)
    hard_weight: float | None = _option(
        None, "Execution", "Of the cross-entropy with hard labels in that loss. Default: 0.5 where there are any.", ge=0
    )
    features_weight: float = _option(0.0, "Execution", "Of the difference of inner layers' outputs in that loss.", ge=0)
    temperature: float = _option(2.0, "Execution", "That softens predictions in fine-tuning.", gt=0)
    augmentation: Literal["none", "shift", "shift+flip"] = _option(
        "shift", "Execution", "Of images in fine-tuning: shift (by up to an eighth), flip (left and right)."
    )
    mixup: float = _option(
        0.0,
        "Execution",
        "Blend up to this share of another sample into each in fine-tuning: the original answers for these as well.",
        ge=0,
        le=0.5,
    )
    clip: float = _option(1.0, "Execution", "Largest norm of fine-tuning's gradient.", gt=0)
    target: str = _option(
        "onnxruntime",
        "Menus",
        "Where the result runs, and whose file the budget size counts: onnxruntime (model.onnx) or packed "
        "(model.safetensors alone).",
    )

    plan: Path | None = _option(None, "Measure", "The plan to measure: plan.yaml of a run, or your own.")
    split: Literal["test", "search"] = _option(
        "test", "Measure", "Samples to measure on: test, or search while you edit a plan by hand."
    )

    device: str = _option("cpu", "Machine", "Torch device, such as cpu or cuda.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _option(
        "auto", "Machine", "Floating-point type of evaluations; auto picks the fastest."
    )
    jobs: int | None = _option(None, "Machine", "Threads that build menus. Default: one a core.", ge=1)
    cache: Path | None = _option(
        None, "Machine", "Folder of the menu cache. Default: $AUTOCOMPRESS_CACHE or ~/.cache/autocompress."
    )

    out: Path | None = _option(None, "Run", "Run folder. Default: runs/MODEL-BUDGET.")
    force: bool = _option(False, "Run", "Replace the run that lies in the run folder.")
    resume: bool = _option(False, "Run", "Continue the interrupted run in the run folder given by --out.")

    quiet: bool = _option(False, "Output", "No progress, only the result.")
    format: Literal["table", "json"] = _option("table", "Output", "Form of the result on standard output.")

    @field_validator("mean", "std", "weight_bits", "activation_bits", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(value.split(","))
        return (value,) if isinstance(value, (int, float)) else value

    @field_validator("model_args", "data_args", mode="before")
    @classmethod
    def _read_mapping(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError:
            return value  # the type check that follows reports it

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

    def required_data(self) -> str:
        """The data spec. Raises InputError where none is given and the network has no data of its own."""
        if self.data is None and self.model != "digits":
            raise InputError(f"`data` must be given for the network {self.model}, such as --data parquet:FOLDER.")
        return self.data or "digits"

    def to_yaml(self) -> str:
        """Every option with its value, as a file that `--config` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


OPTIONS: tuple[str, ...] = tuple(Config.model_fields)


def panel_of(option: str) -> Panel:
    """Which part of the job an option belongs to."""
    extra = Config.model_fields[option].json_schema_extra
    assert isinstance(extra, dict)
    panel: Any = extra["panel"]
    assert panel in get_args(Panel)
    return panel  # type: ignore[no-any-return]


def make_config(options: Mapping[str, Any], where: str = "the options") -> Config:
    """Check options.

    Args:
        options: by name, with dashes or underscores.
        where: what an error about unknown names calls their source.

    Raises:
        InputError: an unknown option, or a value that breaks a rule.
    """
    named = {str(name).replace("-", "_"): value for name, value in options.items()}
    unknown = sorted(set(named) - set(OPTIONS))
    if unknown:
        raise InputError(f"Unknown {', '.join(unknown)} in {where}; known: {', '.join(OPTIONS)}.")
    try:
        return Config(**named)
    except ValidationError as error:
        raise InputError(one_line(error)) from None


def load_config(path: str | Path | None, overrides: Mapping[str, Any]) -> Config:
    """The options of a YAML file, overridden by those of `overrides` that are not None.

    Raises:
        InputError: the file can't be read, is no mapping, or holds an unknown option or a value that breaks a rule.
    """
    from_file = {} if path is None else read_options(Path(path))
    given = {name: value for name, value in overrides.items() if value is not None}
    return make_config({**from_file, **given}, "the options" if path is None else str(path))


def read_options(path: Path) -> dict[str, Any]:
    """The options that a YAML file gives, unchecked but for their form, by name with underscores."""
    content = read_yaml("config", path)
    if not isinstance(content, Mapping | None):
        raise InputError(f"`config` must be a mapping of options, got {path}, which holds a {type(content).__name__}.")
    return {str(name).replace("-", "_"): value for name, value in (content or {}).items()}


def first_difference(before: Config, now: Config) -> str | None:
    """The first option that changes what is searched and differs, or None."""
    free = NOT_COMPARED | _after_the_search(before)
    for option in OPTIONS:
        if option not in free and getattr(before, option) != getattr(now, option):
            return option
    return None


def _after_the_search(config: Config) -> frozenset[str]:
    """Options of the execution that don't change what is searched: stages and an L1 penalty tune the base of it."""
    if config.stages > 1:
        return frozenset()
    own = frozenset({"finetune", "recalibration_samples"})  # an L1 penalty has its own epochs, and no re-calibration
    return own if config.l1_epochs else own | _TUNING


def one_line(error: ValidationError, depth: int = 1) -> str:
    """The first thing that is wrong, as our errors say it; named by at most `depth` keys, joined by dots."""
    first = error.errors()[0]
    cause, name = first.get("ctx", {}).get("error"), ".".join(map(str, first["loc"][:depth]))
    if isinstance(cause, InputError):
        return str(cause)
    if first["type"] == "missing":  # what was given is all else, and long
        return f"`{name}` must be given."
    rule = re.sub(r"^Input should be", "must be", re.sub(r", (unable|got) .*", "", first["msg"]))
    return f"`{name}` {rule}, got {first['input']!r}."
