"""What ``fisopt tune`` shows: the plan, the front, and what a search would take."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from fisopt.cli.catalog import short
from fisopt.tuning.rehearsal import Rehearsal
from fisopt.tuning.tuned import Tuned


def tuned_table(made: Tuned) -> Table:
    """The plan, with what it reaches on the prompts that it was made for."""
    title = f"target {made.target}" + ("" if made.reached else ", out of reach: the nearest")
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_row(made.speed, f"{made.speed_up:.2f}x")
    if made.seconds is not None:
        table.add_row("of all their calls in one clip", f"{1000 * made.seconds:.0f} ms")
    table.add_row("error of the final latents", f"{made.error:.4f} relative L2")
    table.add_row("the same by the prices of its changes", f"{made.predicted:.4f}")
    table.add_row("PSNR of the final latents", f"{made.psnr:.1f} dB")
    for name, passes in made.passes.items():
        said = "\n".join(short(p) for p in passes) or "dense"
        table.add_row(name, Text(said))
    return table


def front_table(made: Tuned) -> Table:
    """The errors that the prices predict for other speeds."""
    table = Table(title="other targets, predicted", title_justify="left")
    table.add_column("speed-up", justify="right")
    table.add_column("error", justify="right")
    for speed, error in made.front:
        table.add_row(f"{speed:g}x", f"{error:.3f}")
    return table


def rehearsed_table(found: Rehearsal) -> Table:
    """How large a search is."""
    table = Table(title="nothing was run", title_justify="left", show_header=False)
    table.add_row("single changes", str(found.changes))
    table.add_row("plans", f"10^{found.plans:.0f}")
    table.add_row("generations for all prices", f"{found.generations:.0f}")
    minutes = "unknown on this device" if found.minutes is None else f"{found.minutes:.0f}"
    table.add_row("minutes, by FLOPs", minutes)
    table.add_row("peak memory", f"{found.peak / 2**30:.1f} GiB")
    table.add_row("largest speed-up", f"{found.most:.2f}x")
    if found.speed_up is not None:
        table.add_row("speed-up of the plan", f"{found.speed_up:.2f}x")
    for name, passes in found.plan.items():
        said = "\n".join(short(p) for p in passes) or "dense"
        table.add_row(f"{name}, by the testbed's prices", Text(said))
    for each in found.savings:
        table.add_row(f"{each.component}, {each.option} everywhere", f"saves {each.share:.0%}")
    return table
