"""`python -m remuda`: the same as the `remuda` command."""

from remuda.cli import main

if __name__ == "__main__":
    main()
