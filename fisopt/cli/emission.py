"""``fisopt codegen``: the Triton kernels that are emitted for a model, without GPU or weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text
from torch import fx

import fisopt
from fisopt.cli.inspection import ranges
from fisopt.cli.shapes import shapes_of
from fisopt.cli.sources import Source
from fisopt.cli.stages import Stages
from fisopt.codegen.emit.expression import RefusalError
from fisopt.codegen.emit.kernel import Kernel, emit
from fisopt.codegen.emit.region import find_regions
from fisopt.codegen.lower import lower
from fisopt.rewrite.pass_base import Pass
from fisopt.rewrite.pass_manager import PassManager
from fisopt.rewrite.program import Program


@dataclass
class Emission:
    """What is emitted for a Program.

    Attributes:
        kernels: every distinct kernel by name, in execution order.
        places: for each kernel, how often each block or other stage calls it.
        refused: for each reason, how many regions of distinct stages are left to Inductor.
    """

    kernels: dict[str, Kernel] = field(default_factory=dict)
    places: dict[str, Counter[str]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)


def emission(source: Source, passes: Sequence[Pass], *, strict: bool, stages: Stages) -> Emission:
    """Capture a model on the meta device, rewrite it and emit its kernels."""
    stages.update(f"building {source.model} on the meta device")
    held = shapes_of(source)
    stages.update(f"capturing {source.model}")
    program = fisopt.capture(held.model, held.inputs)
    stages.update("rewriting and emitting")
    return emit_program(PassManager(passes, strict=strict).run(program))


def emit_program(program: Program) -> Emission:
    """Emit the kernels of every stage of a Program."""
    module, found = lower(program), Emission()
    blocks = [block.path for block in program.blocks]
    users: dict[str, list[str]] = {}
    for call in module.graph.nodes:
        if call.op == "call_module":
            users.setdefault(str(call.target), []).append(_place(call, blocks))
    for target, places in users.items():
        stage = module.get_submodule(target)
        assert isinstance(stage, fx.GraphModule)
        for region in find_regions(stage):
            try:
                kernel = emit(region)
            except RefusalError as refusal:
                found.refused[str(refusal).split(":")[0]] += 1
                continue
            found.kernels.setdefault(kernel.name, kernel)
            found.places.setdefault(kernel.name, Counter()).update(places)
    return found


def _place(call: fx.Node, blocks: Sequence[str]) -> str:
    kind, _, number = str(call.meta["fisopt.region"]).rpartition("_")
    if not number.isdigit():
        return "before the first block"
    block = blocks[int(number)]
    return block if kind == "block" else f"after {block}"


def emission_view(found: Emission, *, source: bool) -> Group:
    """Lay out an emission for the terminal."""
    return Group(*_kernels(found, source), _refusals(found))


def _kernels(found: Emission, source: bool) -> Iterator[RenderableType]:
    for name, kernel in found.kernels.items():
        yield Rule(Text(name, style="bold cyan"), align="left")
        yield Text(kernel.summary)
        yield Text(f"used in {used(found.places[name])}", style="green")
        if source:
            yield Text(kernel.source, no_wrap=True, overflow="ignore")


def used(places: Counter[str]) -> str:
    """Where a kernel is used: ``blocks.1-39 (2 times each)``."""
    by_count: dict[int, list[str]] = {}
    for place, count in places.items():
        by_count.setdefault(count, []).append(place)
    return ", ".join(
        ranges(names) + (f" ({count} times each)" if count > 1 else "")
        for count, names in by_count.items()
    )


def _refusals(found: Emission) -> Table:
    table = Table(title="Regions that are left to Inductor", title_justify="left")
    table.add_column("why")
    table.add_column("regions", justify="right")
    for why, count in found.refused.most_common():
        table.add_row(why, str(count))
    return table
