"""`python -m polypfed`: the command line, where its script is not on the PATH."""

from polypfed.cli import main

if __name__ == "__main__":
    main()
