"""``fisopt verify``: whether artefacts are whole, are what they say, and hold data only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fisopt.artefact.loader import Artefact, Trust, examined
from fisopt.cli.export import summary
from fisopt.errors import FisoptError


def run(paths: Sequence[Path], trust: Trust, out: Console, err: Console) -> bool:
    """Say of every artefact what it is, or why it cannot be loaded; whether all can be."""
    whole = True
    for path in paths:
        try:
            with err.status(f"reading {path}"):
                held = examined(path, trust=trust)
        except FisoptError as error:
            whole = False
            err.print(Text(f"error: {error}", style="red"), soft_wrap=True)
            continue
        for line in lines(held):
            out.print(Text(line), soft_wrap=True)
    return whole


def lines(held: Artefact) -> list[str]:
    """What an artefact is, in words."""
    manifest = held.manifest
    parts = sum(len(v.parts) for v in manifest.variants) + len(manifest.beside)
    passes = ", ".join(str(p["name"]) for p in manifest.recipe["passes"]) or "no passes"
    code = "native code" if manifest.format == "aoti" else "data"
    first = f"{held.path}: {parts} parts of {manifest.format} as written, {code}"
    return [first, f"  {manifest.model['class']}, {passes}", *(f"  {x}" for x in summary(manifest))]
