"""What a graph is lowered to, beside what its passes say: the precision of its linears."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fisopt.checked import choice

Linear = Literal["model", "fp8", "fp8-simulated"]
LINEARS: tuple[Linear, ...] = get_args(Linear)


@dataclass(frozen=True)
class KernelOptions:
    """Which kernels run what every model has; no pass sees them.

    Attributes:
        linear: "model" multiplies in the precision of the model; "fp8" lets large linears multiply
            in float8 (e4m3), one scale a token and one an output channel, on a GPU that can;
            "fp8-simulated" computes the same numbers on any device, without the speed.
    """

    linear: Linear = "model"

    def __post_init__(self) -> None:
        choice("linear", self.linear, LINEARS)

    @property
    def lowers(self) -> bool:
        """Whether a graph has to be lowered for them, also where nothing compiles it."""
        return self.linear != "model"
