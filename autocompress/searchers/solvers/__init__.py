"""Searches without learning: solvers of the layer-loss problem, uniform and random plans, hill climbs."""
