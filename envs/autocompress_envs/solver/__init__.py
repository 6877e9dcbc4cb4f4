"""The solver: the labels of least weighted loss within exact limits."""
