"""What the table of searchers imports before a search begins: nothing that only one method, or nobody here, needs."""

import subprocess
import sys

HEAVY = ["stable_baselines3", "sb3_contrib", "optuna", "scipy.optimize", "scipy.sparse"]
HEAVY += ["pandas", "matplotlib", "tensorboard"]


def imported_by(statement):
    """The heavy modules that a fresh Python has after the statement."""
    code = f"{statement}; import sys; print(*(name for name in {HEAVY} if name in sys.modules))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_modules_of_searchers_import_nothing_heavy():
    modules = "searchers.search", "searchers.model_based.search", "searchers.published.releq", "policies.use"
    assert imported_by("import " + ", ".join(f"autocompress.{module}" for module in modules)) == []


def test_the_check_sees_heavy_modules():
    assert "stable_baselines3" in imported_by("import autocompress.searchers.stable_baselines.agents")
