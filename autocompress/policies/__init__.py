"""Policies that are trained once, on a zoo of networks, and reused on networks they have never seen."""
