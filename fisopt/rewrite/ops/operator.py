"""A declared operator, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import fx
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload

from fisopt.errors import OptionError
from fisopt.rewrite.axes import Axes

CostClass = Literal[
    "self-attention", "cross-attention", "linear", "convolution", "matching", "other"
]
Gradient = Literal["recompute", "zero", "missing"]


@dataclass(frozen=True, eq=False)
class Operator:
    """A declared operator; a call runs it.

    `fisopt.rewrite.ops.declare.Options` describes the other attributes.

    Attributes:
        target: the overload that graphs call.
        reference: its meaning in plain torch.
        implementation: the function that runs on devices without a kernel.
        plan: positions of the operands that ``planned`` takes as lists.
        moves: positions of operands, as in ``selects`` and ``restores``.
        definition: torch's definition of a new operator; None for an operator that torch has.
    """

    target: OpOverload
    reference: Callable[..., Any]
    implementation: Callable[..., Any]
    axes: Callable[[fx.Node], Axes] | None = None
    planned: Callable[..., Any] | None = None
    plan: tuple[int, ...] = ()
    moves: tuple[int, ...] = ()
    selects: int | None = None
    restores: int | None = None
    attention: bool = False
    opaque: bool = False
    flops: Callable[..., float] | None = None
    traffic: Callable[..., float] | None = None
    sends: Callable[..., float] | None = None
    counts_as: CostClass = "other"
    gradient: Gradient = "recompute"
    definition: CustomOpDef | None = None

    @property
    def name(self) -> str:
        """Its name in its library."""
        return self.target._schema.name.partition("::")[2]

    @property
    def entries(self) -> tuple[int, ...]:
        """Positions of the operands whose entries make up the result."""
        rest = (i for i in (self.selects, self.restores) if i is not None)
        return tuple(dict.fromkeys((*self.moves, *rest)))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""
        return self.target(*args, **kwargs)

    def kernel(self, device: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Attach a kernel for a type of device, such as ``"cuda"``; the kernel takes every operand.

        Raises:
            OptionError: the operator is torch's, which has its kernels.
        """
        if self.definition is None:
            raise OptionError(f"{self.target} is torch's: it has the kernels that torch has")
        return self.definition.register_kernel(device)

    def arguments(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The operands of a call as graphs hold them: by position, except keyword-only ones."""
        known = self.target._schema.arguments
        rest = [operand for operand in known if not operand.kwarg_only][len(args) :]
        named = {operand.name for operand in known if operand.kwarg_only}
        given = (kwargs.get(operand.name, operand.default_value) for operand in rest)
        return (*args, *given), {name: x for name, x in kwargs.items() if name in named}


_OPERATORS: dict[Any, Operator] = {}


def register(made: Operator) -> Operator:
    """Make an operator known."""
    _OPERATORS[made.target] = made
    return made


def declared(target: object) -> Operator | None:
    """The declaration of what a node calls, None if there is none."""
    return _OPERATORS.get(target)


def selected(node: fx.Node) -> fx.Node | None:
    """The operand of whose entries a call keeps some, None if it is not declared to."""
    made = declared(node.target)
    return None if made is None or made.selects is None else node.args[made.selects]  # type: ignore[return-value]


def restored(node: fx.Node) -> fx.Node | None:
    """The operand whose entries a call gives to all others, None if it is not declared to."""
    made = declared(node.target)
    return None if made is None or made.restores is None else node.args[made.restores]  # type: ignore[return-value]


def operators() -> list[Operator]:
    """Every declared operator, in order."""
    return list(_OPERATORS.values())
