"""A mode of fake tensors that writes down the operators that run in it."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import fx, nn
from torch._higher_order_ops.out_dtype import out_dtype
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from fisopt.errors import CaptureError
from fisopt.rewrite.lines import LINE, running_line
from fisopt.rewrite.ops.operator import declared
from fisopt.rewrite.tracing.block_paths import BLOCK, RunningBlock
from fisopt.rewrite.tracing.composites import decompositions
from fisopt.rewrite.tracing.noops import DROPPED, FRESH, RENAMED, is_noop, written


class Tape:
    """A graph that is being written down, and which node every tensor came from.

    Attributes:
        graph: what ran so far.
        block: the block of the model that runs now.
        constants: tensors of the graph that are no weights of the model, by path.
    """

    def __init__(self, block: RunningBlock) -> None:
        self.graph = fx.Graph()
        self.block = block
        self.constants: dict[str, torch.Tensor] = {}
        self._nodes: dict[int, fx.Node] = {}
        self._held: list[torch.Tensor] = []

    def know(self, tensor: torch.Tensor, node: fx.Node) -> None:
        """Note which node a tensor is the value of; the tensor is held, so that its id stays."""
        self._nodes[id(tensor)] = node
        self._held.append(tensor)

    def node_of(self, tensor: torch.Tensor) -> fx.Node:
        """The node that a tensor is the value of.

        Raises:
            CaptureError: it is of no graph.
        """
        if not self.knows(tensor):
            raise CaptureError(
                f"a tensor {list(tensor.shape)} of type {type(tensor).__name__} has no known "
                "origin in this run of the model; make it in forward, or hold it as a buffer"
            )
        return self._nodes[id(tensor)]

    def knows(self, value: Any) -> bool:
        """Whether a value is a tensor of the graph."""
        return id(value) in self._nodes

    def placeholder(self, name: str, tensor: torch.Tensor) -> None:
        """Write down an input."""
        self._value(self.graph.placeholder(name), tensor)

    def attribute(self, path: str, tensor: torch.Tensor) -> None:
        """Write down a parameter, a buffer or a constant."""
        self._value(self.graph.create_node("get_attr", path), tensor)

    def constant(self, tensor: torch.Tensor, fake: torch.Tensor) -> None:
        """Write down a tensor that is no weight, such as a table of positions."""
        path = f"lifted_tensor_{len(self.constants)}"
        self.constants[path] = tensor
        self.attribute(path, fake)

    def call(self, target: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """Write down an operator and what it returned."""
        leaves = pytree.tree_leaves(result)
        if target in DROPPED or not any(isinstance(x, torch.Tensor) for x in leaves):
            return
        if target in FRESH and not self.knows(args[0]):
            self.constant(args[0], result)
            return
        if args and self.knows(args[0]) and is_noop(target, args[0], args, kwargs):
            self.know(result, self.node_of(args[0]))
            return
        operands, options = pytree.tree_map(
            lambda x: self.node_of(x) if isinstance(x, torch.Tensor) else x, (args, kwargs)
        )
        if (made := declared(target)) is not None:
            operands, options = made.arguments(operands, options)
        name = getattr(target, "overloadpacket", target).__name__
        operands = written(target, tuple(operands))
        node = self.graph.create_node("call_function", target, operands, options, name=name)
        self._result(node, result)

    def _result(self, node: fx.Node, result: Any) -> None:
        node.meta["val"] = result
        node.meta[LINE] = running_line()
        if self.block.path is not None:
            node.meta[BLOCK] = self.block.path
        if isinstance(result, torch.Tensor):
            self.know(result, node)
            return
        for i, part in enumerate(result if isinstance(result, (tuple, list)) else ()):
            if part is not None:
                self._result(self.graph.call_function(operator.getitem, (node, i)), part)

    def _value(self, node: fx.Node, tensor: torch.Tensor) -> None:
        node.meta["val"] = tensor
        self.know(tensor, node)


class Recorder(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Runs operators on fake tensors, and writes them down while there is a tape.

    One recorder serves every graph of a model, so that their values may meet.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._tape: Tape | None = None
        self._inside = False
        self._composites = decompositions()

    @contextmanager
    def onto(self, tape: Tape) -> Iterator[None]:
        """Inside, what runs is written onto a tape."""
        before, self._tape = self._tape, tape
        try:
            yield
        finally:
            self._tape = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tape = self._tape
        if tape is None or self._inside:
            return super().__torch_dispatch__(func, types, args, kwargs)
        if func in self._composites:
            with self:
                written = self._composites[func](*args, **kwargs)
            if written is not NotImplemented:
                return written
        if _is_written_out(func):
            with self:
                return func.decompose(*args, **kwargs)
        if func is out_dtype:  # a product of integers or, where there is none, of numbers
            with self:
                return func.py_kernels[_DENSE](*args, **kwargs)
        self._inside = True  # an operator may be made of others
        try:
            result = self._run(func, types, args, kwargs)
        finally:
            self._inside = False
        if result is not NotImplemented:
            tape.call(RENAMED.get(func, func), args, kwargs, result)
        return result

    def _run(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if not isinstance(func, HigherOrderOperator):
            return super().__torch_dispatch__(func, types, args, kwargs)
        check_no_functions(func, args, kwargs)
        return func.python_key_table[FakeTensorMode](self, *args, **kwargs)


_DENSE = torch._C.DispatchKey.CompositeExplicitAutograd


def check_no_functions(func: HigherOrderOperator, args: Any, kwargs: dict[str, Any]) -> None:
    """Refuse an operator that calls functions: what these compute is not in the graph.

    Raises:
        CaptureError: it takes one.
    """
    leaves = pytree.tree_leaves((args, kwargs))
    if any(isinstance(x, nn.Module) or _is_function(x) for x in leaves):
        raise CaptureError(
            f"{func} cannot be captured: it calls functions of its own; choose another "
            "implementation of it"
        )


@lru_cache(maxsize=4096)
def _is_written_out(func: Any) -> bool:
    """Whether an operator is made of others and may return its operand itself, as ``to`` does."""
    if not isinstance(func, torch._ops.OpOverload):
        return False
    if not any(argument.alias_info for argument in func._schema.arguments):
        return False
    name: str = func.name()  # type: ignore[no-untyped-call]
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, (torch._ops.OpOverload, torch.Tensor, type))
