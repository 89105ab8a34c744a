"""``fisopt inspect``: what is in a model and what passes make of it, with no weights."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import fisopt
from fisopt.cli.catalog import Size, parameters, short
from fisopt.cli.schedule import Plan, plan_steps
from fisopt.cli.shapes import shapes_of
from fisopt.cli.sources import Source
from fisopt.cli.stages import Stages
from fisopt.counted import counted
from fisopt.rewrite.block import repeated_blocks
from fisopt.rewrite.cost import CLASSES, Cost, graph_cost, not_predicted, program_cost
from fisopt.rewrite.pass_base import Pass
from fisopt.rewrite.pass_manager import Applied, PassManager
from fisopt.rewrite.program import Program
from fisopt.rewrite.text import format_graph
from fisopt.rewrite.variants import Variant, Variants

FIRST_LINES = 16
STAGES = ("built", "captured", "rewritten")
_BLOCK = re.compile(r" = (block_|fisopt::)")


@dataclass(frozen=True)
class Inspection:
    """A captured model before and after some passes.

    Attributes:
        title: the model and its video.
        size: its size.
        passes: the passes, in order.
        dense: the Program as captured.
        optimised: the Program after the passes, at a step where all are active.
        applied: what each pass did.
        plan: which Program runs at which step.
        stages: seconds that each stage took.
    """

    title: str
    size: Size
    passes: tuple[Pass, ...]
    dense: Program
    optimised: Program
    applied: tuple[Applied, ...]
    plan: Plan
    stages: Mapping[str, float]


def inspect_model(
    source: Source,
    passes: Sequence[Pass],
    *,
    steps: int,
    strict: bool,
    stages: Stages,
    dtype: torch.dtype = torch.float32,
) -> Inspection:
    """Capture a model on the meta device and rewrite it."""
    began = [time.perf_counter()]
    stages.update(f"building {source.model} on the meta device")
    held = shapes_of(source, dtype=dtype)
    size = held.size
    began.append(time.perf_counter())
    stages.update(f"capturing {source.model}: {size.layers} layers, {size.tokens:,} tokens")
    dense = fisopt.capture(held.model, held.inputs)
    began.append(time.perf_counter())
    stages.update("rewriting")
    variants = Variants.of(passes, steps)
    manager = PassManager.of(variants.fullest, strict=strict)
    optimised = manager.run(dense)

    def rewrite(variant: Variant) -> Program:
        if variant == variants.fullest:
            return optimised
        return PassManager.of(variant, strict=strict).run(dense)

    plan = plan_steps(variants, steps, rewrite)
    began.append(time.perf_counter())
    took = dict(zip(STAGES, (b - a for a, b in pairwise(began)), strict=True))
    applied = tuple(manager.applied)
    return Inspection(held.title, size, tuple(passes), dense, optimised, applied, plan, took)


def inspection_view(found: Inspection, *, text: bool, blocks: bool, full: bool) -> Group:
    """Lay out an inspection for the terminal, the answer first."""
    parts: list[RenderableType] = [_summary(found)]
    if found.applied:
        parts.append(_verdict(found))
    parts += ["", _blocks(found), "", _costs(found)]
    if found.applied:
        parts += ["", _notes(found)]
    if text:
        parts += ["", *_text("program as captured", found.dense, blocks, full)]
        if found.applied:
            parts += ["", *_text("program after the passes", found.optimised, blocks, full)]
    return Group(*parts)


def _summary(found: Inspection) -> Table:
    size = found.size
    table = Table.grid(padding=(0, 2))
    table.add_row(Text(found.title, style="bold"))
    frames, rows, columns = size.grid
    table.add_row(
        f"{frames} latent frames x {rows} x {columns} = {size.tokens:,} video tokens; "
        f"{size.layers} layers, {parameters(size.parameters)} parameters"
    )
    took = ", ".join(f"{stage} in {spent:.1f} s" for stage, spent in found.stages.items())
    total = sum(found.stages.values())
    table.add_row(Text(f"from shapes alone in {total:.1f} s: {took}", style="dim"))
    return table


def _blocks(found: Inspection) -> Table:
    table = Table(title="Blocks by kind", title_justify="left", header_style="bold")
    table.add_column("kind", style="cyan")
    table.add_column("blocks", overflow="fold")
    unit, flops = _unit(found)
    for header in ("count", "operators", unit, "attention"):
        table.add_column(header, justify="right")
    for group in repeated_blocks(found.dense.blocks):
        graph = group[0].body.graph
        cost = graph_cost(graph)
        operators = sum(node.op == "call_function" for node in graph.nodes)
        table.add_row(
            str(group[0].call.target),
            ranges([block.path for block in group]),
            str(len(group)),
            str(operators),
            f"{cost.total / flops:.3f}",
            f"{cost.attention_share:.1%}",
        )
    return table


def ranges(paths: Sequence[str]) -> str:
    """Shorten module paths: ``blocks.0, blocks.1, blocks.2`` is ``blocks.0-2``."""
    spans: list[tuple[str, int, int]] = []
    for path in paths:
        match = re.fullmatch(r"(.*?)(\d+)", path)
        if match is None:
            spans.append((path, -1, -1))
            continue
        stem, number = match[1], int(match[2])
        if spans and spans[-1][0] == stem and spans[-1][2] == number - 1:
            spans[-1] = (stem, spans[-1][1], number)
        else:
            spans.append((stem, number, number))
    return ", ".join(
        stem if first < 0 else f"{stem}{first}" + (f"-{last}" if last > first else "")
        for stem, first, last in spans
    )


def _costs(found: Inspection) -> Table:
    dense = program_cost(found.dense)
    unit, flops = _unit(found)
    costs = [dense]
    headers = ["dense"]
    if found.applied:
        costs.append(program_cost(found.optimised))
        headers.append("optimised")
    table = Table(
        title=f"One forward call in {unit} (a multiplication and an addition are two)",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("operators")
    for header in headers:
        table.add_column(header, justify="right")
        table.add_column("share", justify="right", style="dim")
    if found.applied:
        table.add_column("kept", justify="right")
    for name in CLASSES:
        if any(cost.flops[name] for cost in costs):
            table.add_row(name, *_cells([cost.flops[name] for cost in costs], costs, flops))
    if any(cost.traffic for cost in costs):
        moved = [cost.work - cost.total for cost in costs]
        table.add_row("time for moving tokens", *_cells(moved, costs, flops))
    table.add_section()
    table.add_row("all", *_cells([cost.work for cost in costs], costs, flops), style="bold")
    sizes = [cost.bytes / 1e9 for cost in costs]
    cells = [cell for size in sizes for cell in (f"{size:,.1f}", "")]
    kept = [f"{sizes[1] / sizes[0]:.1%}"] if found.applied else []
    table.add_row("GB moved if unfused", *cells, *kept, style="dim")
    return table


def _unit(found: Inspection) -> tuple[str, float]:
    """The unit of the FLOPs of a call, by name and size; a small model's are no TFLOPs."""
    return ("TFLOPs", 1e12) if program_cost(found.dense).work >= 1e11 else ("GFLOPs", 1e9)


