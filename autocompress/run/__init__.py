"""A run on disk: its folder, its journal, and the names of its files."""
