"""Run the notebooks of docs/notebooks and keep what they print and draw: `make notebooks`, after a change of one.

Warnings are not kept, nor times, nor anything that names the machine.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


class Kernel:
    """One kernel for several notebooks, which all begin with nothing defined.

    Args:
        folder: folder that the notebooks write into, with a cache of its own.
    """

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "AUTOCOMPRESS_CACHE": str(folder / "cache"), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        self._manager: KernelManager
        self._manager, self._client = start_new_kernel(kernel_name="python3", cwd=str(folder), env=environment)

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)

    def run(self, path: Path, change: Callable[[str], str] = str) -> Any:
        """The notebook with what its cells print and draw now. Raises CellExecutionError where a cell fails.

        Args:
            path: the notebook.
            change: function from what a cell says to what is run in its place. Default: as it stands.
        """
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            cell.source = change(cell.source)
        client = NotebookClient(notebook, km=self._manager, timeout=300, record_timing=False)
        client.kc = self._client
        self._client.execute_interactive("%reset -f", silent=True, timeout=60)
        client.execute(reset_kc=False, cleanup_kc=False)
        for number, cell in enumerate(each for each in notebook.cells if each.cell_type == "code"):
            cell.execution_count = number + 1
            cell.outputs = [_plain(each, number + 1) for each in cell.outputs if each.get("name") != "stderr"]
        return notebook


def _plain(output: Any, number: int) -> Any:
    """An output without what differs from run to run."""
    if "execution_count" in output:
        output.execution_count = number
    return output


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Kernel(Path(folder)) as kernel:
        for path in sorted(NOTEBOOKS.glob("*.ipynb")):
            notebook = kernel.run(path)
            nbformat.write(notebook, path)
            print(f"{path.name}: {path.stat().st_size:,} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
