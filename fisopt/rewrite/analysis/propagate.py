"""Find the frame axes of every value: compare two frame counts, then follow the dimensions."""

from __future__ import annotations

from torch import fx

from fisopt.rewrite.axes import FrameAxis, set_axes
from fisopt.rewrite.relations import relation, virtual_shape

Place = tuple[fx.Node, int]
_UNEVEN = -1
"""The offset of a dimension that does not grow by the same for every frame."""


def annotate(graph: fx.Graph, wider: fx.Graph, frames: int, step: int = 1) -> None:
    """Set the axes of every node of a graph.

    Args:
        graph: static graph at ``frames`` frames.
        wider: the same graph, node for node, at ``frames + step``.
        frames: token-grid frames of ``graph``.
        step: how many frames more ``wider`` has; below zero where it has fewer.

    A dimension carries frames if its size differs between the two.  Where in the dimension
    the video sits is known at the inputs and follows from the operators; a dimension that an
    operator makes and nothing places is frame-major.
    """
    _Propagation(graph, wider, frames, step).run()


class _Propagation:
    def __init__(self, graph: fx.Graph, wider: fx.Graph, frames: int, step: int) -> None:
        self.frames = frames
        self.nodes = list(graph.nodes)
        self.axes: dict[Place, FrameAxis] = {}
        self.unknown: dict[Place, tuple[int, int]] = {}
        for node, other in zip(self.nodes, wider.nodes, strict=True):
            sizes, more = virtual_shape(node), virtual_shape(other)
            set_axes(node, (None,) * len(sizes))
            for d, (size, size1) in enumerate(zip(sizes, more, strict=True)):
                if size1 != size:
                    slope, rest = divmod(size1 - size, step)
                    offset = size - slope * frames
                    self.unknown[node, d] = (slope, offset if rest == 0 else _UNEVEN)

    def run(self) -> None:
        for (node, d), (slope, offset) in list(self.unknown.items()):
            if (node.op == "placeholder" and offset == 0) or (slope, offset) == (1, 0):
                self._set(node, d, FrameAxis(self.frames, inner=slope))
        self._settle()
        while place := next((p for p in self.unknown if self._made_here(*p)), None):
            self._set(*place, FrameAxis(self.frames, inner=self.unknown[place][0]))
            self._settle()

    def _made_here(self, node: fx.Node, dim: int) -> bool:
        """Whether the dimension is made by the operator itself, so nothing else can place it."""
        if self.unknown[node, dim][1] != 0:
            return False
        if node.op != "call_function":
            return True
        found = relation(node)
        if found.barrier or dim in found.kept:
            return False
        from_operands = [link for link in (*found.links, *found.placed) if link.out == dim]
        return not any(
            (link.operand, link.dim) in self.axes or (link.operand, link.dim) in self.unknown
            for link in from_operands
        )

    def _settle(self) -> None:
        changed = True
        while changed and self.unknown:
            changed = self._sweep(self.nodes)
            changed |= self._sweep(list(reversed(self.nodes)))

    def _sweep(self, nodes: list[fx.Node]) -> bool:
        changed = False
        for node in nodes:
            if node.op != "call_function":
                continue
            places = [
                (n, d) for n in (node, *node.all_input_nodes) for d in range(len(virtual_shape(n)))
            ]
            if not any(place in self.unknown for place in places):
                continue
            found = relation(node)
            for link in found.links:
                here, there = (link.operand, link.dim), (node, link.out)
                if here in self.axes and there in self.unknown:
                    changed |= self._set(*there, link.convert(self.axes[here]))
                elif there in self.axes and here in self.unknown:
                    changed |= self._set(*here, link.invert(self.axes[there]))
            for link in found.placed:
                here, there = (link.operand, link.dim), (node, link.out)
                if here in self.axes and there in self.unknown:
                    changed |= self._set(*there, link.convert(self.axes[here]))
            for a, b in found.ties:
                for here, there in ((a, b), (b, a)):
                    if here in self.axes and there in self.unknown:
                        changed |= self._set(*there, self.axes[here])
            for operand, d in found.mixed:
                here, there = (operand, d), (node, d)
                if d in found.kept and here in self.axes and there in self.unknown:
                    changed |= self._set(*there, self.axes[here])
                elif d in found.kept and there in self.axes and here in self.unknown:
                    changed |= self._set(*here, self.axes[there])
        return changed

    def _set(self, node: fx.Node, dim: int, axis: FrameAxis | None) -> bool:
        if axis is None or axis.size != virtual_shape(node)[dim]:
            return False
        self.axes[node, dim] = axis
        del self.unknown[node, dim]
        axes = list(node.meta["fisopt.axes"])
        axes[dim] = axis
        set_axes(node, tuple(axes))
        return True
