"""Searching for the best plan within a budget: `search.run_search`, agents by name, and baselines."""
