"""`python -m dltrain` is the command `dltrain`."""

from dltrain.cli import console

if __name__ == "__main__":
    console()
