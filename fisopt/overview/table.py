"""A summary for the eye: rich tables of what `Summary.to_dict` returns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from statistics import median
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fisopt.codegen.placement import Held, size

Plain = dict[str, Any]


def rendered(found: Plain) -> RenderableType:
    """Show a summary.

    Args:
        found: its plain values.
    """
    parts: list[RenderableType] = []
    for each in found["transformers"]:
        parts += _transformer(each)
    parts.append(_steps(found["steps"]) if found["steps"] else Text("nothing has run yet"))
    for name, tflops in found["tflops"].items():
        if tflops is not None:
            parts.append(
                Text(
                    f"predicted for {name}: FLOPs at {tflops:.3g} TFLOP/s, the rate of a large "
                    "product here; times are of all calls of a step",
                    style="dim",
                )
            )
    return Group(*parts)


def _transformer(each: Plain) -> Iterator[RenderableType]:
    if not each["optimised"]:
        yield Text(f"{each['name']}: {each['model']}, not optimised", style="bold")
        return
    kernels = "".join(f", {option} {name}" for option, name in each["kernels"].items())
    yield Text(f"{each['name']}: {each['model']} ({each['backend']}{kernels})", style="bold")
    yield Text(f"  passes: {', '.join(each['passes']) or 'none'}")
    sizes = [f"{size(n)} on {device}" for device, n in each["weights"].items()]
    peaks = [f"; peak of {device} {size(n)}" for device, n in each["allocated"].items()]
    yield Text(f"  weights: {', '.join(sizes)}{''.join(peaks)}")
    if (held := each["offload"]) is not None:
        yield Text(f"  offload: {Held(**held)}")
    dropped = f", {each['dropped']} evicted for newer ones" if each["dropped"] else ""
    yield Text(f"  variants held: {len(each['variants'])}{dropped}")
    for title in ("recaptured", "fallbacks"):
        lines = each[title]
        yield Text(f"  {title}: {sum(lines.values()) or 'none'}", "yellow" if lines else "")
        for line, count in lines.items():
            yield Text(f"    {line}" + (f" ({count} times)" if count > 1 else ""))


def _steps(steps: list[Plain]) -> Table:
    """A row for each run of steps that do the same."""
    table = Table(title="The newest clip", title_justify="left", header_style="bold")
    table.add_column("steps", justify="right")
    table.add_column("transformer", style="cyan")
    table.add_column("runs", overflow="fold")
    for header in ("calls", "predicted", "predicted ms", "measured ms"):
        table.add_column(header, justify="right")
    for _, group in groupby(steps, key=_runs):
        same = list(group)
        first, last = same[0], same[-1]
        where = str(first["step"]) if len(same) == 1 else f"{first['step']}-{last['step']}"
        table.add_row(
            where,
            first["transformer"],
            " + ".join(first["passes"]) or "dense",
            str(first["calls"]),
            f"{first['speed_up']:.2f}x",
            _range([s["predicted_ms"] for s in same]),
            _range([s["measured_ms"] for s in same]),
        )
    table.add_section()
    table.add_row("all", "", "", "", "", _sum(steps, "predicted_ms"), _sum(steps, "measured_ms"))
    return table


def _runs(step: Plain) -> tuple[Any, ...]:
    """What a step runs; that of a step cache shows in the speed-up alone."""
    return step["transformer"], step["passes"], step["calls"], f"{step['speed_up']:.2f}"


def _range(times: list[float | None]) -> str:
    """The median of some times, with the least and the most where they differ."""
    known = [x for x in times if x is not None]
    if not known:
        return "-"
    ends = [_ms(f(known)) for f in (min, max)]
    note = "" if ends[0] == ends[1] else f" ({ends[0]} to {ends[1]})"
    return _ms(median(known)) + note


def _sum(steps: list[Plain], key: str) -> str:
    times = [s[key] for s in steps]
    return "-" if None in times else _ms(sum(times))


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
