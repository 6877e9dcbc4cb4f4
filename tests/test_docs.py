"""The documents: commands and options in them exist, errors that they explain are raised, and examples run."""

import ast
import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer

from autocompress.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
COMMAND = re.compile(r"^(?:\.venv/bin/)?autocompress .*?(?<!\\)$", re.MULTILINE | re.DOTALL)


def commands(text):
    """Every command line in the shell blocks of a page, its continuation lines joined."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().startswith("autocompress "):
                yield shlex.split(line.replace("…", ""), comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_in_the_documents_exist(page):
    root = typer.main.get_command(app)
    for words in commands(page.read_text()):
        command, rest = root, words[1:]
        while rest and hasattr(command, "commands"):
            if rest[0].startswith("--"):
                break
            assert rest[0] in command.commands, words
            command, rest = command.commands[rest[0]], rest[1:]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        wrong = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known | {"--help"}]
        assert wrong == [], words


def test_there_are_commands_to_look_at():
    assert sum(len(list(commands(page.read_text()))) for page in PAGES) > 40


@pytest.mark.parametrize("page", PAGES, ids=[path.relative_to(ROOT).as_posix() for path in PAGES])
def test_links_lead_to_files_of_the_repository(page):
    """So that they work there as on the site, which has pages of its own for notebooks."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    for link in re.findall(r"\]\(([^)\s#]+)[^)]*\)", prose):
        if ":" not in link:
            assert (page.parent / link).exists(), link


def texts_in_the_source():
    """Every text constant of the package, joined as Python joins them; the parts of f-strings one by one."""
    found = []
    for path in [*(ROOT / "autocompress").rglob("*.py"), *(ROOT / "envs").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_every_message_that_is_explained_is_one_of_ours():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ") and "`" in line.split("|")[1]]
    assert len(cells) > 25
    source = texts_in_the_source()
    for cell in cells:
        for code in re.findall(r"`` (.+?) ``|`([^`]+)`", cell):
            for part in "".join(code).split("…"):
                assert part.strip() in source or _without_name(part) in source, (cell, part)


def _without_name(part):
    """A message without the name of the option that it begins with, which messages may fill in."""
    return re.sub(r"^`\w+`", "`", part.strip())


def test_the_network_of_your_own_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    """As the page shows it; with fewer evaluations, since the suite is to stay quick."""
    example = ROOT / "docs" / "examples" / "own_network.py"
    assert '--8<-- "examples/own_network.py"' in (ROOT / "docs" / "own_network.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    quick = tmp_path / "own_network.py"
    quick.write_text(example.read_text().replace("episodes=30", "episodes=2"))
    runpy.run_path(str(quick), run_name="__main__")
    before, after, answers = capsys.readouterr().out.splitlines()
    assert before.startswith("58,008 bytes, ")
    assert before.endswith("% right, before")
    assert abs(float(before.split()[2].rstrip("%")) - 95.7) < 0.4  # one of 300 images: processors train differently
    assert int(after.split()[0].replace(",", "")) <= 0.15 * 58_008
    assert float(after.split()[2].rstrip("%")) > 90
    assert answers.startswith("first answers: [2, 8, 2,")
    assert (tmp_path / "runs" / "own" / "report.html").is_file()
