"""``fisopt doctor``."""

from __future__ import annotations

from fisopt.cli.console import stdout
from fisopt.cli.stages import stages


def run() -> None:
    """Say what is here, what is missing, and what for."""
    from fisopt.cli.doctor import examine, findings_table

    with stages("looking"):
        found = examine()
    stdout().print(findings_table(found))
