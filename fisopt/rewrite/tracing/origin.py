"""Where a Program came from: the model, its tracer, and how its inputs follow the token grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fisopt.errors import CaptureError
from fisopt.lru import Lru
from fisopt.rewrite.axes import TokenLayout
from fisopt.rewrite.tools.diffusers_hooks import hooks_of
from fisopt.rewrite.tracing.block_paths import blocks_of
from fisopt.rewrite.tracing.follow import Followed, at_grid
from fisopt.rewrite.tracing.frame_dims import FrameDims, fits
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.tracing.kept import Kept, NotKept
from fisopt.rewrite.tracing.tracer import Tracer
from fisopt.rewrite.tracing.weights import refresh
from fisopt.spec import ModelSpec


@dataclass
class Source:
    """Where a Program came from: what is needed to make it again at another shape.

    Attributes:
        model: the model.
        tracer: makes its flat graphs.
        spec: what the caller says of it.
        grid_of: the token grid of any inputs.
        followed: how its inputs follow the number of frames.
        follow: finds that anew, for inputs that tell more.
        notes: what a report should say of the capture.
        kept: where Programs are kept for later processes.
        cache: Programs by shape.
        made_in: in which state of the model it was captured, as whoever asked for it keeps that.
        hooked: the paths of the blocks, in the model's order, and whether hooks run around each.
    """

    model: nn.Module
    tracer: Tracer
    spec: ModelSpec
    grid_of: Callable[[Mapping[str, Any]], tuple[int, int, int]]
    followed: Followed
    follow: Callable[[Inputs, TokenLayout], Followed]
    notes: dict[str, None] = field(default_factory=dict)
    kept: Kept = field(default_factory=NotKept)
    cache: Lru[Any, Any] = field(default_factory=Lru)
    made_in: Any = None
    hooked: dict[str, bool] = field(init=False)

    def __post_init__(self) -> None:
        found = blocks_of(self.model, self.spec.blocks)
        self.hooked = {path: bool(hooks_of(m)) for path, m in found.items()}

    def with_skipped(self, paths: Sequence[str]) -> list[str]:
        """The blocks that ran, in order, and between them those that hooks skip.

        Args:
            paths: of the calls of blocks that ran.
        """
        order, known = list(paths), list(self.hooked)
        for path in [p for p, is_hooked in self.hooked.items() if is_hooked and p not in paths]:
            before = known[: known.index(path)]
            order.insert(1 + max((i for i, p in enumerate(order) if p in before), default=-1), path)
        return order

    def refresh(self) -> None:
        """Let every graph that is held have the weights that the model holds now."""
        for program in self.cache.values():
            refresh(program.graph_module, self.model)

    def bound(self, size: int) -> None:
        """Hold at most so many Programs."""
        self.cache.size = size

    @property
    def frame_dims(self) -> FrameDims:
        """Which dimensions of the inputs grow with frames."""
        return self.followed.dims

    @property
    def of_frames(self) -> set[int]:
        """The inputs that hold frames alone; a cache may grow with them and hold more."""
        return {i for i, growths in self.frame_dims.items() if any(g.exact for g in growths)}

    def at_grid(self, inputs: Inputs, layout: TokenLayout, other: TokenLayout) -> Inputs:
        """Inputs of the same form for another token grid; values are zeros.

        Raises:
            CaptureError: how the inputs follow the frames could not be found.
        """
        if not self.followed.step and other != layout:
            raise CaptureError(
                f"{type(self.model).__name__} is captured at {layout.frames} latent frames alone "
                f"({self.followed.why_fixed}), so it cannot be made for {other.frames}"
            )
        return at_grid(self.spec, inputs, self.frame_dims, layout, other)

    def learn(self, inputs: Inputs, layout: TokenLayout) -> None:
        """Find anew how inputs follow the frames, where these tell more than those before."""
        known = self.followed
        more = known.frames == 1 < layout.frames
        if not known.step:
            more = known.frames != layout.frames
        if more or not fits(inputs, known.dims, layout):
            self.followed = self.follow(inputs, layout)
