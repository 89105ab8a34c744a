"""What `fisopt.compare` returns: every figure of every clip, and their means with intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from fisopt.comparison.intervals import Interval, difference_of, mean_of, ratio_of
from fisopt.comparison.likeness import Likeness
from fisopt.errors import OptionError
from fisopt.nearest import did_you_mean
from fisopt.page.data import DENSE, BlockGraph, Choice, Film, Stage
from fisopt.page.write import write_page

LIKE = ("psnr", "worst", "uneven", "ssim", "ms_ssim", "flip", "flicker", "motion")
"""The figures that compare a clip with the dense one, see `Likeness`."""


@dataclass(frozen=True)
class Clip:
    """One clip.

    Attributes:
        prompt: what was asked.
        seconds: what making it took; None if it was not timed.
        likeness: to the dense clip; None of the dense clip itself.
        scores: what the semantic scorer says, by name.
    """

    prompt: str
    seconds: float | None
    likeness: Likeness | None
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """All clips of one configuration.

    Attributes:
        name: its name.
        clips: the clips, in the order of the prompts.
        predicted: the speed-up that FLOPs promise; None where none is known.
        settings: what makes the same again, in Python.
        report: what each pass did, in words.
        floor: whether it is a noise floor: the dense model, computed otherwise.
    """

    name: str
    clips: tuple[Clip, ...]
    predicted: float | None = None
    settings: str = ""
    report: str = ""
    floor: bool = False

    def values(self, figure: str) -> list[float]:
        """A figure of each clip that has it: one of `LIKE`, "seconds", or a scorer's."""
        if figure == "seconds":
            return [clip.seconds for clip in self.clips if clip.seconds is not None]
        if figure in LIKE:
            found = [getattr(c.likeness, figure) for c in self.clips if c.likeness is not None]
            return [float(value) for value in found if value is not None]
        return [clip.scores[figure] for clip in self.clips if figure in clip.scores]


@dataclass(frozen=True)
class Comparison:
    """Configurations compared with the dense model.

    Attributes:
        title: what was compared.
        rows: the configurations, `fisopt.page.data.DENSE` the first, noise floors the last.
        steps: denoising steps.
        seed: seed of the first clip's noise.
        scores: names of the numbers that the scorer returns.
        environment: hardware and versions.
        notes: what a reader must know.
        films: the clips that the page shows.
        choices: what ran in every block.
        stages: where the time went.
        graphs: a block before and after.
    """

    title: str
    rows: tuple[Row, ...]
    steps: int
    seed: int
    scores: tuple[str, ...]
    environment: Mapping[str, str]
    notes: tuple[str, ...] = ()
    films: tuple[Film, ...] = field(default=(), repr=False)
    choices: tuple[Choice, ...] = field(default=(), repr=False)
    stages: tuple[Stage, ...] = field(default=(), repr=False)
    graphs: tuple[BlockGraph, ...] = field(default=(), repr=False)

    def row(self, name: str) -> Row:
        """The row of a configuration.

        Raises:
            OptionError: no configuration has this name.
        """
        for row in self.rows:
            if row.name == name:
                return row
        names = [row.name for row in self.rows]
        raise OptionError(
            f"there is no configuration {name!r}; {did_you_mean(name, names)}There are "
            f"{', '.join(names)}"
        )

    def mean(self, name: str, figure: str) -> Interval | None:
        """The mean of a configuration's figure, None if it was not measured.

        Args:
            name: the configuration.
            figure: see `Row.values`.
        """
        values = self.row(name).values(figure)
        return mean_of(values) if values else None

    def speed_up(self, name: str) -> Interval | None:
        """The speed-up over the dense model, pair by pair; None if nothing was timed."""
        ours, dense = (self.row(x).values("seconds") for x in (name, DENSE))
        return ratio_of(dense, ours) if ours else None

    def difference(self, name: str, other: str, figure: str) -> Interval | None:
        """How far a figure of one configuration is above that of another, pair by pair.

        If the interval does not contain 0, the difference is significant.
        """
        pairs = [self.row(x).values(figure) for x in (name, other)]
        return difference_of(*pairs) if pairs[0] and len(pairs[0]) == len(pairs[1]) else None

    def to_dict(self) -> dict[str, Any]:
        """Every figure as plain values."""
        return json.loads(self.to_json())  # type: ignore[no-any-return]

    def to_json(self, indent: int | None = 2) -> str:
        """Every figure as JSON; pictures are left out."""
        said = {
            "title": self.title,
            "steps": self.steps,
            "seed": self.seed,
            "environment": dict(self.environment),
            "notes": self.notes,
            "configurations": [self._figures(row) for row in self.rows],
        }
        return json.dumps(said, indent=indent, allow_nan=False)

    def save_page(self, path: Path | str, command: str = "") -> Path:
        """Write the page: one HTML file, see `fisopt.page.write.write_page`.

        Args:
            path: where.
            command: the command that makes the page again; the page shows it.
        """
        from fisopt.comparison.shown import page_of

        return write_page(page_of(self, command), path)

    def _figures(self, row: Row) -> dict[str, Any]:
        names = ("seconds", *LIKE, *self.scores)
        means = {name: self.mean(row.name, name) for name in names}
        speed = self.speed_up(row.name)
        return {
            "name": row.name,
            "floor": row.floor,
            "predicted_speed_up": row.predicted,
            "speed_up": None if speed is None else asdict(speed),
            "settings": row.settings,
            **{name: asdict(found) for name, found in means.items() if found is not None},
            "clips": [asdict(clip) for clip in row.clips],
        }

    def __rich__(self) -> Any:
        from fisopt.comparison.shown import rich_tables

        return rich_tables(self)

    def __str__(self) -> str:
        console = Console(width=100, no_color=True, highlight=False)
        with console.capture() as text:
            console.print(self)
        return text.get().rstrip()
