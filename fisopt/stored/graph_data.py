"""A static graph as plain values, and back, under the names that it has.

Operators and their arguments are said as torch.export's JSON says them and read by
`fisopt.stored.graph_file`: an operator comes from a list, an argument is data.  What a Program
needs beside that is added: calls of other graphs, items of tuples, names, and the marks of nodes.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import fx

from fisopt.errors import FisoptError, shown
from fisopt.reading import MalformedError
from fisopt.rewrite.axes import KEY, FrameAxis
from fisopt.rewrite.lines import LINE
from fisopt.rewrite.outline import REGION
from fisopt.rewrite.tracing.block_paths import BLOCK
from fisopt.rewrite.tracing.recorder import Recorder
from fisopt.stored.graph_file import DTYPES, GraphReader, check_name, device_of, plain
from fisopt.stored.operators import operator_of

PARAMETER = "fisopt.parameter"
"""Where a placeholder of a callee says whether it is a parameter."""
_TEXTS = (BLOCK, REGION)
_MARKS = {"val", KEY, PARAMETER, *_TEXTS}
NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
"""The numbers that torch.export gives to types."""
_ITEM = "_operator.getitem"
_SCALARS = {bool: "as_bool", int: "as_int", str: "as_string"}
_SPECIAL = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}


class NotPlainError(FisoptError):
    """A graph holds what plain values do not say; the message says what."""


def plain_graph(graph: fx.Graph) -> list[Any]:
    """The nodes of a graph as plain values.

    Raises:
        NotPlainError: a node is of another kind than those of a captured graph.
    """
    return [_plain_node(node) for node in graph.nodes]


def _plain_node(node: fx.Node) -> list[Any]:
    if others := node.meta.keys() - _MARKS - {LINE}:  # lines only help messages
        raise NotPlainError(f"{node.name} is marked with {sorted(others)[0]}")
    marks = {name: node.meta[name] for name in _TEXTS if name in node.meta}
    if PARAMETER in node.meta:
        marks[PARAMETER] = bool(node.meta[PARAMETER])
    if KEY in node.meta:
        marks[KEY] = [None if axis is None else list(astuple(axis)) for axis in node.meta[KEY]]
    if "val" in node.meta:
        marks["val"] = _plain_form(node.meta["val"])
    args, kwargs = (
        [_plain_value(x) for x in node.args],
        [[name, _plain_value(x)] for name, x in node.kwargs.items()],
    )
    return [node.op, node.name, _plain_target(node), args, kwargs, marks]


def _plain_target(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    if node.target is operator.getitem:
        return _ITEM
    name = f"torch.ops.{node.target}"
    try:
        found = operator_of(name)
    except FisoptError as error:
        raise NotPlainError(str(error)) from error
    if found is not node.target:
        raise NotPlainError(f"{node.name} calls {node.target}, another is registered by that name")
    return name


def _plain_value(value: Any) -> dict[str, Any]:
    """An argument, as torch.export's JSON says it; lists of anything are said one by one."""
    if isinstance(value, fx.Node):
        return {"as_tensor": {"name": value.name}}
    if value is None:
        return {"as_none": True}
    if type(value) in _SCALARS:
        return {_SCALARS[type(value)]: value}
    if type(value) is float:
        return {"as_float": _SPECIAL.get(str(value), value)}
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_plain_value(x) for x in value]}
    if isinstance(value, torch.dtype) and value in NUMBERS:
        return {"as_scalar_type": NUMBERS[value]}
    if isinstance(value, torch.device):
        return {"as_device": plain_device(value)}
    if isinstance(value, torch.layout) and value == torch.strided:
        return {"as_layout": 7}
    if isinstance(value, torch.memory_format):
        return {"as_memory_format": _FORMATS[value]}
    raise NotPlainError(f"an operator takes {value!r}, a {type(value).__name__}")


_FORMATS = {
    torch.contiguous_format: 1,
    torch.channels_last: 2,
    torch.channels_last_3d: 3,
    torch.preserve_format: 4,
}


