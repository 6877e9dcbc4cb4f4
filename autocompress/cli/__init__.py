"""The command line: a thin shell over `autocompress.api`."""
