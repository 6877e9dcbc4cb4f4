"""A compression task in numbers: menus, costs, outcomes."""
