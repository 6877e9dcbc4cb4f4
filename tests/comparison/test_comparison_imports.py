"""What the import of a comparison must not cost: plotting, tables and agents are imported only where they are used."""

import subprocess
import sys

HEAVY = {"matplotlib", "plotly", "pyarrow", "pandas", "scipy.stats", "stable_baselines3", "sb3_contrib"}


def test_importing_a_comparison_imports_no_plotting_tables_or_agents():
    script = f"import sys, autocompress.comparison.run\nprint(*sorted({HEAVY} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
