"""The inputs of one forward call: their leaves, their shape key, and which of them carry frames."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fisopt.errors import InputError
from fisopt.rewrite.tools.tool import tools
from fisopt.rewrite.tracing.readiness import check_model


def bind(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the call's arguments by name, in the order of the forward signature."""
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"inputs of {type(model).__name__}.forward: {error}; it takes "
            f"{list(signature.parameters)}, got {[*('by place' for _ in args), *kwargs]}"
        ) from error
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            raise InputError(
                f"inputs of {type(model).__name__}.forward: pass arguments by name, "
                f"got {len(value)} extra positional ones"
            )
        else:
            named[name] = value
    for tool in tools():
        named = tool.inputs(model, named)
    return named


def bind_example(model: nn.Module, example_inputs: Mapping[str, Any]) -> Inputs:
    """Return example inputs as the inputs of a call.

    Raises:
        InputError: they are no dict of arguments by name, or are not those of the model.
    """
    if not isinstance(example_inputs, Mapping) or not example_inputs:
        got = "an empty dict" if example_inputs == {} else type(example_inputs).__name__
        names = list(inspect.signature(model.forward).parameters)
        raise InputError(
            f"example_inputs of {type(model).__name__}: got {got}, wanted the dict of keyword "
            f"arguments of one forward call; the model takes {names}"
        )
    return Inputs.of(bind(model, (), example_inputs))


@dataclass(frozen=True)
class Inputs:
    """The flattened keyword arguments of one forward call.

    Attributes:
        names: of the leaves, by their path.
        leaves: the tensors and plain values.
        structure: their nesting.
        given: the arguments as they were given, None where the leaves are others.
        positions: leaves that are whole numbers in tensors of dicts and lists, such as how full a
            cache is, with their values when the call was made. A model may read them, so that a
            Program is specialised to them as to plain numbers.
    """

    names: tuple[str, ...]
    leaves: tuple[Any, ...]
    structure: pytree.TreeSpec
    given: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)
    positions: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def of(kwargs: Mapping[str, Any]) -> Inputs:
        """Flatten keyword arguments; leaves are named by their path."""
        pairs, structure = pytree.tree_flatten_with_path(dict(kwargs))
        names = tuple("_".join(_key(k) for k in path) for path, _ in pairs)
        positions = ((i, x) for i, (path, x) in enumerate(pairs) if len(path) > 1)
        numbers = tuple((i, int(x)) for i, x in positions if _is_whole_number(x))
        return Inputs(names, tuple(leaf for _, leaf in pairs), structure, kwargs, numbers)

    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments again."""
        result: dict[str, Any] = pytree.tree_unflatten(self.leaves, self.structure)
        return result

    def replaced(self, leaves: Sequence[Any]) -> Inputs:
        """The same structure with other leaves."""
        return Inputs(self.names, tuple(leaves), self.structure, positions=self.positions)

    def detached(self) -> Inputs:
        """The same without gradients."""
        return self.replaced([_detached(x) for x in self.leaves])

    def tensors(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Index and value of the leaves that are tensors."""
        return ((i, x) for i, x in enumerate(self.leaves) if isinstance(x, torch.Tensor))

    def key(self) -> tuple[Any, ...]:
        """What a Program is specialised to: shapes, dtypes, devices, plain values and positions.

        Raises:
            InputError: a leaf is of a type, or a tensor of a layout, that no graph takes.
        """
        leaves = zip(self.names, self.leaves, strict=True)
        return (
            self.structure,
            *(_leaf_key(name, leaf) for name, leaf in leaves),
            *self.positions,
        )


def _is_whole_number(x: Any) -> bool:
    return (
        type(x) is torch.Tensor
        and x.numel() == 1
        and x.dtype in (torch.int32, torch.int64)
        and not x.is_meta
    )


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, torch.Tensor) and x.requires_grad else x


def _key(entry: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _leaf_key(name: str, leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        if leaf.layout != torch.strided or leaf.is_nested:
            kind, dense = (
                ("nested", ".to_padded_tensor(...)")
                if leaf.is_nested
                else (leaf.layout, ".to_dense()")
            )
            raise InputError(f"input {name!r} is {kind}; pass it dense: {dense}")
        return (tuple(leaf.shape), leaf.dtype, leaf.device)
    if leaf is None or isinstance(leaf, (bool, int, float, str)):
        return (type(leaf), leaf)
    raise InputError(
        f"input {name!r}: an input of type {type(leaf).__name__} cannot be part of a captured "
        "call; wanted tensors, numbers, strings, booleans or None, or containers of these"
    )


def check_example(model: nn.Module, inputs: Inputs) -> None:
    """Refuse example inputs that cannot be captured: gradients, NaN, a model that is not ready.

    Raises:
        InputError: see `check_model`; or a tensor needs gradients, holds NaN or infinity, or
            is sparse.
    """
    check_model(model)
    inputs.key()
    if not any(True for _ in inputs.tensors()):
        raise InputError("example inputs hold no tensor; wanted the arguments of one forward call")
    for i, tensor in inputs.tensors():
        if tensor.requires_grad:
            raise InputError(
                f"input {inputs.names[i]!r} needs gradients, and none flow into an example: "
                "pass it detached"
            )
        if (tensor.is_floating_point() or tensor.is_complex()) and not tensor.is_meta:
            _check_values(inputs.names[i], tensor)


def _check_values(name: str, tensor: torch.Tensor) -> None:
    """Refuse NaN and infinity, but for minus infinity in what is added to scores as a mask."""
    for kind, wrong in (("NaN", tensor.isnan()), ("infinite", tensor.isinf())):
        if not (bad := int(wrong.sum())):
            continue
        if kind == "infinite" and tensor.is_floating_point() and float(tensor.max()) <= 0:
            continue
        raise InputError(
            f"input {name!r} holds {bad} {kind} of {tensor.numel()} values; wanted numbers"
        )
