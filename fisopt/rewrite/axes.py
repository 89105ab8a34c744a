"""Frame axes: where latent frames sit in a tensor dimension, and the token grid they form."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx

from fisopt.errors import CaptureError, OptionTypeError, shown

KEY = "fisopt.axes"


@dataclass(frozen=True)
class TokenLayout:
    """The token grid of a video: token ``t = (f * height + h) * width + w``.

    Units: frames are latent frames after temporal patching; height and width count tokens.
    """

    frames: int
    height: int
    width: int

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one latent frame."""
        return self.height * self.width

    @property
    def tokens(self) -> int:
        """Tokens of the whole video."""
        return self.frames * self.tokens_per_frame

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


def layout_of(grid: tuple[int, int, int]) -> TokenLayout:
    """A token layout from a (frames, height, width) triple, checked."""
    given: object = grid  # a function of the user's returns anything
    sizes = list(given) if isinstance(given, (tuple, list)) else []
    if len(sizes) != 3 or any(not isinstance(g, int) or g < 1 for g in sizes):
        raise CaptureError(
            f"grid must be three positive ints (frames, height, width), got {grid!r}"
        )
    return TokenLayout(*grid)


@dataclass(frozen=True)
class FrameAxis:
    """One tensor dimension that carries latent frames.

    The dimension has ``before`` entries of something else (text), then a row-major
    ``outer * frames * inner`` block of video, then ``after`` entries of something else. ``inner``
    is the number of tokens per frame for a token dimension, and 1 for a frame dimension.
    """

    frames: int
    outer: int = 1
    inner: int = 1
    before: int = 0
    after: int = 0

    @property
    def video(self) -> int:
        """Entries of the dimension that belong to frames."""
        return self.outer * self.frames * self.inner

    @property
    def size(self) -> int:
        """Length of the whole dimension."""
        return self.before + self.video + self.after

    @property
    def pure(self) -> bool:
        """Whether the dimension holds video only."""
        return self.before == 0 and self.after == 0

    def at(self, frames: int) -> FrameAxis:
        """Return the same axis over another number of frames."""
        return replace(self, frames=frames)

    def __str__(self) -> str:
        outer = f"{self.outer}*" if self.outer > 1 else ""
        inner = f"*{self.inner}" if self.inner > 1 else ""
        before = f"{self.before}+" if self.before else ""
        after = f"+{self.after}" if self.after else ""
        return f"{before}{outer}f{self.frames}{inner}{after}"


Axes = tuple[FrameAxis | None, ...]


def axes_of(node: fx.Node) -> Axes:
    """Return the frame axis of every dimension of a node's value (None: carries no frames).

    Raises:
        OptionTypeError: the argument is not a node.
    """
    try:
        axes: Axes = node.meta.get(KEY, ())
    except AttributeError:
        raise OptionTypeError(f"axes_of: got {shown(node)}, wanted a node of a Program") from None
    return axes


def set_axes(node: fx.Node, axes: Axes) -> None:
    """Record the frame axes of a node's value."""
    node.meta[KEY] = tuple(axes)


def carries_frames(node: fx.Node) -> bool:
    """Whether any dimension of the node's value carries frames."""
    return any(axis is not None for axis in axes_of(node))


def same_axes(one: Axes, other: Axes) -> bool:
    """Whether two values carry frames in the same places; no axes at all say that none does."""
    longer = max(len(one), len(other))
    return all(
        (one[d] if d < len(one) else None) == (other[d] if d < len(other) else None)
        for d in range(longer)
    )


def axes_text(axes: Axes) -> str:
    """Axes for a message, such as ``[-, f5*12, -]``."""
    return f"[{', '.join('-' if axis is None else str(axis) for axis in axes)}]"
