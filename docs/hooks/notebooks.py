"""A page for each notebook of docs/notebooks, from its cells and the outputs that are stored in it."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_LINK = re.compile(r"\]\(((?:\.\./)*notebooks/[\w-]+)\.ipynb")  # a page's own download has no folder in its link


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages; the notebooks themselves are files of the site that one can download."""
    for path in sorted(Path(config.docs_dir, "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to notebooks, which documents name as files so that they lead somewhere in the repository too, lead to
    their pages.
    """
    return _LINK.sub(r"](\1.md", markdown)


def page(path: Path) -> str:
    """A notebook as Markdown."""
    title, *cells = nbformat.read(path, as_version=4).cells
    parts = [title.source, f"[Download this notebook]({path.name})"]
    for cell in cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        else:
            parts += [f"```python\n{cell.source}\n```", *map(_shown, cell.outputs)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _shown(output: Any) -> str:
    """What a cell printed or drew."""
    data = output.get("data", {})
    if "image/png" in data:
        drawn = escape(output.metadata.get("alt", "What the cell above draws"))
        return f'<img alt="{drawn}" src="data:image/png;base64,{data["image/png"].strip()}">'
    text = (output.get("text") or data.get("text/plain", "")).rstrip()
    return f"```text\n{text}\n```" if text else ""
