"""The server: five tools over standard input and output, which keep to one folder and return structured data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autocompress.config import Config, make_config
from autocompress.errors import AutocompressError, InputError
from autocompress.mcp.jobs import Jobs, told
from autocompress.mcp.paths import Folder, command_line
from autocompress.run.folder import default_path
from autocompress.version import __version__

try:
    from mcp.server import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
except ImportError as error:
    raise InputError("autocompress mcp needs the package mcp; pip install 'autocompress[mcp]'.") from error

INSTRUCTIONS = """Compress trained PyTorch and ONNX networks to a budget that holds to the byte.
Begin with `inspect`: what of a network can be compressed, and what each label is expected to cost. Then `search` with a
budget such as size=0.1 (a tenth of the bytes). Both return a handle at once; ask `status` for it until its state is
done or failed. `report` explains finished runs, one or several side by side: bytes, accuracy, which layer costs most
and why. `compare` runs several methods, budgets and seeds from a suite file. All paths are relative to one folder."""

Options = dict[str, Any]
Answer = dict[str, Any]


class Tools:
    """The tools of a server.

    Args:
        folder: folder that all paths lie in.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self.jobs = Jobs(folder.root)

    def inspect(
        self, model: str = "digits", data: str | None = None, weights: str | None = None, options: Options | None = None
    ) -> Answer:
        """Find out which layers of a network can be compressed, what they cost, and how much each label should hurt.

        Returns a handle at once; ask status for the result, which lists layers, channel groups and expected losses.

        Args:
            model: digits (a small network to try), FILE.onnx, mine.py:function that returns a torch module,
                hf:FOLDER, timm:NAME, torchvision:NAME, resnet20.
            data: such as mine.py:function that returns ((inputs, labels), (test_inputs, test_labels)), npz:FILE,
                imagefolder:FOLDER, parquet:FOLDER; none is needed for digits.
            weights: trained weights, .safetensors, .pt or .pth, where the network does not bring its own.
            options: further options of `autocompress inspect` by name, such as {"measure": 50}.
        """
        return self._begin("inspect", _given(options, model=model, data=data, weights=weights))

    def search(
        self,
        budget: str,
        model: str = "digits",
        data: str | None = None,
        weights: str | None = None,
        episodes: int | None = None,
        out: str | None = None,
        options: Options | None = None,
    ) -> Answer:
        """Search for the best plan within a budget, compress the network by it, export and verify the file.

        Returns a handle and the run's folder at once; ask status for progress and result. An existing run is not
        replaced.

        Args:
            budget: upper bounds, such as size=0.1 (a tenth of the original's bytes), size=40kB or macs=50%.
            model: as for inspect.
            data: as for inspect.
            weights: as for inspect.
            episodes: most plans to evaluate; 200 by default, 0 for the shipped policy's own plan.
            out: new folder of the run; by default runs/MODEL-BUDGET.
            options: further options of `autocompress search` by name, such as {"finetune": 2, "weight_bits": [4, 8]}.
        """
        given = _given(options, budget=budget, model=model, data=data, weights=weights, episodes=episodes, out=out)
        return self._begin("search", given)

    def status(self, handle: str | None = None) -> Answer:
        """Tell how a job stands: running, done with its result, or failed with its error.

        Args:
            handle: what inspect, search or compare returned; without one, all jobs are listed without results.
        """
        with _told():
            if handle is not None:
                return told(self.jobs.find(handle))
            return {"jobs": [{"handle": work.handle, "state": work.state} for work in self.jobs.all()]}

    def report(self, runs: list[str]) -> Answer:
        """Explain finished runs: what came out, each layer's label, expected loss and bytes, which one costs most.

        Several runs, or the points of a front, stand side by side. The page report.html is written as well.

        Args:
            runs: folders of finished runs, at least one, or the folder of one front.
        """
        with _told():
            from autocompress import api
            from autocompress.report.front_page import front_among
            from autocompress.report.run_data import run_data
            from autocompress.report.run_record import read_run

            folders = [self._folder.inside("runs", run) for run in runs]
            out = self._folder.root / "report.html" if len(folders) > 1 else None
            front = front_among(folders)
            for point in () if front is None else front.runs:
                self._folder.inside("runs", str(point.folder))  # links lead nowhere else
            page = api.report(*folders, out=out)
            records = [read_run(run) for run in folders] if front is None else front.runs
            return {"page": self._folder.told(page), "runs": [self._run(run_data(each)) for each in records]}

    def compare(
        self,
        suite: str,
        methods: str | None = None,
        seeds: str | None = None,
        episodes: int | None = None,
        out: str | None = None,
    ) -> Answer:
        """Run several methods, budgets and seeds on one network, by a suite file; tables, intervals and plots.

        Returns a handle at once; ask status for the result.

        Args:
            suite: YAML file of the comparison.
            methods: methods to run, such as solver,rl; by default the suite's.
            seeds: number of seeds, or a list such as 0,3,4; by default the suite's.
            episodes: most evaluations of one search; by default the suite's.
            out: new folder of the comparison; by default runs/compare-SUITE.
        """
        with _told():
            file = self._folder.inside("suite", suite)
            self._check_suite(file)
            folder = self._folder.inside("out", out or f"runs/compare-{file.stem}")
            arguments = ["compare", str(file), "--out", str(folder)]
            for name, value in (("methods", methods), ("seeds", seeds), ("episodes", episodes)):
                arguments += [] if value is None else [f"--{name}", str(value)]
            work = self.jobs.start("compare", arguments, None)
            return {"handle": work.handle, "state": work.state, "out": self._folder.told(folder)}

    def _check_suite(self, file: Path) -> None:
        """Raise InputError where a suite's options lead out of the folder."""
        from autocompress.comparison.suite import read_suite

        for config in read_suite(file).configs.values():
            self._folder.check(config)

    def _begin(self, kind: str, given: Mapping[str, Any]) -> Answer:
        with _told():
            config = make_config(given)
            if kind == "search":
                config = self._with_out(config)
            self._folder.check(config)
            out = None if config.out is None else self._folder.inside("out", config.out)
            names = dict(given) | ({} if out is None else {"out": out})
            work = self.jobs.start(kind, command_line(kind, config, names), out)
            where = {} if out is None else {"run": self._folder.told(out)}
            return {"handle": work.handle, "state": work.state, **where}

    def _with_out(self, config: Config) -> Config:
        config.required_data()
        out = config.out or default_path(config.model, config.budget, self._folder.root / "runs")
        return config.model_copy(update={"out": self._folder.inside("out", out)})

    def _run(self, data: Answer) -> Answer:
        return {**data, "run": self._folder.told(Path(data["run"]))}


def _given(options: Options | None, **named: Any) -> dict[str, Any]:
    """Options by name, those that have an argument of their own over the others."""
    return {**(options or {}), **{name: value for name, value in named.items() if value is not None}}


@contextmanager
def _told() -> Iterator[None]:
    """Errors of autocompress as errors of a tool, which the assistant reads."""
    try:
        yield
    except AutocompressError as error:
        raise ToolError(str(error)) from None


def make_server(folder: str | Path) -> tuple[MCPServer, Callable[[], None]]:
    """The server, and a function that ends what it has begun.

    Args:
        folder: folder that all paths lie in.

    Raises:
        InputError: there is no such folder.
    """
    tools = Tools(Folder(folder))
    server = MCPServer("autocompress", instructions=INSTRUCTIONS, version=__version__, log_level="WARNING")
    for tool in (tools.inspect, tools.search, tools.status, tools.report, tools.compare):
        server.add_tool(tool, structured_output=True)
    return server, tools.jobs.close


def serve(folder: str | Path) -> None:
    """Serve over standard input and output until the client goes."""
    server, close = make_server(folder)
    try:
        server.run("stdio")
    finally:
        close()
