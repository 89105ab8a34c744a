"""Frame masks: which latent frames attend to which, as a boolean table of any frame count.

A mask speaks of frames only.  Tokens per frame, text and heads come from the attention that it is
applied to, so that one mask serves every resolution and every model.
"""

from __future__ import annotations

import re
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fisopt.checked import Checked, count, is_int
from fisopt.errors import OptionError, OptionTypeError, shown


class FrameMask(metaclass=Checked):
    """A pattern of tiles to keep; a tile is one frame's queries attending to one frame's keys.

    A subclass is a frozen dataclass whose fields are its parameters; it defines `table`.
    """

    @abstractmethod
    def table(self, frames: int) -> Tensor:
        """The tiles to keep for a number of frames.

        Returns:
            bool [frames, frames], or [heads, frames, frames] if heads differ: True at row i, column
            j if the queries of frame i attend to the keys of frame j.

        Raises:
            OptionError: the mask does not exist at this number of frames.
        """

    def at(self, frames: int) -> str:
        """The mask in words, for a number of frames."""
        del frames
        return str(self)

    @property
    def label(self) -> str:
        """A short name, unique to the mask: part of the names of its buffers."""
        text = repr(self).replace("-", "minus_").replace(".", "p")
        return re.sub(r"\W+", "_", text).strip("_")


@dataclass(frozen=True)
class TileMask(FrameMask):
    """``k:(F-k)``: each frame sees itself and about k global frames, which see every frame.

    With stride ``s = ceil(F / k)`` the frames 0, s, 2s, ... are global: ``ceil(F / s)`` of them,
    which is k or fewer (of 21 frames, k = 8, 9 and 10 all make 7 global).  The cost is linear in
    F; k = F is dense.

    Attributes:
        k: largest number of global frames, 1 to F.

    Source: Efficient-vDiT, arXiv:2502.06155.
    """

    k: int

    def __post_init__(self) -> None:
        if not is_int(self.k, 1):
            raise OptionError(f"TileMask: k must be an int of at least 1, got {shown(self.k)}")

    def table(self, frames: int) -> Tensor:
        """See `FrameMask.table`."""
        if self.k > count("TileMask: frames", frames):
            raise OptionError(
                f"TileMask: k={self.k} is more than the {frames} frames; use 1 to {frames}"
            )
        whole = torch.arange(frames) % -(-frames // self.k) == 0
        return torch.eye(frames, dtype=torch.bool) | whole | whole[:, None]

    def at(self, frames: int) -> str:
        """See `FrameMask.at`."""
        count = -(-frames // -(-frames // self.k))
        return f"{self} ({count} of {frames} frames global)"

    @property
    def label(self) -> str:
        """See `FrameMask.label`."""
        return f"k{self.k}"


@dataclass(frozen=True)
class SlidingWindow(FrameMask):
    """Each frame sees the frames at most ``radius`` away from it."""

    radius: int

    def __post_init__(self) -> None:
        if not is_int(self.radius, 0):
            raise OptionError(
                f"SlidingWindow: radius must be an int >= 0, got {shown(self.radius)}"
            )

    def table(self, frames: int) -> Tensor:
        """See `FrameMask.table`."""
        return _distance(frames) <= min(self.radius, frames)


@dataclass(frozen=True)
class RadialDecay(FrameMask):
    """Each frame sees fewer frames with distance: ``near`` each time the distance doubles.

    All frames nearer than ``2 * near``, then every second up to ``4 * near``, every fourth up to
    ``8 * near``, and so on; the cost is F log F.

    Source: the idea is Radial Attention's, arXiv:2506.19852, here for whole frames.
    """

    near: int = 2

    def __post_init__(self) -> None:
        if not is_int(self.near, 1):
            raise OptionError(
                f"RadialDecay: near must be an int of at least 1, got {shown(self.near)}"
            )

    def table(self, frames: int) -> Tensor:
        """See `FrameMask.table`."""
        distance = _distance(frames)
        octave = (distance // min(self.near, frames)).clamp(min=1).double().log2().floor()
        return distance % (2**octave).long() == 0


@dataclass(frozen=True)
class FrameTable(FrameMask):
    """A mask given tile by tile, for one number of frames.

    Attributes:
        rows: nested tuples, nested lists or a tensor of bool: ``[frames][frames]`` or
            ``[heads][frames][frames]``.
    """

    rows: Any

    def __post_init__(self) -> None:
        given = self.rows.tolist() if isinstance(self.rows, Tensor) else self.rows
        object.__setattr__(self, "rows", _frozen(given))
        try:
            sizes = torch.tensor(self.rows, dtype=torch.bool).shape
        except (ValueError, TypeError, RuntimeError) as error:
            raise OptionError(
                f"FrameTable: rows differ in length or hold something else than bools: {error}; "
                "wanted [frames][frames] or [heads][frames][frames]"
            ) from error
        if len(sizes) not in (2, 3) or sizes[-1] != sizes[-2] or 0 in sizes:
            raise OptionError(
                "FrameTable: rows must be [frames][frames] or [heads][frames][frames], got "
                f"{list(sizes)}"
            )

    def table(self, frames: int) -> Tensor:
        """See `FrameMask.table`."""
        result = torch.tensor(self.rows, dtype=torch.bool)
        if result.shape[-1] != frames:
            raise OptionError(
                f"FrameTable: it has {result.shape[-1]} frames, the attention has {frames}; "
                "wanted one row and column a latent frame"
            )
        return result

    def __repr__(self) -> str:
        """Brief: a pass prints its mask, and a table is long."""
        return f"FrameTable({len(self.rows[-1])} frames, {self.label})"

    @property
    def label(self) -> str:
        """See `FrameMask.label`."""
        return f"table_{zlib.crc32(repr(self.rows).encode()):08x}"


def frame_mask(value: object) -> FrameMask:
    """Read a mask: itself, or an int k for ``TileMask(k)``.

    Raises:
        OptionTypeError: it is neither.
    """
    if isinstance(value, FrameMask):
        return value
    if type(value) is int:
        return TileMask(value)
    form = f"; write {value.__name__}(...)" if isinstance(value, type) else ""
    raise OptionTypeError(f"a mask must be an int k or a FrameMask, got {shown(value)}{form}")


def _distance(frames: int) -> Tensor:
    time = torch.arange(count("frames of a mask", frames))
    return (time - time[:, None]).abs()


def _frozen(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_frozen(item) for item in value)
    return value
