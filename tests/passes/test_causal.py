"""Chunks of a clip, one after another, over a cache of keys: every pass against a plain loop.

The loop holds a list of the keys of earlier chunks, no cache, and knows nothing of graphs.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed._local_tensor import LocalTensorMode
from torch.utils._pytree import tree_leaves, tree_map

import fisopt
from fisopt import FrameInterleave, PassManager, Program, TileAttention, TileMask, TokenReduction
from fisopt.errors import PreconditionError
from fisopt.passes.frame_interleave import anchor_frames
from fisopt.rewrite.pass_base import Pass
from tests import causal_wan, ranks
from tests.anchors import rows, spread
from tests.causal_wan import BLOCKS, HEADS, INNER, SIDE, CausalWan, chunk
from tests.passes.dense_reduction import Attend, Options

FRAMES, CHUNKS = 5, 3
GRID = (FRAMES, SIDE, SIDE)
History = list[list[tuple[Tensor, Tensor]]]
Mix = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Attention of a block: queries and keys of the chunk, past in front; [B, h, N, D] each."""


@cache
def captured() -> Program:
    model = causal_wan.build()
    return fisopt.capture(model, chunk(FRAMES, 0, causal_wan.caches(15)), spec=causal_wan.SPEC)


def dense(block: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v


def tiled(block: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seen = TileMask(1).table(FRAMES).repeat_interleave(INNER, 0).repeat_interleave(INNER, 1)
    seen = torch.nn.functional.pad(seen, (k.shape[-2] - seen.shape[1], 0), value=True)
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~seen, -math.inf)
    return scores.softmax(-1) @ v


def reduced(options: Options, block: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attend = Attend(options, lambda _: GRID, front=True, block=block)
    out = torch.empty_like(q)
    for b, h in ((b, h) for b in range(q.shape[0]) for h in range(HEADS)):
        queries = attend.choose(q[b, h], GRID, options.destination_stride, "query", 0)
        values = attend.choose(v[b, h], GRID, options.destination_stride, "value", 0)
        few, mode = queries.reduce(q[b, h], "replace"), "replace"
        keys = values.reduce(k[b, h], mode)
        weights = (few @ keys.T / math.sqrt(q.shape[-1])).softmax(-1)
        out[b, h] = queries.restore(weights @ values.reduce(v[b, h], mode))
    return out


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    turn = torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def angles(model: CausalWan, frames: range) -> Tensor:
    """By how much pairs of channels are turned, [tokens, width / 2]."""
    rope = model.rope
    sizes = (rope.t_dim, rope.h_dim, rope.w_dim)
    speeds = [10000.0 ** (-torch.arange(0, s, 2, dtype=torch.float64) / s) for s in sizes]
    places = [(f, h, w) for f in frames for h in range(SIDE) for w in range(SIDE)]
    return torch.stack(
        [torch.cat([p * s for p, s in zip(place, speeds, strict=True)]) for place in places]
    )


def looped(
    model: CausalWan,
    call: dict[str, Any],
    history: History,
    mix: Mix = dense,
    kv: str | None = None,
) -> Tensor:
    """One chunk; its keys and values of all frames are added to the history.

    Args:
        model: the weights.
        call: the arguments.
        history: of each block the keys and values of each earlier chunk.
        mix: the attention.
        kv: frames are left out in all blocks but the first, and these keys of the chunk read.
    """
    turn = angles(model, range(call["past"], call["past"] + FRAMES))
    x = model.patch_embedding(call["latents"]).flatten(2).transpose(1, 2)
    _, time, text, _ = model.condition_embedder(call["timestep"], call["text"], None)
    for i, block in enumerate(model.blocks):
        parts = (block.scale_shift_table + time.unflatten(1, (6, -1))).unbind(1)
        shift, scale, gate, shift2, scale2, gate2 = (p[:, None] for p in parts)
        attn, y = block.attn1, block.norm1(x) * (1 + scale) + shift
        q, k = (
            turned(heads(n(f(y))), turn)
            for n, f in ((attn.norm_q, attn.to_q), (attn.norm_k, attn.to_k))
        )
        history[i].append((k, heads(attn.to_v(y))))
        kept = range(FRAMES) if kv is None or i == 0 else anchor_frames(FRAMES, 2, (i - 1) % 2)
        *past, now = history[i]
        mine = rows(kept if kv == "anchors" else range(FRAMES), INNER)
        keys, values = (
            torch.cat([*(old[j] for old in past), now[j][:, :, mine]], 2) for j in range(2)
        )
        y = mix(i, q[:, :, rows(kept, INNER)], keys, values).transpose(1, 2).flatten(2)
        z = x[:, rows(kept, INNER)]
        z = z + attn.to_out[0](y) * gate
        z = z + block.attn2(block.norm2(z), text, None, None)
        z = z + block.ffn(block.norm3(z) * (1 + scale2) + shift2) * gate2
        x = spread(x, z, kept, INNER) if len(kept) < FRAMES else z
    return model.proj_out(x)  # type: ignore[no-any-return]


CASES: dict[str, tuple[list[Pass], dict[str, Any]]] = {
    "dense": ([], {}),
    "anchors": ([FrameInterleave(2)], {"kv": "anchors"}),
    "all": ([FrameInterleave(2, kv="all")], {"kv": "all"}),
    "tiles": ([TileAttention(1)], {"mix": tiled}),
    "tokens": (
        [TokenReduction(query=0.5, value=0.4)],
        {"mix": partial(reduced, Options(0.5, 0.4, search="near"))},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_chunks_in_a_row(name: str) -> None:
    """The last chunk fills the cache to its end."""
    model, (passes, how) = causal_wan.build(), CASES[name]
    held, history = causal_wan.caches(FRAMES * CHUNKS), [[] for _ in range(BLOCKS)]  # type: ignore[var-annotated]
    outputs = []
    for past in range(0, FRAMES * CHUNKS, FRAMES):
        call = chunk(FRAMES, past, held)
        program = PassManager(passes).run(captured().at(call))
        outputs.append(program(**call))
        expected = looped(model, call, history, **how)
        torch.testing.assert_close(outputs[-1], expected, atol=1e-4, rtol=1e-4)
        for i, cached in enumerate(held):
            for j, key in enumerate(("k", "v")):
                wanted = torch.cat([old[j] for old in history[i]], 2).transpose(1, 2)
                got = cached[key][:, : wanted.shape[1]]
                torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
                assert not cached[key][:, wanted.shape[1] :].any()
    assert all(float(a.sub(b).abs().max()) > 1e-2 for a, b in itertools.pairwise(outputs))


def test_the_model_itself_is_the_loop() -> None:
    model, held = causal_wan.build(), causal_wan.caches(FRAMES * 2)
    history: History = [[] for _ in range(BLOCKS)]
    for past in (0, FRAMES):
        call = chunk(FRAMES, past, held)
        expected = looped(model, copy.deepcopy(call), history)
        torch.testing.assert_close(model(**call), expected, atol=1e-4, rtol=1e-4)


def test_an_optimised_module_goes_on_from_chunk_to_chunk() -> None:
    model = causal_wan.build()
    held, history = causal_wan.caches(FRAMES * 2), [[] for _ in range(BLOCKS)]  # type: ignore[var-annotated]
    fast = fisopt.optimize(
        model,
        [FrameInterleave(2)],
        example_inputs=chunk(FRAMES, 0, held),
        spec=causal_wan.SPEC,
        backend="eager",
    )
    for past in (0, FRAMES):
        call = chunk(FRAMES, past, held)
        expected = looped(model, call, history, kv="anchors")
        torch.testing.assert_close(fast(**call), expected, atol=1e-4, rtol=1e-4)
    assert held[-1]["v"][:, -INNER:].any()


def test_every_rank_holds_the_whole_cache() -> None:
    call = chunk(FRAMES, FRAMES, causal_wan.caches(FRAMES * CHUNKS))
    program = PassManager([FrameInterleave(2)]).run(captured().at(call))
    result, wanted = ranks.divided(program, 2).program, copy.deepcopy(call)
    output = program(**wanted)
    with ranks.simulated(2), LocalTensorMode(2) as mode:
        given = tree_map(lambda x: ranks.everywhere(mode, x), call)
        returned: Any = tree_leaves((result(**given), given["caches"]))
    for rank in range(2):
        mine = [x._local_tensors[rank] for x in returned]
        torch.testing.assert_close(mine, tree_leaves((output, wanted["caches"])))


def test_a_step_cache_would_leave_keys_out() -> None:
    with pytest.raises(PreconditionError, match=r"blocks\.1.*writes into a cache, and reuse"):
        PassManager([fisopt.StepCache(steps="1:")]).run(captured())
