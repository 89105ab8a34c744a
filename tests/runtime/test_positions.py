"""Positions in tensors that a model reads, as Self-Forcing's cache holds them, against the model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fisopt
from fisopt import CaptureError, ExportError, FrameInterleave, InputError, ModelSpec

FRAMES, INNER, CHUNKS = 5, 6, 3
TOKENS = FRAMES * INNER


class Block(nn.Module):
    """Attends to a window that moves on: the newest ``room`` tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor, cache: dict[str, Tensor], start: int) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        end = start + x.shape[1]
        if end > cache["global_end"].item():
            behind = cache["local_end"].item() + end - cache["global_end"].item()
        else:
            behind = cache["local_end"].item()
        cache["k"][:, behind - x.shape[1] : behind] = k
        cache["v"][:, behind - x.shape[1] : behind] = v
        keys, values = (heads(cache[name][:, :behind]) for name in "kv")
        y = nn.functional.scaled_dot_product_attention(heads(q), keys, values)
        cache["global_end"].fill_(end)
        cache["local_end"].fill_(behind)
        return x + self.out(y.transpose(1, 2).flatten(2))


class Causal(nn.Module):
    """Tokens [1, N, 16] in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, tokens: Tensor, caches: list[dict[str, Tensor]], start: int) -> Tensor:
        for block, cache in zip(self.blocks, caches, strict=True):
            tokens = block(tokens, cache, start)
        return tokens


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (2, -1)).transpose(1, 2)


def model() -> Causal:
    torch.manual_seed(0)
    return Causal().eval().requires_grad_(False)


def caches() -> list[dict[str, Tensor]]:
    room = (1, CHUNKS * TOKENS, 16)
    return [
        {
            "k": torch.zeros(room),
            "v": torch.zeros(room),
            "global_end": torch.tensor([0]),
            "local_end": torch.tensor([0]),
        }
        for _ in range(3)
    ]


def chunk(index: int) -> Tensor:
    return torch.randn(1, TOKENS, 16, generator=torch.Generator().manual_seed(index))


def grid(inputs: Mapping[str, Any]) -> tuple[int, int, int]:
    return inputs["tokens"].shape[1] // INNER, 2, 3


SPEC = ModelSpec(blocks=("blocks.*",), grid=grid)


def assert_equal(mine: Any, theirs: Any) -> None:
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_chunks_and_steps_equal_the_model() -> None:
    """Each chunk runs twice, as steps of a sampler do; the second finds the cache as full."""
    own, mine, theirs = model(), caches(), caches()
    fast = fisopt.optimize(own, [], spec=SPEC, backend="eager")
    with torch.no_grad():
        for index in range(CHUNKS):
            for _ in range(2):
                got = fast(chunk(index), mine, index * TOKENS)
                assert_equal(got, own(chunk(index), theirs, index * TOKENS))
                assert_equal(mine, theirs)
    assert int(mine[2]["global_end"]) == CHUNKS * TOKENS
    assert "each value of caches_0_global_end, " in str(fast.report)
    assert len(fast.report.variants) == 2 * CHUNKS  # a graph for each position and fullness


def test_frames_are_interleaved() -> None:
    """As with the same positions given as numbers."""
    own, held = model(), caches()
    sparse = [FrameInterleave(2, kv="anchors", blocks=":")]
    fast = fisopt.optimize(own, sparse, spec=SPEC, backend="eager")
    by_number = fisopt.optimize(Numbered(own), sparse, spec=SPEC, backend="eager")
    plain: list[dict[str, Any]] = [{**cache} for cache in copy.deepcopy(held)]
    with torch.no_grad():
        for index in range(CHUNKS):
            got = fast(chunk(index), held, index * TOKENS)
            assert_equal(got, by_number(chunk(index), plain, index * TOKENS))
            assert not torch.equal(got, own(chunk(index), copy.deepcopy(held), index * TOKENS))
    assert_equal([cache["k"] for cache in held], [cache["k"] for cache in plain])


class Plain(nn.Module):
    """The same block where the cache is as full as the video is long."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = block.norm, block.qkv, block.out

    def forward(self, x: Tensor, cache: dict[str, Tensor], start: int) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        end = start + x.shape[1]
        cache["k"][:, start:end], cache["v"][:, start:end] = k, v
        keys, values = heads(cache["k"][:, :end]), heads(cache["v"][:, :end])
        y = nn.functional.scaled_dot_product_attention(heads(q), keys, values)
        return x + self.out(y.transpose(1, 2).flatten(2))


class Numbered(Causal):
    """The model whose caches count nothing."""

    def __init__(self, causal: Causal) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(map(Plain, causal.blocks))  # type: ignore[arg-type]
        self.eval()


def test_a_program_is_for_its_positions() -> None:
    own, held = model(), caches()
    call = {"tokens": chunk(0), "caches": held, "start": 0}
    program = fisopt.capture(own, call, SPEC)
    assert all(not cache["k"].any() for cache in held)  # capture writes nothing
    for cache in held:
        cache["global_end"].fill_(TOKENS)
        cache["local_end"].fill_(TOKENS)
    with pytest.raises(InputError, match=r"is for caches_0_global_end = 0, got 30.*program\.at"):
        program(**call)
    later = {**call, "start": TOKENS}
    theirs = copy.deepcopy(held)
    assert_equal(program.at(later)(**later), own(chunk(0), theirs, TOKENS))
    assert_equal(held, theirs)


def test_an_artefact_would_keep_a_position(tmp_path: Any) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

        def forward(self, tokens: Tensor, held: dict[str, Tensor]) -> Tensor:
            for block in self.blocks:
                tokens = tokens + block(tokens) * held["scale"].item()
            return tokens

    own = Reads().eval().requires_grad_(False)
    call = {"tokens": chunk(0), "held": {"scale": torch.tensor(2)}}
    fast = fisopt.optimize(own, [], call, SPEC, backend="eager")
    assert_equal(fast(**call), own(**call))
    call["held"]["scale"].fill_(3)  # type: ignore[index]
    assert_equal(fast(**call), own(**call))
    with pytest.raises(ExportError, match="may read held_scale, whole numbers in tensors"):
        fisopt.export(fast, tmp_path / "out", example_inputs=call)


def test_a_position_that_is_an_argument_itself() -> None:
    """It is an input of one graph, so that it cannot be read; the error says what to pass."""

    class Reads(Numbered):
        def forward(self, tokens: Tensor, caches: Any, start: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(tokens, caches, int(start.item()))

    own = Reads(model())
    own.requires_grad_(False)
    call = {"tokens": chunk(0), "caches": caches(), "start": torch.tensor(0)}
    with pytest.raises(CaptureError, match=r"(?s)start\.item.*position.*'start'.*pass a number"):
        fisopt.capture(own, call, SPEC)
