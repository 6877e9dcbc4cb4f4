"""Automated neural-network compression under hard budgets."""
