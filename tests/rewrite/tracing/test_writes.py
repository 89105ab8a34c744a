"""What a model writes into its inputs and buffers is written after any pass as without one."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fisopt
from fisopt import FrameInterleave, InputError, ModelSpec, PassManager, Program, TileAttention
from fisopt.errors import ExportError, PassError, PreconditionError
from fisopt.passes.frame_interleave import anchor_frames
from fisopt.rewrite.pass_base import Pass
from fisopt.rewrite.rewriter import Rewriter
from tests import cached_dit
from tests.anchors import rows, spread
from tests.cached_dit import CachedDiT, Layer

GRID = (5, 2, 3)
FRAMES, INNER = 5, 6


@cache
def captured(write: str = "slice") -> tuple[CachedDiT, Program]:
    model = cached_dit.build(write)
    spec = ModelSpec(blocks=("layers.*",), grid=GRID)
    return model, fisopt.capture(model, cached_dit.inputs(FRAMES, INNER), spec=spec)


def flat(caches: list[dict[str, Tensor]]) -> list[Tensor]:
    return [layer[name] for layer in caches for name in ("k", "v")]


def looped(model: CachedDiT, call: dict[str, Any], kv: str) -> Tensor:
    """Every layer on its anchors; keys and values of all frames into the caches."""
    past, room = call["past"], call["past"] + call["video"].shape[1]
    for held in call["caches"]:
        if held["k"].shape[1] < room:
            for name, x in list(held.items()):
                held[name] = torch.cat([x, x.new_zeros(2, room - x.shape[1], x.shape[2])], 1)
    x, past = model.embed(call["video"]), call["past"]
    for index, (layer, held) in enumerate(zip(model.layers, call["caches"], strict=True)):
        assert isinstance(layer, Layer)
        kept = anchor_frames(FRAMES, 2, index % 2)
        y, end = layer.norm(x), past + x.shape[1]
        held["k"][:, past:end], held["v"][:, past:end] = layer.k(y), layer.v(y)
        read = rows(kept, INNER, past) if kv == "anchors" else torch.arange(end)
        q = layer.q(y)[:, rows(kept, INNER)]
        short = layer.rest(x[:, rows(kept, INNER)], q, held["k"][:, read], held["v"][:, read])
        x = spread(x, short, kept, INNER)
    return model.unembed(x)


def test_a_dense_program_writes() -> None:
    model, program = captured()
    names = [w.name for w in program.writes]
    assert sorted(names) == sorted(
        ["calls", "caches_0_k", "caches_0_v", "caches_1_k", "caches_1_v"]
    )
    new = (1, 6, 6 + FRAMES * INNER)
    assert {w.part for w in program.writes} == {None, new}  # no cache is copied to change rows
    assert {w.name for w in program.writes if w.part is None} == {"calls"}
    assert "scatter" not in fisopt.format_graph(program)
    got, want = cached_dit.inputs(FRAMES, INNER), cached_dit.inputs(FRAMES, INNER)
    before = int(model.calls)
    output = program(**got)
    assert int(model.calls) == before + 1
    assert torch.equal(output, model(**want))
    assert all(map(torch.equal, flat(got["caches"]), flat(want["caches"])))


@pytest.mark.parametrize(
    ("write", "kv"),
    [
        ("slice", "anchors"),
        ("slice", "all"),
        ("rows", "anchors"),
        ("positions", "all"),
        ("stacked", "all"),
        ("grown", "anchors"),
    ],
)
def test_sparse_blocks_write_exact_keys(write: str, kv: Any) -> None:
    model, program = captured(write)
    sparse = PassManager([FrameInterleave(blocks=":", kv=kv)]).run(program)
    got, want = cached_dit.inputs(FRAMES, INNER), cached_dit.inputs(FRAMES, INNER)
    output = sparse(**got)
    torch.testing.assert_close(output, looped(model, want, kv), atol=1e-5, rtol=0)
    for mine, theirs in zip(flat(got["caches"]), flat(want["caches"]), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def test_keys_in_places_not_known_are_all_read_and_said() -> None:
    _, program = captured("rolled")
    result = FrameInterleave(blocks=":")(program)
    said = [n for n in result.notes if "reads the keys of every frame" in n]
    assert [n.split(":")[0] for n in said] == ["layers.0", "layers.1"]
    got, want = cached_dit.inputs(FRAMES, INNER), cached_dit.inputs(FRAMES, INNER)
    other = PassManager([FrameInterleave(blocks=":", kv="all")]).run(program)
    torch.testing.assert_close(result.program(**got), other(**want), atol=0, rtol=0)
    torch.testing.assert_close(got["caches"], want["caches"], atol=0, rtol=0)
    assert not [n for n in FrameInterleave(blocks=":")(captured()[1]).notes if "keys of" in n]


def test_a_window_that_moves_on() -> None:
    """All its keys are read, those of the new frames too; a mask of frames has no place in it."""
    model, program = captured("rolled")
    sparse = PassManager([FrameInterleave(blocks=":")]).run(program)
    got, want = cached_dit.inputs(FRAMES, INNER), cached_dit.inputs(FRAMES, INNER)
    new = FRAMES * INNER
    rolled = dict(want, past=want["caches"][0]["k"].shape[1] - new)
    for held in rolled["caches"]:
        for name, x in held.items():
            held[name] = torch.cat([x[:, new:], x[:, :new]], 1)
    output = sparse(**got)
    torch.testing.assert_close(output, looped(model, rolled, "all"), atol=1e-5, rtol=0)
    torch.testing.assert_close(got["caches"], rolled["caches"], atol=1e-5, rtol=0)
    with pytest.raises(
        PreconditionError, match=r"window of 50 with unknown positions of the frames"
    ):
        PassManager([TileAttention(1)]).run(program)
    with pytest.raises(PreconditionError, match=r"sequence of 50 is neither"):
        PassManager([fisopt.TokenReduction(value=0.5)]).run(program)


@pytest.mark.parametrize("kv", ["anchors", "all"])
def test_keys_set_anew_in_a_dict_or_returned(kv: Any) -> None:
    """They are those of all frames, the first of the new ones behind the past."""
    for write in ("set", "returned"):
        model, program = captured(write)
        sparse = PassManager([FrameInterleave(blocks=":", kv=kv)]).run(program)
        got, want = (cached_dit.inputs(FRAMES, INNER, room=6) for _ in range(2))
        containers = [*got["caches"]]
        output = sparse(**got)
        expected = looped(model, want, kv)
        if write == "returned":
            assert all(held["k"].shape[1] == 6 for held in got["caches"])
            output, pairs = output
            got["caches"] = [dict(zip("kv", pair, strict=True)) for pair in pairs]
        else:
            assert all(a is b for a, b in zip(containers, got["caches"], strict=True))
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(got["caches"], want["caches"], atol=1e-5, rtol=0)


def test_a_cache_that_is_full() -> None:
    """There is no longer clip to compare with, so a shorter one is."""
    model, _ = captured()
    call = cached_dit.inputs(FRAMES, INNER, past=30, room=60)
    spec = ModelSpec(blocks=("layers.*",), grid=GRID)
    program = fisopt.capture(model, call, spec=spec)
    for kv in ("anchors", "all"):
        sparse = PassManager([FrameInterleave(blocks=":", kv=kv)]).run(program)
        got, want = deepcopy(call), deepcopy(call)
        torch.testing.assert_close(sparse(**got), looped(model, want, kv), atol=1e-5, rtol=0)
        torch.testing.assert_close(got["caches"], want["caches"], atol=1e-5, rtol=0)


def test_keys_of_the_past_are_global() -> None:
    """A tile mask speaks of the new frames; what the cache holds before them is seen by all."""
    model, program = captured()
    tiled = PassManager([TileAttention(1)]).run(program)
    got, want = cached_dit.inputs(FRAMES, INNER), cached_dit.inputs(FRAMES, INNER)
    output = tiled(**got)
    kept = fisopt.TileMask(1).table(FRAMES)
    allowed = kept.repeat_interleave(INNER, 0).repeat_interleave(INNER, 1)
    allowed = torch.cat([torch.ones(FRAMES * INNER, want["past"], dtype=torch.bool), allowed], 1)
    assert not allowed.all()
    dense = torch.nn.functional.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.functional,
            "scaled_dot_product_attention",
            lambda q, k, v: dense(q, k, v, attn_mask=allowed),
        )
        expected = model(**want)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    assert all(
        torch.allclose(a, b, atol=1e-5)
        for a, b in zip(flat(got["caches"]), flat(want["caches"]), strict=True)
    )


def test_an_optimised_module_writes(tmp_path: Path) -> None:
    model = cached_dit.build()
    spec = ModelSpec(blocks=("layers.*",), grid=GRID)
    call = cached_dit.inputs(FRAMES, INNER)
    optimised = fisopt.optimize(
        model, [FrameInterleave(blocks=":")], example_inputs=call, spec=spec, backend="eager"
    )
    before, want = deepcopy(call), deepcopy(call)
    calls = int(model.calls)
    output = optimised(**call)
    torch.testing.assert_close(output, looped(model, want, "anchors"), atol=1e-5, rtol=0)
    assert not torch.equal(call["caches"][1]["v"], before["caches"][1]["v"])
    torch.testing.assert_close(flat(call["caches"]), flat(want["caches"]), atol=1e-5, rtol=0)
    assert int(model.calls) == calls + 1
    with pytest.raises(ExportError, match=r"CachedDiT changes .*'caches_0_k'.* in place"):
        fisopt.export(optimised, tmp_path / "model.pt2")


class Halves(Pass):
    """Leaves half of the first thing that the model leaves."""

    def run(self, rewriter: Rewriter) -> None:
        output = next(n for n in reversed(rewriter.graph.nodes) if n.op == "output")
        held = list(output.args[0])
        place = rewriter.program.out_structure.num_leaves
        with rewriter.before(output):
            half = held[place].meta["val"].shape[1] // 2
            aten = torch.ops.aten
            held[place] = rewriter.call(aten.narrow.default, held[place], 1, 0, half, axes=())
        output.args = (held,)


@pytest.mark.parametrize("write", ["slice", "stacked", "set"])
def test_a_pass_that_cuts_a_write_is_an_error(write: str) -> None:
    with pytest.raises(
        PassError, match=r"Halves.*is written into 'caches_0_k', the model writes \(2, "
    ):
        PassManager([Halves()]).run(captured(write)[1])


@pytest.mark.parametrize(
    ("write", "why"),
    [
        ("slice", "it writes into a cache, and reuse would skip this write"),
        ("stacked", "it writes into a cache, and reuse would skip this write"),
        ("set", "it writes into a cache, and reuse would skip this write"),
        ("returned", "result .* is no update of an argument"),
    ],
)
def test_a_step_cache_refuses_blocks_that_write(write: str, why: str) -> None:
    with pytest.raises(PreconditionError, match=rf"layers\.1: {why}"):
        PassManager([fisopt.StepCache(steps="1:")]).run(captured(write)[1])


class Wrapped(nn.Module):
    """A layer of tokens, and something that is done to the inputs beside it."""

    def __init__(self, beside: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))])
        self.beside = beside

    def forward(self, video: Tensor, memory: Tensor) -> Tensor:
        x = self.beside(video, memory)
        for layer in self.layers:
            x = x + layer(x)
        return x


def accumulated(video: Tensor, memory: Tensor) -> Tensor:
    return video.add_(memory.mean())


def a_row(video: Tensor, memory: Tensor) -> Tensor:
    memory[1, 0].copy_(video.mean((0, 1)))
    return video


def by_position(video: Tensor, memory: Tensor) -> Tensor:
    memory.index_copy_(1, torch.tensor([2, 0]), video[:, :2])
    return video * 2


def exchanged(video: Tensor, memory: Tensor) -> Tensor:
    old = memory.clone()
    memory.copy_(video[:, :3])
    video[:, :3] = old
    return video


@pytest.mark.parametrize("beside", [accumulated, a_row, by_position, exchanged])
def test_other_ways_of_writing(beside: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = Wrapped(beside).eval().requires_grad_(False)
    call = {"video": torch.randn(2, 30, 4), "memory": torch.randn(2, 3, 4)}
    spec = ModelSpec(blocks=("layers.*",), grid=GRID)
    program = fisopt.capture(model, call, spec=spec)
    passes = [FrameInterleave(stride=5, blocks=":", fill="state")]
    for run in (program, PassManager(passes).run(program)):
        got, want = deepcopy(call), deepcopy(call)
        run(**got)
        model(**want)
        for name in call:
            torch.testing.assert_close(got[name], want[name], msg=name)


def test_inputs_that_share_memory_are_named() -> None:
    _, program = captured()
    call = cached_dit.inputs(FRAMES, INNER)
    call["caches"][1]["k"] = call["caches"][0]["v"]
    with pytest.raises(InputError, match=r"'caches_0_v', which shares memory with .*'caches_1_k'"):
        program(**call)
    both = torch.randn(2, 2, 50, cached_dit.WIDTH)  # rows of one tensor, one between the others
    call["caches"][1] = {"k": both[:, 0], "v": both[:, 1]}
    program(**call)


@torch.library.custom_op("fisopt_test::bump", mutates_args=("x",))
def bump(x: Tensor) -> None:
    x.add_(1)


class Bumping(nn.Module):
    """A block in which a custom operator changes an input of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        bump(memory)
        return x + self.linear(x) * memory.mean()


class Bumped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Bumping(), Bumping()])

    def forward(self, video: Tensor, memory: Tensor) -> Tensor:
        for layer in self.layers:
            video = layer(video, memory)
        return video


def test_an_operator_that_changes_its_operand_is_never_dropped() -> None:
    call = {"video": torch.randn(2, 30, 4), "memory": torch.randn(2, 3, 4)}
    model = Bumped().eval().requires_grad_(False)
    program = fisopt.capture(model, call, spec=ModelSpec(blocks=("layers.*",), grid=GRID))
    for run in (program, PassManager([FrameInterleave(blocks=":")]).run(program)):
        got = deepcopy(call)
        run(**got)
        assert torch.equal(got["memory"], call["memory"] + 1 + 1)