def _cells(flops: Sequence[float], costs: Sequence[Cost], unit: float) -> Iterator[str]:
    for value, cost in zip(flops, costs, strict=True):
        yield f"{value / unit:,.3f}"
        yield f"{value / cost.work:.1%}"
    if len(flops) > 1:
        yield f"{flops[1] / flops[0]:.1%}" if flops[0] else "new"


def _verdict(found: Inspection) -> Table:
    table = Table.grid(padding=(0, 2))
    before, after = program_cost(found.dense), program_cost(found.optimised)
    table.add_row(Text(", ".join(short(p) for p in found.passes)))
    unknown = not_predicted(before, after)
    said = f"{before.work / after.work:.2f}x" + (" of what is counted" if unknown else "")
    table.add_row(Text(f"predicted speed-up {said}", style="bold green"))
    if unknown:
        table.add_row(Text(unknown, style="yellow"))
    plan = found.plan
    if plan.ratio is None:
        table.add_row(
            f"over {counted(plan.steps, 'denoising step')}: not predicted, {plan.undecided}; the "
            "figures are of a step where every pass is active"
        )
    elif plan.stepwise:
        dense = ", ".join(map(str, plan.dense_steps)) or "none"
        table.add_row(
            f"over {counted(plan.steps, 'denoising step')}: {plan.ratio:.2f}x (dense steps: "
            f"{dense}); the figures are of a step where every pass is active"
        )
    return table


def _notes(found: Inspection) -> Table:
    """What each pass did, and where it could not."""
    table = Table.grid(padding=(0, 2))
    for applied in found.applied:
        for note in applied.result.notes:
            table.add_row(Text(f"{applied.name}: {note}"))
        for skipped in applied.result.skipped:
            table.add_row(Text(f"{applied.name}: not applied to {skipped}", style="yellow"))
    return table


def _text(title: str, program: Program, blocks: bool, full: bool) -> Iterator[RenderableType]:
    lines = format_graph(program, blocks=blocks).splitlines()
    yield Text(title, style="bold")
    if full:
        yield Text("\n".join(lines), no_wrap=True, overflow="ignore")
        return
    shown = excerpt(lines)
    yield Text("\n".join(shown), no_wrap=True, overflow="ellipsis")
    yield Text(f"{len(lines)} lines in all; --full prints them", style="dim")


def excerpt(lines: Sequence[str]) -> list[str]:
    """The first lines of a program: its inputs, and from a little before the first block on."""
    head = next((i for i, line in enumerate(lines) if " = " in line), len(lines))
    block = next((i for i, line in enumerate(lines) if _BLOCK.search(line)), head)
    start = max(head, block - 2)
    between = [f"  ... {start - head} lines before the first block"] if start > head else []
    return [*lines[:head], *between, *lines[start : start + FIRST_LINES]]
