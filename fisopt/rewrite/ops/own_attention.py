"""Attentions of a library of one's own: captured as one, whatever kernel they call.

    %y = mine::flash(%q, %k, %v)                          [B, N, h, D]

    %y = fisopt::attend_by(%q', %k', %v', None, 0.125, 'mine::flash', True)   [B, h, N, D]

Capture writes the second in the place of the first, between two transpositions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket

from fisopt.checked import choice
from fisopt.errors import OptionError, OptionTypeError, shown
from fisopt.rewrite.ops.attend_by import attend_by, name_of
from fisopt.rewrite.ops.operator import declared

Layout = Literal["bhnd", "bnhd"]
_OWN: dict[OpOverload, OwnAttention] = {}


def attention(
    op: OpOverload | OpOverloadPacket | CustomOpDef,
    *,
    layout: Layout = "bhnd",
    scale: str | float | None = None,
    mask: str | None = None,
    plain: Mapping[str, Any] | None = None,
) -> None:
    """Declare an attention operator, so that passes edit it and fisopt counts its cost.

    It computes ``softmax(scale * query @ key.T + mask) @ value``; its first three operands are
    queries, keys and values. Every model captured after the declaration has it as one attention
    node, which calls the operator. A pass that drops tokens or frames calls it on fewer of them. A
    pass with an attention of its own replaces it.

    Args:
        op: the operator: one made by ``torch.library.custom_op``, or ``torch.ops.mine.flash``. It
            must return one tensor and have a fake (``op.register_fake``), as torch.export requires.
        layout: dimensions of queries, keys, values and result: "bhnd" is [batch, heads, tokens,
            features], "bnhd" is [batch, tokens, heads, features].
        scale: name of the scale operand, or a number. None, also as the operand's value, is one
            over the square root of the number of features.
        mask: name of the mask operand, whose values are as in
            `torch.nn.functional.scaled_dot_product_attention`.
        plain: values of the other operands, by name, with which it computes exactly this formula,
            such as ``{"causal": False}``; by default their default values. With other values fisopt
            counts the attention, but no pass cuts or replaces it.

    Raises:
        OptionError: the operator is declared already, has no such operands, or returns something
            else.
        OptionTypeError: ``op`` is not an operator.
    """
    choice("layout", layout, get_args(Layout))
    target = _overload(op)
    own = OwnAttention(target, layout, scale, mask, dict(plain or {}))
    own.check()
    _OWN[target] = own


def own_attentions() -> dict[Any, Callable[..., Any]]:
    """What capture writes in the place of each declared attention, by operator."""
    return {target: own.written for target, own in _OWN.items()}


@dataclass(frozen=True)
class OwnAttention:
    """What was declared, see `attention`."""

    target: OpOverload
    layout: Layout
    scale: str | float | None
    mask: str | None
    plain: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As graphs call it."""
        return str(self.target._schema.name)

    def check(self) -> None:
        """Refuse what cannot be a declaration."""
        schema = self.target._schema
        names = [operand.name for operand in schema.arguments]
        if self.target in _OWN or declared(self.target) is not None:
            raise OptionError(
                f"attention {self.name} is declared already; declare it once in a process"
            )
        three = [str(operand.type) for operand in schema.arguments[:3]]
        if three != ["Tensor"] * 3:
            raise OptionError(
                f"attention {self.name}: its first operands are {schema}; wanted queries, keys and "
                "values, three tensors"
            )
        if [str(result.type) for result in schema.returns] != ["Tensor"]:
            raise OptionError(
                f"attention {self.name} returns {len(schema.returns)} values; wanted one tensor: "
                "wrap it in a torch.library.custom_op that returns the attended values alone"
            )
        said = [n for n in (self.scale, self.mask) if isinstance(n, str)]
        if unknown := [n for n in (*said, *self.plain) if n not in names[3:]]:
            raise OptionError(
                f"attention {self.name}: no operand {unknown}; besides queries, keys and values "
                f"it takes {names[3:]}"
            )

    def written(self, *args: Any, **kwargs: Any) -> Any:
        """The attention as graphs have it, NotImplemented where it stays the operator."""
        operands = self._bound(args, kwargs)
        tensors, rest = list(operands.values())[:3], dict(list(operands.items())[3:])
        mask = rest.pop(self.mask) if self.mask else None
        scale = rest.pop(self.scale) if isinstance(self.scale, str) else self.scale
        query = tensors[0]
        if query.ndim != 4 or any(isinstance(x, Tensor) for x in (scale, *rest.values())):
            return NotImplemented
        usual = self._bound((), self.plain)
        others = {name: x for name, x in rest.items() if x != usual[name]}
        said = f"({', '.join(f'{n}={x!r}' for n, x in others.items())})" if others else ""
        by = _CALLS.setdefault(self.name + said, _Call(self, rest))
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        how = (mask, float(scale), name_of(by, self.name + said), not others)
        return self.turned(attend_by(*map(self.turned, tensors), *how))

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Every operand of a call by name, in order."""
        known = self.target._schema.arguments
        given = dict(zip((operand.name for operand in known), args, strict=False))
        return {x.name: x.default_value for x in known} | given | kwargs

    def turned(self, x: Tensor) -> Tensor:
        """From the operator's layout to that of graphs, or back."""
        return x.transpose(1, 2) if self.layout == "bnhd" else x


@dataclass(frozen=True, eq=False)
class _Call:
    """The operator with all but its tensors bound, as `fisopt.rewrite.ops.attend_by.Attend`."""

    own: OwnAttention
    operands: Mapping[str, Any]

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, scale: float, mask: Tensor | None
    ) -> Tensor:
        own = self.own
        named = dict(self.operands)
        if own.mask:
            named[own.mask] = mask
        if isinstance(own.scale, str):
            named[own.scale] = scale
        turned = (own.turned(x) for x in (query, key, value))
        return own.turned(own.target(*turned, **named))


_CALLS: dict[str, _Call] = {}
"""By name: equal calls are equal operators."""


def _overload(op: Any) -> OpOverload:
    """The operator that is meant."""
    if isinstance(op, CustomOpDef):
        op = op._opoverload
    if isinstance(op, OpOverloadPacket):
        names = op.overloads()  # type: ignore[no-untyped-call]
        if names != ["default"]:
            raise OptionError(f"attention {op}: it has overloads {names}; name one")
        op = op.default
    if not isinstance(op, OpOverload):
        raise OptionTypeError(
            f"attention: got {shown(op)}; wanted an operator of torch, such as what "
            "torch.library.custom_op returns, or torch.ops.mine.flash"
        )
    return op
