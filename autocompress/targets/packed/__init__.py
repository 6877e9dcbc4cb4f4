"""The packed file: one safetensors file with the graph, and every code at its real width."""
