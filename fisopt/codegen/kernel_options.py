"""What a graph is lowered to, beside what its passes say: precision of linears, and attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from fisopt.checked import choice

Linear = Literal["model", "fp8", "fp8-simulated"]
LINEARS: tuple[Linear, ...] = get_args(Linear)
NamedAttention = Literal["sdpa", "cudnn", "flash", "efficient", "fa3", "sage"]
ATTENTIONS: tuple[NamedAttention, ...] = get_args(NamedAttention)
Attention = NamedAttention | Callable[..., Any] | None


@dataclass(frozen=True)
class KernelOptions:
    """Which kernels run what every model has; no pass sees them.  None is what others say.

    Attributes:
        linear: "model", or None, multiplies in the precision of the model; "fp8" lets large linears
            multiply in float8 (e4m3), one scale a token and one an output channel, on a GPU that
            can; "fp8-simulated" computes the same numbers on any device, without the speed.
        attention: None leaves attention to what diffusers was told, "sdpa" to torch; other names
            and functions are what runs it, where they take the operands.
    """

    linear: Linear | None = None
    attention: Attention = None

    def __post_init__(self) -> None:
        if self.linear is not None:
            choice("linear", self.linear, LINEARS)
        if self.attention is not None and not callable(self.attention):
            choice("attention", self.attention, ATTENTIONS)

    @property
    def rounds(self) -> bool:
        """Whether linears are rounded to FP8."""
        return self.linear not in (None, "model")

    @property
    def simulates(self) -> bool:
        """Whether FP8 is computed without the units for it."""
        return self.linear == "fp8-simulated"

    @property
    def unrounded(self) -> KernelOptions:
        """These, with linears in the precision of the model."""
        return replace(self, linear=None)

    @property
    def attends(self) -> bool:
        """Whether something else than torch chooses what attends."""
        return self.attention not in (None, "sdpa")

    def over(self, others: KernelOptions) -> KernelOptions:
        """These, and where they say nothing the others."""
        attention = others.attention if self.attention is None else self.attention
        return KernelOptions(self.linear or others.linear, attention)
