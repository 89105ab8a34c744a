"""``fisopt verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.text import Text

from fisopt.cli.console import stderr, stdout
from fisopt.cli.stages import stages
from fisopt.errors import FisoptError

if TYPE_CHECKING:
    from fisopt.artefact.loader import Trust


def run(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders that were exported.")],
    trust: Annotated[
        str,
        typer.Option(
            help="data, or code: also accept native code and operators of other libraries."
        ),
    ] = "data",
    public_key: Annotated[
        str | None,
        typer.Option(help="Also require a signature by this minisign key, as text or a file."),
    ] = None,
) -> None:
    """Say of every artefact what it is, or why it cannot be loaded."""
    from fisopt.artefact.loader import examined
    from fisopt.cli.artefacts import lines

    whole = True
    for path in paths:
        try:
            with stages(f"reading {path}"):
                held = examined(path, trust=cast("Trust", trust), public_key=public_key)
        except FisoptError as error:
            whole = False
            stderr().print(Text(f"error: {error}", style="red"), soft_wrap=True)
            continue
        for line in lines(held):
            stdout().print(Text(line), soft_wrap=True)
    if not whole:
        raise typer.Exit(1)
