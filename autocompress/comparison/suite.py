"""The suite of a comparison: one YAML file, checked as a whole before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from autocompress.comparison.values import parse_budgets, parse_episodes, parse_seeds, parse_test
from autocompress.config import (
    OPTIONS,
    Config,
    MachineOptions,
    MenuOptions,
    NetworkOptions,
    SearchOptions,
    first_difference,
    make_config,
    names_of,
)
from autocompress.errors import InputError, shown, unknown_keys
from autocompress.files import read_yaml

EPISODES = 400  # default of a cell's evaluations
SEEDS = 5  # default number of seeds
_KEYS = ("base", "budgets", "methods", "seeds", "episodes", "test")
_METHOD_ONLY = frozenset({"method", "episodes"})
_WITHOUT_EFFECT = frozenset(
    {
        "selection_samples",  # searches are compared by what they find on the search split
        "begin_with",  # and begin alike
    }
)
_OF_BASE = (
    frozenset(names_of(NetworkOptions, MenuOptions, SearchOptions, MachineOptions)) - _METHOD_ONLY - _WITHOUT_EFFECT
)
_OF_METHODS = (_OF_BASE | _METHOD_ONLY) - {
    "model",
    "weights",
    "task",  # which says what divergences are
    "model_args",
    "data",
    "data_args",
    "seed",
    "cache",
    "jobs",
}
_HOMES = {
    "budget": "`budgets` beside `base`",
    "method": "`methods` beside `base`",
    "episodes": "`episodes` beside `base`",
    "seed": "`base`, where it is of the splits and the menus; the searches' stand in `seeds`",
    "name": "a mapping of `methods`",
}


@dataclass(frozen=True)
class Method:
    """A method of a comparison: a search method with its options.

    Attributes:
        name: name that tells the results of the methods apart.
        options: options of `search` that differ from the base, by name; `method` is one of them.
    """

    name: str
    options: Mapping[str, Any]

    @property
    def searcher(self) -> str:
        """Name of the search method, as in the option `method`."""
        return str(self.options["method"])

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return re.sub(r"[^A-Za-z0-9._=]+", "-", self.name).strip("-.")

    @contextmanager
    def named(self) -> Iterator[None]:
        """Put the method's name before an InputError that is raised inside, if it has options of its own."""
        try:
            yield
        except InputError as error:
            raise (InputError(f"Method {self.name}: {error}") if len(self.options) > 1 else error) from None


@dataclass(frozen=True)
class Cell:
    """One search of a comparison.

    Attributes:
        method: name of the method in the suite.
        budget: budget in its normal form, such as `size=8%`.
        seed: seed of the search.
    """

    method: str
    budget: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method}, {self.budget}, seed {self.seed}"


@dataclass(frozen=True)
class Suite:
    """Everything that a comparison runs.

    Attributes:
        base: options of `search` that all cells share, by name.
        budgets: budgets in their normal form, such as `size=8%`.
        methods: methods, at least one; their names differ in more than case and punctuation.
        seeds: seeds of the searches; methods without random choices run with the first seed only.
        episodes: largest number of network evaluations in a cell, unless the method has its own.
        test: whether the best plan of each cell is measured on the test split.
        configs: all options of each method's cells except budget and seed, by the method's name; made from
            the others.
    """

    base: Mapping[str, Any]
    budgets: tuple[str, ...]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...] = tuple(range(SEEDS))
    episodes: int = EPISODES
    test: bool = True
    configs: Mapping[str, Config] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        made = {method.name: _config(self.base, method, self.episodes) for method in self.methods}
        object.__setattr__(self, "configs", made)

    def cells(self) -> tuple[Cell, ...]:
        """All cells, ordered by method, budget and seed as the suite lists them."""
        from autocompress.searchers.search import SEARCHERS

        return tuple(
            Cell(method.name, budget, seed)
            for method in self.methods
            for budget in self.budgets
            for seed in (self.seeds if SEARCHERS.find(method.searcher).is_random else self.seeds[:1])
        )

    def slug(self, cell: Cell) -> str:
        """Name of a cell's file, without its ending."""
        method = next(method for method in self.methods if method.name == cell.method)
        return f"{method.slug}--{cell.budget.replace('%', 'pct').replace(',', '_')}--{cell.seed}"

    def to_yaml(self) -> str:
        """The suite with every option of the base, as the text of a file that `read_suite` reads."""
        content = {
            "base": make_config(self.base).model_dump(mode="json", include=set(_OF_BASE)),
            "budgets": list(self.budgets),
            "methods": [{"name": method.name, **_plain(method.options)} for method in self.methods],
            "seeds": list(self.seeds),
            "episodes": self.episodes,
            "test": self.test,
        }
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def read_suite(path: str | Path) -> Suite:
    """Read a suite from a YAML file.

    Raises:
        InputError: the file can't be read, or something in it breaks a rule.
    """
    return make_suite(read_yaml("suite", path), str(path))


