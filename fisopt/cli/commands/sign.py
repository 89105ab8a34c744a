"""``fisopt sign``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from fisopt.cli.console import stdout
from fisopt.cli.stages import stages

PASSWORD = "FISOPT_KEY_PASSWORD"
"""The variable of the environment that holds the password; without it the command asks."""


def run(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders that were exported.")],
    key: Annotated[Path, typer.Option("--key", "-k", help="The file of your secret key.")],
) -> None:
    """Write a signature next to every artefact."""
    from fisopt.artefact.sign import sign
    from fisopt.artefact.signature import is_encrypted

    password = None
    if is_encrypted(key) and (password := os.environ.get(PASSWORD)) is None:
        password = typer.prompt("password of the key", hide_input=True, err=True)
    for path in paths:
        with stages(f"signing {path}"):
            made = sign(path, key, password)
        stdout().print(Text(f"{path}: signed in {made}"), soft_wrap=True)
