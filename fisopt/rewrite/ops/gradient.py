"""Gradients of declared operators: what it computes, run again and differentiated.

The backward is an operator too, so that a compiled graph keeps it as one call where the forward
is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.utils import _pytree as pytree

Backward = Callable[..., list[Tensor]]
"""Takes the numbers of operands, the gradients of the results, and the operands."""


def add_gradient(
    definition: CustomOpDef,
    implementation: Callable[..., Any],
    kind: str,
    own: Backward | None = None,
) -> None:
    """Give an operator its gradient.

    Args:
        definition: of the operator.
        implementation: what it runs.
        kind: the option ``gradient`` of its declaration.
        own: the option ``backward``; None to differentiate the implementation.
    """
    if kind == "recompute":
        backward = _backward_of(definition, own or _differentiated(implementation))

        def recomputed(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            saved = iter(ctx.saved_tensors)
            args = [next(saved) if held else rest for held, rest in ctx.operands]
            needed = [i for i, wanted in enumerate(ctx.needs_input_grad) if wanted]
            floats = [g for g, differs in zip(grads, ctx.floats, strict=True) if differs]
            made = dict(zip(needed, backward(needed, floats, *args), strict=True))
            return tuple(made.get(i) for i in range(len(args)))

        definition.register_autograd(recomputed, setup_context=_keep)
    elif kind == "zero":
        definition.register_autograd(_nothing, setup_context=_constant)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keep the operands of a call, and which of its results have gradients."""
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.operands = [(isinstance(x, Tensor), None if isinstance(x, Tensor) else x) for x in inputs]
    ctx.floats = [_differs(x) for x in pytree.tree_leaves(output)]


def _constant(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.mark_non_differentiable(*pytree.tree_leaves(output))
    ctx.count = len(inputs)


def _nothing(ctx: Any, *_: Any) -> tuple[None, ...]:
    return (None,) * int(ctx.count)


def _differs(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _differentiated(implementation: Callable[..., Any]) -> Backward:
    """Run an implementation again and differentiate it."""

    def backward(needed: Sequence[int], grads: Sequence[Tensor], *args: Any) -> list[Tensor]:
        def run(*wanted: Tensor) -> tuple[Tensor, ...]:
            given = dict(zip(needed, wanted, strict=True))
            results = implementation(*(given.get(i, x) for i, x in enumerate(args)))
            return tuple(x for x in pytree.tree_leaves(results) if _differs(x))

        _, pull = torch.func.vjp(run, *(args[i] for i in needed))  # type: ignore[misc]
        return [x.clone(memory_format=torch.contiguous_format) for x in pull(tuple(grads))]

    return backward


def _backward_of(definition: CustomOpDef, backward: Backward) -> CustomOpDef:
    """The operator that computes the gradients of some operands from those of the results."""
    schema = definition._opoverload._schema
    operands = str(schema).partition("(")[2].rpartition(") ->")[0]

    def fake(needed: Sequence[int], grads: Sequence[Tensor], *args: Any) -> list[Tensor]:
        return [torch.empty_like(args[i], memory_format=torch.contiguous_format) for i in needed]

    made = torch.library.custom_op(
        f"{schema.name}_backward",
        backward,
        mutates_args=(),
        schema=f"(int[] needed, Tensor[] grads, {operands}) -> Tensor[]",
    )
    made.register_fake(fake)
    return made
