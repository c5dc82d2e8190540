"""`python -m datalocal`: the same as the command `datalocal`."""

from datalocal.cli import main

if __name__ == "__main__":
    main(prog_name="python -m datalocal")
