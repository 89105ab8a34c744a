"""The form of a sparse block: on which frames each of its branches is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from fisopt.rewrite.analysis.structure import BranchKind
from fisopt.rewrite.edit.frames import Frames
from fisopt.rewrite.ops.fill_frames import Fill

KV = Literal["anchors", "all"]
Scope = Literal["block", "attention"]
BRANCHES: tuple[BranchKind, ...] = get_args(BranchKind)


def anchor_frames(frames: int, stride: int, residue: int) -> tuple[int, ...]:
    """Latent frames that a sparse block computes: every stride-th and the two boundaries."""
    return tuple(sorted({*range(residue, frames, stride), 0, frames - 1}))


@dataclass(frozen=True)
class Form:
    """How one block is made sparse.

    Attributes:
        strides: of its branches; 1 is dense.
        kv: keys and values of the anchor frames or of all frames.
        fill: what skipped frames get.
        scope: the whole block, or only its self-attention.
    """

    strides: Mapping[BranchKind, int]
    kv: KV
    fill: Fill
    scope: Scope

    @property
    def stride(self) -> int | None:
        """The stride of every branch, None where they differ."""
        found = set(self.strides.values())
        return found.pop() if len(found) == 1 else None

    @property
    def dense(self) -> bool:
        """Whether nothing is left out."""
        return self.stride == 1


def part_of(stride: int, place: int, frames: int) -> Frames | None:
    """The anchor frames of a stride at a place in the rotation, None if that is every frame."""
    anchors = anchor_frames(frames, stride, place % stride)
    if stride == 1 or len(anchors) == frames:
        return None
    return Frames(anchors, frames, f"s{stride}_a{anchors[1]}_k{len(anchors)}")
