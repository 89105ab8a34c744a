"""``fisopt inspect --ranks``: what several GPUs exchange, and how much faster they would be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from fisopt.errors import OptionError, shown
from fisopt.passes.sequence_parallel import SequenceParallel
from fisopt.rewrite.cost import FLOPS_A_SECOND, Cost, called_cost, program_cost
from fisopt.rewrite.pass_manager import PassManager
from fisopt.rewrite.program import Program

_UNITS = {"MB/s": 1e6, "GB/s": 1e9, "TB/s": 1e12}


@dataclass(frozen=True)
class Shared:
    """A Program on some ranks.

    Attributes:
        ranks: how many.
        call: what one rank computes and sends in a call.
        blocks: of that, in its blocks.
        count: the number of blocks.
    """

    ranks: int
    call: Cost
    blocks: Cost
    count: int

    def seconds(self, link: float) -> float:
        """Seconds of a call, if nothing overlaps, at so many bytes a second between ranks."""
        return self.call.work / FLOPS_A_SECOND + self.call.sent / link

    def block_seconds(self, link: float) -> tuple[float, float]:
        """Seconds that a block computes and exchanges, in the mean."""
        each = 1 / max(1, self.count)
        return self.blocks.work / FLOPS_A_SECOND * each, self.blocks.sent / link * each

    def efficiency(self, alone: Shared, link: float) -> float:
        """The speed-up over one rank, for each rank."""
        return alone.seconds(link) / (self.ranks * self.seconds(link))


def shared(program: Program, ranks: int) -> Shared:
    """Cost of a Program on some ranks."""
    divided = PassManager([SequenceParallel(degree=ranks)]).run(program)
    return Shared(ranks, program_cost(divided), called_cost(divided), len(divided.blocks))


def counts(text: str) -> list[int]:
    """Numbers of ranks such as ``1,2,4``.

    Raises:
        OptionError: it is something else.
    """
    if not re.fullmatch(r"[1-9]\d{0,4}(,[1-9]\d{0,4})*", text):
        raise OptionError(f"--ranks: got {shown(text)}, wanted numbers such as 1,2,4,8")
    return [int(count) for count in text.split(",")]


def bytes_a_second(text: str) -> float:
    """A rate such as ``350GB/s``.

    Raises:
        OptionError: it is something else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MGT]B/s)", text)
    if found is None or not float(found[1]):
        raise OptionError(f"--link: got {shown(text)}, wanted a rate such as 350GB/s")
    return float(found[1]) * _UNITS[found[2]]


def ranks_table(program: Program, ranks: Sequence[int], link: float) -> Table:
    """What a Program costs on different numbers of ranks."""
    table = Table(
        title=f"One forward call on several ranks, {FLOPS_A_SECOND / 1e12:.0f} TFLOP/s, "
        f"{link / 1e9:g} GB/s, nothing overlapped",
        title_justify="left",
        header_style="bold",
    )
    headers = ("ranks", "GB sent by each", "block ms", "exchange ms", "speed-up", "efficiency")
    for header in headers:
        table.add_column(header, justify="right")
    alone = shared(program, 1)
    for count in ranks:
        found = shared(program, count)
        computes, exchanges = (1e3 * s for s in found.block_seconds(link))
        efficiency = found.efficiency(alone, link)
        sent = f"{found.call.sent / 1e9:,.2f}"
        cells = (f"{computes:.2f}", f"{exchanges:.2f}", f"{count * efficiency:.2f}x")
        table.add_row(str(count), sent, *cells, f"{efficiency:.1%}")
    return table
