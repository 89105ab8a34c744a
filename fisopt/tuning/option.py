"""Options: the ways to run one branch of a block, as passes and by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from fisopt.passes.frame_interleave import FrameInterleave
from fisopt.passes.interleaving.form import BRANCHES, KV
from fisopt.passes.tile_attention import TileAttention
from fisopt.passes.token_reduction import TokenReduction
from fisopt.rewrite.block_pass import BlockPass
from fisopt.rewrite.pass_base import Pass

Part = Literal["self_attention", "cross_attention", "feed_forward", "block"]
"""A branch of a block, or the whole of a block in which no branch was found."""


@dataclass(frozen=True)
class Option:
    """A way to run a part of a block that is not dense.

    Attributes:
        part: the part.
        stride: computed on every so many frames.
        kv: of self-attention, see `FrameInterleave`.
        query: dropped share of the queries, see `TokenReduction`.
        value: dropped share of the keys and values.
        tiles: global frames of a tile mask, see `TileAttention`; 0 is none.
        own: a pass of the user; then the others mean nothing.
    """

    part: Part
    stride: int = 1
    kv: KV = "all"
    query: float = 0.0
    value: float = 0.0
    tiles: int = 0
    own: BlockPass | None = None

    def __str__(self) -> str:
        if self.own is not None:
            return f"{self.part} {self.own}"
        if self.tiles:
            return f"{self.part} tiles {self.tiles}"
        if self.query or self.value:
            return f"{self.part} drops {self.query:g} {self.value:g}"
        keys = f" {self.kv}" if self.part in ("self_attention", "block") else ""
        return f"{self.part} stride {self.stride}{keys}"

    @property
    def strided(self) -> bool:
        """Whether it is a stride over frames."""
        return self.stride > 1

    def everywhere(self, blocks: str = ":") -> Pass:
        """The pass that runs every block, or some, so."""
        if self.own is not None:
            return self.own if blocks == ":" else replace(self.own, blocks=blocks)
        if self.tiles:
            return TileAttention(self.tiles, blocks=blocks)
        if not self.strided:
            return TokenReduction(query=self.query, value=self.value, blocks=blocks)
        if self.part == "block":
            return FrameInterleave(stride=self.stride, kv=self.kv, blocks=blocks)
        strides: dict[str, Any] = {b: self.stride if b == self.part else 1 for b in BRANCHES}
        return FrameInterleave(stride=1, kv=self.kv, blocks=blocks, **strides)


def options_of(part: Part, frames: int) -> tuple[Option, ...]:
    """What may be tried in a part of a block of so many latent frames, the most promising first."""
    kinds: dict[Part, list[Option]] = {
        "self_attention": [
            *(Option(part, s, kv) for s, kv in ((2, "all"), (2, "anchors"), (4, "all"))),  # type: ignore[arg-type]
            *(Option(part, s, "anchors") for s in (3, 4)),
            Option(part, query=0.5),
            Option(part, query=0.5, value=0.3),
            Option(part, tiles=frames // 2),
        ],
        "cross_attention": [Option(part, s) for s in (2, 4)],
        "feed_forward": [Option(part, s) for s in (2, 4)],
        "block": [
            *(Option(part, s, kv) for s, kv in ((2, "all"), (2, "anchors"), (4, "all"))),  # type: ignore[arg-type]
            *(Option(part, s, "anchors") for s in (3, 4)),
        ],
    }
    return tuple(o for o in kinds[part] if o.stride <= frames and o.tiles < frames)
