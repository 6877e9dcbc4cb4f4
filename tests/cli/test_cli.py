"""The command line: whole messages and exit codes, what goes to which stream, and interruptions."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import autocompress
from autocompress.cli.main import app
from autocompress.config import OPTIONS
from autocompress.report.live import PlainView
from autocompress.run.folder import RunFolder
from autocompress.run.journal import read_journal

QUICK = ["--search-samples", "64", "--calibration-samples", "64", "--sparsity-levels", "4", "--dtype", "float32",
         "--target", "packed"]  # fmt: skip


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return [*QUICK, "--cache", str(tmp_path_factory.mktemp("cache"))]


@pytest.fixture(scope="module")
def quick_search(quick):
    return [*quick, "--recalibration-samples", "64"]


@pytest.fixture(scope="module")
def run(quick_search, tmp_path_factory):
    """One whole run, shared: (result of the command, folder)."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    done = invoke(
        "search", "--budget", "size=0.12", "--episodes", "3", "--out", folder, "--format", "json", *quick_search
    )
    assert done.exit_code == 0, done.stderr
    return done, folder


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_help_and_version_need_no_torch():
    script = (
        "import sys\nfrom autocompress.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert not {'torch', 'numpy', 'stable_baselines3'} & set(sys.modules), 'imported at start'\n"
    )
    for argument, expected in (("--version", f"autocompress {autocompress.__version__}\n"), ("--help", None)):
        done = subprocess.run([sys.executable, "-c", script, argument], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == expected or "inspect" in done.stdout


def test_every_option_stands_in_the_help_of_a_command():
    texts = [invoke(command, "--help").stdout for command in ("search", "inspect", "evaluate", "pareto")]
    for option in set(OPTIONS) - {"model"}:
        assert any(f"--{option.replace('_', '-')} " in text for text in texts), option


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--budget", "flops=0.5"],
            "`budget resource` must be one of bitops, energy, latency, macs, memory, size, got 'flops'.",
        ),
        (
            ["--budget", "size=half"],
            "`budget` must read RESOURCE=AMOUNT such as size=0.1, size=40kB or macs=50%, got 'size=half'.",
        ),
        (
            ["--budget", "size=1e-9"],
            "`budget` of size must be at least 1 of the original's 154,336 bytes, got 0.0000001%; raise it.",
        ),
        (["--budget", "size=0.1", "--episodes", "many"], "`episodes` must be a valid integer, got 'many'."),
        (["--budget", "size=0.1", "--seed", "-1"], "`seed` must be greater than or equal to 0, got '-1'."),
        (
            ["--budget", "size=0.1", "--criterion", "l3"],
            "`criterion` must be one of activation, l1, l2, obs, random, taylor, got 'l3'.",
        ),
        (
            ["--budget", "size=0.1", "--quantizer", "best"],
            "`quantizer` must be one of binary, fixed-point, gptq, mse, nearest, got 'best'.",
        ),
        (
            ["--budget", "size=0.1", "--granularity", "4:2"],
            "`granularity` must be channel, element or n:m with n < m, got '4:2'.",
        ),
        (
            ["--budget", "size=0.1", "--weight-bits", "2,9"],
            "`weight_bits` must be ascending and each one of [1, 2, 3, 4, 5, 6, 7, 8, 16, 32], got [2, 9].",
        ),
        (["--budget", "size=0.1", "--action", "guess"], "`action` must be one of discrete, label, price, got 'guess'."),
        (
            ["--budget", "size=0.1", "--reward", "speed"],
            "`reward` must be one of accuracy, amc_error, amc_flops, balanced, galen, haq, kl, got 'speed'.",
        ),
        (
            ["--budget", "size=0.1", "--config", "none.yaml"],
            "`config` must be a readable file, got none.yaml: No such file or directory.",
        ),
        (["--budget", "size=0.1", "--dtype", "int8"], None),
        (["--budget", "size=0.1", "--resume"], None),
        (["--budget", "size=0.1", "--data", "npz:none.npz"], "`data` npz:FILE must be an existing file, got none.npz."),
        (["--budget", "size=0.1", "--weights", "none.safetensors"], None),
        (["--budget", "size=0.1", "--device", "abacus"], None),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(arguments, message, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke("search", *quick, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    lines = [line for line in done.stderr.splitlines() if line.startswith("autocompress: ")]
    assert len(lines) == 1
    assert done.stderr.endswith(lines[0] + "\n")
    assert "Traceback" not in done.stderr
    assert lines[0].startswith("autocompress: `")
    if message is not None:
        assert lines[0] == f"autocompress: {message}"
    assert list(tmp_path.iterdir()) == []


def test_unknown_option_of_the_command_line_is_exit_2():
    done = invoke("search", "--episods", "3")
    assert done.exit_code == 2
    assert "--episods" in done.stderr


def test_unknown_option_of_a_file_lists_the_known(tmp_path):
    (tmp_path / "c.yaml").write_text("episods: 3\n")
    done = invoke("search", "--config", tmp_path / "c.yaml")
    unknown = f"Unknown episods (did you mean episodes?) in {tmp_path / 'c.yaml'}"
    expected = f"autocompress: {unknown}; known: {', '.join(OPTIONS)}.\n"
    assert (done.exit_code, done.stderr) == (2, expected)


def test_budget_below_the_smallest_plan_names_it_and_leaves_no_folder(quick_search, tmp_path):
    out = tmp_path / "run"
    done = invoke("search", "--budget", "size=100b", "--out", out, "--quiet", *quick_search)
    assert done.exit_code == 2
    assert done.stderr.startswith("autocompress: `size` budget must be at least ")
    smallest = int(done.stderr.split("at least ")[1].split(" bytes")[0].replace(",", ""))
    assert done.stderr.endswith("got 100; raise it or allow fewer weight bits or more sparsity.\n")
    assert not out.exists()
    options = ["--method", "solver", "--episodes", "1", "--out", out, "--quiet", "--format", "json", *quick_search]
    assert invoke("search", "--budget", f"size={smallest - 1}", *options).exit_code == 2
    exact = json.loads(invoke("search", "--budget", f"size={smallest}", *options).stdout)
    assert exact["search"]["resources"]["size"] == smallest
    assert smallest - 400 < exact["compressed"]["resources"]["size"] <= smallest


def test_json_result(run):
    done, folder = run
    result = json.loads(done.stdout, parse_constant=pytest.fail)
    assert result["run_folder"] == str(folder)
    assert result["budget"]["met"] is True
    assert result["compressed"]["resources"]["size"] <= result["budget"]["limits"]["size"]
    assert result["evaluations"] == 3
    saved = json.loads((folder / "outcome.json").read_text())
    assert set(saved.pop("versions")) == {"autocompress", "python", "torch"}
    assert set(saved.pop("machine")) == {"system", "processor", "cores", "threads", "memory_bytes", "device"}
    assert saved.pop("made_by") == {"command": "search", "model_in_memory": False, "data_in_memory": False}
    assert saved == result


def test_plain_progress_goes_to_standard_error(run):
    done, _ = run
    lines = done.stderr.splitlines()
    assert lines[0] == (
        "network: digits, 9 layers, 5 channel groups, 37,840 weights; data: digits, "
        "64 search and 64 calibration samples"
    )
    assert sum(line.startswith("episode ") for line in lines) == 3
    assert lines[-1] == "verification: the files in their runtime and the original on the test split"


def test_existing_run_is_kept_without_force(run, quick_search):
    _, folder = run
    before = (folder / "journal.jsonl").read_bytes()
    done = invoke("search", "--budget", "size=0.12", "--out", folder, *quick_search)
    assert done.exit_code == 2
    assert done.stderr == (
        f"autocompress: `out` must be a new folder, got {folder}, which holds a run; "
        "pass --force to replace it or --resume to continue it.\n"
    )
    assert (folder / "journal.jsonl").read_bytes() == before


def test_resume_brings_its_own_options_and_refuses_others(run):
    done, folder = run
    again = invoke("search", "--out", folder, "--resume")
    assert (again.exit_code, json.loads(again.stdout)) == (0, json.loads(done.stdout))
    other = invoke("search", "--out", folder, "--resume", "--seed", "1")
    assert other.exit_code == 2
    assert other.stderr == (
        "autocompress: `seed` must be as in the run to resume, 0, got 1; leave it out, or choose another --out.\n"
    )


def test_evaluate_prints_a_table_and_json(run, quick):
    done, folder = run
    arguments = ["evaluate", "--plan", folder / "plan.yaml", "--budget", "size=0.01", "--quiet", *quick]
    table = invoke(*arguments)
    assert table.exit_code == 0
    assert table.stderr == ""
    data = json.loads(invoke(*arguments, "--format", "json").stdout)
    size, limit = data["compressed"]["resources"]["size"], data["original"]["resources"]["size"] // 100
    assert f"budget: NOT met (size {size:,} of at most {limit:,} bytes)" in table.stdout.splitlines()
    assert f"{100 * data['compressed']['accuracy']:.2f} %" in table.stdout
    assert data["budget"] == {"limits": {"size": limit}, "met": False}
    result = json.loads(done.stdout)
    assert data["original"] == result["original"]
    assert data["labels"] == result["labels"]


@pytest.mark.parametrize("command", ["search", "inspect", "evaluate", "apply"])
def test_the_seed_stands_with_network_and_data(command):
    text = invoke(command, "--help").stdout
    panel = text.partition(" Network and data ")[2].partition("╰")[0]
    assert "--seed " in panel


def test_inspect_prints_a_table_and_json(quick):
    table = invoke("inspect", "--quiet", *quick)
    assert table.exit_code == 0
    assert [line for line in table.stdout.splitlines() if "layer1.0.conv2" in line and "follows conv1" in line]
    data = json.loads(invoke("inspect", "--quiet", "--format", "json", *quick).stdout)
    assert len(data["layers"]) == 9
    assert data["groups"][0]["producers"] == ["conv1", "layer1.0.conv2"]
    assert data["unknown_operators"] == {}
    other = json.loads(invoke("inspect", "--quiet", "--format", "json", "--seed", "1", *quick).stdout)
    assert other["groups"] == data["groups"]
    assert other["layers"] != data["layers"]  # the errors of menus that were built from other samples


def test_sigterm_keeps_everything_and_says_how_to_resume(run, quick_search, tmp_path, monkeypatch):
    first, _ = run
    step = PlainView.step

    def terminate(view, seen):
        step(view, seen)
        if seen.index == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(PlainView, "step", terminate)
    out = tmp_path / "run"
    done = invoke("search", "--budget", "size=0.12", "--episodes", "3", "--out", out, *quick_search)
    assert (done.exit_code, done.stdout) == (130, "")
    command = f"autocompress search --out {out} --resume"
    assert done.stderr.splitlines()[-1] == (
        f"autocompress: interrupted. What was evaluated is kept; continue with: {command}"
    )
    assert len(read_journal(out / "journal.jsonl")[1]) == 2
    monkeypatch.undo()
    resumed = invoke(*command.split()[1:], "--format", "json")
    expected = json.loads(first.stdout)
    assert json.loads(resumed.stdout) == expected | {"run_folder": str(out)}


def test_full_disk_is_one_line_and_what_was_saved_stays(quick_search, tmp_path, monkeypatch):
    append = RunFolder.append

    def full(folder, entry):
        if entry.index == 1:
            raise OSError(28, "No space left on device")
        append(folder, entry)

    monkeypatch.setattr(RunFolder, "append", full)
    out = tmp_path / "run"
    done = invoke("search", "--budget", "size=0.12", "--episodes", "3", "--out", out, "--quiet", *quick_search)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == (
        "autocompress: No space left on device. What was evaluated is kept; "
        f"continue with: autocompress search --out {out} --resume\n"
    )
    assert len(read_journal(out / "journal.jsonl")[1]) == 1


def test_unforeseen_errors_keep_their_traceback(monkeypatch):
    def broken(**_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("autocompress.api.search", broken)
    done = invoke("search", "--budget", "size=0.1", "--quiet")
    assert isinstance(done.exception, RuntimeError)


def test_default_folder_is_named_after_model_and_budget(quick_search, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        done = invoke(
            "search", "--budget", "size=50%", "--method", "solver", "--episodes", "1", "--quiet", *quick_search
        )
        assert done.exit_code == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["digits-size=50", "digits-size=50-2"]


def test_a_search_without_what_it_needs_says_the_lines_that_would_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = {
        "`budget` must be given, such as --budget size=0.1 (a tenth of the original's bytes).": [],
        "`data` must be given for the network mine.py:net, such as --data parquet:FOLDER.": ["mine.py:net"],
    }
    for message, arguments in missing.items():
        done = invoke("search", *arguments)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith(f"autocompress: {message}\n")
        assert "  autocompress search mine.py:net --data mine.py:data --budget size=0.1\n" in done.stderr
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "def net(): return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))\n\n\n"
        "def data(): return (torch.randn(300, 6), None), (torch.randn(60, 6), None)\n"
    )
    told = next(line for line in done.stderr.splitlines() if line.startswith("  autocompress search mine.py"))
    done = invoke(*told.replace("size=0.1", "size=0.9").split()[1:], "--episodes", "2", *QUICK, "--quiet")
    assert done.exit_code == 0, done.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_doctor_tells_what_is_there(monkeypatch, tmp_path):
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    done = invoke("doctor", "--no-self-test", "--format", "json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["versions"]["autocompress"] == autocompress.__version__
    assert found["devices"][-1]["device"] == "cpu"
    assert found["cache"] == {"folder": str(tmp_path / "cache"), "bytes": 0, "limit_bytes": 100_000_000_000}
    assert 0 < found["memory"]["a_job_takes_at_most_bytes"] <= found["memory"]["available_bytes"]
    for extra in found["extras"].values():
        assert extra["installed"] is (extra["missing"] == [])
    assert "self_test" not in found
    table = invoke("doctor", "--no-self-test").stdout
    assert all(f"extra {name}" in table for name in found["extras"])


def test_the_extras_that_doctor_names_are_those_of_the_package():
    import tomllib

    from autocompress.doctor import EXTRAS

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) == set(project["optional-dependencies"]) - {"dev", "docs"}


def test_a_broken_installation_fails_the_self_test(monkeypatch, tmp_path):
    from autocompress import api, doctor

    def broken(*_, **__):
        raise ImportError("libonnxruntime is missing")

    monkeypatch.setattr(api, "search", broken)
    assert doctor.examine()["self_test"]["error"] == "ImportError: libonnxruntime is missing"
    done = invoke("doctor")
    assert done.exit_code == 1
    assert done.stderr.endswith("autocompress: the self-test failed: ImportError: libonnxruntime is missing\n")


def test_the_shell_completes_commands_and_options():
    def completed(words, place):
        variables = {"_AUTOCOMPRESS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(place)}
        command = [sys.executable, "-c", "from autocompress.cli.main import app; app(prog_name='autocompress')"]
        done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
        return done.stdout.split()

    assert completed("autocompress rep", 1) == ["report"]
    assert completed("autocompress search --bud", 2) == ["--budget"]
