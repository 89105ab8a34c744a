"""The ``fisopt`` command."""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import Annotated

import typer

from fisopt.cli import help as texts
from fisopt.cli.console import guarded, stdout
from fisopt.cli.first import FirstByDefault
from fisopt.versions import FISOPT

app = typer.Typer(
    name="fisopt",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,
)
VERBOSITY = ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY")
"""Both libraries set the level of their logger when they are first imported, from these."""
TALKATIVE = (
    "torchao",
    "transformers",
    "diffusers",
    "bitsandbytes.backends.cpu.ops",
    "diffusers.quantizers.torchao.torchao_quantizer",
    "torch.utils._pytree",
)
"""What diffusers imports wherever it is installed, and warns of kernels that no command uses."""
COMMANDS = (
    "doctor models choose inspect codegen demo compare calibrate search tune distill export sign "
    "verify"
)
GROUPS = {"distill": "train prepare"}
"""Commands of commands; the first one may be left out."""


def _add(place: typer.Typer, names: str) -> None:
    for name in names.split():
        if name in GROUPS:
            inner = typer.Typer(cls=FirstByDefault, no_args_is_help=True)
            _add(inner, GROUPS[name])
            place.add_typer(inner, name=name, help=getattr(texts, name.upper()))
        else:
            module = import_module(f"fisopt.cli.commands.{name}")
            place.command(name, help=getattr(texts, name.upper()))(guarded(module.run))


_add(app, COMMANDS)


def _version(wanted: bool) -> None:
    if wanted:
        stdout().print(f"fisopt {FISOPT}")
        raise typer.Exit


@app.callback(help=texts.APP)
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The ``fisopt`` command."""
    del version
    for variable in VERBOSITY:
        os.environ.setdefault(variable, "error")
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
