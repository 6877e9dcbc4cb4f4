"""`python -m autocompress`."""

from autocompress.cli.main import main

main()
