"""Parts of the video: frames, tokens, shards; where two of them meet; what has no part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fisopt
from fisopt import Block, BlockEdit, Frames, OptionError, Pass, PassError, Program, Rewriter, Tokens
from fisopt.rewrite.axes import FrameAxis, TokenLayout, axes_of
from fisopt.rewrite.text import format_graph
from tests.conftest import plain_captured
from tests.plain_dit import FORMS, PlainDiT, inputs

aten = torch.ops.aten
LAYOUT = TokenLayout(5, 2, 3)


@dataclass(frozen=True)
class Edit(Pass):
    """Edit the first block by a function."""

    action: Callable[[Rewriter, Block, BlockEdit], None]

    def run(self, rewriter: Rewriter) -> None:
        block = rewriter.program.blocks[0]
        with rewriter.edit(block) as edit:
            self.action(rewriter, block, edit)
        rewriter.note("edited")


def plain(name: str = "fused") -> tuple[PlainDiT, Program, dict[str, Any]]:
    model, program = plain_captured(FORMS[name])
    return model, program, inputs(FORMS[name], 5, 2, 3, batch=2)


def on(index: Tensor, grid: TokenLayout | None = None) -> Edit:
    """Run the first block on some tokens of the video and leave the others as they are."""

    def run(rewriter: Rewriter, block: Block, edit: BlockEdit) -> None:
        tokens = Tokens(rewriter.buffer("index", index), rewriter.program.layout, grid)
        result, stream = block.results[0], block.stream
        assert stream is not None
        edit.compute({result: tokens}, cut=block.body.graph.nodes)
        (piece,) = edit.place()
        full = block.passed(stream)
        edit.give(result, tokens.spread(rewriter, piece, axes_of(result), full=full))

    return Edit(run)


@dataclass(frozen=True)
class Chain(Pass):
    """Run some blocks on the same tokens."""

    index: Tensor
    blocks: tuple[int, ...]

    def run(self, rewriter: Rewriter) -> None:
        tokens = Tokens(rewriter.buffer("index", self.index), rewriter.program.layout)
        for block in [rewriter.program.blocks[i] for i in self.blocks]:
            with rewriter.edit(block) as edit:
                assert block.stream is not None
                result, full = block.results[0], block.passed(block.stream)
                edit.compute({result: tokens}, cut=block.body.graph.nodes)
                whole = tokens.spread(rewriter, *edit.place(), axes_of(result), full=full)
                edit.give(result, whole)


@pytest.mark.parametrize("kept", [(), (1, 2), (0, 3, 2, 4), (0, 2, 2, 4), (0, 2), (0, 5)])
def test_frames_are_in_order_with_both_ends(kept: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match="wanted frames in order, the first"):
        Frames(kept, 5)


def test_a_subset_takes_its_own_axis_only() -> None:
    frames = Frames((0, 3, 4), 5)
    assert frames.covers(FrameAxis(5, inner=6))
    assert not frames.covers(FrameAxis(3, inner=6))
    assert frames.axis(FrameAxis(5, inner=6, after=2)) == FrameAxis(3, inner=6, after=2)
    assert frames.shape([2, 32, 8], 1, FrameAxis(5, inner=6, after=2)) == [2, 20, 8]


@pytest.mark.parametrize("name", ["fused", "written_out", "text_in_front", "text_behind"])
@pytest.mark.parametrize("shard", [None, TokenLayout(5, 1, 3)], ids=["tokens", "shard"])
def test_a_block_on_some_tokens(name: str, shard: TokenLayout | None) -> None:
    """The block sees the kept tokens alone, at their own places; text beside them is whole."""
    model, program, call = plain(name)
    rows = torch.arange(30).unflatten(0, (5, 2, 3))[:, 0].flatten()
    result = fisopt.PassManager([on(rows, shard)]).run(program)
    layer, text = model.layers[0], call["text"].shape[1] if name.startswith("text_") else 0
    first = layer.forward

    def some(x: Tensor, *rest: Any) -> Tensor:
        start = text if name == "text_in_front" else 0
        kept = torch.cat([torch.arange(start), rows + start, torch.arange(start + 30, x.shape[1])])
        angles = [r[rows] if isinstance(r, Tensor) and r.shape[0] == 30 else r for r in rest]
        out = x.clone()
        out[:, kept] = first(x[:, kept], *angles)
        return out

    layer.forward = some
    try:
        with torch.no_grad():
            want = model(**call)["video"]
    finally:
        del layer.forward
    torch.testing.assert_close(result(**call)["video"], want, atol=1e-5, rtol=0)
    held = {str(axis) for n in result.blocks[0].body.graph.nodes for axis in axes_of(n) if axis}
    assert any("f5*3" in axis for axis in held) == (shard is not None)
    assert result.blocks[1].body is program.blocks[1].body


def test_two_blocks_on_the_same_tokens_move_nothing_between_them() -> None:
    """Tokens of a value that was made whole of them are not taken of it again."""
    _, program, call = plain()
    index = torch.arange(30)[::2].clone()
    moves = []
    for blocks in ((0,), (1,), (0, 1)):
        result = Chain(index, blocks)(program).program
        moves.append(format_graph(result, blocks=False).count("aten::index_"))
        fisopt.verify(result)
    assert moves == [3, 3, 4]
    one = Chain(index, (1,))(Chain(index, (0,))(program).program).program
    torch.testing.assert_close(result(**call), one(**call), rtol=0, atol=0)


def test_items_need_a_dimension_of_their_own() -> None:
    _, program, _ = plain()
    index = torch.stack([torch.arange(12), torch.arange(12) + 3])
    with pytest.raises(PassError, match=r"each of 2 items has tokens of its own, and it has no"):
        on(index)(program)


@pytest.mark.parametrize("index", [torch.arange(4, dtype=torch.int32), torch.zeros(1, 1, 1).long()])
def test_what_is_no_index(index: Tensor) -> None:
    _, program, _ = plain()
    with pytest.raises(OptionError, match=r"wanted int64 \[tokens\]"):
        on(index)(program)
    with pytest.raises(OptionError, match="4 tokens are no grid 5x1x3"):
        on(torch.arange(4), TokenLayout(5, 1, 3))(program)


def test_two_parts_that_meet_are_named() -> None:
    _, program, _ = plain()
    one, two = Frames((0, 2, 4), 5), Frames((0, 3, 4), 5)

    def add(rewriter: Rewriter, block: Block, edit: BlockEdit) -> None:
        assert block.stream is not None
        x = block.passed(block.stream)
        rewriter.call(aten.add.Tensor, one.take(rewriter, x), two.take(rewriter, x))

    message = r"add\.Tensor meets gather\S* on frames 0, 2, 4 of 5 and gather\S* on frames 0, 3, 4"
    with pytest.raises(PassError, match=message):
        Edit(add)(program)


def test_a_block_on_two_parts_is_no_program(wan: Program) -> None:
    """Hidden states of some frames and rotary tables of others: the sizes fit, the frames do not."""
    one, two = Frames((0, 2, 4), 5), Frames((0, 3, 4), 5)

    def mixed(rewriter: Rewriter) -> None:
        block, short = rewriter.program.blocks[0], rewriter.program.resized(3).blocks[0]
        framed = [a for a in block.arguments if any(axes_of(a))]
        taken = {
            a: (one if a is block.stream else two).take(rewriter, block.passed(a)) for a in framed
        }
        args = [taken.get(a) or block.passed(a) for a in block.arguments]
        (piece,) = rewriter.call_block(short.body, args, like=block.call, name="mixed")
        whole = one.spread(rewriter, piece, axes_of(block.call))
        rewriter.replace_uses(block.call, whole)

    rewriter = Rewriter(wan.copy(), "Edit")
    with rewriter.before(rewriter.program.blocks[0].call):
        mixed(rewriter)
    message = r"passes gather\S* on frames 0, [23], 4 of 5 and gather\S* on frames 0, [23], 4 of 5"
    with pytest.raises(fisopt.VerifyError, match=message):
        fisopt.verify(rewriter.program)


def test_parts_are_asked_for_at_once() -> None:
    _, program, _ = plain()

    def twice(rewriter: Rewriter, block: Block, edit: BlockEdit) -> None:
        update = block.branches[0].update
        edit.compute({update: Frames((0, 2, 4), 5)})
        edit.compute({update: Frames((0, 3, 4), 5)})

    message = r"layers\.0: the edit computes \w+ on frames 0, 2, 4 of 5 already.* frames 0, 3, 4"
    with pytest.raises(PassError, match=message):
        Edit(twice)(program)


def test_a_block_that_was_edited_has_no_parts() -> None:
    _, program, _ = plain()
    once = on(torch.arange(12))(program).program

    def again(rewriter: Rewriter, block: Block, edit: BlockEdit) -> None:
        edit.compute({block.results[0]: Frames((0, 2, 4), 5)})

    with pytest.raises(PassError, match="another pass has edited the block"):
        Edit(again)(once)


def test_a_value_is_taken_once_where_it_is_seen() -> None:
    _, program, _ = plain()
    rewriter, frames = Rewriter(program.copy(), "Edit"), Frames((0, 2, 4), 5)
    first, second = rewriter.program.blocks[:2]
    assert first.stream is not None
    x = first.passed(first.stream)
    with rewriter.before(second.call):
        late = frames.take(rewriter, x)
    with rewriter.before(first.call):
        early = frames.take(rewriter, x)
        assert frames.take(rewriter, x) is early is not late
    with rewriter.before(second.call):
        assert frames.take(rewriter, x) is early


def test_a_program_at_another_grid(wan: Program) -> None:
    for grid in (TokenLayout(12, 1, 1), TokenLayout(3, 2, 2)):
        other = wan.resized(grid)
        assert other.layout == grid
        body, own = other.blocks[0].body.graph, wan.blocks[0].body.graph
        assert [n.target for n in body.nodes if n.op == "call_function"] == [
            n.target for n in own.nodes if n.op == "call_function"
        ]
        assert tuple(other.blocks[0].call.meta["val"].shape) == (2, 12, 48)
    assert wan.resized(wan.layout.frames).layout == wan.layout


class TwoMeans(nn.Module):
    """Two branches, each of which is scaled by a mean over all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = x + branch(x * (x.sum(1, keepdim=True) / x.shape[1]))
        return x


