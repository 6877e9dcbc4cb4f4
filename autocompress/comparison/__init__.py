"""Comparisons: methods x budgets x seeds on one network, in the order in which they happen:

1. `suite`: one YAML file says which methods, budgets and seeds are compared. One search of a comparison is a
   `Cell`.
2. `run`: `compare` checks the suite, claims the folder (`folder`), runs all cells and writes the report.
3. `session`: what one process keeps loaded (network, menus, evaluator), and how it runs a cell. Evaluations
   are shared between the processes of a comparison (`shared`).
4. `workers` runs the cells, in this process, in several, or in a Ray cluster (`autocompress.workers`). `live` shows
   how they stand.
5. `results`: what was found in one cell, as plain data, in one JSON file a cell.
6. `summary`: mean, standard deviation and bootstrap intervals over seeds.
7. `report` writes everything into the folder: `tables`, and plots (`series` has their numbers and styles,
   `plots` draws them as PNG, `interactive` as HTML).
"""
