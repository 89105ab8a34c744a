"""``fisopt models``: the published models that adapters know, with shapes and sizes."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn

from fisopt import models
from fisopt.cli.expressions import known_passes
from fisopt.models import Family, Published
from fisopt.passes.presets import PRESETS
from fisopt.rewrite.pass_base import Pass
from fisopt.rewrite.template import matches


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


def size_of(model: nn.Module, height: int, width: int, frames: int) -> Size:
    """Measure a model of a known family, on the meta device, for a video in pixels."""
    spec = models.spec_of(model)
    inputs = models.example_inputs(model, height=height, width=width, num_frames=frames)
    layers = sum(matches(path, spec.blocks) for path, _ in model.named_modules())
    return Size(spec.grid_of(inputs), layers, sum(p.numel() for p in model.parameters()))


def models_table(rows: list[tuple[Family, Published, Size]]) -> Group:
    """Lay out the published models as a table, and what the passes do with them."""
    table = Table(title="Published models", title_justify="left", header_style="bold")
    table.add_column("family", no_wrap=True)
    table.add_column("name for fisopt", style="cyan", no_wrap=True)
    table.add_column("checkpoint")
    for header in ("video (pixels)", "token grid", "tokens", "layers", "parameters"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("passes")
    last = ""
    for family, model, size in rows:
        if last and family.name != last:
            table.add_section()
        table.add_row(
            family.title if family.name != last else "",
            model.name,
            model.title,
            f"{model.num_frames} x {model.height} x {model.width}",
            " x ".join(map(str, size.grid)),
            f"{size.tokens:,}",
            str(size.layers),
            f"{size.parameters / 1e9:.2f} B",
            ", ".join(known_passes()),
        )
        last = family.name
    presets = Table(title="Presets", title_justify="left", header_style="bold")
    presets.add_column("name", style="cyan", no_wrap=True)
    presets.add_column("what it is")
    presets.add_column("passes")
    for name, (purpose, passes) in PRESETS.items():
        presets.add_row(name, purpose, Text(", ".join(short(p) for p in passes)))
    note = Text(
        "Frames, height and width can be chosen freely within what the model's patches divide. "
        "Any other nn.Module works too, with spec=fisopt.ModelSpec(blocks=..., grid=...). "
        "`fisopt inspect NAME --pass PRESET` says block by block what a pass does to a model.",
        style="dim",
    )
    return Group(table, "", presets, "", note)


def short(pass_: Pass) -> str:
    """A pass as one would write it: only the options that differ from the defaults."""
    options = inspect.signature(type(pass_)).parameters.values()
    values = {option.name: getattr(pass_, option.name) for option in options}
    changed = [f"{o.name}={values[o.name]!r}" for o in options if values[o.name] != o.default]
    return f"{type(pass_).__name__}({', '.join(changed)})"
