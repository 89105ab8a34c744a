"""Run the command line as ``python -m fisopt``."""

from fisopt.cli import app

if __name__ == "__main__":
    app(prog_name="fisopt")
