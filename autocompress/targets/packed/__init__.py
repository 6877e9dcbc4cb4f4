"""The packed file: one safetensors file with the graph, and every code at its real width.

`file` writes and reads the whole; `stored_layers` one layer's tensors; `bits` a weight's codes without gaps between
them; `graph_json` the graph as text.
"""
