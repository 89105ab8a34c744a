"""``fisopt models``."""

from __future__ import annotations

from fisopt.cli.console import stdout
from fisopt.cli.stages import stages


def run() -> None:
    """List the published models."""
    from fisopt import models
    from fisopt.cli.catalog import models_table, size_of

    rows = []
    with stages("reading the adapters") as status:
        for family in models.families().values():
            for model in family.published:
                status.update(f"measuring {model.name}")
                size = size_of(models.build(model.name), models.example_inputs(model.name))
                rows.append((family, model, size))
    stdout().print(models_table(rows))
