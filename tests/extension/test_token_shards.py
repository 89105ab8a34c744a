"""A user's pass: a rank computes some tokens of every frame, and attends with some of the heads."""

from typing import Any

import torch
from torch import distributed, fx
from torch.distributed._local_tensor import LocalTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

import fisopt
from tests import plain_dit

RANKS, F, N, PART, aten, comm = 2, 5, 3, [2, 2, 15, 8], torch.ops.aten, torch.ops._c10d_functional


def exchange(edit: Any, x: fx.Node, part: list[int], at: int, to: int, whole: list[int]) -> fx.Node:
    x = edit.call(aten.reshape.default, x, [*part[:at], RANKS, *part[at:]])
    x = edit.call(aten.permute.default, x, sorted(range(len(part) + 1), key=lambda d: d != at))
    x = edit.call(aten.reshape.default, x, [RANKS, -1])
    x = edit.call(comm.all_to_all_single.default, x, [1] * RANKS, [1] * RANKS, "0")
    x = edit.call(aten.reshape.default, edit.call(comm.wait_tensor.default, x), [RANKS, *part])
    x = edit.call(aten.permute.default, x, [*range(1, to + 1), 0, *range(to + 1, len(part) + 1)])
    return edit.call(aten.reshape.default, x, whole)


class Shard(fisopt.Tokens):
    def scatter(self, editor: Any, piece: fx.Node, *_: Any) -> fx.Node:
        to_all = editor.call(aten.repeat.default, piece, [RANKS, 1, 1])
        return exchange(editor, to_all, [2, F, N, 32], 0, 2, [2, -1, 32])


class Shards(fisopt.Pass):
    def run(self, rewriter: fisopt.Rewriter) -> None:
        with rewriter.before(rewriter.program.blocks[0].call):
            each = exchange(rewriter, rewriter.call(aten.arange.default, 30), [F, N], 1, 0, [2, 15])
            own = rewriter.call(aten.select.int, each, 0, 0)
        shard = Shard(own, rewriter.program.layout, fisopt.TokenLayout(F, 1, N))
        for block, result in ((block, block.results[0]) for block in rewriter.program.blocks):
            with rewriter.edit(block) as edit:
                edit.compute({result: shard}, cut=block.body.graph.nodes)
                (old,) = (edit.twin(n) for n in block.branches[0].nodes if "attention" in n.name)
                with edit.after(old):
                    heads = [exchange(edit, x, PART, 1, 2, [2, 2, -1, 8]) for x in old.args]
                    new = exchange(edit, edit.call(old.target, *heads), PART, 2, 1, [2, -1, 15, 8])
                edit.replace_uses(old, new)
                edit.give(result, shard.spread(rewriter, *edit.place(), fisopt.axes_of(result)))


def test_ranks_that_share_the_tokens_of_every_frame(request: Any) -> None:
    form, spec = plain_dit.Form(), fisopt.ModelSpec(("layers.*",), grid=(F, 2, 3))
    model, inputs = plain_dit.PlainDiT(form, heads=4).eval(), plain_dit.inputs(form, F, 2, 3, 2)
    distributed.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    request.addfinalizer(distributed.destroy_process_group)
    sharded = fisopt.PassManager([Shards()]).run(fisopt.capture(model, inputs, spec=spec))
    with LocalTensorMode(RANKS) as ranks:
        got = sharded(**{k: ranks.rank_map(lambda _, x=x: x) for k, x in inputs.items()})
    torch.testing.assert_close(got["video"].reconcile(), model(**inputs)["video"])
    assert fisopt.format_graph(sharded).count("all_to_all_single") == 6
