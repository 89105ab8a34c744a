"""The token grid of any call, from that of one example and what its inputs say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fisopt.errors import InputError
from fisopt.rewrite.axes import TokenLayout
from fisopt.rewrite.tracing.follow import shapes_of
from fisopt.rewrite.tracing.frame_dims import FrameDims, Growth, size_of
from fisopt.rewrite.tracing.inputs import Inputs


@dataclass(frozen=True)
class _Place:
    """A dimension of an input that grows with the frames; ``rest`` of its entries count none."""

    name: str
    growth: Growth
    rest: int


class FixedGrid:
    """The grid of any inputs: the example's, scaled by what the sizes of the inputs say.

    Args:
        layout: the grid of the example.
        example: its inputs; only their sizes are kept.
        dims: where they grow with the frames.
    """

    def __init__(self, layout: TokenLayout, example: Inputs, dims: FrameDims) -> None:
        self.layout = layout
        places = [
            _Place(
                example.names[i], g, size_of(example.leaves[i], g) - layout.frames * g.step(layout)
            )
            for i, growths in dims.items()
            for g in growths
        ]
        sure = [p for p in places if p.growth.exact or p.growth.plane is not None]
        self.places = sure or places
        self.sizes = {example.names[i]: tuple(x.shape) for i, x in example.tensors()}

    def __call__(self, kwargs: Mapping[str, Any]) -> tuple[int, int, int]:
        """Return (F, H, W) in tokens.

        Raises:
            InputError: the sizes contradict each other, or nothing says how the grid follows them.
        """
        inputs = Inputs.of(kwargs)
        leaves = dict(zip(inputs.names, inputs.leaves, strict=True))
        places = [p for p in self.places if isinstance(leaves.get(p.name), (torch.Tensor, int))]
        if not places:
            return self._unchanged(inputs)
        here = self.layout
        plane = next((p for p in places if p.growth.plane is not None), None)
        if plane is not None and plane.growth.plane is not None:
            h, w = (leaves[plane.name].shape[d] // plane.growth.scale for d in plane.growth.plane)
            in_rows = plane.growth.dim == plane.growth.plane[0]
            here = TokenLayout(here.frames, 1 if in_rows else h, w)
        found = {(size_of(leaves[p.name], p.growth) - p.rest) / p.growth.step(here) for p in places}
        frames = next(iter(found))
        if len(found) > 1 or frames != int(frames) or frames < 1:
            raise self._untold(
                inputs,
                f"its sizes speak of {sorted(found)} frames of {here.height}x{here.width} tokens",
            )
        return (int(frames), here.height, here.width)

    def _unchanged(self, inputs: Inputs) -> tuple[int, int, int]:
        """The example's own grid, for more batch items at most."""
        for i, tensor in inputs.tensors():
            name = inputs.names[i]
            before = self.sizes.get(name, tuple(tensor.shape))
            if tensor.shape[1:] != before[1:]:
                raise self._untold(
                    inputs,
                    f"{name} was {list(before)}, and how it follows the frames is not known",
                )
        return (self.layout.frames, self.layout.height, self.layout.width)

    def _untold(self, inputs: Inputs, why: str) -> InputError:
        return InputError(
            f"fisopt cannot derive the token grid of {shapes_of(inputs)} from that of the example, "
            f"{self.layout}: {why}; give ModelSpec a function as grid"
        )
