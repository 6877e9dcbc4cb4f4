"""Agents of Stable-Baselines3 in the layer-labelling environment."""
