"""`python -m datalocal`."""

from datalocal.cli import main

main()