def test_what_two_parts_read_of_all_tokens_counts_all_of_them() -> None:
    model = nn.Sequential(TwoMeans()).eval().requires_grad_(False)
    spec = fisopt.ModelSpec(blocks=("0",), grid=(5, 2, 3))
    x = torch.randn(1, 30, 8)
    program = fisopt.capture(model, {"input": x}, spec=spec)
    kept = ((0, 2, 4), (0, 3, 4))

    def compute(_: Rewriter, block: Block, edit: BlockEdit) -> None:
        parts = {b.update: Frames(k, 5) for b, k in zip(block.branches, kept, strict=True)}
        edit.compute(parts, cut=block.body.graph.nodes)

    got, want = Edit(compute)(program).program(input=x), x
    for branch, frames in zip(model[0].branches, kept, strict=True):
        tokens = want.unflatten(1, (5, 6))
        update = branch((tokens * want.mean(1)[:, None, None])[:, list(frames)])
        middle = frames[1]
        full = [
            torch.lerp(update[:, 0], update[:, 1], f / middle)
            if f <= middle
            else torch.lerp(update[:, 1], update[:, 2], (f - middle) / (4 - middle))
            for f in range(5)
        ]
        want = want + torch.stack(full, 1).flatten(1, 2)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


class TwoSides(nn.Module):
    """What video says to two tokens of text, and what they say to it."""

    def __init__(self) -> None:
        super().__init__()
        self.said, self.heard = nn.Linear(2, 8), nn.Linear(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        scores = (x @ x.transpose(1, 2)).exp()
        x = x + self.said(scores[:, :, -2:])
        return x + self.heard(scores[:, -2:].transpose(1, 2))


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([TwoSides()])

    def forward(self, video: Tensor, text: Tensor) -> Tensor:
        x = torch.cat([video, text], 1)
        for block in self.blocks:
            x = block(x)
        return x[:, :-2]


@pytest.mark.parametrize("cut", [True, False])
def test_two_parts_that_meet_in_a_block_are_named(cut: bool) -> None:
    model = Joined().eval().requires_grad_(False)
    inputs = {"video": torch.randn(1, 30, 8), "text": torch.randn(1, 2, 8)}
    program = fisopt.capture(model, inputs, spec=fisopt.ModelSpec(("blocks.*",), (5, 2, 3)))

    def compute(_: Rewriter, block: Block, edit: BlockEdit) -> None:
        kept = (Frames((0, 2, 4), 5), Frames((0, 3, 4), 5))
        updates = block.body.graph.find_nodes(op="call_function", target=aten.linear.default)
        parts = dict(zip(updates, kept, strict=True))
        edit.compute(parts, cut=block.body.graph.nodes if cut else ())

    message = r"(exp|matmul).* frames 0, 2, 4 of 5 and .*frames 0, 3, 4 of 5.*; ask for the same"
    with pytest.raises(fisopt.VerifyError, match=message):
        Edit(compute)(program)
