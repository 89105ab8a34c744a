"""A comparison as a table for the eye, and as a page."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from fisopt.comparison.intervals import Interval
from fisopt.comparison.result import Comparison
from fisopt.page.data import DENSE, Front, Page, Point, Table

FORMS = {
    "psnr": ("PSNR dB", ".1f"),
    "worst": ("worst frame dB", ".1f"),
    "uneven": ("from frame to frame dB", ".2f"),
    "ssim": ("SSIM", ".3f"),
    "ms_ssim": ("MS-SSIM", ".3f"),
    "flip": ("FLIP", ".3f"),
    "flicker": ("flicker", ".2f"),
    "motion": ("motion", ".2f"),
}
"""Header and form of each figure beside the dense clip."""
BRIEF = ("psnr", "ssim", "flip", "flicker", "motion")
"""What a terminal has room for."""
NOTE = (
    "Means over the clips, in brackets their 95 % intervals; speed-ups and differences are paired, "
    "clip by clip. Flicker and motion are ratios to the dense clip, FLIP is 0 for equal clips."
)


def rich_table(found: Comparison) -> RenderableType:
    """Show a comparison in a terminal."""
    title = f"{found.title}: {len(found.rows[0].clips)} clips, {found.steps} steps"
    table = RichTable(title=title, title_justify="left", header_style="bold")
    names, *rows = _cells(found, BRIEF, ("psnr",))
    for index, name in enumerate(names):
        table.add_column(name, justify="right" if index else "left", no_wrap=not index)
    for row in rows:
        table.add_row(*map(Text, row))
    lines = [Text(note, style="yellow") for note in found.notes]
    return Group(table, Text(NOTE, style="dim"), *lines)


def page_of(found: Comparison, command: str = "") -> Page:
    """A comparison as a page."""
    names, *rows = _cells(found, tuple(FORMS), (*FORMS, *found.scores))
    clips = len(found.rows[0].clips)
    return Page(
        title=found.title,
        lead=f"{clips} clips of {found.steps} steps, each configuration from the same noise.",
        command=command,
        settings={row.name: row.settings for row in found.rows if row.settings},
        tables=(
            Table("Figures", names, tuple(rows), NOTE),
            *_differences(found),
        ),
        front=Front(tuple(_points(found))),
        films=found.films,
        choices=found.choices,
        stages=found.stages,
        graphs=found.graphs,
        environment=found.environment,
        notes=found.notes,
    )


def _cells(
    found: Comparison, figures: tuple[str, ...], spread: tuple[str, ...]
) -> list[tuple[str, ...]]:
    """The header and the rows of a table of some figures, some of them with their intervals."""
    shown = [name for name in figures if any(row.values(name) for row in found.rows)]
    forms = {**{name: FORMS[name] for name in shown}, **{n: (n, ".2f") for n in found.scores}}
    head = ("configuration", "seconds", "speed-up", "predicted", *(h for h, _ in forms.values()))
    rows = []
    for row in found.rows:
        seconds, speed = found.mean(row.name, "seconds"), found.speed_up(row.name)
        timed = (
            row.name,
            _text(seconds, ".3g", False),
            "" if row.name == DENSE else _text(speed, ".2f", True),
            "" if row.predicted is None else f"{row.predicted:.2f}",
        )
        each = (
            _text(found.mean(row.name, name), form, name in spread)
            for name, (_, form) in forms.items()
        )
        rows.append((*timed, *each))
    return [head, *rows]


def _text(found: Interval | None, form: str, spread: bool) -> str:
    if found is None:
        return ""
    return found.text(form) if spread else f"{found.mean:{form}}"


def _differences(found: Comparison) -> Iterator[Table]:
    """What the scorer says of each configuration, less what it says of the dense model."""
    rows = []
    for row in found.rows[1:]:
        each = [found.difference(row.name, DENSE, name) for name in found.scores]
        if any(each):
            rows.append((row.name, *(_text(x, "+.2f", True) for x in each)))
    if rows:
        head = ("configuration", *found.scores)
        yield Table("Scores, less those of the dense clips", head, tuple(rows))


def _points(found: Comparison) -> Iterator[Point]:
    """Each configuration where it was measured, and where FLOPs had promised it."""
    for row in found.rows[1:]:
        psnr, speed = found.mean(row.name, "psnr"), found.speed_up(row.name)
        if psnr is None:
            continue
        ends = (psnr.low, psnr.high)
        if speed is not None:
            yield Point(row.name, speed.mean, psnr.mean, "measured", *ends)
        if row.predicted is not None:
            yield Point(row.name, row.predicted, psnr.mean, "predicted", *ends)
