"""Comparisons: methods x budgets x seeds on one network, kept in a folder, summed up in tables and plots."""
