"""``fisopt choose``: presets by the speed that the cost model predicts and the testbed's clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

import fisopt
from fisopt.cli.schedule import plan_steps
from fisopt.cli.shapes import shapes_of
from fisopt.cli.sources import Source
from fisopt.errors import FisoptError
from fisopt.passes.figures import Figure, figure_of
from fisopt.passes.presets import PAPER, PRESETS
from fisopt.rewrite.pass_manager import PassManager
from fisopt.rewrite.program import Program
from fisopt.rewrite.variants import Variant, Variants


@dataclass(frozen=True)
class Priced:
    """A preset for a model.

    Attributes:
        name: its name.
        speed: predicted, None where that is decided in the run.
        figure: of the testbed at about as many steps, None if there is none.
        why: why it is not for this model, empty if it is.
    """

    name: str
    speed: float | None
    figure: Figure | None
    why: str = ""


def price_presets(source: Source, steps: int, *, seen: Callable[[str], object]) -> list[Priced]:
    """Every preset for a model, which is captured from its shapes alone."""
    seen(f"building {source.model} on the meta device")
    held = shapes_of(source)
    seen(f"capturing {source.model}")
    dense = fisopt.capture(held.model, held.inputs)
    found = []
    for preset in PRESETS:
        seen(f"pricing {preset}")
        found.append(_priced(preset, dense, steps))
    return found


def _priced(name: str, dense: Program, steps: int) -> Priced:
    figure = figure_of(name, steps)
    if PAPER in name:
        return Priced(name, None, figure, "loses the clips")

    def rewrite(variant: Variant) -> Program:
        return PassManager.of(variant).run(dense)

    try:
        plan = plan_steps(Variants.of(PRESETS[name][1], steps), steps, rewrite)
    except FisoptError as error:
        return Priced(name, None, figure, str(error).splitlines()[0])
    return Priced(name, plan.ratio, figure)


def choice_of(found: list[Priced], speed: float) -> Priced | None:
    """The preset of the best figure among those that are fast enough."""
    fast = [p for p in found if p.speed is not None and p.speed >= speed and p.figure is not None]
    return max(fast, key=lambda p: p.figure.psnr if p.figure is not None else 0.0, default=None)


def chosen_view(found: list[Priced], speed: float, steps: int) -> Group:
    """What to take, why, and all that there was."""
    chosen = choice_of(found, speed)
    if chosen is not None:
        said = (
            f"{chosen.name}: predicted {chosen.speed:.2f}x here; of the presets that reach "
            f"{speed:g}x it stays closest to the dense clip on the testbed ({chosen.figure})"
        )
    else:
        known = [p.speed for p in found if p.speed is not None and p.figure is not None]
        said = f"no preset reaches {speed:g}x at {steps} steps; the fastest known is " + (
            f"{max(known):.2f}x" if known else "none"
        )
    table = Table(title_justify="left")
    for header in ("preset", "predicted here", "on the testbed"):
        table.add_column(header)
    for p in sorted(found, key=lambda p: p.speed or 0.0):
        here = "decided in the run" if p.speed is None and not p.why else ""
        here = f"{p.speed:.2f}x" if p.speed is not None else here
        table.add_row(p.name, here, Text(": ".join(filter(None, (str(p.figure or ""), p.why)))))
    advice = "`fisopt tune` finds more for your own weights and prompts."
    return Group(Text(said, style="bold"), table, Text(advice, style="dim"))
