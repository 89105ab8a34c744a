"""Follow the frames: find the input dimensions that carry them by trying a model at two sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fisopt.errors import CaptureError, FisoptError, shown
from fisopt.rewrite.axes import TokenLayout
from fisopt.rewrite.tracing.frame_dims import FrameDims, Growth, all_grow, candidates, resize
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.tracing.trials import Shape, Shapes, Trial, user_line
from fisopt.spec import ModelSpec

TRIALS = 64
"""Assignments that are tried with one frame more."""
STEPS = range(1, 9)
"""How many frames more the second size may need to have."""
AGAIN = 4
"""Assignments that are tried with several frames more."""


@dataclass(frozen=True)
class Followed:
    """How the inputs of a model follow the number of latent frames.

    Attributes:
        dims: the dimensions that grow.
        frames: of the inputs that it was found with.
        step: by how many frames a second size that the model accepts is longer, or shorter where
            it takes none that is longer; 0: none was found, and the model is captured at its number
            of frames alone.
        why_fixed: in that case, why.
    """

    dims: FrameDims
    frames: int
    step: int
    why_fixed: str = ""


@dataclass(frozen=True)
class Search:
    """A search for the dimensions that carry frames.

    Attributes:
        inputs: example inputs.
        grid: their token grid.
        spec: what the caller says of the model.
        trial: runs the model.
        before: what it returned for the example inputs.
    """

    inputs: Inputs
    grid: TokenLayout
    spec: ModelSpec
    trial: Trial
    before: Shapes

    def run(self) -> Followed:
        """Find the first assignment at which the model, its blocks and its grid agree.

        Raises:
            CaptureError: no input carries the grid, or what carries it is not what the blocks
                work on: the grid is wrong.
        """
        refused: Exception | str | None = None
        for step, assigned in self._attempts():
            verdict = self._verdict(assigned, step)
            if verdict is None:
                dims = self._with_rows(self._fewest(assigned, step), step)
                return Followed(dims, self.grid.frames, abs(step))
            refused = verdict if refused is None else refused
        if not isinstance(refused, Exception) or not _holds(self.before, self.grid):
            raise CaptureError(self._unfit(refused))
        return Followed({}, self.grid.frames, 0, said(refused, self.grid.frames + 1))

    def _attempts(self) -> Iterator[tuple[int, FrameDims]]:
        if self.spec.resized is not None:
            for step in STEPS:
                yield step, self._said_dims(step)
            return
        returned = {size for shapes in self.before.blocks for s in shapes for size in s}
        found = list(itertools.islice(candidates(self.inputs, self.grid, returned), TRIALS))
        for step in STEPS:
            yield from ((step, dims) for dims in (found if step == 1 else found[:AGAIN]))
        if self.grid.frames > 1:  # a cache may have no room for more
            yield from ((-1, dims) for dims in found[:AGAIN])
        if everything := all_grow(self.inputs, self.grid):  # tables of places, and their lengths
            yield 1, everything

    def _said_dims(self, step: int) -> FrameDims:
        """What grows when the spec itself resizes the inputs."""
        grid = replace(self.grid, frames=self.grid.frames + step)
        made = at_grid(self.spec, self.inputs, {}, self.grid, grid)
        dims: FrameDims = {}
        for i, (leaf, more) in enumerate(zip(self.inputs.leaves, made.leaves, strict=True)):
            sizes, longer = (
                (x.shape if isinstance(x, torch.Tensor) else (x,)) for x in (leaf, more)
            )
            is_tensor = isinstance(leaf, torch.Tensor)
            if not is_tensor and not isinstance(leaf, int):
                continue
            growths = tuple(
                Growth(d if is_tensor else -1, max((b - a) // step, 1), exact=False)
                for d, (a, b) in enumerate(zip(sizes, longer, strict=True))
                if a != b
            )
            if growths:
                dims[i] = growths
        return dims

    def _verdict(self, dims: FrameDims, step: int) -> Exception | str | None:
        """Why an assignment cannot be the right one; None if it can."""
        frames = self.grid.frames + step
        try:
            longer = replace(self.grid, frames=frames)
            inputs = at_grid(self.spec, self.inputs, dims, self.grid, longer)
            after = self.trial(inputs)
        except Exception as error:
            return error
        if callable(self.spec.grid):
            got, wanted = self._grid(inputs), (frames, self.grid.height, self.grid.width)
            if got == (self.grid.frames, *wanted[1:]):
                images = ", or if the model makes images, the rows: (rows, 1, columns)"
                return (
                    f"the spec's grid function says {got} with {frames} frames too; let it count "
                    f"the frames of the inputs it is given{images if got[0] == 1 else ''}"
                )
            if got != wanted:
                return (
                    f"with {frames} frames the spec's grid function says {got}, wanted {wanted}; "
                    "more frames are tried with zeros as values, so let it read sizes, or give "
                    "ModelSpec a `resized` function that makes the inputs"
                )
        return _disagreement(self.before, after, self.grid, step)

    def _grid(self, inputs: Inputs) -> Any:
        try:
            return tuple(self.spec.grid_of(inputs.kwargs()))
        except FisoptError as error:
            return str(error)

    def _fewest(self, dims: FrameDims, step: int) -> FrameDims:
        """Leave out what need not grow: a text that happens to be as long as the video.

        Leaves that must be of one length, a text and its mask, can only be left out together.
        """
        if self.spec.resized is not None:
            return dims
        kept = {i: growths for i, growths in dims.items() if self._is_grid(growths)}
        open_ = [i for i in dims if i not in kept]
        choices = (c for count in range(len(open_)) for c in itertools.combinations(open_, count))
        for choice in itertools.islice(choices, TRIALS):
            fewer = {i: growths for i, growths in dims.items() if i in kept or i in choice}
            if fewer and self._verdict(fewer, step) is None:
                return fewer
        return dims

    def _with_rows(self, dims: FrameDims, step: int) -> FrameDims:
        """Let what says something of every frame grow, if it can: [B, F], such as times.

        A model may take fewer rows than frames too, and spread them over its tokens.
        """
        if self.spec.resized is not None:
            return dims
        rest = {i: x for i, x in self.inputs.tensors() if i not in dims}
        lengths = {size for x in rest.values() if x.ndim > 2 for size in x.shape[1:-1]}
        for i, x in rest.items():
            if x.ndim == 2 and x.shape[1] == self.grid.frames > 1 and x.shape[1] not in lengths:
                wider = dict(sorted((dims | {i: (Growth(1, 1),)}).items()))
                dims = wider if self._verdict(wider, step) is None else dims
        return dims

    def _is_grid(self, growths: tuple[Growth, ...]) -> bool:
        """Whether a leaf holds rows and columns too, which no other size is likely to equal."""
        return self.grid.tokens_per_frame > 1 and any(growth.plane for growth in growths)

    def _unfit(self, refused: Exception | str | None) -> str:
        grid = self.grid
        text = (
            f"no input carries the token grid {grid} ({grid.tokens} tokens); got "
            f"{shapes_of(self.inputs)}. Wanted a tensor with {grid.frames} frames, rows and "
            f"columns that {grid.height} and {grid.width} divide, or {grid.tokens} tokens, that "
            "the model also accepts with more frames"
        )
        if refused is not None:
            text += f". Tried: {said(refused, grid.frames + 1)}"
        return f"{text}: check the grid"


def at_grid(
    spec: ModelSpec, inputs: Inputs, dims: FrameDims, grid: TokenLayout, other: TokenLayout
) -> Inputs:
    """Inputs for another token grid: as the spec says, or by what grows."""
    if spec.resized is None:
        return resize(inputs, dims, grid, other)
    if (other.height, other.width) != (grid.height, grid.width):
        raise CaptureError(
            f"ModelSpec.resized makes inputs for more frames of {grid.height}x{grid.width} tokens, "
            f"so the model cannot be made for {other}"
        )
    made = Inputs.of(spec.resized(inputs.kwargs(), other.frames))
    if made.structure != inputs.structure:
        raise CaptureError(
            f"ModelSpec.resized returned {list(made.names)}, wanted the arguments that it was "
            f"given: {list(inputs.names)}"
        )
    return made


def shapes_of(inputs: Inputs) -> Mapping[str, Any]:
    """Shapes of the tensors of a call, and its plain values, by name."""
    return {
        name: tuple(x.shape) if isinstance(x, torch.Tensor) else shown(x)
        for name, x in zip(inputs.names, inputs.leaves, strict=True)
    }


def said(refused: Exception | str, frames: int) -> str:
    """What refused a number of frames, with the model's own line."""
    if isinstance(refused, str):
        return refused
    first = next(iter(str(refused).strip().splitlines()), "")
    line = user_line(refused)
    return f"with {frames} frames {type(refused).__name__}: {first}" + (line and f"\n    {line}")


