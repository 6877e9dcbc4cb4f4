PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TESTS ?=
SEEDS ?= 5
# One process a core; the tests of a file share what they build, so they stay together.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile

.PHONY: demo test policy-smoke bench-digits check docs notebooks wheel clean

# The tests' networks are tiny: a second thread only waits for the first, the longer the busier the machine.
test policy-smoke bench-digits check notebooks: export OMP_NUM_THREADS ?= 1

demo: $(READY)  ## Compress the embedded network to 12 % of its bytes.
	$(BIN)/autocompress search --budget size=0.12 --out runs/demo --force

test: $(READY)  ## Tests and doctests; one part of them with TESTS=tests/test_plan.py.
	$(PYTEST) $(TESTS)

policy-smoke: $(READY)  ## A policy trained from nothing on toys, beside the solver: about a minute.
	$(BIN)/python benchmarks/policy_smoke.py

bench-digits: $(READY)  ## The digits tables of benchmarks/README.md, from nothing; a quick one with SEEDS=1.
	$(BIN)/python benchmarks/bench_digits.py --seeds $(SEEDS)

check: $(READY)  ## Everything that has to hold before a commit.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python benchmarks/policy_smoke.py
	$(PYTEST)

docs: $(READY)  ## The documentation site, into build/site; a warning is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(READY)  ## Run the notebooks of docs/notebooks again, and keep what they print: a minute.
	$(BIN)/python docs/hooks/run_notebooks.py

wheel: $(READY)  ## The wheel and the source archive, into dist/, built and checked.
	rm -rf dist
	$(BIN)/hatchling build
	$(BIN)/python -m pytest tests/test_wheel.py

clean:  ## Remove the environment, caches and the demo's run.
	rm -rf $(VENV) runs/demo build dist .mypy_cache .pytest_cache .ruff_cache

# Made again when the dependencies change.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
