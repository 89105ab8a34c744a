"""Instantiation: a traced graph interpreted on concrete shapes, its integers folded."""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import fx, nn
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils import _pytree as pytree

from fisopt.errors import CaptureError
from fisopt.rewrite.ops.operator import declared
from fisopt.rewrite.relations import relation
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.tracing.key_masks import Insert

aten = torch.ops.aten
BLOCK = "fisopt.block"
_NO_END = 1 << 62


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether a module path matches one of the patterns, ``*`` standing for one component."""
    parts = path.split(".")
    return any(
        len(parts) == len(wanted := pattern.split("."))
        and all(fnmatch.fnmatchcase(part, want) for part, want in zip(parts, wanted, strict=True))
        for pattern in patterns
    )


def _block_of(node: fx.Node, patterns: tuple[str, ...]) -> str | None:
    """Path of the outermost block that a node was traced in; ``path@n`` at its n-th call again."""
    for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
        if matches(path, patterns):
            again = str(key).rpartition("@")[2] if "@" in str(key) else ""
            return f"{path}@{again}" if again else str(path)
    return None


def _is_noop(
    target: Any, operand: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Whether a functional op returns its first operand's values and type unchanged."""
    if target in (aten.alias.default, aten.lift_fresh_copy.default):
        return True
    if target is aten.detach.default:
        return not operand.is_floating_point()  # it stops a gradient
    if target is aten.dropout.default:
        return not (args[1] and args[2])
    if target is aten.clone.default:
        return "memory_format" not in kwargs
    if target is aten.type_as.default:
        return bool(operand.dtype == args[1].dtype and operand.device == args[1].device)
    if target is aten._to_copy.default:
        rest = {k: v for k, v in kwargs.items() if v is not None and k != "non_blocking"}
        same = rest.pop("dtype", operand.dtype) == operand.dtype
        return bool(same and rest.pop("device", operand.device) == operand.device and not rest)
    if target is aten.slice.Tensor:
        start, end, step = (*args[2:], None, None, None)[:3]
        return start in (None, 0) and (end is None or end >= _NO_END) and step in (None, 1)
    return False


_DROPPED = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten.sym_constrain_range_for_size.default,
    aten.sym_constrain_range.default,
    aten._assert_async.msg,
}
_RENAMED: dict[Any, Any] = {
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
}


