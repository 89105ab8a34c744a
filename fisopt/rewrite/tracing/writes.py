"""Writes: what a model changes in place, its inputs and buffers, as results of its graph.

torch.export hands such a change back as a ``copy_`` at the end of the graph.  No pass may lose it
and no graph may hold it, so the new value becomes a result, and the runtime copies it where the
model would have written it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fisopt.errors import CaptureError, InputError
from fisopt.rewrite.outline import outputs_of
from fisopt.rewrite.relations.cut import bounds
from fisopt.rewrite.relations.table import argument, shape
from fisopt.rewrite.tracing.inputs import Inputs

_COPY = torch.ops.aten.copy_.default
_PART = torch.ops.aten.slice_scatter.default


@dataclass(frozen=True)
class Write:
    """A tensor that the model changes in place.

    Attributes:
        name: the name of the input, or the path of the buffer.
        shape: of what is written.
        leaf: the index of the input among the leaves of the call; None for a buffer.
        part: the only entries that change: a dimension, the first and behind the last; None for
            all.
    """

    name: str
    shape: tuple[int, ...]
    leaf: int | None
    part: tuple[int, int, int] | None = None

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The entries of the tensor that change."""
        if self.part is None:
            return tensor
        dim, start, end = self.part
        return tensor.narrow(dim, start, end - start)


def mutates(node: fx.Node) -> bool:
    """Whether an operator changes one of its operands."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def take_parts(graph: fx.Graph, inputs: Inputs) -> tuple[Write, ...]:
    """Return what is written into a part of a tensor in the place of the whole tensor.

    So a graph copies no cache to change a few rows of it.  What is written follows the results of
    the graph.
    """
    leaves = _leaves(graph, inputs)
    writes: list[Write] = []
    values: list[fx.Node] = []
    for node in [n for n in graph.nodes if n.target is _COPY]:
        place, value = node.args
        found: list[tuple[fx.Node, tuple[int, int, int]]] = []
        while value.target is _PART and len(value.users) == 1 and _step(value) == 1:
            base, new = value.args[:2]
            sizes = base.meta["val"].shape
            dim = argument(value, 2, "dim", 0) % len(sizes)
            ends = bounds(argument(value, 3, "start"), argument(value, 4, "end"), sizes[dim])
            found.insert(0, (new, (dim, *ends)))
            value = base
        if value is not place or not found:
            continue
        for new, part in found:
            leaf = leaves.get(place)
            name = str(place.target) if leaf is None else inputs.names[leaf]
            writes.append(Write(name, shape(new), leaf, part))
            values.append(new)
        graph.erase_node(node)
    graph.output_node().args = ((*outputs_of(graph), *values),)
    graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output") or mutates(n))
    return tuple(writes)


def _step(part: fx.Node) -> Any:
    return argument(part, 5, "step", 1)


def _leaves(graph: fx.Graph, inputs: Inputs) -> dict[fx.Node, int]:
    """The placeholders of a graph, and which of the inputs each is."""
    holders = [n for n in graph.nodes if n.op == "placeholder"]
    return dict(zip(holders, (i for i, _ in inputs.tensors()), strict=True))


def take_writes(graph: fx.Graph, inputs: Inputs) -> tuple[tuple[Write, ...], list[fx.Node]]:
    """Drop the writes from a graph; return what they change and the values to write there.

    Raises:
        CaptureError: an operator changes its operand by another way than a final copy.
    """
    leaves = _leaves(graph, inputs)
    writes: list[Write] = []
    values: list[fx.Node] = []
    for node in [n for n in graph.nodes if mutates(n)]:
        place, value = (*node.args, None, None)[:2]
        if node.target is not _COPY or not isinstance(place, fx.Node) or node.users:
            raise CaptureError(
                f"{node.format_node()} changes its operand in place, which a rewritten graph must "
                "not do; write the operator without the change (return the new value), or "
                "register it with a functional form"
            )
        if place in leaves:
            leaf = leaves[place]
            writes.append(Write(inputs.names[leaf], shape(place), leaf))
        elif place.op == "get_attr":
            writes.append(Write(str(place.target), shape(place), None))
        else:
            raise CaptureError(
                f"{node.format_node()} writes into {place.name}, which is neither an input nor a "
                "buffer of the model, so the change would be lost"
            )
        assert isinstance(value, fx.Node)
        values.append(value)
        graph.erase_node(node)
    return tuple(writes), values


def check_apart(inputs: Inputs, writes: Iterable[Write]) -> None:
    """Refuse inputs of which one is written and another lies in the same memory.

    Raises:
        InputError: both are named; a graph sees the old values of the one that is not written.
    """
    held = list(inputs.tensors())
    for write in (w for w in writes if w.leaf is not None):
        target = inputs.leaves[write.leaf]  # type: ignore[index]
        for i, other in held:
            if i != write.leaf and _overlap(target, other):
                raise InputError(
                    f"the model writes into input {write.name!r}, which shares memory with input "
                    f"{inputs.names[i]!r}; a captured graph would read the old values there: "
                    "pass tensors that do not overlap, or a clone of one"
                )


def write_back(
    writes: Sequence[Write],
    values: Sequence[torch.Tensor],
    inputs: Inputs,
    held: Callable[[str], torch.Tensor],
) -> None:
    """Copy new values to where the model writes them, with their gradients as the model would.

    Args:
        writes: what the model writes.
        values: the new value of each.
        inputs: of the call.
        held: returns the buffer of a path.
    """
    targets = [w.of(held(w.name) if w.leaf is None else inputs.leaves[w.leaf]) for w in writes]
    memory = {_storage(t) for t in targets}
    apart = [v.clone() if _storage(v) in memory else v for v in values]
    for target, value in zip(targets, apart, strict=True):
        target.copy_(value)


def _storage(tensor: torch.Tensor) -> Any:
    return tensor.untyped_storage()._cdata


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have an element in common."""
    if a.device.type == "meta" or _storage(a) != _storage(b) or not a.numel() or not b.numel():
        return False
    if a.dtype != b.dtype:
        return True
    reach: dict[int, list[int]] = {}
    for tensor, sign in ((a, 1), (b, 0)):
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            low, high = reach.setdefault(stride, [0, 0])
            reach[stride] = [low - (1 - sign) * (size - 1), high + sign * (size - 1)]
    distance = int(b.storage_offset()) - int(a.storage_offset())
    return _reaches(distance, sorted(reach.items(), reverse=True))


def _reaches(distance: int, steps: Sequence[tuple[int, list[int]]]) -> bool:
    """Whether some whole multiples of the strides, within their limits, add up to a distance."""
    if not steps:
        return distance == 0
    (stride, (low, high)), *rest = steps
    least = sum(s * lo for s, (lo, _) in rest)
    most = sum(s * hi for s, (_, hi) in rest)
    if stride == 0:
        return _reaches(distance, rest)
    first = max(low, -((most - distance) // stride))
    last = min(high, (distance - least) // stride)
    return any(_reaches(distance - stride * k, rest) for k in range(first, last + 1))
