"""A comparison as tables for the eye, and as a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from fisopt.comparison.intervals import Interval
from fisopt.comparison.result import Comparison, Row
from fisopt.counted import counted
from fisopt.page.data import DENSE, Front, Page, Point, Table

FORMS = {
    "seconds": ("seconds", ".3g"),
    "speed-up": ("speed-up", ".2f"),
    "predicted": ("predicted", ".2f"),
    "psnr": ("PSNR dB", ".1f"),
    "worst": ("worst frame dB", ".1f"),
    "uneven": ("from frame to frame dB", ".2f"),
    "ssim": ("SSIM", ".3f"),
    "ms_ssim": ("MS-SSIM", ".3f"),
    "flip": ("FLIP", ".3f"),
    "flicker": ("flicker", ".2f"),
    "motion": ("motion", ".2f"),
}
"""Header and form of each figure."""
OF_A_SCORE = ".2f"
TERMINAL = (("seconds", "speed-up", "psnr"), ("predicted", "ssim", "flip", "flicker", "motion"))
"""The figures of each table that 80 columns have room for; the first ones with intervals."""
ON_A_PAGE = {
    "Time and likeness": ("seconds", "speed-up", "predicted", "psnr", "ssim", "flip"),
    "Frames and motion": ("worst", "uneven", "ms_ssim", "flicker", "motion"),
}
NOTE = (
    "Means over the clips, in brackets their 95 % intervals; speed-ups and differences are paired, "
    "clip by clip. Flicker and motion are ratios to the dense clip, FLIP is 0 for equal clips."
)


def rich_tables(found: Comparison) -> RenderableType:
    """Show a comparison in a terminal."""
    title = f"{found.title}: {_run(found)}"
    first, second = (
        _table(found, said, figures, spread=not index)
        for index, (said, figures) in enumerate(zip((title, ""), TERMINAL, strict=True))
    )
    scores = _table(found, "", found.scores, spread=False)
    tables = [_rich(each) for each in (first, second, scores) if len(each.columns) > 1]
    lines = [Text(note, style="yellow") for note in found.notes]
    return Group(*tables, Text(NOTE, style="dim"), *lines)


def _run(found: Comparison) -> str:
    """How many clips of how many steps."""
    clips = len(found.rows[0].clips)
    return f"{counted(clips, 'clip')}, {counted(found.steps, 'step')}"


def page_of(found: Comparison, command: str = "") -> Page:
    """A comparison as a page."""
    tables = [_table(found, title, names, spread=True) for title, names in ON_A_PAGE.items()]
    if found.scores:
        tables += [_table(found, "Scores", found.scores, spread=True), *_differences(found)]
    return Page(
        title=found.title,
        lead=f"{_run(found)}, each configuration from the same noise. {NOTE}",
        command=command,
        settings={row.name: row.settings for row in found.rows if row.settings},
        tables=tuple(tables),
        front=Front(tuple(_points(found))),
        films=found.films,
        choices=found.choices,
        stages=found.stages,
        graphs=found.graphs,
        environment=found.environment,
        notes=found.notes,
    )


def _rich(table: Table) -> RichTable:
    made = RichTable(title=table.title or None, title_justify="left", header_style="bold")
    for index, name in enumerate(table.columns):
        made.add_column(name, justify="right" if index else "left", overflow="fold")
    for row in table.rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made


def _table(found: Comparison, title: str, figures: Sequence[str], *, spread: bool) -> Table:
    """Some figures of every configuration, those that none has left out."""
    cells = {name: [_cell(found, row, name, spread) for row in found.rows] for name in figures}
    shown = {name: column for name, column in cells.items() if any(column)}
    names = ("configuration", *(FORMS.get(name, (name,))[0] for name in shown))
    rows = zip([row.name for row in found.rows], *shown.values(), strict=True)
    return Table(title, names, tuple(rows))


def _cell(found: Comparison, row: Row, name: str, spread: bool) -> str:
    form = FORMS.get(name, (name, OF_A_SCORE))[1]
    if name == "predicted":
        return "" if row.predicted is None else f"{row.predicted:{form}}"
    if name == "speed-up":
        return "" if row.name == DENSE else _text(found.speed_up(row.name), form, spread)
    return _text(found.mean(row.name, name), form, spread and name != "seconds")


def _text(found: Interval | None, form: str, spread: bool) -> str:
    if found is None:
        return ""
    return found.text(form) if spread else f"{found.mean:{form}}"


def _differences(found: Comparison) -> Iterator[Table]:
    """What the scorer says of each configuration, less what it says of the dense model."""
    names = [name for name in found.scores if found.rows[0].values(name)]
    rows = []
    for row in found.rows[1:]:
        each = [found.difference(row.name, DENSE, name) for name in names]
        if any(each):
            rows.append((row.name, *(_text(x, f"+{OF_A_SCORE}", True) for x in each)))
    if rows:
        head = ("configuration", *names)
        yield Table("Scores, less those of the dense clips", head, tuple(rows))


def _points(found: Comparison) -> Iterator[Point]:
    """Each configuration where it was measured, and where FLOPs had promised it."""
    for row in found.rows[1:]:
        psnr, speed = found.mean(row.name, "psnr"), found.speed_up(row.name)
        if psnr is None or speed is None:
            continue
        ends = (psnr.low, psnr.high)
        yield Point(row.name, speed.mean, psnr.mean, "measured" if row.settings else "peer", *ends)
        if row.predicted is not None:
            yield Point(row.name, row.predicted, psnr.mean, "predicted", *ends)
