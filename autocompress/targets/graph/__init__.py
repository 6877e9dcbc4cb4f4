"""A compressed network as a graph of ATen operators, from which all files are written."""
