"""The tools for coding assistants, called by the SDK's own client: over pipes, and in this process."""

import asyncio
import json
import os
import sys

import pytest

pytest.importorskip("mcp", reason="the extra mcp is not installed")

from mcp import Client, StdioServerParameters

from autocompress import InputError
from autocompress.mcp.server import make_server

QUICK = {
    "search_samples": 64, "calibration_samples": 64, "recalibration_samples": 64, "sparsity_levels": 2,
    "selection_samples": 0, "dtype": "float32", "target": "packed",
}  # fmt: skip
WAIT = 300.0  # seconds for a job, at most; it takes a few


async def call(client, tool, **arguments):
    """The structured answer of a tool. Raises AssertionError with its text where it is an error."""
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content[0].text
    return answer.structured_content


async def ended(client, handle):
    """The status of a job once it no longer runs."""
    for _ in range(int(WAIT / 0.2)):
        status = await call(client, "status", handle=handle)
        if status["state"] != "running":
            return status
        await asyncio.sleep(0.2)
    raise AssertionError(status)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def seen(folder):
    """One conversation over pipes: a search, while it runs a second one, its status, and the report of its run."""
    cache = {**os.environ, "AUTOCOMPRESS_CACHE": str(folder / "cache")}
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "autocompress", "mcp", "--folder", str(folder)], env=cache
    )

    async def talk():
        async with Client(server) as client:
            found = {"tools": (await client.list_tools()).tools}
            found["begun"] = await call(
                client, "search", budget="size=0.15", episodes=2, out="runs/first", options=QUICK
            )
            second = await client.call_tool("search", {"budget": "size=0.2"})
            found["second"] = (second.is_error, second.content[0].text)
            found["ended"] = await ended(client, found["begun"]["handle"])
            found["report"] = await call(client, "report", runs=["runs/first"])
            again = await call(client, "search", budget="size=0.15", out="runs/first", options=QUICK)
            found["again"] = await ended(client, again["handle"])
            found["jobs"] = await call(client, "status")
            return found

    return asyncio.run(talk())


def test_the_tools_say_what_they_take(seen):
    tools = {tool.name: tool for tool in seen["tools"]}
    assert set(tools) == {"inspect", "search", "status", "report", "compare"}
    assert tools["search"].input_schema["required"] == ["budget"]
    assert all(tool.description for tool in seen["tools"])
    assert all(tool.output_schema is not None for tool in seen["tools"])


def test_a_search_is_begun_at_once_and_one_runs_at_a_time(seen):
    assert seen["begun"] == {"handle": "search-1", "state": "running", "run": "runs/first"}
    is_error, text = seen["second"]
    assert is_error
    assert text.endswith("one job runs at a time, and search-1 is at work; ask for its status, and wait.")


def test_the_result_is_that_of_the_run(seen, folder):
    outcome = json.loads((folder / "runs/first/outcome.json").read_text())
    assert seen["ended"]["state"] == "done"
    result = seen["ended"]["result"]
    assert {name: result[name] for name in ("compressed", "budget", "checks")} == {
        name: outcome[name] for name in ("compressed", "budget", "checks")
    }
    assert seen["ended"]["search"]["evaluated"] == outcome["evaluations"] == 2
    assert any(line.startswith("verification: ") for line in seen["ended"]["progress"])


def test_the_report_is_structured_and_written(seen, folder):
    assert seen["report"]["page"] == "runs/first/report.html"
    (run,) = seen["report"]["runs"]
    assert run["run"] == "runs/first"
    assert len(run["layers"]) == 9
    assert run["costliest"].split()[0] in {layer["name"] for layer in run["layers"]}
    assert (folder / "runs/first/report.html").is_file()


def test_a_job_that_fails_says_why(seen, folder):
    assert seen["again"]["state"] == "failed"
    assert seen["again"]["error"] == (
        f"`out` must be a new folder, got {folder / 'runs/first'}, which holds a run; pass --force to replace it or "
        "--resume to continue it."
    )
    assert seen["jobs"] == {
        "jobs": [{"handle": "search-1", "state": "done"}, {"handle": "search-2", "state": "failed"}]
    }


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Calls one tool of a server in this process that refuses before it begins; returns the error's text."""
    root = tmp_path_factory.mktemp("root")
    (root / "suite.yaml").write_text(
        "base: {model: digits, data: 'npz:/etc/other.npz'}\nbudgets: [size=0.1]\nmethods: [solver]\n"
    )
    (root / "link").symlink_to("/etc")
    server, close = make_server(root)

    def refused(tool, **arguments):
        async def talk():
            async with Client(server) as client:
                return await client.call_tool(tool, arguments)

        answer = asyncio.run(talk())
        assert answer.is_error, answer
        return answer.content[0].text.replace(str(root), "ROOT")

    yield refused
    close()


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("search", {"budget": "size=0.1", "out": "../run"}, "`out` must lie in ROOT, got ../run."),
        ("search", {"budget": "size=0.1", "out": "/tmp/run"}, "`out` must lie in ROOT, got /tmp/run."),
        ("search", {"budget": "size=0.1", "out": "link/run"}, "`out` must lie in ROOT, got link/run."),
        ("search", {"budget": "size=0.1", "weights": "/etc/passwd"}, "`weights` must lie in ROOT, got /etc/passwd."),
        ("search", {"budget": "size=0.1", "model": "hf:/models/bert", "data": "digits"},
         "`model` must lie in ROOT, got /models/bert."),
        ("search", {"budget": "size=0.1", "model": "../net.onnx", "data": "digits"},
         "`model` must lie in ROOT, got ../net.onnx."),
        ("inspect", {"model": "os:system", "data": "digits"},
         "`model` must name a function in a file of ROOT, such as mine.py:net, got os:system."),
        ("inspect", {"data": "/tmp/mine.py:data"}, "`data` must lie in ROOT, got /tmp/mine.py."),
        ("inspect", {"data": "npz:/etc/data.npz"}, "`data` must lie in ROOT, got /etc/data.npz."),
        ("inspect", {"options": {"policy": "/etc"}}, "`policy` must lie in ROOT, got /etc."),
        ("inspect", {"options": {"cache": "cache"}}, "`cache` can't be given to a tool; use the command line."),
        ("search", {"budget": "size=0.1", "options": {"force": True}},
         "`force` can't be given to a tool; use the command line."),
        ("search", {"budget": "size=0.1", "model": "resnet20"},
         "`data` must be given for the network resnet20, such as --data parquet:FOLDER."),
        (
            "search",
            {"budget": "flops=1"},
            "`budget resource` must be one of bitops, energy, latency, macs, memory, size, got 'flops'.",
        ),
        ("compare", {"suite": "suite.yaml"}, "`data` must lie in ROOT, got /etc/other.npz."),
        ("compare", {"suite": "/etc/suite.yaml"}, "`suite` must lie in ROOT, got /etc/suite.yaml."),
        ("status", {"handle": "search-7"}, "`handle` must be one of none so far, got 'search-7'."),
        ("report", {"runs": ["/tmp"]}, "`runs` must lie in ROOT, got /tmp."),
        ("report", {"runs": []}, "`runs` must be at least one folder of a finished run, got none."),
    ],
)  # fmt: skip
def test_what_leads_out_of_the_folder_or_is_wrong_is_refused(here, tool, arguments, message):
    assert message in here(tool, **arguments)


def test_the_folder_must_exist(tmp_path):
    with pytest.raises(InputError, match="`folder` must be an existing folder, got"):
        make_server(tmp_path / "none")
