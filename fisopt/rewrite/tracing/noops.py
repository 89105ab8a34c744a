"""Operators of a traced model that its graph does not hold: they compute nothing."""

from __future__ import annotations

from typing import Any

import torch

aten = torch.ops.aten
_NO_END = 1 << 62

DROPPED = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten.sym_constrain_range_for_size.default,
    aten.sym_constrain_range.default,
    aten._assert_async.msg,
}
"""What only checks."""
FRESH = {aten.lift_fresh.default, aten.lift_fresh_copy.default}
"""What a tensor goes through that was made of numbers."""
RENAMED: dict[Any, Any] = {
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
}
"""Operators that are written as a more general one."""


def is_noop(
    target: Any, operand: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Whether a functional op returns its first operand's values and type unchanged."""
    if target is aten.alias.default or target in FRESH:
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


def written(target: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The operands of an operator as a graph says them: bounds of a slice that cut nothing are not.

    Args:
        target: the operator.
        args: its operands, nodes in the place of tensors.
    """
    if target is not aten.slice.Tensor:
        return args
    operand, *said = args
    unsaid: tuple[Any, ...] = (0, None, None, 1)
    dim, start, end, step = (*said, *unsaid[len(said) :])
    end = end if end is None or end < _NO_END else None
    count = 5 if step != 1 else 4 if end is not None else 3
    return (operand, dim, start or None, end, step)[:count]
