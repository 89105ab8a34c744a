"""``fisopt models``: the published models that adapters know, with shapes and sizes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn

from fisopt import models
from fisopt.models import Family, Published
from fisopt.passes.figures import figures
from fisopt.passes.presets import PASSES, PRESETS
from fisopt.rewrite.pass_base import Pass
from fisopt.rewrite.tracing.block_paths import matches

LONGEST_OPTION = 31
"""Width at which a pass breaks between its options and not inside of one."""


@dataclass(frozen=True)
class Size:
    """How large a published model and its video are.

    Attributes:
        grid: token grid (frames, rows, columns).
        layers: video blocks.
        parameters: parameters of the transformer.
    """

    grid: tuple[int, int, int]
    layers: int
    parameters: int

    @property
    def tokens(self) -> int:
        """Video tokens."""
        frames, rows, columns = self.grid
        return frames * rows * columns


def size_of(model: nn.Module, inputs: Mapping[str, Any]) -> Size:
    """Measure a model of a known family, on the meta device, for the arguments of a call."""
    spec = models.spec_of(model)
    layers = sum(matches(path, spec.blocks) for path, _ in model.named_modules())
    return Size(spec.grid_of(inputs), layers, sum(p.numel() for p in model.parameters()))


def models_table(rows: list[tuple[Family, Published, Size]]) -> Group:
    """Lay out the published models, the passes and the presets."""
    table = Table(title="Published models", title_justify="left", box=box.SIMPLE_HEAD)
    table.padding, table.pad_edge = (0, 1, 0, 0), False
    table.add_column("name", no_wrap=True)
    for header in ("pixels", "grid", "tokens", "layers", "params"):
        table.add_column(header, justify="right", no_wrap=True)
    last = ""
    for family, model, size in rows:
        if family.name != last:
            table.add_row(Text(family.title, style="bold"))
        table.add_row(
            Text(f" {model.name}", style="cyan"),
            f"{model.num_frames}x{model.height}x{model.width}",
            "x".join(map(str, size.grid)),
            f"{size.tokens:,}",
            str(size.layers),
            parameters(size.parameters),
        )
        last = family.name
    note = Text(
        "Pixels and grid (tokens) are frames x height x width at the published size; any size "
        "divisible by the model's patches works. Any other nn.Module works too: fisopt guesses "
        "its blocks and grid from the first call, or takes them from "
        "spec=fisopt.ModelSpec(blocks=..., grid=...). `fisopt inspect NAME --pass PRESET` says "
        "block by block what a pass does to a model.",
        style="dim",
    )
    return Group(table, _passes(), _presets(), note)


def _passes() -> Table:
    """The passes with the forms that they come in; each form is tested on every family."""
    table = Table(title="Passes, for every model above", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("name", no_wrap=True, style="cyan")
    table.add_column("what it does")
    table.add_column("forms")
    for name, cls in PASSES.items():
        forms = [
            f"{option}: {', '.join(map(repr, words))}"
            for option, kind in get_type_hints(cls).items()
            if (words := _words(kind))
        ]
        purpose = (inspect.getdoc(cls) or "").splitlines()[0].replace("``", "")
        table.add_row(name, Text(purpose), Text("\n".join(forms)))
    return table


def _words(kind: Any) -> tuple[str, ...]:
    """The words that an option takes, for all blocks where there is one for each."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return next((get_args(each) for each in kinds if get_origin(each) is Literal), ())


def _presets() -> Table:
    table = Table(title="Presets", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("name", no_wrap=True, style="cyan")
    table.add_column("what it is, and what it did to the testbed's clips")
    table.add_column("passes", min_width=LONGEST_OPTION, overflow="fold")
    for name, (purpose, passes) in PRESETS.items():
        known = "; ".join(map(str, figures().get(name, ())))
        table.add_row(
            name,
            Text(purpose + (f" ({known})" if known else "")),
            Text(", ".join(short(p) for p in passes)),
        )
    return table


def short(pass_: Pass) -> str:
    """A pass as one would write it: only the options that differ from the defaults."""
    options = inspect.signature(type(pass_)).parameters.values()
    values = {option.name: getattr(pass_, option.name) for option in options}
    changed = [f"{o.name}={values[o.name]!r}" for o in options if values[o.name] != o.default]
    return f"{type(pass_).__name__}({', '.join(changed)})"


def parameters(count: int) -> str:
    """A number of parameters, as model cards write it: ``14.29 B``, ``3.4 M``."""
    return f"{count / 1e9:.2f} B" if count >= 1e8 else f"{count / 1e6:.1f} M"
