"""Operators: one declaration says all that fisopt knows of one.

    @operator("mine::soft_sign", tags=(torch.Tag.pointwise,))
    def soft_sign(x: Tensor, width: float) -> Tensor:
        return x / (x.abs() + width)

The decorated function is the operator's meaning in plain torch: what lowering inlines, what
gradients recompute and what tests compare with.  Operators that torch has are declared by the
same function, without a reference.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, Unpack, get_args, overload

import torch
from torch import Tensor, fx
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload

from fisopt.errors import OptionError, OptionTypeError, shown
from fisopt.rewrite.axes import Axes
from fisopt.rewrite.ops.check import check_example
from fisopt.rewrite.ops.gradient import add_gradient
from fisopt.rewrite.ops.operator import CostClass, Gradient, Operator, declared, register
from fisopt.rewrite.relations.table import Relation, relation_rule

_IMPLEMENTED = ("CPU", "CUDA", "CompositeExplicitAutograd", "CompositeImplicitAutograd")
"""Dispatch keys under which torch has an operator's implementation."""


class Options(TypedDict, total=False):
    """What a declaration may say beside the reference; operands are given by name.

    Attributes:
        axes: the frame axes of a call's result; without it they follow from the relation.
        relation: what becomes of every dimension; without it, and without the tag ``pointwise``,
            the operator is a barrier: it wants whole frames.
        fake: the result on fake tensors, where the implementation cannot run on them.
        example: operands on which fake, implementation and reference are compared; wanted with
            any of the first two.
        implementation: what runs, where that is not the reference.
        planned: the implementation where the values of the operands ``plan`` are known; it takes
            them as lists.
        plan: the operands that ``planned`` reads.
        tags: those of torch.
        moves: the operands whose entries are handed on as they are, perhaps to other places.
        selects: the operand of whose entries some are kept.
        restores: the operand whose entries, of some tokens or frames, are given to all of them.
        attention: whether it is one; its first operands are queries, keys and values.
        opaque: whether it stays one call when a graph is compiled.
        flops: the FLOPs of a call, from its operands.
        traffic: the bytes that a call moves, from its operands, where that is what it takes.
        sends: the bytes that a rank sends to others in a call, from its operands.
        counts_as: the class of the cost model that they belong to; attentions are told apart.
        backward: the gradients of some operands, where ``recompute`` would hold too much: it takes
            their numbers, the gradients of the results, and the operands.
        gradient: ``recompute`` runs the implementation again and differentiates it; ``zero`` is for
            results that do not change with the operands, such as indices; ``missing`` is an error
            when a Program is trained.  Integer operands never have one.
    """

    axes: Callable[[fx.Node], Axes]
    relation: Callable[[fx.Node], Relation]
    fake: Callable[..., Any]
    example: tuple[Any, ...]
    implementation: Callable[..., Any]
    planned: Callable[..., Any]
    plan: tuple[str, ...]
    tags: Sequence[torch.Tag]
    moves: tuple[str, ...]
    selects: str
    restores: str
    attention: bool
    opaque: bool
    flops: Callable[..., float]
    traffic: Callable[..., float]
    sends: Callable[..., float]
    counts_as: CostClass
    backward: Callable[..., list[Tensor]]
    gradient: Gradient


@overload
def operator(
    target: str, **options: Unpack[Options]
) -> Callable[[Callable[..., Any]], Operator]: ...
@overload
def operator(target: OpOverload, **options: Unpack[Options]) -> Operator: ...
def operator(target: str | OpOverload, **options: Unpack[Options]) -> Any:
    """Declare a new operator, as a decorator of its reference, or an operator that torch has.

    Args:
        target: ``"library::name"`` of a new operator, or torch's operator, such as
            ``torch.ops._c10d_functional.all_to_all_single.default``.
        options: see `Options`.

    Returns:
        The `Operator`; for a new operator the decorator that makes it. The reference must follow
        its annotations, must not change an operand and must not return a view of one.

    Raises:
        OptionError: the operator is declared already, has no reference, or its reference,
            implementation and fake disagree on the example.
        OptionTypeError: an option does not exist, or has a wrong type.
    """
    _check_options(target, options)
    if isinstance(target, OpOverload):
        names = [operand.name for operand in target._schema.arguments]
        if "example" in options:
            check_example(str(target), {"implementation": target}, target, options["example"])
        return _register(
            Operator(target, target, target, **_traits(target, names, options)), options
        )

    def declare(reference: Callable[..., Any]) -> Operator:
        _check_reference(target, reference)
        implementation = options.get("implementation", reference)
        traits = _traits(target, list(inspect.signature(reference).parameters), options)
        definition = _define(target, reference, implementation, options)
        new: OpOverload = definition._opoverload
        made = Operator(new, reference, implementation, definition=definition, **traits)
        add_gradient(definition, made.implementation, made.gradient, options.get("backward"))
        return _register(made, options)

    return declare


