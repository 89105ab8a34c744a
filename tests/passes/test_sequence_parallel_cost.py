"""What ranks compute and send: equal shares, bytes as a formula says, efficiency as predicted."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import fisopt
from fisopt import FrameAxis, FrameInterleave, OptionError, Program, models
from fisopt.cli.ranks_view import bytes_a_second, counts, ranks_table, shared
from fisopt.passes.sharding.shard import positions
from fisopt.rewrite.cost import graph_cost
from tests.ranks import divided, rewritten

LINK = 350e9


@cache
def published() -> Program:
    """Wan2.2-A14B at 720p, 81 frames: from shapes alone."""
    name, dtype = "wan2.2-a14b", torch.bfloat16
    model = models.build(name, dtype=dtype)
    return fisopt.capture(model, models.example_inputs(name, dtype=dtype))


def test_bytes_by_hand(wan: Program) -> None:
    """Three operands go to their heads and a result comes back, all but a rank's own share."""
    batch, tokens, width, ranks = 2, 60, 48, 2
    block = divided(wan, ranks).program.blocks[0].body.graph
    whole = batch * tokens * width * 4
    assert graph_cost(block).sent == 4 * whole / ranks * (ranks - 1) / ranks


def test_table(wan: Program) -> None:
    table = ranks_table(wan, [1, 2], LINK)
    columns = [[*column.cells] for column in table.columns]
    assert columns[0] == ["1", "2"]
    assert columns[1][0] == "0.00"
    assert columns[-1][0] == "100.0%"
    assert 0 < float(columns[-1][1].rstrip("%")) < 100


@pytest.mark.parametrize(("text", "rate"), [("350GB/s", 350e9), ("1.5 TB/s", 1.5e12)])
def test_rates(text: str, rate: float) -> None:
    assert bytes_a_second(text) == rate


@pytest.mark.parametrize("text", ["350", "0GB/s", "fast", "-1GB/s"])
def test_bad_rates(text: str) -> None:
    with pytest.raises(OptionError, match="wanted a rate such as 350GB/s"):
        bytes_a_second(text)


def test_counts() -> None:
    assert counts("1,2,8") == [1, 2, 8]
    for text in ("", "0", "1,", "two"):
        with pytest.raises(OptionError, match="wanted numbers such as 1,2,4,8"):
            counts(text)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [4, 8])
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_every_rank_has_its_share_of_every_residue(stride: int, ranks: int) -> None:
    """All ranks run one graph, whichever frames it is of, and each has keys and values of text."""
    program = rewritten(published(), [FrameInterleave(stride=stride)])
    parts = fisopt.PassManager([fisopt.SequenceParallel(degree=ranks)]).run(program)
    words, width = program.inputs.kwargs()["encoder_hidden_states"].shape[1], 5120
    text = 2 * 2 * words * width**2
    seen = set()
    for block, part in zip(program.blocks, parts.blocks, strict=True):
        if block.body not in seen:
            seen.add(block.body)
            whole, own = graph_cost(block.body.graph).total, graph_cost(part.body.graph).total
            assert own * ranks == pytest.approx(whole + (ranks - 1) * text, rel=0.01)
            assert (ranks - 1) * text <= 0.02 * whole
    tokens = program.layout.tokens_per_frame
    held = positions(FrameAxis(tokens), ranks)
    assert held.unique().numel() == held.numel() == tokens, "no token is on two ranks"
    assert len(seen) >= 3, "dense blocks, and residues of a frame more or less, which share a graph"


@pytest.mark.slow
def test_predicted_efficiency() -> None:
    """Of `docs/many_gpus.md`."""
    program = published()
    for passes, four, eight in (([FrameInterleave(stride=2)], 0.963, 0.955), ([], 0.975, 0.970)):
        made = rewritten(program, passes)
        alone = shared(made, 1)
        found = {ranks: shared(made, ranks) for ranks in (4, 8)}
        assert found[4].efficiency(alone, LINK) == pytest.approx(four, abs=5e-4)
        assert found[8].efficiency(alone, LINK) == pytest.approx(eight, abs=5e-4)
    tokens, width = 75600, 5120
    batch = program.inputs.kwargs()["hidden_states"].shape[0]
    for ranks, each in found.items():
        sent = 4 * batch * tokens * width * 2 * (ranks - 1) / ranks**2
        assert each.blocks.sent == 40 * sent
