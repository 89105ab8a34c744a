"""An emitted kernel: its source, its name, and what is needed to launch it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import fx

from fisopt.codegen.emit.arguments import shape, value
from fisopt.codegen.emit.cache import digest
from fisopt.codegen.emit.expression import Load, RefusalError, Select, axes, kind_of, walk
from fisopt.codegen.emit.index import Lookup, Range, atoms, bounds
from fisopt.codegen.emit.operators import MOVES, REDUCTIONS
from fisopt.codegen.emit.pull import Pulled, pull, reduced
from fisopt.codegen.emit.region import Region, returned
from fisopt.codegen.emit.source import NAME, Writer

MOST_ELEMENTS = 2048
"""Elements of a tile that a program holds, where a row is not longer."""

MOST_VALUES = 128
"""Values that a thread reads, of all tiles together; a thread has 255 registers."""

WARPS = (4, 8, 16)

FEW = 16
"""A result this many times smaller than the stage's largest value is not worth a launch."""


@dataclass(frozen=True)
class Config:
    """How a kernel is cut into programs.

    Attributes:
        block_rows: rows of a program.
        block_columns: columns of a program; the whole row where a norm needs it.
        num_warps: warps of a program.
    """

    block_rows: int
    block_columns: int
    num_warps: int

    def __str__(self) -> str:
        return f"{self.block_rows}x{self.block_columns}, {self.num_warps} warps"


