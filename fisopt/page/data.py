"""What a page shows, as plain values: whoever measures fills them, `write_page` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

DENSE = "dense"
"""The configuration that others are compared with."""

Kind = Literal["measured", "predicted", "preset", "peer"]
Cell = str | float | int | None


@dataclass(frozen=True)
class Point:
    """One configuration in the front of quality against speed.

    Attributes:
        name: the configuration.
        speed: times as fast as the dense model.
        quality: on the axis that `Front.quality` names.
        kind: where the point comes from.
        low: lower end of the 95 % interval of the quality; None if unknown.
        high: its upper end.
    """

    name: str
    speed: float
    quality: float
    kind: Kind = "measured"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Front:
    """Quality against speed.

    Attributes:
        points: the configurations.
        quality: what the quality is, with its unit.
        speed: what the speed is.
    """

    points: tuple[Point, ...] = ()
    quality: str = "PSNR to the dense clip, dB"
    speed: str = "speed-up"


@dataclass(frozen=True)
class Choice:
    """What runs in one branch of one block at some steps, and what it costs.

    Attributes:
        block: place of the block, in execution order.
        branch: such as "self-attention"; "block" for all of it.
        steps: such as "0-3".
        choice: what runs, in words; "dense" where nothing was changed.
        share: FLOPs as a share of the dense ones; None if unknown.
        price: error that the choice adds; None if it was not measured.
        configuration: whose choice it is.
        transformer: which of a pipeline's.
    """

    block: int
    branch: str
    steps: str
    choice: str
    share: float | None = None
    price: float | None = None
    configuration: str = ""
    transformer: str = "transformer"


@dataclass(frozen=True)
class Stage:
    """A part of a run, and its time.

    Attributes:
        configuration: who ran.
        name: the part, such as "step 3" or "blocks 1-11".
        measured: milliseconds.
        predicted: milliseconds that were expected; None if nothing was.
    """

    configuration: str
    name: str
    measured: float
    predicted: float | None = None


@dataclass(frozen=True)
class Film:
    """One clip to play.

    Attributes:
        prompt: what was asked.
        configuration: who made it; `DENSE` is what others are compared with.
        frames: [frames, height, width, 3], uint8.
        flip: FLIP error against the dense clip [frames, height, width], in [0, 1]; of fewer frames
            where they are evenly spread; None if it was not made.
        psnr: of each frame against the dense clip, in dB.
        note: what the semantic scorer says, in words.
    """

    prompt: str
    configuration: str
    frames: np.ndarray
    flip: np.ndarray | None = None
    psnr: tuple[float, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: its heading.
        columns: the headers.
        rows: the cells.
        note: a sentence below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class BlockGraph:
    """The graph of one block before and after.

    Attributes:
        title: which block, of which configuration.
        before: SVG of the dense block, see `fisopt.page.graph_svg.block_svg`.
        after: SVG of the block that runs.
    """

    title: str
    before: str
    after: str


@dataclass(frozen=True)
class Page:
    """All of a page; what is empty is left out of it.

    Attributes:
        title: its heading.
        lead: one paragraph below the heading.
        command: what makes the page again.
        settings: by name, text to copy: the passes in Python, or a recipe.
        tables: the figures.
        front: quality against speed.
        films: the clips.
        choices: what runs where.
        stages: where the time goes.
        graphs: blocks before and after.
        environment: hardware and versions, by name.
        notes: what a reader must know, a sentence each.
    """

    title: str
    lead: str = ""
    command: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    front: Front = field(default_factory=Front)
    films: tuple[Film, ...] = ()
    choices: tuple[Choice, ...] = ()
    stages: tuple[Stage, ...] = ()
    graphs: tuple[BlockGraph, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