class Instantiate:
    """Interpret a traced graph on concrete shapes and write down what runs, ints folded."""

    def __init__(
        self,
        traced: fx.GraphModule,
        mode: FakeTensorMode,
        attrs: dict[str, Any],
        values: MutableMapping[Any, Any],
    ) -> None:
        self.traced = traced
        self.mode = mode
        self.attrs = attrs
        self.values = values
        self.graph = fx.Graph()
        self.env: dict[fx.Node, Any] = {}

    def run(self, inputs: Inputs, patterns: tuple[str, ...]) -> fx.Graph:
        """The static graph for inputs of some shapes, with blocks marked by their paths."""
        leaves = iter(zip(inputs.names, inputs.leaves, strict=True))
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                self.env[node] = self._placeholder(*next(leaves))
            elif node.op == "get_attr":
                self.env[node] = self._attribute(node)
            elif node.op == "output":
                self.graph.output(self._map(node.args[0]))
            elif node.op == "call_function":
                block = _block_of(node, patterns)
                try:
                    self.env[node] = self._call(node, block)
                except Exception as error:
                    raise CaptureError(_failed(node, error)) from error  # with the model's line
            elif node.target != "_guards_fn":
                raise CaptureError(f"unexpected node in an exported graph: {node.format_node()}")
        return self.graph

    def _placeholder(self, name: str, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        node = self.graph.placeholder(name)
        with self.mode:
            node.meta["val"] = torch.empty(leaf.shape, dtype=leaf.dtype, device=leaf.device)
        return node

    def _attribute(self, node: fx.Node) -> Any:
        target = str(node.target)
        value = operator.attrgetter(target)(self.traced)
        if not isinstance(value, torch.Tensor):
            return value
        new = self.graph.create_node("get_attr", target, name=node.name)
        if target not in self.attrs:
            self.attrs[target] = self.mode.from_tensor(value, static_shapes=True)
        new.meta["val"] = self.attrs[target]
        return new

    def _map(self, args: Any) -> Any:
        return fx.node.map_aggregate(args, lambda a: self.env[a] if isinstance(a, fx.Node) else a)

    def _value(self, target: Any, values: Any, options: dict[str, Any]) -> Any:
        """Result of an operator on fake tensors; blocks repeat, so equal calls are made once."""
        key = (target, _signature(values), tuple((k, _signature(v)) for k, v in options.items()))
        if key not in self.values:
            with self.mode, torch.no_grad():
                value = self.values[key] = target(*values, **options)
            return value
        return self.values[key]

    def _call(self, node: fx.Node, block: str | None) -> Any:
        if node.target in _DROPPED:
            return None
        args, kwargs = self._map(node.args), self._map(node.kwargs)
        flat = pytree.tree_leaves((args, kwargs))
        if isinstance(node.target, HigherOrderOperator) and any(
            isinstance(a, nn.Module) for a in flat
        ):
            raise CaptureError("it calls functions of its own; choose another implementation of it")
        values, options = pytree.tree_map(_held, (args, kwargs))
        target: Any = _RENAMED.get(node.target, node.target)
        if not any(isinstance(a, fx.Node) for a in flat) and not isinstance(
            target, torch._ops.OpOverload
        ):
            return target(*values, **options)
        if target in (aten.sym_size.int, aten.sym_numel.default, aten.sym_stride.int):
            with self.mode:
                return target(*values, **options)
        if isinstance(args[0] if args else None, fx.Node) and _is_noop(
            target, values[0], values, options
        ):
            return args[0]
        if (made := declared(target)) is not None:
            args, kwargs = made.arguments(args, kwargs)
        value = self._value(target, values, options)
        if value is not None and not isinstance(value, (torch.Tensor, tuple, list)):
            return value
        new = self.graph.create_node("call_function", target, args, kwargs, name=node.name)
        new.meta["val"] = value
        if block is not None:
            new.meta[BLOCK] = block
        return new

    def insert_for(self, place: fx.Node, after: bool) -> Insert:
        """What writes operators before or after a node of the graph, as parts of its block."""
        here = self.graph.inserting_after if after else self.graph.inserting_before

        def insert(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
            values, options = pytree.tree_map(_held, (args, kwargs))
            name = f"{place.name}_{target.overloadpacket.__name__}"
            with here(place):
                new = self.graph.create_node("call_function", target, args, kwargs, name=name)
            new.meta["val"] = self._value(target, values, options)
            new.meta |= {k: v for k, v in place.meta.items() if k == BLOCK}
            return new

        return insert


def _failed(node: fx.Node, error: Exception) -> str:
    """What is said of an operator that has no value on fake tensors."""
    first = next(iter(str(error).strip().splitlines()), "")
    text = f"{node.target} cannot be captured: {type(error).__name__}: {first}"
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        text = f"{node.target}: what the model computes next depends on values, not on shapes alone"
    lines = [x.strip() for x in str(node.meta.get("stack_trace") or "").strip().splitlines()]
    where = "\n    ".join(lines[-2:])
    return (
        f"{text}\n    {where}\nRewrite that line with tensor operations, or give ModelSpec a "
        "`prepare` function that does"
    )


def _held(argument: Any) -> Any:
    """The fake tensor of a node; what is no node as it is."""
    return argument.meta["val"] if isinstance(argument, fx.Node) else argument


def separate_roles(graph: fx.Graph) -> None:
    """Give an operand that one operator both follows and combines a node for each role.

    Attention of a value to itself needs some frames of it as queries, all of it as keys.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or len(node.args) == len(set(map(id, node.args))):
            continue
        found = relation(node)
        followed = {(link.operand, link.dim) for link in found.links}
        both = {operand for operand, d in found.mixed if (operand, d) in followed}
        seen: set[fx.Node] = set()
        args = list(node.args)
        for i, arg in enumerate(args):
            if isinstance(arg, fx.Node) and arg in seen & both:
                with graph.inserting_before(node):
                    args[i] = twin = graph.create_node(
                        "call_function", aten.alias.default, (arg,), name=f"{node.name}_arg{i}"
                    )
                twin.meta = {k: v for k, v in node.meta.items() if k == BLOCK}
                twin.meta["val"] = arg.meta["val"]
            elif isinstance(arg, fx.Node):
                seen.add(arg)
        node.args = tuple(args)


def _signature(value: Any) -> Any:
    """A hashable stand-in for an operator's argument: of a tensor, all but its values."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.stride(), value.dtype, value.device)
    if isinstance(value, (list, tuple)):
        return tuple(map(_signature, value))
    return (type(value), value)