@dataclass(frozen=True)
class Kernel:
    """A region as one Triton kernel.

    Attributes:
        name: what it does and a hash of its source: equal regions have one name.
        summary: what it does, in a line.
        source: a Python module that holds the kernel under its name.
        operands: shape of every operand.
        strides: (operand, dimension) pairs whose strides it takes after each operand.
        results: shape and dtype of every tensor that it writes.
        gives: for every result of the region, which of these tensors it is.
        index_sizes: (operand, size) pairs of the operands whose entries are indices in [0, size).
        rows: rows of the result.
        columns: elements of a row.
        reduced: the longest inner row that is summed, 0 if there is none.
        tiles: how many tiles of elements a program reads.
        whole_rows: whether a program needs whole rows.
    """

    name: str
    summary: str
    source: str
    operands: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, int], ...]
    results: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    gives: tuple[int, ...]
    index_sizes: tuple[tuple[int, int], ...]
    rows: int
    columns: int
    reduced: int
    tiles: int
    whole_rows: bool

    def configs(self) -> tuple[Config, ...]:
        """How it may be cut: first what is taken where nothing is timed, then what else to try."""
        columns = _power_of_two(self.columns)
        if not self.whole_rows:
            columns = min(columns, 1024)
        width = max(columns, _power_of_two(self.reduced))
        rows = max(1, min(MOST_ELEMENTS // width, _power_of_two(self.rows)))
        while rows > 1 and rows * width * self.tiles > 32 * WARPS[0] * MOST_VALUES:
            rows //= 2
        least = 0 if rows * width <= 2048 else 1 if rows * width <= 8192 else 2
        read = rows * width * self.tiles
        fitting = (w for w in WARPS[least:] if read <= 32 * w * MOST_VALUES)
        warps = next(fitting, WARPS[-1])
        other = 2 * warps if warps < WARPS[-1] else warps // 2
        cuts = ((rows, warps), (max(1, rows // 4), warps), (rows, other))
        return tuple(dict.fromkeys(Config(r, columns, w) for r, w in cuts))


def emit(region: Region) -> Kernel:
    """Write the kernel of a region.

    Raises:
        RefusalError: the region gains nothing as a kernel, or holds what the emitter does not know.
    """
    graph = region.graph.graph
    devices = {str(value(node).device) for node in region.operands}
    if len(devices) > 1:
        where = " and ".join(sorted(devices))
        raise RefusalError(f"operands on {where}: a kernel reads one device")
    calls = [n for n in graph.nodes if n.op == "call_function"]
    if not any(n.target in REDUCTIONS for n in calls) and region.operators < 2:
        what = "one operator" if region.operators else "moves of elements"
        raise RefusalError(f"{what}: nothing to fuse")
    count = max(value(node).numel() for node in returned(region))
    if count * FEW < region.stage_elements:
        raise RefusalError(
            f"few elements: {count}, of {region.stage_elements} in the largest value"
        )
    for node in returned(region):
        kind_of(value(node).dtype, node.name)
    pulled = pull(graph)
    ends = list(zip(pulled.exprs, (value(n).dtype for n in returned(region)), strict=True))
    stored = list(dict.fromkeys(ends))
    pulled = replace(pulled, exprs=tuple(expr for expr, _ in stored))
    operands = tuple(shape(n) for n in graph.nodes if n.op == "placeholder")
    writer = Writer(pulled, operands)
    source = writer.write()
    words, summary = _describe(graph, pulled)
    name = "_".join([*words, digest(source)])
    header = f'"""{name}: {summary}."""\n\n'
    sums = pulled.sums
    return Kernel(
        name=name,
        summary=summary,
        source=header + source.replace(NAME, name),
        operands=operands,
        strides=tuple(writer.strides),
        results=tuple((pulled.tile.sizes, dtype) for _, dtype in stored),
        gives=tuple(stored.index(end) for end in ends),
        index_sizes=_index_sizes(pulled),
        rows=pulled.tile.row_count,
        columns=pulled.tile.column_count,
        reduced=max((s.var.size for s in sums if s.var.axis == "reduced"), default=0),
        tiles=sum(isinstance(e, Load) and bool(axes(e) - {"row"}) for e in writer.exprs),
        whole_rows=any(s.var.axis == "column" for s in sums),
    )


def _describe(graph: fx.Graph, pulled: Pulled) -> tuple[list[str], str]:
    """What a kernel does: words for its name, and a line."""
    exprs = walk(*pulled.exprs)
    loads = [e for e in exprs if isinstance(e, Load)]
    said: list[tuple[str, str]] = []
    if lengths := sorted({s.var.size for s in pulled.sums}):
        said.append(("norm", f"norm over {' and '.join(map(str, lengths))} elements"))
    if any(_is_rotated(e, loads) for e in loads):
        said.append(("rotate", "elements combined with their neighbours in the row"))
    gathers = any(isinstance(a, Lookup) for e in loads for i in e.index for a in atoms(i))
    if gathers and any("lerp" in str(n.target) for n in graph.nodes):
        said.append(("fill", "rows interpolated between gathered rows"))
    elif gathers:
        said.append(("gather", "rows gathered by an index"))
    if any(isinstance(e, Select) and isinstance(e.guard, Range) for e in exprs):
        said.append(("join", "parts joined"))
    columns = pulled.tile.columns
    if columns != tuple(range(len(pulled.tile.sizes) - len(columns), len(pulled.tile.sizes))):
        said.append(("layout", "rows spread over heads"))
    computing = sum(
        n.op == "call_function" and n.target not in MOVES and "getitem" not in str(n.target)
        for n in graph.nodes
    )
    shapes = " and ".join(str(list(pulled.tile.sizes)) for _ in pulled.exprs)
    said_lines = "; ".join([line for _, line in said] or ["pointwise"])
    summary = f"{said_lines}; {computing} operators on {len(loads)} loads -> {shapes}"
    return [word for word, _ in said] or ["pointwise"], summary


def _index_sizes(pulled: Pulled) -> tuple[tuple[int, int], ...]:
    sizes: dict[int, int] = {}
    for expr in walk(*pulled.exprs):
        for index in expr.index if isinstance(expr, Load) else ():
            for atom in atoms(index):
                if isinstance(atom, Lookup):
                    operand = atom.load.operand
                    sizes[operand] = min(atom.size, sizes.get(operand, atom.size))
    return tuple(sorted(sizes.items()))


def _is_rotated(load: Load, loads: list[Load]) -> bool:
    """Whether an operand is read at more than one place of a row, for the same row."""
    return any(
        other is not load
        and other.operand == load.operand
        and not any(list(reduced(i)) for i in other.index)
        and _rows(other) == _rows(load)
        and _overlap(other, load)
        for other in loads
    )


def _rows(load: Load) -> tuple[object, ...]:
    return tuple(i for i in load.index if not i.axes - {"row"})


def _overlap(a: Load, b: Load) -> bool:
    """Whether two loads differ in the columns that they read, of which they share some."""
    pairs = [(x, y) for x, y in zip(a.index, b.index, strict=True) if "column" in x.axes | y.axes]
    ranges = [(bounds(x, a.guards), bounds(y, b.guards)) for x, y in pairs if x != y]
    return bool(ranges) and all(p[0] <= q[1] and q[0] <= p[1] for p, q in ranges)


def _power_of_two(value: int) -> int:
    return 1 << max(value - 1, 0).bit_length()
