"""What a schedule of token reduction was measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fisopt.checked import Checked, is_int
from fisopt.errors import ScheduleError, shown
from fisopt.rewrite.axes import TokenLayout
from fisopt.rewrite.partition import Cells


@dataclass(frozen=True)
class Measured(metaclass=Checked):
    """What a schedule was measured on.

    Attributes:
        source: the file or the name that errors and reports show; equal ones may differ in it.
        model: class of the model; empty if it is not told.
        grid: frames, rows and columns of its tokens; None if it is not told.
        prompts: how many prompts.
        seed: of the choice of destinations.
        target: what the thresholds were chosen for.
        any_grid: whether it may be used at another grid than its own, which the report then says.
    """

    source: str = field(default="", compare=False)
    model: str = ""
    grid: Cells | None = None
    prompts: int = 0
    seed: int = 0
    target: str = ""
    any_grid: bool = False

    def __post_init__(self) -> None:
        kinds = {"source": str, "model": str, "prompts": int, "seed": int, "target": str}
        kinds |= {"any_grid": bool}
        wrong = [name for name, kind in kinds.items() if type(getattr(self, name)) is not kind]
        if self.grid is not None and not _is_grid(self.grid):
            wrong.append("grid")
        if wrong:
            raise ScheduleError(
                f"what a schedule was measured on: got {wrong[0]}="
                f"{shown(getattr(self, wrong[0]))}; wanted text for source, model and target, ints "
                "for prompts and seed, (frames, rows, columns) for grid, true or false for any_grid"
            )

    def __str__(self) -> str:
        return self.source or "(no name)"

    def other_grid(self, layout: TokenLayout) -> str:
        """The grid in words, if one is told and it is not that of a layout."""
        here = (layout.frames, layout.height, layout.width)
        return "" if self.grid in (None, here) else "x".join(map(str, self.grid or ()))

    def plain(self) -> dict[str, Any]:
        """What is told, as plain values."""
        told = {name: value for name, value in vars(self).items() if value}
        return told | ({} if self.grid is None else {"grid": list(self.grid)})

    @staticmethod
    def from_plain(said: Mapping[str, Any]) -> Measured:
        """The inverse of `plain`."""
        grid = said.get("grid")
        return Measured(**{**said, "grid": tuple(grid) if isinstance(grid, list) else grid})


UNTOLD = Measured()


def _is_grid(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(map(is_int, value))