def make_suite(content: Any, where: str = "the suite") -> Suite:
    """Make a suite from plain data: the content of a YAML file.

    Args:
        content: mapping with `budgets` and `methods`, and optionally `base`, `seeds`, `episodes` and `test`.
        where: name of the content's source in error messages.

    Raises:
        InputError: something breaks a rule.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"`suite` must be a mapping, got {where}, which holds a {type(content).__name__}.")
    unknown = sorted(set(map(str, content)) - set(_KEYS))
    if unknown:
        raise unknown_keys(unknown, where, _KEYS)
    return Suite(
        base=_base(content.get("base", {})),
        budgets=parse_budgets(content.get("budgets")),
        methods=_methods(content.get("methods")),
        seeds=parse_seeds(content.get("seeds", SEEDS)),
        episodes=parse_episodes(content.get("episodes", EPISODES)),
        test=parse_test(content.get("test", True)),
    )


def overridden(
    suite: Suite,
    base: Mapping[str, Any],
    *,
    methods: str | Iterable[str] | None = None,
    seeds: int | str | Iterable[int] | None = None,
    episodes: int | str | None = None,
) -> Suite:
    """A suite with some parts overridden; None leaves a part as it is.

    Args:
        suite: suite as it was read.
        base: options that override those of the base, by name.
        methods: names of the methods to run: some of the suite, or search methods that it does not have.
        seeds: number of seeds, or a list of them, also as text such as `0,3,4`.
        episodes: largest number of network evaluations in a cell.

    Raises:
        InputError: something breaks a rule.
    """
    given = {name: value for name, value in base.items() if value is not None}
    return replace(
        suite,
        base=_base({**suite.base, **given}),
        methods=suite.methods if methods is None else _chosen(suite, methods),
        seeds=suite.seeds if seeds is None else parse_seeds(seeds),
        episodes=suite.episodes if episodes is None else parse_episodes(episodes),
    )


def check_continues(before: Suite, now: Suite) -> None:
    """Check that a suite only adds methods, budgets or seeds to the suite of the comparison to resume.

    Args:
        before: suite of the comparison to resume.
        now: suite to check.

    Raises:
        InputError: something else differs; the message names the first difference.
    """
    for key in ("seeds", "budgets"):
        for value in getattr(before, key):
            if value not in getattr(now, key):
                raise _changed(key, f"to hold {value} as in the comparison to resume", f"{list(getattr(now, key))}")
    for key in ("episodes", "test"):
        if getattr(before, key) != getattr(now, key):
            raise _changed(key, f"to be as in the comparison to resume, {getattr(before, key)}", getattr(now, key))
    for name, config in before.configs.items():
        if name not in now.configs:
            raise _changed("methods", f"to hold {name} as in the comparison to resume", f"{list(now.configs)}")
        option = first_difference(config, now.configs[name])
        if option is not None:
            old, new = getattr(config, option), getattr(now.configs[name], option)
            raise _changed(option, f"of {name} to be as in the comparison to resume, {old!r}", f"{new!r}")


def _changed(what: str, rule: str, got: object) -> InputError:
    return InputError(f"`resume` needs {what} {rule}, got {got}; put it back, or choose another --out.")


def _base(value: Any) -> dict[str, Any]:
    """The options of `base`, checked."""
    if not isinstance(value, Mapping):
        raise InputError(f"`base` must be a mapping of options of search, got {value!r}.")
    options = _options(value, _OF_BASE, "`base`")
    make_config(options)  # raises errors here, where no method's name is put before them
    return options


def _options(given: Mapping[Any, Any], known: frozenset[str], where: str) -> dict[str, Any]:
    """Options by name, with underscores; InputError for unknown options and for those without effect here."""
    named = {str(name).replace("-", "_"): value for name, value in given.items()}
    for name in named:
        if name not in known:
            raise _misplaced(name, known, where)
    return named


def _misplaced(name: str, known: frozenset[str], where: str) -> InputError:
    if name in _HOMES or name in _OF_BASE:
        return InputError(f"`{name}` must stand in {_HOMES.get(name, '`base`')}, got it in {where}.")
    if name in OPTIONS:
        return InputError(f"`{name}` must be left out of {where}: it has no effect on a comparison.")
    return unknown_keys([name], where, [each for each in OPTIONS if each in known])


def _methods(value: Any) -> tuple[Method, ...]:
    """The methods of the key `methods`, checked."""
    if isinstance(value, (str, Mapping)):
        value = [value]
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError(f"`methods` must be a list such as [solver, rl], got {value!r}.")
    return _different(tuple(map(_method, value)))


def _method(value: Any) -> Method:
    if isinstance(value, str):
        return Method(value, {"method": value})
    if not isinstance(value, Mapping) or not isinstance(value.get("name", value.get("method")), str):
        raise InputError(f"Each of `methods` must be a name, or a mapping with a name and options, got {value!r}.")
    given = dict(value)
    name = given.pop("name", value.get("method"))
    options = _options(given, _OF_METHODS, f"the method {name}")
    return Method(name, {"method": name, **options})


def _different(methods: tuple[Method, ...]) -> tuple[Method, ...]:
    """The methods as given; InputError if two names give the same file name."""
    seen: dict[str, str] = {}
    for method in methods:
        slug = method.slug.lower()
        if not slug or len(slug) > 100:
            raise InputError(
                "`name` of a method must have 1 to 100 characters, a letter or digit among them, got "
                f"{shown(method.name)}."
            )
        if slug in seen:
            raise InputError(
                f"`methods` must have different names, got {seen[slug]!r} and {method.name!r}; give one a name."
            )
        seen[slug] = method.name
    return methods


def _chosen(suite: Suite, names: str | Iterable[str]) -> tuple[Method, ...]:
    """Methods by name: those of the suite, else search methods without further options."""
    from autocompress.searchers.search import SEARCHERS

    by_name = {method.name: method for method in suite.methods}
    wanted = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    for name in wanted:
        if name not in by_name and name not in SEARCHERS:
            known = [*by_name, *(name for name in SEARCHERS if name not in by_name)]
            raise InputError(f"`methods` must be among {', '.join(known)}, got {name!r}.")
    return _different(tuple(by_name.get(name) or _method(name) for name in wanted))


def _config(base: Mapping[str, Any], method: Method, episodes: int) -> Config:
    """All options of a method's cells except budget and seed; InputError if one breaks a rule."""
    with method.named():
        return make_config({**base, "episodes": episodes, **method.options})


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with lists in place of tuples, as YAML and JSON can hold them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
