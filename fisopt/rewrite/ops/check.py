"""What a declaration says must agree: reference, implementation and fake, on an example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fisopt.errors import OptionError


def check_example(
    name: str,
    functions: Mapping[str, Callable[..., Any]],
    fake: Callable[..., Any],
    example: tuple[Any, ...],
) -> None:
    """Compare what the functions of a declaration make of some operands.

    Args:
        name: the operator.
        functions: what runs, by what it is; the first one is compared with the fake.
        fake: runs on tensors without values; here on the meta device: a fake mode loads compilers.
        example: the operands.

    Raises:
        OptionError: one of them fails or returns a view of an operand, or they differ in number,
            shape or dtype; the fake in memory layout, another in values.
    """

    def run(what: str, function: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
        try:
            results = pytree.tree_leaves(function(*args))
        except Exception as error:
            raise OptionError(
                f"operator {name}: its {what} fails on the example: {type(error).__name__}: {error}"
            ) from error
        if any(not isinstance(x, Tensor) for x in results):
            raise OptionError(f"operator {name}: its {what} returns {results}; wanted tensors")
        return results

    with torch.no_grad():
        (first, got), *others = (
            (what, run(what, function, example)) for what, function in functions.items()
        )
        told = run("fake", fake, pytree.tree_map_only(Tensor, lambda x: x.to("meta"), example))
    held = {
        x.untyped_storage()._cdata for x in pytree.tree_leaves(example) if isinstance(x, Tensor)
    }
    if any(x.untyped_storage()._cdata in held for x in got):
        raise OptionError(f"operator {name}: its {first} returns a view of an operand; clone it")
    _compare(name, ("fake", first), [*map(_layout, told)], [*map(_layout, got)])
    for what, values in others:
        _compare(name, (what, first), [*map(_form, values)], [*map(_form, got)])
        for i, (a, b) in enumerate(zip(values, got, strict=True)):
            if not torch.allclose(a, b, rtol=1e-4, atol=1e-4, equal_nan=True):
                raise OptionError(
                    f"operator {name}: result {i} of its {what} and of its {first} differ by "
                    f"{float((a.double() - b.double()).abs().max()):.3g} on the example"
                )


def _compare(name: str, who: tuple[str, str], told: list[Any], got: list[Any]) -> None:
    if told != got:
        raise OptionError(
            f"operator {name}: on the example its {who[0]} gives {told}, its {who[1]} {got}"
        )


def _form(x: Tensor) -> tuple[Any, ...]:
    return (tuple(x.shape), x.dtype)


def _layout(x: Tensor) -> tuple[Any, ...]:
    return (*_form(x), x.stride())
