"""`python -m qkedit`: the command line."""

from qkedit.cli.app import run

if __name__ == "__main__":
    run()
