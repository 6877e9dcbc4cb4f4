"""Version 1 of the environment: one step picks one label from the menu of one layer."""