def _plain_form(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_plain_form(x) for x in value]}
    if value is None:
        return None
    if not isinstance(value, torch.Tensor) or value.is_conj() or value.is_neg():
        raise NotPlainError(f"a graph computes {value!r}, which is no plain tensor")
    sizes, strides = list(value.shape), list(value.stride())
    if value.dtype not in NUMBERS or not all(type(x) is int for x in (*sizes, *strides)):
        raise NotPlainError(f"a graph computes a tensor of {value.dtype} {sizes}")
    return [NUMBERS[value.dtype], sizes, strides, plain_device(value.device)]


def plain_device(device: torch.device) -> dict[str, Any]:
    """A device as plain values; `fisopt.stored.graph_file.device_of` reads them."""
    return {"type": device.type, "index": device.index}


@dataclass
class StoredGraph:
    """Makes a graph from plain values.

    Attributes:
        said: what `plain_graph` returned.
        callees: the graphs that it may call, by name.
        recorder: the mode that the values of the graph are fake in.
    """

    said: Any
    callees: Collection[str]
    recorder: Recorder

    def read(self) -> fx.Graph:
        """Make it.

        Raises:
            FisoptError, LookupError, TypeError, ValueError, RuntimeError: the values are malformed.
        """
        self.reader = GraphReader(None, any_library=False)
        for node in plain(self.said, list):
            self._node(*node)
        return self.reader.graph

    def _node(self, op: Any, name: Any, target: Any, args: Any, kwargs: Any, marks: Any) -> None:
        check_name(name)
        values = [self._value(x) for x in args]
        for key, _ in kwargs:
            check_name(key)
        named = {key: self._value(x) for key, x in kwargs}
        made = self.reader.graph.create_node(
            op, self._target(op, target), tuple(values), named, name=name
        )
        if made.name != name:
            raise MalformedError(f"two nodes have the name {shown(name)}")
        if op != "output":
            self.reader.keep(name, made)
        for mark, value in marks.items():
            made.meta[mark] = self._mark(mark, value)

    def _target(self, op: Any, target: Any) -> Any:
        if op == "call_function":
            return operator.getitem if target == _ITEM else operator_of(plain(target, str))
        if op == "call_module":
            if target not in self.callees:
                raise MalformedError(f"the graph calls {shown(target)}, which is not there")
            return target
        if op == "get_attr":
            for part in plain(target, str).split("."):
                if not (part.isidentifier() or part.isdecimal()):
                    raise MalformedError(f"the graph reads {shown(target)}, wanted a path")
            return target
        if op not in ("placeholder", "output"):
            raise MalformedError(f"the graph has a node of the kind {shown(op)}")
        check_name(target)
        return target

    def _value(self, said: Any) -> Any:
        (kind, value), *_ = said.items()
        if kind in ("list", "tuple"):
            values = [self._value(x) for x in value]
            return values if kind == "list" else tuple(values)
        return self.reader.value(said)

    def _mark(self, name: Any, value: Any) -> Any:
        if name == "val":
            return self._fake(value)
        if name == KEY:
            numbers = [x if x is None else [plain(n, int) for n in x] for x in value]
            return tuple(x if x is None else FrameAxis(*x) for x in numbers)
        if name == PARAMETER:
            return plain(value, bool)
        if name in _TEXTS:
            return plain(value, str)
        raise MalformedError(f"a node is marked with {shown(name)}")

    def _fake(self, said: Any) -> Any:
        if said is None:
            return None
        if isinstance(said, dict):
            (kind, values), *_ = said.items()
            made = [self._fake(x) for x in values]
            return made if kind == "list" else tuple(made)
        dtype, sizes, strides, device = said
        numbers = [[plain(x, int) for x in part] for part in (sizes, strides)]
        with self.recorder:
            return torch.empty_strided(*numbers, dtype=DTYPES[dtype], device=device_of(device))
