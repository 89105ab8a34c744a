"""Other frames: the graph of a model at another number of frames, to compare sizes with."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from fisopt.errors import CaptureError
from fisopt.rewrite.axes import TokenLayout
from fisopt.rewrite.lines import SAME_OPERATORS, parting, same_operators
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.tracing.origin import Source
from fisopt.rewrite.tracing.trials import silent


def other_frames(
    source: Source, inputs: Inputs, layout: TokenLayout, flat: fx.GraphModule
) -> tuple[fx.Graph, int]:
    """The same graph at another number of frames, and how many it has more.

    More frames are tried first, then fewer: a cache may have no room for more.

    Raises:
        CaptureError: the model runs other operators there, or not at all.
    """
    step, refused = source.followed.step, None
    for by in (step, -step) if layout.frames > step else (step,):
        frames = layout.frames + by
        try:
            there = source.at_grid(inputs, layout, replace(layout, frames=frames))
            with silent("torch._subclasses.fake_tensor"):
                graph = source.tracer.flat(there, source.of_frames).graph
        except CaptureError as error:
            refused = refused or error
            continue
        if same_operators(flat.graph, graph) and _targets(flat.graph) == _targets(graph):
            return graph, by
        refused = refused or CaptureError(
            f"the model runs different operators at {layout.frames} and {frames} frames; it "
            f"cannot be captured at this shape. At {frames}: {parting(graph, flat.graph)}. "
            f"{SAME_OPERATORS}. If it keeps what a call made, such as positions for one size, "
            "empty that before it is captured"
        )
    assert refused is not None
    raise refused


def _targets(graph: fx.Graph) -> list[object]:
    """Operators, and the weights and inputs that they read."""
    return [node.target for node in graph.nodes]
