"""Editing a block: what crosses its border, what its results become, which blocks share a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from fisopt import Block, BlockEdit, Pass, PassError, Program, Rewriter, format_graph, verify
from tests.conftest import plain_captured
from tests.plain_dit import FORMS, inputs
from tests.zoo import zoo

aten = torch.ops.aten


@dataclass(frozen=True)
class Edit(Pass):
    """Edit some blocks by a function."""

    action: Callable[[Rewriter, Block, BlockEdit], None]
    blocks: tuple[int, ...] = (0,)

    def run(self, rewriter: Rewriter) -> None:
        for block in [rewriter.program.blocks[i] for i in self.blocks]:
            with rewriter.edit(block) as edit:
                self.action(rewriter, block, edit)
        rewriter.note("edited")


def plain(name: str = "fused") -> tuple[Program, dict[str, Any]]:
    form = FORMS[name]
    return plain_captured(form)[1], inputs(form, 5, 2, 3, batch=2)


def scale(rewriter: Rewriter, block: Block, edit: BlockEdit) -> None:
    """Multiply what the last branch adds by a constant that differs from block to block."""
    update = edit.twin(block.branches[-1].update)
    with edit.after(update):
        factor = edit.buffer(f"factor{block.index}", torch.tensor(block.index + 2.0), "factor")
        edit.replace_uses(update, edit.call(aten.mul.Tensor, update, factor))


def test_blocks_that_differ_in_constants_share_a_graph() -> None:
    program, call = plain()
    before = format_graph(program)
    result = Edit(scale, (0, 1))(program).program
    verify(result)
    assert {block.call.target for block in result.blocks[:2]} == {"block_a_edited"}
    assert not torch.allclose(result(**call)["video"], program(**call)["video"], atol=1e-3)
    assert format_graph(program) == before


def test_nothing_changed_is_no_edit() -> None:
    program, _ = plain()
    result = Edit(lambda *_: None)(program)
    assert not result.modified
    assert result.program is program


def test_an_exception_leaves_the_block() -> None:
    program, _ = plain()

    def fail(rewriter: Rewriter, block: Block, edit: BlockEdit) -> None:
        scale(rewriter, block, edit)
        raise KeyError("lost")

    rewriter = Rewriter(program.copy(), "Edit")
    with pytest.raises(KeyError), rewriter.edit(rewriter.program.blocks[0]) as edit:
        fail(rewriter, rewriter.program.blocks[0], edit)
    assert not rewriter.changed
    assert format_graph(rewriter.program) == format_graph(program)


def halve(rewriter: Rewriter, block: Block, edit: BlockEdit) -> None:
    result = edit.twin(block.results[0])
    output = next(iter(result.users))
    with edit.before(output):
        output.args = (edit.call(aten.slice.Tensor, result, 2, 0, 8),)


def test_a_result_without_a_value_is_named() -> None:
    program, _ = plain()
    name = program.blocks[0].results[0].name
    message = (
        rf"\[Edit\] at layers\.0: the edit leaves result {name} without a value: .*\[2, 30, 8\]"
    )
    with pytest.raises(PassError, match=message):
        Edit(halve)(program)


def test_a_short_result_is_made_whole_outside() -> None:
    program, call = plain()

    def mirror(rewriter: Rewriter, block: Block, edit: BlockEdit) -> None:
        halve(rewriter, block, edit)
        (piece,) = edit.place()
        assert block.stream is not None
        rest = rewriter.call(aten.slice.Tensor, block.passed(block.stream), 2, 8)
        edit.give(block.results[0], rewriter.call(aten.cat.default, [piece, rest], 2))
        with pytest.raises(PassError, match="too late"):
            edit.call(aten.neg.default, edit.twin(block.results[0]))

    result = Edit(mirror)(program).program
    verify(result)
    assert not torch.allclose(result(**call)["video"], program(**call)["video"], atol=1e-3)


def test_an_argument_is_no_result() -> None:
    program, _ = plain()

    def give(rewriter: Rewriter, block: Block, edit: BlockEdit) -> None:
        edit.give(block.arguments[0], block.passed(block.arguments[0]))

    with pytest.raises(PassError, match="is not a result of the block"):
        Edit(give)(program)


def test_what_passes_add_is_no_result_of_the_block() -> None:
    program, call = plain()

    def keep(rewriter: Rewriter, block: Block, edit: BlockEdit) -> None:
        edit.store("update", edit.twin(block.branches[0].update))
        edit.measure("update", edit.twin(block.branches[1].update))

    result = Edit(keep, (0, 1))(program).program
    verify(result)
    assert result.stores == ("Edit/layers.0/update", "Edit/layers.1/update")
    assert result.gauges == ("Edit/layers.0/update", "Edit/layers.1/update")
    assert [len(b.results) for b in result.blocks] == [len(b.results) for b in program.blocks]
    again = Edit(scale, (0, 1))(result).program
    verify(again)
    assert again.stores == result.stores
    torch.testing.assert_close(result(**call)["video"], program(**call)["video"])


def test_blocks_of_other_graphs_are_not_edited_alike(wan: Program) -> None:
    program = Edit(scale)(wan).program
    rewriter = Rewriter(program.copy(), "Edit")
    message = r"'blocks\.0', 'blocks\.1'.* do not call one graph"
    with pytest.raises(PassError, match=message), rewriter.edit(*rewriter.program.blocks[:2]):
        pass


def test_axes_are_said_where_they_cannot_be_found(wan: Program) -> None:
    inputs = zoo()["wan"].inputs(5, 3, 4, batch=2)

    def transform(rewriter: Rewriter, block: Block, edit: BlockEdit) -> None:
        (piece,) = edit.place()
        spectrum = rewriter.call(aten.fft_fft.default, piece, axes=piece.meta["fisopt.axes"])
        back = rewriter.call(aten.fft_ifft.default, spectrum, axes=piece.meta["fisopt.axes"])
        real = rewriter.call(aten.real.default, back, axes=piece.meta["fisopt.axes"])
        edit.give(block.results[0], real)
        with pytest.raises(PassError, match=r"do not fit the result .*\[2, 60, 48\]"):
            rewriter.call(aten.real.default, back, axes=(None,))

    result = Edit(transform)(wan).program
    verify(result)
    torch.testing.assert_close(result(**inputs)[0], wan(**inputs)[0], atol=1e-5, rtol=0)


def test_branches_are_named_by_what_they_attend_to(wan: Program) -> None:
    for block in wan.blocks:
        kinds = [branch.kind for branch in block.branches]
        assert kinds == ["self_attention", "cross_attention", "feed_forward"]
        assert block.stream is block.source(block.results[0])
