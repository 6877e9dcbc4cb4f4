"""The notebooks of the documentation run, and what is stored in them is small and names no machine."""

import importlib.util
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install 'autocompress[dev]'")
pytest.importorskip("nbclient", reason="nbclient is not installed: pip install 'autocompress[dev]'")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install 'autocompress[dev]'")
pytest.importorskip("torchmetrics", reason="torchmetrics is not installed: pip install 'autocompress[metrics]'")

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
BUDGETS = {"images": [0.08, 0.15], "tabular": [0.07, 0.085, 0.12], "text": [0.15]}


def module(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / "hooks" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def printed(notebook):
    """All that the cells of a notebook have printed."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return "".join(output.get("text", "") for cell in cells for output in cell.outputs)


def quicker(source):
    """A cell with less work in it, since the suite is to stay quick: three evaluations, and no re-calibration."""
    return re.sub(r'"episodes": \d+', '"episodes": 3', source.replace('samples": 256', 'samples": 0'))


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    with module("run_notebooks").Kernel(tmp_path_factory.mktemp("notebooks")) as kernel:
        yield kernel


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_budgets_hold(path, kernel):
    text = printed(kernel.run(path, quicker))
    stored = printed(nbformat.read(path, as_version=4))
    assert len(text.splitlines()) == len(stored.splitlines())
    if path.stem == "tabular":
        shares = [float(share) / 100 for share in re.findall(r"([\d.]+)% of the original", text)]
    else:
        before, after = (
            [int(number.replace(",", "")) for number in re.findall(rf"^{name} +([\d,]+) bytes", text, re.MULTILINE)]
            for name in ("before", "after")
        )
        shares = [now / then for then, now in zip(before, after, strict=True)]
    assert len(shares) == len(BUDGETS[path.stem])
    for share, budget in zip(shares, BUDGETS[path.stem], strict=True):
        assert 0.5 * budget < share <= budget
    assert "FAILED" not in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_is_small_complete_and_names_no_machine(path):
    content = path.read_text()
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len(content) < 50_000
    assert re.findall(r"/(?:home|tmp|root|work|usr|Users)/", content) == []
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
    assert all(cell.outputs for cell in codes if "print(" in cell.source.splitlines()[-1])
    assert all(output.get("name") != "stderr" for cell in codes for output in cell.outputs)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all(set(cell.metadata) == set() for cell in notebook.cells)


def test_links_to_notebooks_lead_to_their_pages_on_the_site():
    rewritten = module("notebooks").on_page_markdown
    text = "[a](notebooks/text.ipynb), [b](../notebooks/text.ipynb#part), [Download](text.ipynb), [c](start.md)"
    assert rewritten(text, page=None, config=None, files=None) == (
        "[a](notebooks/text.md), [b](../notebooks/text.md#part), [Download](text.ipynb), [c](start.md)"
    )


def test_every_notebook_is_a_page_with_its_cells_and_outputs():
    assert [path.stem for path in NOTEBOOKS] == sorted(BUDGETS)
    site = (DOCS.parent / "mkdocs.yml").read_text()
    for path in NOTEBOOKS:
        assert f"notebooks/{path.stem}.md" in site
        page, notebook = module("notebooks").page(path), nbformat.read(path, as_version=4)
        assert page.startswith("# ")
        assert f"]({path.name})" in page
        assert all(cell.source in page for cell in notebook.cells)
        assert all(line in page for line in printed(notebook).splitlines())
        assert page.count("<img") == ("image/png" in path.read_text())
