"""The page of supported architectures, docs/architectures.md, from the results of architectures.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

DATA = Path(__file__).with_name("architectures.json")
PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
HEAD = """# Supported architectures

Networks that go all the way: traced, labelled, searched, made real, written as ONNX, and run in ONNX Runtime beside
PyTorch. A network of yours need not be among them: what counts is its layers and operators ([Limits](limits.md)), and
`autocompress inspect` says what of it can be compressed.

{done} of {run} networks that were run go all the way. `python benchmarks/architectures.py` runs them and writes this
page; the numbers are in `benchmarks/architectures.json`.

- **Weights labelled**: share of the weights that may get bits.
- **Groups**: sets of channels or heads that may be removed.
- **Size**: of the float32 ONNX file. The mildest labels on offer are often below the budget of 40 %.
- **File against PyTorch**: share of equal answers, and the difference as a share of the outputs' spread.

All are small and have random weights, in float32, so nothing is said about accuracy. Seconds are from an empty cache,
one thread, beside three other jobs: two to four times those of a quiet machine.
"""
TABLE = """
## {kind}

| network | from | task | layers | weights labelled | groups | size | file against PyTorch | seconds, peak |
| --- | --- | --- | ---: | ---: | ---: | ---: | --- | --- |
"""


def page(data: Mapping[str, Mapping[str, Any]], kinds: Mapping[str, Iterable[str]]) -> str:
    """The page as Markdown.

    Args:
        data: result of every network that was run, by its name.
        kinds: names of the networks of each kind, those that were not run among them.
    """
    done = {name: result for name, result in data.items() if result.get("verified")}
    parts = [HEAD.format(done=len(done), run=len(data))]
    for kind, names in kinds.items():
        rows = [_row(name, done[name]) for name in names if name in done]
        parts += [TABLE.format(kind=kind), *rows] if rows else []
    parts.append(f"\n{_conditions(done.values())}\n")
    failed = [f"- `{name}`: {result['line']}\n" for name, result in data.items() if "line" in result]
    parts += ["\n## Not all the way\n\n", *failed] if failed else []
    missing = [f"`{name}`" for names in kinds.values() for name in names if name not in data]
    parts += (
        [f"\n## Not run yet\n\nIn the benchmark's list, without a result: {', '.join(missing)}.\n"] if missing else []
    )
    return "".join(parts)


def _row(name: str, result: Mapping[str, Any]) -> str:
    source = f"{result['library']} `{result['class']}`" if result["library"] else "plain modules"
    agreement = "not run"
    if result["agreement"] is not None:
        difference = result["difference"]
        apart = f"{100 * difference:.2g} %" if difference >= 1e-5 or not difference else "below 0.001 %"
        agreement = f"{100 * result['agreement']:.1f} %, {apart}"
    cells = (
        f"`{name}`", source, result["task"], result["layers"], f"{100 * result['labelled']:.1f} %", result["groups"],
        f"{100 * result['size']:.1f} %", agreement, f"{result['seconds']:.0f} s, {result['peak_gb']:.1f} GB",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |\n"


def _conditions(results: Iterable[Mapping[str, Any]]) -> str:
    """How and where the networks were run, each way once."""
    ways = dict.fromkeys(f"{each['options']}; {each['machine']}; {each['date']}" for each in results)
    return "Run with " + "; or with ".join(ways) + "."
