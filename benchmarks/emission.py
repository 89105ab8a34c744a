"""The kernels that are emitted for published models, from shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

import fisopt
from fisopt import FrameInterleave, models
from fisopt.codegen.emit.expression import RefusalError
from fisopt.codegen.emit.kernel import Kernel, emit
from fisopt.codegen.emit.region import Region, find_regions
from fisopt.codegen.lower import lower

MODELS = ("wan2.2-ti2v-5b", "hunyuanvideo-1.5", "cogvideox-5b", "ltx-video", "mochi-1")
"""Models of different forms of attention, norm and rotary embedding."""

OTHERS = ("wan2.2-a14b", "hunyuanvideo", "cogvideox-2b", "allegro", "latte-1")
"""One of each remaining family or size."""


def emitted(
    name: str, size: dict[str, int] | None = None, **config: Any
) -> Iterator[tuple[Kernel, Region]]:
    """Every distinct kernel of a model's blocks, with a region that it serves.

    Two blocks are captured in bfloat16, at the published width unless ``config`` says otherwise
    and at the published height, width and frames unless ``size`` does, with FrameInterleave in
    both.
    """
    model = models.build(name, dtype=torch.bfloat16, num_layers=2, **config)
    inputs = models.example_inputs(model, **(size or {}))
    program = FrameInterleave(stride=2, blocks=":")(fisopt.capture(model, inputs)).program
    seen = set()
    for _, stage in lower(program).named_children():
        for region in find_regions(stage) if isinstance(stage, fx.GraphModule) else ():
            try:
                kernel = emit(region)
            except RefusalError:
                continue
            if kernel.name not in seen:
                seen.add(kernel.name)
                yield kernel, region