def _register(made: Operator, options: Options) -> Operator:
    if "relation" in options:
        relation_rule(made.target)(options["relation"])
    return register(made)


def _check_reference(name: str, reference: Any) -> None:
    if not callable(reference) or isinstance(reference, (type, Operator, OpOverload)):
        raise OptionError(
            f"operator {name}: got {shown(reference)} for its reference; wanted a function of "
            "tensors that says in plain torch what the operator computes"
        )


def _define(
    name: str, reference: Callable[..., Any], implementation: Callable[..., Any], options: Options
) -> CustomOpDef:
    """Make a new operator known to torch, once what is declared of it agrees."""
    fake = options.get("fake", implementation)
    if "example" in options:
        functions = {"reference": reference}
        if implementation is not reference:
            functions = {"implementation": implementation, **functions}
        check_example(name, functions, fake, options["example"])
    tags = tuple(options.get("tags", ()))
    try:
        definition = torch.library.custom_op(
            name,
            implementation,
            mutates_args=(),
            schema=_schema(name, reference, options),
            tags=tags,
        )
    except RuntimeError as error:
        raise OptionError(f"operator {name}: {error}") from error
    definition.register_fake(fake)
    return definition


def _schema(name: str, reference: Callable[..., Any], options: Options) -> str:
    """What a reference takes and returns, from its annotations."""
    try:
        schema: str = torch.library.infer_schema(reference, mutates_args=())
    except (ValueError, RuntimeError) as error:
        raise OptionError(f"operator {name}: {error}") from error
    if options.get("gradient", "recompute") == "recompute" and "Tensor[] " in schema:
        raise OptionError(
            f"operator {name} takes lists of tensors, whose gradients are not recomputed; set "
            "gradient='missing', or take the tensors one by one"
        )
    return schema


def _check_options(target: object, options: Options) -> None:
    """Refuse what can be told from the options alone."""
    if unknown := sorted(set(options) - set(Options.__annotations__)):
        raise OptionTypeError(
            f"operator {target}: no option {unknown}; there are {sorted(Options.__annotations__)}"
        )
    if isinstance(target, str):
        library, _, name = target.partition("::")
        if not (library.isidentifier() and name.isidentifier()):
            raise OptionError(f"operator {target!r}: wanted a name such as 'mine::soft_sign'")
        if hasattr(getattr(torch.ops, library), name):
            raise OptionError(f"operator {target} is declared already; choose another name")
        for made in ("fake", "implementation"):
            if made in options and "example" not in options:
                raise OptionError(
                    f"operator {target}: {made}= wants example=, operands on which it is compared "
                    "with the reference"
                )
    elif not isinstance(target, OpOverload):
        raise OptionTypeError(
            f"operator: got {shown(target)}; wanted a new name or an operator of torch with its "
            "overload, such as torch.ops.aten.roll.default"
        )
    elif declared(target) is not None:
        raise OptionError(f"operator {target} is declared already")
    elif not any(
        torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), key)  # type: ignore[no-untyped-call]
        for key in _IMPLEMENTED
    ):
        raise OptionError(
            f"operator {target} has no reference: nothing implements it; give it one, or declare "
            "a new operator over a function"
        )
    for option, values in (("counts_as", CostClass), ("gradient", Gradient)):
        if option in options and options.get(option) not in get_args(values):
            raise OptionError(
                f"operator {target}: {option} is one of {get_args(values)}, "
                f"got {shown(options.get(option))}"
            )


def _traits(target: object, names: list[str], options: Options) -> dict[str, Any]:
    """The options that an `Operator` holds, operands by position."""

    def place(name: str) -> int:
        if name not in names:
            raise OptionError(f"operator {target}: no operand {name!r}; it takes {names}")
        return names.index(name)

    held: dict[str, Any] = {
        key: value
        for key, value in options.items()
        if key not in ("fake", "example", "implementation", "tags", "relation", "backward")
    }
    for key in ("plan", "moves"):
        if key in held:
            held[key] = tuple(place(name) for name in held[key])
    for key in ("selects", "restores"):
        if key in held:
            held[key] = place(held[key])
    return held
