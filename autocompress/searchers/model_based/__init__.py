"""The model-based agent: it learns how plans change the network's outputs, and plans in that model."""
