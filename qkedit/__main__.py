"""`python -m qkedit`: the command line."""

from qkedit.cli.main import run

if __name__ == "__main__":
    run()
