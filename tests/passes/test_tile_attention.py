"""TileAttention against the model's own attention under an explicit mask, every family."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx

import fisopt
from fisopt import (
    FrameInterleave,
    FrameTable,
    MaskTable,
    PassManager,
    PreconditionError,
    Program,
    RadialDecay,
    SlidingWindow,
    TileAttention,
    TileMask,
    TokenReduction,
    predicted_ratio,
    program_cost,
)
from fisopt.passes.tiling.masks import FrameMask
from fisopt.passes.tiling.tiled_block import TILE
from fisopt.rewrite.pass_base import Step
from tests.passes.loop import Options, blocks_of, interleaved
from tests.passes.tiled import tiled
from tests.zoo import Case, zoo

TOLERANCE = 1e-5
GRID = (5, 3, 4)
every_case = pytest.mark.parametrize("case", zoo().values(), ids=zoo())


def cases(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [zoo()[name] for name in names], ids=names)


def run(program: Program, inputs: dict[str, Any]) -> Tensor:
    output: Tensor = program(**inputs)[0]
    return output


def oracle(
    case: Case,
    inputs: dict[str, Any],
    masks: FrameMask | Sequence[FrameMask | None],
    grid: tuple[int, int, int] = GRID,
    interleave: Options | None = None,
) -> Tensor:
    frames, height, width = grid
    model = case.model_for(frames)
    batch = inputs["encoder_hidden_states"].shape[0]
    blocks = blocks_of(case.family.name, model, height * width, batch)
    each = [masks] * len(blocks) if isinstance(masks, FrameMask) else masks
    with torch.no_grad(), ExitStack() as stack:
        if interleave is not None:
            stack.enter_context(interleaved(blocks, interleave, frames))
        known = frames if interleave is None else None
        loop = stack.enter_context(tiled(blocks, each, known))
        output: Tensor = model(**inputs)[0]
    assert len(loop.applied) == sum(
        mask is not None and block.attention.dim == 2
        for block, mask in zip(blocks, each, strict=True)
    )
    return output


def assert_equal(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert float((got - want).abs().max()) / max(1.0, float(want.abs().max())) <= TOLERANCE


def tiles(program: Program) -> list[list[fx.Node]]:
    """The tile attentions of every block."""
    return [[n for n in b.body.graph.nodes if n.target is TILE] for b in program.blocks]


@every_case
@pytest.mark.parametrize("mask", [TileMask(1), TileMask(2), RadialDecay(1)], ids=repr)
def test_equals_the_explicit_mask(case: Case, program: Program, mask: FrameMask) -> None:
    inputs = case.inputs(*GRID, batch=2)
    sparse = PassManager([TileAttention(mask)]).run(program)
    want = oracle(case, inputs, mask)
    assert_equal(run(sparse, inputs), want)
    assert not torch.allclose(want, run(program, inputs), atol=1e-4), "the mask did nothing"
    for block, found in zip(sparse.blocks, tiles(sparse), strict=True):
        assert len(found) == int(case.name != "latte" or "temporal" in block.path)


@every_case
def test_every_tile_is_no_pass(case: Case, program: Program) -> None:
    result = TileAttention(GRID[0])(program)
    assert not result.modified
    assert result.program is program
    assert "every tile is kept" in str(result.notes)


@cases("wan", "cogvideox_2b", "hunyuan_video")
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 8, 13])
def test_every_k(case: Case, program: Program, frames: int) -> None:
    grid = (frames, 2, 3)
    inputs = case.inputs(*grid, batch=2)
    dense = program.at(inputs)
    for k in range(1, frames + 1):
        got = run(PassManager([TileAttention(k)]).run(dense), inputs)
        assert_equal(got, oracle(case, inputs, TileMask(k), grid))
    torch.testing.assert_close(got, run(dense, inputs), rtol=0, atol=0)


@cases("wan", "hunyuan_video")
def test_per_head_masks(case: Case, program: Program) -> None:
    heads = torch.stack([SlidingWindow(1).table(5), TileMask(1).table(5)])
    inputs = case.inputs(*GRID, batch=2)
    mask = FrameTable(heads)
    assert_equal(run(TileAttention(mask)(program).program, inputs), oracle(case, inputs, mask))


@cases("hunyuan_video", "mochi", "hunyuan_video15")
def test_padding_masks_hold(case: Case, program: Program) -> None:
    """What padded text holds must not show, under a tile mask as without."""
    inputs = case.inputs(*GRID, batch=2)
    key = "encoder_attention_mask" if "encoder_attention_mask" in inputs else None
    assert key is not None
    mask = inputs[key].clone()
    mask[:, mask.shape[1] // 2 :] = 0
    inputs[key] = mask
    sparse = TileAttention(1)(program).program
    assert all(node.args[3] is not None for block in tiles(sparse) for node in block)
    got = run(sparse, inputs)
    assert_equal(got, oracle(case, inputs, TileMask(1)))
    changed = dict(inputs)
    text = inputs["encoder_hidden_states"].clone()
    text[:, mask.shape[1] // 2 :] += 3.0
    changed["encoder_hidden_states"] = text
    assert_equal(run(sparse, changed), got)


@cases("wan", "cogvideox_2b")
def test_table_and_blocks(case: Case, program: Program) -> None:
    inputs = case.inputs(*GRID, batch=2)
    paths = [block.path for block in program.blocks]
    masks: list[FrameMask | None] = [TileMask(1 + i % 2) for i in range(len(paths))]
    masks[1] = None
    table = dict(zip(paths, masks, strict=True))
    got = TileAttention(table=table)(program)
    assert_equal(run(got.program, inputs), oracle(case, inputs, masks))
    assert [bool(found) for found in tiles(got.program)] == [m is not None for m in masks]
    masks[-1] = None
    got = TileAttention(table=table, blocks=":-1")(program)
    assert_equal(run(got.program, inputs), oracle(case, inputs, masks))
    assert f"{len(paths) - 2} of {len(paths)} blocks tile-sparse" in str(got.notes)


def test_blocks_of_one_mask_share_a_graph(wan: Program) -> None:
    """Text of a block and sharing: two masks are two graphs, each called by several blocks."""
    uniform = TileAttention(2)(wan).program
    assert len({block.call.target for block in uniform.blocks}) == 1
    paths = [block.path for block in wan.blocks]
    table = {path: 1 + (i > 1) for i, path in enumerate(paths)}
    mixed = TileAttention(table=table)(wan).program
    assert [block.call.target for block in mixed.blocks] == ["block_a_tiles"] * 2 + [
        "block_a_tiles_1"
    ] * (len(paths) - 2)
    text = fisopt.format_graph(uniform, parameters=True)
    line = next(x for x in text.splitlines() if "fisopt::tile_attention" in x)
    assert line.endswith("None, %tiles_rows_0, %tiles_keys_0, 2736, None)")
    assert "@fisopt_keys_k2_f5x12_0_0" in text


@cases("wan", "cogvideox_2b", "wan_ti2v")
def test_on_the_anchor_frames(case: Case, program: Program) -> None:
    """Inside FrameInterleave the mask is that of the anchors, in either order of the list."""
    grid = (9, 3, 4)
    inputs = case.inputs(*grid, batch=2)
    dense = program.at(inputs)
    want = oracle(case, inputs, TileMask(2), grid, Options(2))
    for passes in (
        [FrameInterleave(2, blocks=":"), TileAttention(2)],
        [TileAttention(2), FrameInterleave(2, blocks=":")],
    ):
        got = PassManager(passes).run(dense)
        assert_equal(run(got, inputs), want)
    counts = {n.meta["fisopt.axes"][-2].frames for block in tiles(got) for n in block}
    assert counts == {5, 6}
    alone = FrameInterleave(2, blocks=":")(dense).program
    assert not torch.allclose(want, run(alone, inputs), atol=1e-4)
    assert predicted_ratio(alone, got) > 1


def test_frames_that_leave_too_few(wan: Program) -> None:
    both = [FrameInterleave(2, blocks=":"), TileAttention(5)]
    inputs = zoo()["wan"].inputs(9, 2, 3, batch=2)
    with pytest.raises(PreconditionError, match="k=6 is more than the 5 frames"):
        PassManager([FrameInterleave(2, blocks=":"), TileAttention(6)]).run(wan.at(inputs))
    manager = PassManager(both)
    manager.run(wan.at(inputs))
    assert "tile-sparse" in str(manager.applied[1].result.notes)
    every = FrameInterleave(2, blocks=":", kv="all")
    with pytest.raises(PreconditionError, match=r"queries are f5\*6 and its keys f9\*6.*anchors"):
        PassManager([every, TileAttention(2)]).run(wan.at(inputs))


def test_cost_counts_kept_pairs(wan: Program) -> None:
    sparse = TileAttention(1)(wan).program
    dense, cost = program_cost(wan), program_cost(sparse)
    kept = float(TileMask(1).table(5).float().mean())
    assert cost.flops["self-attention"] == pytest.approx(kept * dense.flops["self-attention"])
    for name in ("cross-attention", "linear"):
        assert cost.flops[name] == dense.flops[name]


def test_steps() -> None:
    step = TileAttention(steps="1:-1")
    assert step.stepwise
    assert not TileAttention().stepwise
    assert [step.at(Step(i, 4)) is None for i in range(4)] == [True, False, False, True]
    with pytest.raises(
        fisopt.ScheduleError, match=r"TileAttention: .* depends on the number of steps"
    ):
        step.at(Step(1))


def test_table_files(tmp_path: Path) -> None:
    masks: dict[str, FrameMask | int | None] = {
        "a": 2,
        "b": None,
        "c": SlidingWindow(1),
        "d": FrameTable([[True, False], [False, True]]),
        "e": RadialDecay(3),
    }
    table = MaskTable(masks, {"threshold": 0.1})  # type: ignore[arg-type]
    held = MaskTable.load(table.save(tmp_path / "table.json"))
    assert held == table
    assert hash(held) == hash(table)
    assert held.measured == {"threshold": 0.1}
    assert TileAttention(table=str(tmp_path / "table.json")) == TileAttention(table=masks)
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"bad\.json is not a mask table"):
        MaskTable.load(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": 0}, "TileAttention: TileMask: k must be an int of at least 1, got 0"),
        ({"mask": "2"}, "a mask must be an int k or a FrameMask, got '2'"),
        ({"blocks": ("0",)}, "blocks must be numbers and slices"),
        ({"steps": (0.5,)}, "steps must be numbers and slices"),
        ({"table": {"blocks.0": 0}}, "k must be an int of at least 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TileAttention(**options)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (TileAttention(6), r"k=6 is more than the 5 frames; use 1 to 5 \(5x3x4 tokens\)"),
        (TileAttention(blocks=(0, 4)), "blocks='0,4': 4 is outside the model's 4 video blocks"),
        (TileAttention(blocks="-5"), "-5 is outside"),
        (TileAttention(table={"blocks.0": 2}), "for 1 blocks, the model has 4; not in the table"),
        (
            TileAttention(table={f"layers.{i}": 2 for i in range(4)}),
            r"has no blocks \['layers.0'",
        ),
        (TileAttention(FrameTable([[1, 0], [0, 1]])), "has 2 frames, the attention has 5"),
        (TileAttention(FrameTable(torch.eye(5).repeat(3, 1, 1) > 0)), "for 3 heads, .* has 2"),
        (
            TileAttention(FrameTable(torch.tensor([[i != 3] * 5 for i in range(5)]))),
            "blocks.0, blocks.1, blocks.2, blocks.3: the mask leaves the queries of frame 3 with no key",
        ),
    ],
)
def test_refused(wan: Program, step: TileAttention, message: str) -> None:
    with pytest.raises(PreconditionError, match=message):
        step(wan)


def test_not_strict_reports_and_leaves_dense(wan: Program) -> None:
    once = TileAttention(2, blocks="1:")(wan).program
    with pytest.raises(PreconditionError, match="TileAttention has edited the attention"):
        TileAttention(1)(once)
    twice = TileAttention(1)(once, strict=False)
    assert [line.split(":")[0] for line in twice.skipped] == ["blocks.1", "blocks.2", "blocks.3"]
    assert "1 of 4 blocks tile-sparse" in str(twice.notes)


@cases("latte")
def test_blocks_that_attend_within_frames(case: Case, program: Program) -> None:
    result = TileAttention(1)(program)
    assert any("have no self-attention across frames" in note for note in result.notes)
    paths = [block.path for block in program.blocks]
    with pytest.raises(PreconditionError, match="the table gives it a mask, but it has no video"):
        TileAttention(table=dict.fromkeys(paths, 1))(program)
    inside = [p for p, found in zip(paths, tiles(result.program), strict=True) if not found]
    table = {p: None if p in inside else TileMask(1) for p in paths}
    assert TileAttention(table=table)(program).modified


@pytest.mark.parametrize("turned", [False, True])
def test_reduced_tokens_have_no_tiles(wan: Program, turned: bool) -> None:
    """In either order of the list, and also where only one side is reduced."""
    for options in ({"query": 0.5}, {"value": 0.5}):
        passes = [TokenReduction(**options), TileAttention(1)]
        with pytest.raises(PreconditionError, match=r"could not be applied to blocks\.0"):
            PassManager(passes[::-1] if turned else passes).run(wan)