def _disagreement(before: Shapes, after: Shapes, grid: TokenLayout, step: int) -> str | None:
    """Why what grew is not the video; None if blocks and model returned more of it."""
    if len(before.blocks) != len(after.blocks):
        return f"blocks run {len(before.blocks)} times, with more frames {len(after.blocks)} times"
    if before.results == after.results:
        return "with more frames the model returns no more"
    if not before.blocks:
        return None
    pairs = [
        (shape, more)
        for results, others in zip(before.blocks, after.blocks, strict=True)
        for shape, more in zip(results, others, strict=False)
    ]
    if any(_grew_by_frames(shape, more, grid, step) for shape, more in pairs):
        return None
    if all(shape == more for shape, more in pairs):
        return (
            f"with {step} frames more the blocks return {sorted({a for a, _ in pairs})} as before; "
            "if the model pads its tokens to a length, pass that length as a whole number of the "
            "call, or give ModelSpec a `resized` function that makes it longer"
        )
    return (
        f"with {step} frames more the blocks return {sorted({b for _, b in pairs})} after "
        f"{sorted({a for a, _ in pairs})}, which is not {grid.tokens_per_frame} tokens a frame"
    )


def _grew_by_frames(shape: Shape, more: Shape, grid: TokenLayout, step: int) -> bool:
    """Whether one dimension grew, by the tokens of a frame or by a frame of them."""
    grown = [d for d, (a, b) in enumerate(zip(shape, more, strict=False)) if a != b]
    if len(shape) != len(more) or len(grown) != 1:
        return False
    size = shape[grown[0]]
    per_frame, rest = divmod(more[grown[0]] - size, step)
    others = math.prod(s for d, s in enumerate(shape) if d != grown[0])
    inner = grid.tokens_per_frame
    return (
        rest == 0
        and per_frame > 0
        and size >= per_frame * grid.frames
        and (per_frame % inner == 0 or others % inner == 0)
    )


def _holds(shapes: Shapes, grid: TokenLayout) -> bool:
    """Whether some block returns as many tokens as the grid has, or more."""
    found: Iterable[Shape] = itertools.chain.from_iterable(shapes.blocks)
    return not shapes.blocks or any(
        size >= grid.tokens or math.prod(shape[:-1]) % grid.tokens == 0
        for shape in found
        for size in shape[:-1]
    )
