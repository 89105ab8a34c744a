"""``fisopt models``."""

from __future__ import annotations

from fisopt.cli.console import stderr, stdout


def run() -> None:
    """List the published models."""
    from fisopt import models
    from fisopt.cli.catalog import models_table, size_of

    rows = []
    with stderr().status("reading the adapters") as status:
        for family in models.families().values():
            for model in family.published:
                status.update(f"measuring {model.name}")
                built = models.build(model.name)
                size = size_of(built, model.height, model.width, model.num_frames)
                rows.append((family, model, size))
    stdout().print(models_table(rows))
