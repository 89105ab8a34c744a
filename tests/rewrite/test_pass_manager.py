"""The pass manager, the rewriter and the verifier."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import fx

from fisopt import (
    FrameInterleave,
    Pass,
    PassError,
    PassManager,
    PassResult,
    Program,
    Rewriter,
    VerifyError,
    axes_of,
    format_graph,
    verify,
)
from fisopt.rewrite.analysis.structure import results
from fisopt.rewrite.axes import FrameAxis, set_axes

aten = torch.ops.aten


@dataclass(frozen=True)
class Do(Pass):
    """Run a function on the rewriter."""

    action: Callable[[Rewriter], None]
    title: str = "Do"

    @property
    def name(self) -> str:
        return self.title

    def run(self, rewriter: Rewriter) -> None:
        self.action(rewriter)


def last(rewriter: Rewriter) -> fx.Node:
    output = next(iter(reversed(rewriter.graph.nodes)))
    node: fx.Node = output.all_input_nodes[0]
    return node


def note(rewriter: Rewriter) -> None:
    rewriter.note("seen")


def without_value(rewriter: Rewriter) -> None:
    node = last(rewriter)
    with rewriter.graph.inserting_after(node):
        new = rewriter.graph.call_function(aten.relu.default, (node,))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    rewriter.changed = True


def wrong_axis(rewriter: Rewriter) -> None:
    call = rewriter.program.blocks[0].call
    set_axes(call, (None, FrameAxis(4, inner=12), None))
    rewriter.changed = True


def wrong_rank(rewriter: Rewriter) -> None:
    set_axes(rewriter.program.blocks[0].call, (None,))
    rewriter.changed = True


def mutating(rewriter: Rewriter) -> None:
    node = last(rewriter)
    with rewriter.after(node):
        rewriter.replace_uses(node, rewriter.call(aten.relu_.default, node))


def dropped_argument(rewriter: Rewriter) -> None:
    call = rewriter.program.blocks[0].call
    call.args = call.args[:-1]
    rewriter.changed = True


def other_argument(rewriter: Rewriter) -> None:
    call = rewriter.program.blocks[0].call
    call.args = (call.args[1], call.args[0], *call.args[2:])
    rewriter.changed = True


def too_few_results(rewriter: Rewriter) -> None:
    output = next(iter(reversed(rewriter.graph.nodes)))
    output.args = ([],)
    rewriter.changed = True


def chosen_by_content(rewriter: Rewriter) -> None:
    """As many tokens as three frames have, but those of largest norm: no frames any more."""
    call = rewriter.program.blocks[0].call
    short = rewriter.program.resized(3)
    body = short.blocks[0].body
    with rewriter.before(call):
        args = []
        for arg, holder in zip(
            call.args, (n for n in body.graph.nodes if n.op == "placeholder"), strict=True
        ):
            assert isinstance(arg, fx.Node)
            for d, axis in enumerate(axes_of(arg)):
                if axis is not None:
                    norms = rewriter.call(aten.linalg_vector_norm.default, arg, 2, _others(arg, d))
                    best = rewriter.call(aten.topk.default, norms, holder.meta["val"].shape[d])
                    index = rewriter.call(operator.getitem, best, 1)
                    arg = rewriter.call(aten.index_select.default, arg, d, index)
            args.append(arg)
        axes = [axes_of(n) for n in results(body.graph)]
        new = rewriter.call_block(body, args, call, "chosen", axes)[0]
        padded = rewriter.call(aten.constant_pad_nd.default, new, [0, 0, 0, 24])
        rewriter.replace_uses(call, padded)


def _others(node: fx.Node, dim: int) -> list[int]:
    return [d for d in range(node.meta["val"].ndim) if d != dim]


def edited_result(rewriter: Rewriter) -> None:
    """An edit inside a block by which its result holds text in front of the frames."""
    block = rewriter.program.blocks[0]
    with rewriter.edit(block) as edit:
        last_node = edit.twin(block.results[0])
        axis = next(a for a in axes_of(last_node) if a is not None)
        moved = replace(axis, frames=axis.frames - 1, after=axis.inner)
        set_axes(last_node, tuple(moved if a is not None else None for a in axes_of(last_node)))
        edit.changed = True
        (new,) = edit.place()
        set_axes(new, axes_of(block.call))


def erased_change(rewriter: Rewriter) -> None:
    """An operator that changes its operand and whose result nobody reads."""
    node = last(rewriter)
    with rewriter.before(node):
        rewriter.call(aten.relu_.default, node.args[0])


def crash(rewriter: Rewriter) -> None:
    raise KeyError("lost")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (without_value, "has no value; edit through Rewriter"),
        (wrong_axis, "dimension 1 of .* has 60 entries, its axis says f4\\*12 = 48"),
        (wrong_rank, "has 1 axes for a value of shape"),
        (mutating, "mutates its input"),
        (dropped_argument, "takes .* arguments, .* passes"),
        (other_argument, "argument .* takes"),
        (chosen_by_content, r"takes frames \[-, f3\*12, -\], .* passes .* with frames \[-, -, -\]"),
        (edited_result, r"records frames \[-, f5\*12, -\] .* with frames \[-, f4\*12\+12, -\]"),
        (erased_change, "mutates its input"),
        (too_few_results, "returns 0 values, the model returns 1"),
        (crash, "KeyError: 'lost'"),
    ],
)
def test_a_wrong_pass_is_named(wan: Program, action: Any, message: str) -> None:
    text = format_graph(wan, parameters=True)
    manager = PassManager([Do(note), Do(action, "Wrong"), Do(note, "Later")])
    with pytest.raises(PassError, match=message) as error:
        manager.run(wan)
    assert error.value.pass_name == "Wrong"
    assert str(error.value).startswith("[Wrong]")
    assert [a.name for a in manager.applied] == ["Do"]
    assert format_graph(wan, parameters=True) == text
    verify(wan)


def test_stop_after_bisects(wan: Program) -> None:
    passes = [Do(note, "a"), FrameInterleave(), Do(crash, "c")]
    for count, names in ((0, []), (1, ["a"]), (2, ["a", "FrameInterleave"])):
        manager = PassManager(passes, stop_after=count)
        manager.run(wan)
        assert [a.name for a in manager.applied] == names


@dataclass(frozen=True)
class Frames(Do):
    stage = "frames"


@dataclass(frozen=True)
class Attention(Do):
    stage = "attention"


def test_stages_order_the_passes(wan: Program) -> None:
    """Passes with a stage run by stage, stably; one without a stage keeps its place."""
    passes = [
        Attention(note, "attention 1"),
        Do(note, "anywhere"),
        Attention(note, "attention 2"),
        Frames(note, "frames"),
    ]
    manager = PassManager(passes)
    manager.run(wan)
    wanted = ["frames", "anywhere", "attention 1", "attention 2"]
    assert [applied.name for applied in manager.applied] == wanted
    bisecting = PassManager(passes, stop_after=1)
    bisecting.run(wan)
    assert [applied.name for applied in bisecting.applied] == ["frames"]


def test_on_pass_and_notes(wan: Program) -> None:
    seen: list[tuple[str, PassResult]] = []
    PassManager([Do(note)], on_pass=lambda p, r: seen.append((p.name, r))).run(wan)
    assert seen == [("Do", PassResult(wan, False, ("seen",)))]


def test_strict(wan: Program) -> None:
    def skipping(rewriter: Rewriter) -> None:
        for block in ("blocks.1", "blocks.2"):
            rewriter.skip(block, "it is blue")

    with pytest.raises(PassError, match=r"applied to blocks\.1, blocks\.2: it is blue \("):
        PassManager([Do(skipping)]).run(wan)
    manager = PassManager([Do(skipping)], strict=False)
    manager.run(wan)
    assert manager.applied[0].result.skipped == ("blocks.1: it is blue", "blocks.2: it is blue")


def test_unknown_operator_needs_a_relation(wan: Program) -> None:
    def transform(rewriter: Rewriter) -> None:
        node = rewriter.program.blocks[0].call
        with rewriter.after(node):
            rewriter.call(aten.fft_fft.default, node)

    with pytest.raises(PassError, match="has no relation"):
        Do(transform)(wan)


def test_rewriter_fills_value_axes_and_maker(wan: Program) -> None:
    def add(rewriter: Rewriter) -> None:
        node = rewriter.program.blocks[0].call
        with rewriter.after(node):
            new = rewriter.call(aten.mul.Tensor, node, 2.0)
            assert new.meta["val"].shape == node.meta["val"].shape
            assert axes_of(new) == axes_of(node)
            assert new.meta["fisopt.by"] == "Do"
            turned = rewriter.call(aten.transpose.int, new, 1, 2)
            assert axes_of(turned)[2] == axes_of(node)[1]
            rewriter.replace_uses(node, new)
        assert node.users.keys() == {new}

    assert Do(add)(wan).modified


def test_replace_uses_refuses_other_shapes(wan: Program) -> None:
    def shrink(rewriter: Rewriter) -> None:
        node = rewriter.program.blocks[0].call
        with rewriter.after(node):
            rewriter.replace_uses(node, rewriter.call(aten.sum.dim_IntList, node, [0]))

    with pytest.raises(PassError, match="shapes differ"):
        Do(shrink)(wan)


def test_buffers(wan: Program) -> None:
    def read(rewriter: Rewriter) -> None:
        one = rewriter.buffer("table", torch.arange(3))
        assert rewriter.buffer("table", torch.arange(3)) is one
        with pytest.raises(PassError, match="exists with other values"):
            rewriter.buffer("table", torch.arange(4))

    Do(read)(wan)
    assert not hasattr(wan.graph_module, "fisopt_table")


def test_a_node_behind_the_output_is_named(wan: Program) -> None:
    """Where fx puts a node that is given no place."""
    program = wan.copy()
    node = next(n for n in program.graph.nodes if n.op == "call_function")
    new = program.graph.call_function(aten.relu.default, (node,))
    new.meta["val"] = node.meta["val"]
    set_axes(new, axes_of(node))
    with pytest.raises(VerifyError, match="comes after the output; edit through Rewriter"):
        verify(program)


def test_verify_accepts_what_capture_makes(wan: Program) -> None:
    verify(wan)
    broken = wan.copy()
    broken.blocks[0].call.meta.pop("val")
    with pytest.raises(VerifyError, match="has no value"):
        verify(broken)
    verify(wan)
